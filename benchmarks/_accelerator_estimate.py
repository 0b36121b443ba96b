"""What every part of ``accelerator.py`` should take on an H200 and hold there, from operations, bytes and shapes.

Seconds are those to start a process, a guess of what compiles, and the arithmetic and traffic at stated rates, of which
models and statistics are taken to reach a stated share. Bytes are those of the arguments, from their shapes, and the
temporaries that XLA on a CPU plans for the same programs with float32 models, which are larger than bfloat16 ones.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from _accelerator_inputs import SIZES, abstract_in, batches, nothing_fitted, subject
from _accelerator_jax import encode_batch
from _accelerator_torch import SENTENCES as PEER_SENTENCES
from _common import machine
from jax.sharding import NamedSharding, PartitionSpec as P
from throughput import H200, atlas_of

from atlas_jax.pipeline._fit import _lens_step, fit_step
from atlas_jax.sharding import make_mesh
from atlas_jax.statistics import NormSums, lens_init
from atlas_jax.translators import _polar_express

RATES = H200 | {"float64": 60e12, "tf32": 400e12, "bytes": 4.3e12}  # a second
REACHED = 0.6  # share of them
START = 8.0  # seconds until a process has imported everything and holds the device
LAYER = 0.6  # seconds to compile one layer of a forward pass
PEER_TOKENS = 10_000.0  # a second, of transformers with hooks
PEER_STEP = 0.03  # seconds of transformers for one token of every row
SVD_SECONDS = 2.0  # of torch at the size it is asked for


def size_of(tree: Any) -> int:
    """Bytes of a pytree of arrays or shapes."""
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def temporaries(function: Callable, *arguments: Any, **options: Any) -> int:
    """Bytes that a compiled program needs beside arguments and what it returns in their place."""
    memory = function.lower(*arguments, **options).compile().memory_analysis()
    return memory.temp_size_in_bytes + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)


class Costs:
    """Shapes of one size, and what follows from them."""

    def __init__(self, size: str):
        self.size, self.sizes = size, SIZES[size]
        self.subject = subject(size, abstract_in("float32"))
        self.atlas = atlas_of(size, abstract_in("float32"))
        self.tokens, self.real = batches(size, self.sizes["sentences"], 300)
        self.padded = sum(t.ids.size for t in self.tokens)
        self.state = jax.eval_shape(lambda: nothing_fitted(self.subject.widths, self.atlas.width, self.sizes["top_k"]))
        self.d_s, self.d_c = next(iter(self.subject.widths.values())), self.atlas.width
        self.shapes = len({t.ids.shape for t in self.tokens})

    def forward(self) -> dict[str, float]:
        """Operations a padded token, by dtype: of the subject up to its last site."""
        layers = self.subject.model.decoder.layers
        return {"bfloat16": 2.0 * sum(x.size for x in jax.tree.leaves(layers))}

    def encode(self) -> dict[str, float]:
        """Of the atlas up to its site, and of the SAE's encoder."""
        layers = self.atlas.model.decoder.layers[: self.atlas.site.layer + 1]
        return {
            "bfloat16": 2.0 * sum(x.size for x in jax.tree.leaves(list(layers))),
            "float32": 2.0 * self.atlas.sae.W_enc.size,
        }

    def update(self, sites: int) -> dict[str, float]:
        """Operations of a row of a batch, and bytes of a whole batch, of adding to the statistics."""
        crosses, gram = 2 * sites * self.d_s * self.d_c, self.d_c**2
        return {"float32": 2.0 * (crosses + gram), "bytes": 24.0 * (crosses + gram)}

    def bfloat16_bytes(self, space: Any) -> int:
        """A model in bfloat16, and its SAE."""
        return size_of(space.model) // 2 + size_of(getattr(space, "sae", ()))

    def reading(self) -> int:
        """Temporaries of reading a batch, the largest over the shapes."""
        batch = max(self.tokens, key=lambda t: t.ids.size)
        return temporaries(encode_batch, self.subject, batch)

    def adding(self) -> int:
        """Temporaries of adding a batch of all sites."""
        rows = max(len(t.index) for t in self.tokens)
        row = lambda d: jax.ShapeDtypeStruct((rows, d), jnp.float32)
        acts, index = {site: row(d) for site, d in self.subject.widths.items()}, jax.ShapeDtypeStruct((rows,), "int32")
        sums = jax.ShapeDtypeStruct((rows,), jnp.float32)
        norms = NormSums(dict.fromkeys(acts, sums), sums)
        return temporaries(fit_step, self.state, acts, {}, row(self.d_c), norms, index, mesh=None)

    def looking(self) -> tuple[int, int]:
        """Bytes of SemanticLens' sums at all sites, and temporaries of adding a batch to them."""
        rows = max(len(t.index) for t in self.tokens)
        tops = {site: self.state.statistics.statistics(site).top for site in self.subject.sites}
        lenses = jax.eval_shape(lambda t: {site: lens_init(top, self.d_c) for site, top in t.items()}, tops)
        a_c, index = jax.ShapeDtypeStruct((rows, self.d_c), jnp.float32), jax.ShapeDtypeStruct((rows,), "int32")
        return size_of(lenses), temporaries(_lens_step, lenses, a_c, index, mesh=None)

    def polar(self) -> tuple[dict[str, float], int]:
        """Operations of one polar factor with its certificate, and bytes of the matrix, the factor and temporaries."""
        p, q = self.sizes["polar"]
        steps = len(_polar_express.schedule(_polar_express.REACH)) + 2
        iteration = steps * (4.0 * p * p * q + 2.0 * p**3)
        certificate = 8.0 * p * p * q + (2.0 + 2 + 4 + 4 / 3) * p**3
        with jax.enable_x64(True):
            m = jax.ShapeDtypeStruct((p, q), "float64", sharding=_whole())
            t, abc = jax.ShapeDtypeStruct((p, q), "float32"), jax.ShapeDtypeStruct((steps - 2, 3), "float64")
            most = max(
                temporaries(_polar_express._factor, m, abc, _whole()),
                temporaries(_polar_express._products, m, t, jnp.dtype("float64")) + 8 * p * p,
            )
        return {"float64": iteration + certificate}, 8 * p * q * 2 + 4 * p * q + most


