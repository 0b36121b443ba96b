"""The plan of an alignment: bytes, operations and seconds of every stage, from configs alone."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from atlas_jax.models import ModelConfig
from atlas_jax.pipeline._abstract import abstract_decoder, abstract_sae, device_bytes
from atlas_jax.pipeline._devices import REACHED, USABLE, Device
from atlas_jax.pipeline._run_files import AlignSettings
from atlas_jax.sae import SAEConfig
from atlas_jax.statistics import PassStatistics, layout
from atlas_jax.table import Column, Table
from atlas_jax.translators import METHODS, needs_of
from atlas_jax.types import Site

MEAN_TOKENS = 30  # of a sentence, where the text is not known
SHORTEST = 16  # tokens to which most of the shorter sentences are padded
PADDING = 1.3  # padded tokens for each that counts
STEPS = 15  # of the polar factor's iteration and its certificate
GiB = 2**30


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
    """A stage: what it holds on each device at most, what it computes, and for how long."""

    name: str
    peak: int
    operations: float
    seconds: float


class Plan(NamedTuple):
    """What an alignment would hold and take.

    Attributes:
      setup: what it is of.
      held: bytes on each device by what they are.
      stages: in their order.
      change: what would make it fit, in words; None where it fits or nothing does.

    Example:
      >>> from atlas_jax import AlignSettings, LanguageModel, ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import Setup, known_device, plan_alignment
      >>> subject, atlas = LanguageModel.from_pretrained(SUBJECT), ConceptAtlas.from_pretrained(ATLAS)
      >>> settings = AlignSettings(("mlp_act.1",), ("procrustes",))
      >>> parts = subject.config, atlas.model.config, atlas.sae.config, atlas.site
      >>> plan_alignment(Setup(*parts, settings, (20000, 10000), known_device("h100"))).fits
      True
    """

    setup: Setup
    held: Mapping[str, int]
    stages: tuple[Stage, ...]
    change: str | None = None

    @property
    def peak(self) -> int:
        """Bytes on each device at most."""
        return max(stage.peak for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def room(self) -> float:
        """Bytes of a device that arrays can have; simulated devices share those of the host."""
        shared = self.setup.devices if self.setup.device.name == "cpu" else 1
        return self.setup.device.memory * USABLE / shared

    @property
    def fits(self) -> bool:
        """Whether every stage has room."""
        return self.peak <= self.room

    def line(self) -> str:
        """Say it in one line."""
        where = f"{self.setup.devices} x {self.setup.device.name}"
        said = f"about {_time(self.seconds)} and {self.peak / GiB:.1f} GiB a device on {where}"
        if self.fits:
            return said
        advice = f"; it would fit with {self.change}" if self.change else ""
        return f"{said}, which has {self.room / GiB:.1f} GiB to give{advice}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "device": self.setup.device._asdict(), "devices": self.setup.devices, "passes": self.setup.passes,
            "held": dict(self.held), "stages": [s._asdict() for s in self.stages], "peak": self.peak,
            "room": self.room, "seconds": self.seconds, "fits": self.fits, "change": self.change,
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """Tabulate what is held and the stages."""
        held = [(name, size / GiB) for name, size in self.held.items()]
        columns = Column("stage"), Column("peak", ".2f", " GiB"), Column("operations", ".1e"), Column("time")
        stages = [(s.name, s.peak / GiB, s.operations, _time(s.seconds)) for s in self.stages]
        caption = "rates are those stated for the device, of which six tenths are reached; compiling is not counted"
        return [
            Table("Held on each device", (Column("what"), Column("size", ".2f", " GiB")), held, self.line()),
            Table("Stages", columns, stages, caption),
        ]


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def plan_alignment(setup: Setup) -> Plan:
    """Compute the plan of an alignment, and what would make it fit where it does not.

    Bytes of parameters and statistics are exact; those of a batch and of a solve are what XLA's programs were found
    to need. Times are operations and traffic over the rates of the device.

    Example:
      See :class:`Plan`.
    """
    plan = _plan(setup)
    return plan if plan.fits else plan._replace(change=_change(setup))


def _plan(setup: Setup) -> Plan:
    held, matrices = _held(setup)
    fixed = sum(held.values())
    batch, forward = _batch_bytes(setup)
    rows = _rows(setup)
    step = matrices + 24 * rows * _columns(setup)
    held |= {"a batch through a model": forward, "a batch into the statistics": step}
    n_fit, n_eval = setup.sentences
    passes = setup.passes
    stages = [_stage(setup, "read the fit half", fixed + batch + max(forward, step), *_pass(setup, n_fit), passes)]
    methods = setup.settings.methods
    if any(METHODS[m].second_pass for m in methods):
        wanted = min(n_fit, sum(_widths(setup).values()) * setup.settings.top_k)
        lens = 4 * sum(_widths(setup).values()) * setup.sae.d_sae // setup.devices
        work = wanted * MEAN_TOKENS * PADDING * _atlas_work(setup)
        stages.append(_stage(setup, "second pass", fixed + lens + batch + forward, work, 0.0, passes))
    stages.append(_solve(setup, fixed))
    work, traffic = _pass(setup, n_eval, reading=True)
    stages.append(_stage(setup, "measure on the eval half", fixed + batch + forward, work, traffic, 1))
    return Plan(setup, held, tuple(stages))


def _held(setup: Setup) -> tuple[dict[str, int], int]:
    """Bytes of parameters and statistics on each device, and of the matrices that a batch adds."""
    settings, mesh = setup.settings, setup.mesh
    models = {"subject's parameters": setup.subject, "parameters of the atlas's model": setup.foundation}
    held = {name: _parameter_bytes(config, settings.dtype, mesh) for name, config in models.items()}
    held["SAE's parameters"] = device_bytes(abstract_sae(setup.sae, mesh))
    further = {settings.steer_pooling: settings.steer_methods} if settings.steer_pooling else {}
    added = 0
    for pooling, methods in {settings.pooling: settings.methods, **further}.items():
        for site, width in _widths(setup).items():
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
    state = jax.eval_shape(lambda: PassStatistics.init(needs, {"": d_s}, d_c))
    if mesh is not None:
        place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        state = jax.tree.map(place, state, layout(state, mesh))
    return device_bytes((state.sums.subjects, state.sums.crosses)), device_bytes(state.sums.atlas)


def _widths(setup: Setup) -> dict[Site, int]:
    return {site: setup.subject.width(site) for site in setup.sites}


def _columns(setup: Setup) -> int:
    """Features of a sentence on both sides, of one device."""
    data = setup.devices // setup.model_parallel
    return setup.sae.d_sae // setup.model_parallel + sum(_widths(setup).values()) // data


def _rows(setup: Setup) -> int:
    """Sentences of the largest batch."""
    shortest = min(SHORTEST, setup.settings.max_length)
    return setup.settings.token_budget // shortest * (setup.devices // setup.model_parallel)


def _batch_bytes(setup: Setup) -> tuple[int, int]:
    """Bytes of the pooled rows of a batch, and what the larger of the two forward passes needs beside them."""
    tokens, dtype, m = setup.settings.token_budget, jnp.dtype(setup.settings.dtype).itemsize, setup.model_parallel
    pooled = 4 * (tokens // SHORTEST) * _columns(setup)
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
    scores = 8 * tokens * longest * c.num_heads // m
    return residual + max(mlp, heads + scores)


def _pass(setup: Setup, sentences: int, *, reading: bool = False) -> tuple[float, float]:
    """Operations of a pass, in those of float32, and bytes of traffic, on one device."""
    tokens = sentences * MEAN_TOKENS * PADDING
    last = 1 + max(site.layer for site in map(Site.parse, setup.settings.sites))
    work = tokens * (_model_work(setup, setup.subject, last) + _atlas_work(setup))
    matrices, traffic = _held(setup)[1] / 4 * setup.devices, 0.0
    if not reading:
        work += 2.0 * sentences * matrices
        steps = tokens / setup.settings.token_budget / (setup.devices // setup.model_parallel)
        traffic = steps * 24.0 * matrices / setup.devices
    return work / setup.devices, traffic


def _model_work(setup: Setup, c: ModelConfig, layers: int) -> float:
    """Operations of a token, counted at the rate of float32."""
    kv, q = 2 * c.num_kv_heads * c.head_dim, c.num_heads * c.head_dim
    weights = c.hidden_size * (2 * q + kv + (3 if c.gated else 2) * c.intermediate_size)
    length = min(setup.settings.max_length, 2 * MEAN_TOKENS)
    work = layers * (2.0 * weights + 4.0 * length * q)
    faster = setup.device.bfloat16 / setup.device.float32 if setup.settings.dtype == "bfloat16" else 1.0
    return work / faster


def _atlas_work(setup: Setup) -> float:
    return _model_work(setup, setup.foundation, setup.site.layer + 1) + 2.0 * setup.sae.d_in * setup.sae.d_sae


def _stage(setup: Setup, name: str, peak: int, work: float, traffic: float, times: int) -> Stage:
    seconds = max(work / (setup.device.float32 * REACHED), traffic / setup.device.traffic)
    return Stage(name, peak, work * times * setup.devices, seconds * times)


def _solve(setup: Setup, fixed: int) -> Stage:
    """The largest and the whole of the solves: on one device, or on the host, in float64."""
    q, peak, work = setup.sae.d_sae, 0, 0.0
    every = [(m, d) for m in setup.settings.methods for d in (setup.subject.width(s) for s in setup.sites)]
    for method, d_s in every:
        size, operations = _solve_cost(method, d_s, q)
        peak, work = max(peak, size), work + operations
    kept = 4 * len(every) * max(d for _, d in every) * q // setup.devices
    rate = setup.device.float64 or 5e11
    return Stage("solve", fixed + peak + kept, work, work / (rate * REACHED))


def _solve_cost(method: str, d_s: int, d_c: int) -> tuple[int, float]:
    """Bytes and operations of solving a method at a site."""
    p, q, cross = min(d_s, d_c), max(d_s, d_c), d_s * d_c
    if method in ("procrustes", "procrustes_exact"):
        more = 8 * d_c * d_c if method == "procrustes_exact" else 0
        return 8 * (3 * cross + 3 * p * p) + more, STEPS * (4.0 * p * p * q + 2.0 * p**3) + 8.0 * p * p * q
    if method in ("least_squares", "ridge"):
        return 8 * (4 * d_c * d_c + 2 * cross), 10.0 * d_c**3 + 2.0 * d_s * d_c**2
    if method == "whitened":
        return 8 * (4 * d_s * d_s + 2 * cross), 10.0 * d_s**3 + 2.0 * d_c * d_s**2
    return 8 * cross, 4.0 * cross


def _change(setup: Setup) -> str | None:
    """The fewest changes, and of these the quickest, that make an alignment fit."""
    changes = list(_changes(setup))
    for count in (1, 2, 3):
        found = []
        for several in itertools.combinations(changes, count):
            if len({name for name, *_ in several}) == count:
                changed = setup
                for _, _, apply in several:
                    changed = apply(changed)
                plan = _plan(changed)
                if plan.fits:
                    found.append((plan.seconds, " and ".join(words for _, words, _ in several)))
        if found:
            return min(found)[1]
    return None


def _changes(setup: Setup) -> Iterator[tuple[str, str, Any]]:
    """Every single change: what it is of, in words, and as a function."""
    settings = lambda **new: lambda s: dataclasses.replace(s, settings=dataclasses.replace(s.settings, **new))
    if setup.settings.dtype == "float32":
        yield "dtype", "--dtype bfloat16", settings(dtype="bfloat16")
    for budget in (2048, 1024, 512):
        if budget < setup.settings.token_budget:
            yield "budget", f"--token-budget {budget}", settings(token_budget=budget)
    for share in (2, 4, 8):
        if setup.devices % share == 0 and share > setup.model_parallel:
            words, apply = f"--model-parallel {share}", lambda s, n=share: dataclasses.replace(s, model_parallel=n)
            yield "model", words, apply
    for at_once in sorted({math.ceil(len(setup.sites) / k) for k in range(2, len(setup.sites) + 1)}, reverse=True):
        passes = math.ceil(len(setup.sites) / at_once)
        words = f"{at_once} site{'s'[: at_once > 1]} at once, in {passes} runs"
        yield "sites", words, lambda s, n=at_once: dataclasses.replace(s, at_once=n)
    if "least_squares" in setup.settings.methods and len(setup.settings.methods) > 1:
        rest = tuple(m for m in setup.settings.methods if m != "least_squares")
        yield "methods", "the --method options without least_squares", settings(methods=rest)
