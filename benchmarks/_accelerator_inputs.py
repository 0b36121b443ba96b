"""What the parts on an accelerator run on: random models made on the device, sentences of random ids, statistics."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _common import sentence_lengths
from throughput import BUDGET, METHODS, SITES, atlas_of, subject_of

import atlas_jax as aj
from atlas_jax.models import ModelConfig
from atlas_jax.pipeline import BatchShapes
from atlas_jax.pipeline._fit import Fitted, empty_fitted
from atlas_jax.translators import needs_of

# "shapes" are of the batches, compiled one by one: a real pass has five, and pads a sixth less.
SIZES: dict[str, dict[str, Any]] = {
    "paper": {
        "sentences": 4096, "shapes": 3, "joint_sentences": 2048, "top_k": 50, "prompts": 16, "new": 100,
        "matmul": 8192, "copied_bytes": 8e9, "rows": 512, "chunks": 96, "polar": (14336, 16384), "reflections": 256,
        "queries": 100, "samples": 500_000, "targets": 454, "features": 14336, "lengths": (64, 8192),
        "small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8},
    },
    "tiny": {
        "sentences": 24, "shapes": 1, "joint_sentences": 24, "top_k": 3, "prompts": 2, "new": 4,
        "matmul": 64, "copied_bytes": 1e6, "rows": 16, "chunks": 24, "polar": (24, 32), "reflections": 4,
        "queries": 3, "samples": 2000, "targets": 5, "features": 64, "lengths": (8, 40),
        "small": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
}  # fmt: skip
SENTENCES = 500_000  # of the paper's pass
NEEDS = needs_of(METHODS)


def drawn(abstract: Any, dtype: str | None = None) -> Any:
    """A pytree of random arrays on the device, each made there in its dtype: matrices at unit gain, vectors of ones."""
    keys = itertools.count()
    return jax.tree.map(lambda x: _draw(jax.random.key(next(keys)), x.shape, jnp.dtype(dtype or x.dtype)), abstract)


@partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.normal(key, shape, dtype) * shape[0] ** -0.5 if len(shape) == 2 else jnp.ones(shape, dtype)


def in_bfloat16(build: Callable[[], Any]) -> Any:
    """What ``build`` returns, with random weights; nothing of it is ever there in float32."""
    return drawn(jax.eval_shape(build), "bfloat16")


def abstract_in(dtype: str) -> Callable[[Callable[[], Any]], Any]:
    """The same without arrays: shapes alone."""
    return lambda build: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), jax.eval_shape(build))


def subject(size: str, make: Callable = in_bfloat16) -> aj.Subject:
    """The subject at its sites."""
    return aj.Subject.from_model(subject_of(size, make), SITES[size])


def atlas(size: str, make: Callable = in_bfloat16) -> aj.ConceptAtlas:
    """The atlas; its SAE is in float32."""
    return atlas_of(size, make)


def batches(size: str, sentences: int, vocab: int) -> tuple[list[aj.Tokens], int]:
    """Batches as a pass forms them, of random ids, and how many tokens they have."""
    rng, budget = np.random.default_rng(0), BUDGET[size]
    lengths = sentence_lengths(SIZES[size]["sentences"], rng)
    grid = BatchShapes.from_lengths(
        lengths, 128, token_budget=budget, shapes=SIZES[size]["shapes"]
    )  # the same whatever the number
    lengths, out = lengths[:sentences], []
    for batch in grid.plan(lengths):
        shape, index = (batch.size, batch.length), np.full(batch.size, -1, np.int32)
        index[: len(batch.rows)] = batch.rows
        real = np.arange(batch.length) < np.where(index >= 0, lengths[index], 0)[:, None]
        ids = np.where(real, rng.integers(3, vocab, shape), 0).astype(np.int32)
        out.append(aj.Tokens(*jax.tree.map(jnp.asarray, (ids, real & (np.arange(batch.length) > 0), index, real))))
    return out, int(lengths.sum())


def atlas_rows(rows: int, width: int) -> jax.Array:
    """Pooled atlas activations: a twentieth of them positive."""
    return jax.nn.relu(jax.random.normal(jax.random.key(1), (rows, width)) - 1.65)


def nothing_fitted(widths: dict[Any, int], d_c: int, top_k: int) -> Fitted:
    """The state in which a fitting pass begins."""
    return empty_fitted(NEEDS, widths, d_c, {}, top_k=top_k)


def heads(config: ModelConfig, rows: int, length: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of one layer in bfloat16, and positions in texts without padding."""
    draw = lambda key, *shape: jax.random.normal(jax.random.key(key), (rows, *shape, config.head_dim), "bfloat16")
    kv = [draw(key, config.num_kv_heads, length) for key in (1, 2)]
    return draw(0, length, config.num_heads), *kv, jnp.tile(jnp.arange(length), (rows, 1))


def decoding_inputs(vocab: int, width: int, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of twelve tokens, and a direction."""
    rng = np.random.default_rng(0)
    return rng.integers(3, vocab, (prompts, 12)), rng.normal(size=width).astype(np.float32)


def planted(shape: tuple[int, int], condition: float, reflections: int) -> tuple[jax.Array, jax.Array]:
    """A matrix of this condition and its polar factor, both dense, in the widest float.

    ``U diag(s) V`` with U and V products of Householder reflections, so that ``U V`` is exact to rounding.
    """
    p, q = shape
    key_u, key_v = jax.random.split(jax.random.key(2))
    u, v = (jnp.linalg.qr(jax.random.normal(k, (n, reflections), float))[0] for k, n in ((key_u, p), (key_v, q)))
    return tuple(_reflected(u, v, s) for s in (jnp.geomspace(1.0, 1.0 / condition, p, dtype=float), jnp.ones(p, float)))


@jax.jit
def _reflected(u: jax.Array, v: jax.Array, s: jax.Array) -> jax.Array:
    product = partial(jnp.matmul, precision="highest")
    x = jnp.zeros((len(u), len(v)), u.dtype).at[jnp.arange(len(s)), jnp.arange(len(s))].set(s)
    x = x - 2 * product(u, product(u.T, x))
    return x - 2 * product(product(x, v), v.T)