def _whole() -> NamedSharding:
    return NamedSharding(make_mesh(), P())


def work(*parts: tuple[float, dict[str, float]]) -> dict[str, float]:
    """Operations by dtype, and bytes, of so many of each."""
    total: dict[str, float] = {}
    for times, costs in parts:
        for name, amount in costs.items():
            total[name] = total.get(name, 0.0) + times * amount
    return total


def part(costs: dict[str, float], compiled: float, held: float, other: float = 0.0) -> dict[str, Any]:
    """The record of a part: seconds are of starting, compiling, computing, and of others' programs."""
    computing = sum(amount / RATES[name] for name, amount in costs.items()) / REACHED
    seconds = {"starting": START, "compiling": compiled, "computing": computing, "others": other}
    return {"seconds": sum(seconds.values()), "seconds_of": seconds, "work": costs, "peak_bytes": float(held)}


def estimate(size: str) -> dict[str, Any]:
    """Seconds and bytes of every part, and of all."""
    c, s = Costs(size), SIZES[size]
    n = s["matmul"] ** 3 * 2.0
    layers, share = c.subject.model.config.num_layers, s["joint_sentences"] / s["sentences"]
    adding, reading, (lens, looking) = c.adding(), c.reading(), c.looking()
    subject_bytes, atlas_bytes, state = c.bfloat16_bytes(c.subject), c.bfloat16_bytes(c.atlas), size_of(c.state)
    rows, polar, polar_bytes = sum(len(t.index) for t in c.tokens), *c.polar()
    traffic, per_row = c.update(5)["bytes"] * len(c.tokens), {"float32": c.update(5)["float32"]}
    one, least = c.update(1), {"float64": 10.0 * c.d_c**3 + 8.0 * c.d_c**2 * c.d_s}
    one_site = size_of(c.state) / len(c.subject.sites)
    decode = {"bfloat16": 7.0 * s["prompts"] * s["new"] * c.forward()["bfloat16"], "bytes": s["new"] * subject_bytes}
    tokens = c.real / s["sentences"] * PEER_SENTENCES[size]
    read = LAYER * (c.atlas.site.layer + 1) * c.shapes
    parts = {
        "parity": part({}, 15, 1e9),
        "ceilings": part({"bfloat16": 72 * n, "float32": 216 * n, "tf32": 72 * n, "float64": 36 * n}, 12, 9e9),
        "compile": part({}, LAYER * layers, reading),
        "extraction": part(
            work((3 * c.padded, c.forward()), (rows, per_row), (1, {"bytes": traffic})),
            LAYER * layers * (c.shapes - 1) + 6 * c.shapes,
            subject_bytes + state + max(adding, reading),
        ),
        "transformers_extraction": part({}, 0, subject_bytes + 8e9, 2.3 * tokens / PEER_TOKENS + 5),
        "atlas": part(work((2 * share * c.padded, c.encode())), read, atlas_bytes + reading),
        "joint": part(
            work(
                (3 * share * c.padded, c.forward()),
                (5 * share * c.padded, c.encode()),
                (2 * share * rows, per_row),
                (2 * share, {"bytes": traffic}),
            ),
            6 * c.shapes,
            subject_bytes + atlas_bytes + state + max(reading, adding, lens + looking),
        ),
        "accumulation": part(
            work(
                (s["chunks"] * s["rows"], {"float32": one["float32"]}),
                (s["chunks"], {"bytes": one["bytes"]}),
                (4, least),
            ),
            15,
            one_site + max(adding / len(c.subject.sites), 8 * 8 * c.d_c**2),
        ),
        "procrustes": part(work((4, polar)), 8, polar_bytes),
        "torch_svd": part({}, 0, 2e9, 4 * SVD_SECONDS + 3),
        "decoding": part(work((3, decode)), 2 * LAYER * layers, subject_bytes + 4e9),
        "transformers_decoding": part({}, 0, subject_bytes + 4e9, PEER_STEP * s["new"] + 6),
        "detection": part({"bytes": 200.0 * 12 * s["queries"] * s["samples"]}, 12, 40.0 * s["queries"] * s["samples"]),
        "attention": part({}, 12, 9e9),
    }  # fmt: skip
    assumed = {"rates": RATES, "share_of_rates": REACHED, "seconds_to_start": START, "seconds_a_layer_compiles": LAYER}
    assumed |= {"transformers_tokens_per_s": PEER_TOKENS, "transformers_seconds_a_step": PEER_STEP}
    total = sum(p["seconds"] for p in parts.values())
    largest = max(p["peak_bytes"] for p in parts.values())
    return machine() | {"size": size, "assumed": assumed, "seconds": total, "peak_bytes": largest, "parts": parts}
