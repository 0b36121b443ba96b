"""What every stage of an alignment holds and takes, from shapes."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from atlas_jax.models import ATTENTION_CHUNK, ModelConfig
from atlas_jax.pipeline._abstract import abstract_decoder, abstract_sae, abstract_state, device_bytes
from atlas_jax.pipeline._devices import REACHED, Device, known_device
from atlas_jax.pipeline._run_files import AlignSettings
from atlas_jax.sae import SAEConfig
from atlas_jax.statistics import PassStatistics
from atlas_jax.translators import needs_of
from atlas_jax.types import Site

MEAN_TOKENS = 30  # of a sentence, where the text is not known
SHORTEST = 16  # tokens to which most of the shorter sentences are padded
PADDING = 1.3  # padded tokens for each that counts
PROCESS = 200 * 2**20  # bytes of programs, text and what an allocator keeps, in the memory that a CPU's arrays share
STEPS = 15  # of the polar factor's iteration and its certificate


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a plan is of.

    Attributes:
      subject: config of the subject.
      foundation: config of the atlas's model.
      sae: config of its SAE.
      site: where it reads.
      settings: of the alignment.
      sentences: in both halves of the corpus.
      device: the kind of device.
      devices: how many there are.
      model_parallel: how many of them share each model.
      at_once: sites of one pass, all where None.
      host_statistics: whether statistics are held, and solved, in the memory of the host.

    Example:
      >>> from atlas_jax import AlignSettings
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import known_device, read_setup
      >>> settings = AlignSettings(("mlp_act.1",), ("covariance",))
      >>> read_setup(SUBJECT, ATLAS, settings, (200, 100), known_device("h100"), devices=8).mesh.shape["data"]
      8
    """

    subject: ModelConfig
    foundation: ModelConfig
    sae: SAEConfig
    site: Site
    settings: AlignSettings
    sentences: tuple[int, int]
    device: Device
    devices: int = 1
    model_parallel: int = 1
    at_once: int | None = None
    host_statistics: bool = False

    @property
    def mesh(self) -> AbstractMesh | None:
        """The mesh of its devices, which need not be there."""
        if self.devices == 1:
            return None
        return AbstractMesh((self.devices // self.model_parallel, self.model_parallel), ("data", "model"))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the first pass."""
        return tuple(map(Site.parse, self.settings.sites))[: self.at_once]

    @property
    def passes(self) -> int:
        """How many passes read all sites."""
        return math.ceil(len(self.settings.sites) / len(self.sites))


class Stage(NamedTuple):
    """A stage: what it holds on each device at most, what it computes, and for how long.

    Attributes:
      name: of the stage.
      peak: bytes on each device at most.
      operations: of all devices, in those of float32.
      seconds: it takes.

    Example:
      >>> from atlas_jax.pipeline import Stage
      >>> Stage("solve", 2**30, 1e12, 0.5).peak // 2**20
      1024
    """

    name: str
    peak: int
    operations: float
    seconds: float


def parameter_bytes(setup: Setup) -> dict[str, int]:
    """Bytes of parameters on each device."""
    settings, mesh = setup.settings, setup.mesh
    models = {"subject's parameters": setup.subject, "parameters of the atlas's model": setup.foundation}
    held = {name: _parameter_bytes(config, settings.dtype, mesh) for name, config in models.items()}
    return held | {"SAE's parameters": device_bytes(abstract_sae(setup.sae, mesh))}


def process_bytes(setup: Setup) -> int:
    """Bytes of all but arrays, where these share the memory of the process: a part for each simulated device."""
    return PROCESS // setup.devices if setup.device.name == "cpu" else 0


def statistics_bytes(setup: Setup) -> tuple[dict[str, int], int]:
    """Bytes of the statistics of one pass where they are held, and of the matrices that a batch adds."""
    settings, mesh, held = setup.settings, setup.mesh, {}
    further = {settings.steer_pooling: settings.steer_methods} if settings.steer_pooling else {}
    added = 0
    for pooling, methods in {settings.pooling: settings.methods, **further}.items():
        for site, width in widths_of(setup).items():
            of_site, of_atlas = _state_bytes(width, setup.sae.d_sae, needs_of(methods), mesh)
            held[f"statistics of {site}, {pooling}-pooled"] = 2 * of_site  # the sums, and their rounding errors
            added += of_site
        held[f"statistics of the atlas beside {pooling}"] = 2 * of_atlas
        added += of_atlas
    return held, added


@functools.cache
def _parameter_bytes(config: ModelConfig, dtype: str, mesh: AbstractMesh | None) -> int:
    return device_bytes(abstract_decoder(config, dtype, mesh))


@functools.cache
def _state_bytes(d_s: int, d_c: int, needs: frozenset[str], mesh: AbstractMesh | None) -> tuple[int, int]:
    """Bytes of the sums of a site, and of the atlas's own."""
    state = abstract_state(lambda: PassStatistics.init(needs, {"": d_s}, d_c), mesh)
    return device_bytes((state.sums.subjects, state.sums.crosses)), device_bytes(state.sums.atlas)


def widths_of(setup: Setup) -> dict[Site, int]:
    return {site: setup.subject.width(site) for site in setup.sites}


def columns_of(setup: Setup) -> int:
    """Features of a sentence on both sides, of one device."""
    data = setup.devices // setup.model_parallel
    return setup.sae.d_sae // setup.model_parallel + sum(widths_of(setup).values()) // data


def rows_of(setup: Setup) -> int:
    """Sentences of the largest batch."""
    shortest = min(SHORTEST, setup.settings.max_length)
    return setup.settings.token_budget // shortest * (setup.devices // setup.model_parallel)


def batch_bytes(setup: Setup) -> tuple[int, int]:
    """Bytes of the pooled rows of a batch, and what the larger of the two forward passes needs beside them."""
    tokens, dtype, m = setup.settings.token_budget, jnp.dtype(setup.settings.dtype).itemsize, setup.model_parallel
    pooled = 4 * (tokens // SHORTEST) * columns_of(setup)
    subject, foundation = (_forward_bytes(setup, c, dtype) for c in (setup.subject, setup.foundation))
    features = 8 * tokens * setup.sae.d_sae // m
    return pooled, max(subject, foundation, features + 4 * tokens * setup.foundation.hidden_size)


def _forward_bytes(setup: Setup, c: ModelConfig, dtype: int) -> int:
    """What one block of a model needs: gate and up in float32 and as they are kept, or the attention scores."""
    tokens, m = setup.settings.token_budget, setup.model_parallel
    longest = min(setup.settings.max_length, c.max_positions)
    residual = (4 + 2 * dtype) * tokens * c.hidden_size
    mlp = (12 if c.gated else 8) * tokens * c.intermediate_size // m + dtype * tokens * c.intermediate_size // m
    heads = tokens * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim // m * (4 + dtype)
    scores = 8 * (tokens // longest) * min(longest, ATTENTION_CHUNK) * longest * c.num_heads // m
    return residual + max(mlp, heads + scores)


def work_of_pass(setup: Setup, sentences: int, *, reading: bool = False) -> tuple[float, float]:
    """Operations of a pass, in those of float32, and bytes of traffic, on one device."""
    tokens = sentences * MEAN_TOKENS * PADDING
    last = 1 + max(site.layer for site in map(Site.parse, setup.settings.sites))
    work = tokens * (_model_work(setup, setup.subject, last) + work_of_atlas(setup))
    work, traffic = work / setup.devices, 0.0
    if not (reading or setup.host_statistics):
        of_statistics, traffic = work_of_statistics(setup, sentences)
        work += of_statistics
    return work, traffic


def work_of_statistics(setup: Setup, sentences: int) -> tuple[float, float]:
    """Operations and bytes of traffic of adding sentences to the statistics, where they are held."""
    matrices = statistics_bytes(setup)[1] / 4
    steps = sentences * MEAN_TOKENS * PADDING / setup.settings.token_budget / (setup.devices // setup.model_parallel)
    return 2.0 * sentences * matrices, steps * 24.0 * matrices


def _model_work(setup: Setup, c: ModelConfig, layers: int) -> float:
    """Operations of a token, counted at the rate of float32."""
    kv, q = 2 * c.num_kv_heads * c.head_dim, c.num_heads * c.head_dim
    weights = c.hidden_size * (2 * q + kv + (3 if c.gated else 2) * c.intermediate_size)
    length = min(setup.settings.max_length, 2 * MEAN_TOKENS)
    work = layers * (2.0 * weights + 4.0 * length * q)
    faster = setup.device.bfloat16 / setup.device.float32 if setup.settings.dtype == "bfloat16" else 1.0
    return work / faster


def work_of_atlas(setup: Setup) -> float:
    return _model_work(setup, setup.foundation, setup.site.layer + 1) + 2.0 * setup.sae.d_in * setup.sae.d_sae


def stage_of(setup: Setup, name: str, peak: int, work: float, traffic: float, times: int) -> Stage:
    return Stage(name, peak, work * times * setup.devices, _seconds(setup.device, work, traffic) * times)


def _seconds(device: Device, work: float, traffic: float) -> float:
    return max(work / (device.float32 * REACHED), traffic / device.traffic)


def on_host(setup: Setup, sentences: int, peak: int) -> Stage:
    """Adding to statistics in the memory of this host, beside ``peak`` bytes on the device."""
    work, traffic = work_of_statistics(setup, sentences)
    seconds = _seconds(known_device("cpu"), work, traffic) * setup.passes
    return Stage("add on the host", peak, work * setup.passes, seconds)


def solving(setup: Setup) -> Stage:
    """The largest of the solves of a pass, and the whole of all: on one device, or on the host, in float64.

    Its peak is what it takes beside parameters and statistics.
    """
    q, peak, work = setup.sae.d_sae, 0, 0.0
    every = [(m, d) for m in setup.settings.methods for d in (setup.subject.width(s) for s in setup.sites)]
    for method, d_s in every:
        size, operations = _solve_cost(method, d_s, q)
        peak, work = max(peak, size), work + operations
    kept = 4 * len(every) * max(d for _, d in every) * q // setup.devices
    rate = (known_device("cpu").float64 if setup.host_statistics else setup.device.float64) or 5e11
    work *= setup.passes
    return Stage("solve", peak + kept, work, work / (rate * REACHED))


def _solve_cost(method: str, d_s: int, d_c: int) -> tuple[int, float]:
    """Bytes and operations of solving a method at a site."""
    p, q, cross = min(d_s, d_c), max(d_s, d_c), d_s * d_c
    if method in ("procrustes", "procrustes_exact"):
        more = 8 * d_c * d_c if method == "procrustes_exact" else 0
        return 8 * (5 * cross + 3 * p * p) + more, STEPS * (4.0 * p * p * q + 2.0 * p**3) + 8.0 * p * p * q
    if method in ("least_squares", "ridge", "whitened_lens"):
        return 8 * (4 * d_c * d_c + 2 * cross), 10.0 * d_c**3 + 2.0 * d_s * d_c**2
    if method == "whitened":
        return 8 * (4 * d_s * d_s + 2 * cross), 10.0 * d_s**3 + 2.0 * d_c * d_s**2
    return 8 * cross, 4.0 * cross
