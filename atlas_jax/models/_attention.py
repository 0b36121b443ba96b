"""Attention of queries to keys: by XLA, a chunk of queries at once, or by a fused kernel that gives the same here.

Axis letters as in ``_decoder.py``.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.models._cache import Block, LayerCache
from atlas_jax.models._config import ModelConfig

# Products accumulate and arrive in float32, whatever their operands are.
EXACT = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
ATTENTION_CHUNK = 512  # queries whose attention is computed at once

KERNELS = "tokamax", "cudnn"
"""Fused kernels, in the order in which "auto" tries them."""

_LENGTHS = 24, 160  # of the texts a kernel is tried on: shorter and longer than its blocks of queries
_SCORES = 3.0  # their size, and that of their cap in a model that has one, so that it matters
_ROUNDING, _FLOOR = 3.0, 1e-5  # error of a kernel by that of XLA, and in float32


def attention(
    kernel: str,
    q: Float[Array, "b t n h"],
    blocks: LayerCache,
    position: Int[Array, "b t"],
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Float[Array, "b t n h"]:
    """``softmax(scale q kᵀ) v`` of queries at ``position`` over the slots of all blocks.

    A fused kernel takes part where the queries are those of the keys: a token that is decoded reads its cache by XLA.
    Derivatives are XLA's either way.
    """
    q = q.astype(blocks[0].keys.dtype)
    if kernel != "xla" and q.shape[1] == sum(block.slots for block in blocks) > 1:
        return _fused(kernel, window, scale, softcap, position, q, blocks[0].keys, blocks[0].values)
    return _by_xla(window, scale, softcap, position, q, blocks)


def _by_xla(
    window: int | None,
    scale: float,
    softcap: float | None,
    position: Int[Array, "b t"],
    q: Float[Array, "b t n h"],
    blocks: LayerCache,
) -> Float[Array, "b t n h"]:
    key_position = jnp.concatenate([block.position for block in blocks], axis=1)

    def of_queries(q: Float[Array, "b _ n h"], position: Int[Array, "b _"]) -> Float[Array, "b _ n h"]:
        return attend(q, blocks, visible(position, key_position, window), scale, softcap)

    return in_chunks(of_queries, q, position)


def visible(query: Int[Array, "b t"], key: Int[Array, "b s"], window: int | None) -> Bool[Array, "b t s"]:
    """Mark the keys a query sees: real, not later than it, and within the window (itself included)."""
    q, k = query[:, :, None], key[:, None, :]
    seen = (k >= 0) & (k <= q)
    return seen if window is None else seen & (k > q - window)


def in_chunks(
    of_queries: Callable[[Float[Array, "b q n h"], Int[Array, "b q"]], Float[Array, "b q n h"]],
    q: Float[Array, "b t n h"],
    position: Int[Array, "b t"],
) -> Float[Array, "b t n h"]:
    """Attention of all queries, at most :data:`ATTENTION_CHUNK` at once.

    So the scores of a long text are never there together; gradients compute those of a chunk anew.
    """
    b, t = position.shape
    if t <= ATTENTION_CHUNK:
        return of_queries(q, position)
    more = -t % ATTENTION_CHUNK
    q, position = jnp.pad(q, ((0, 0), (0, more), (0, 0), (0, 0))), jnp.pad(position, ((0, 0), (0, more)))
    chunks = lambda x: jnp.moveaxis(x.reshape(b, -1, ATTENTION_CHUNK, *x.shape[2:]), 1, 0)
    z = jax.lax.map(jax.checkpoint(lambda chunk: of_queries(*chunk)), (chunks(q), chunks(position)))
    return jnp.moveaxis(z, 0, 1).reshape(b, t + more, *q.shape[2:])[:, :t]


def attend(
    q: Float[Array, "b t n h"],
    blocks: LayerCache,
    mask: Bool[Array, "b t s"],
    scale: float,
    softcap: float | None,
) -> Float[Array, "b t n h"]:
    """``softmax(scale q kᵀ) v`` over the slots of all blocks, with the logit softcap of Gemma 2 before the mask."""
    b, t, n, h = q.shape
    kv = blocks[0].keys.shape[1]
    q = q.reshape(b, t, kv, n // kv, h).transpose(0, 2, 3, 1, 4).reshape(b, kv, n // kv * t, h)
    products = [jnp.einsum("bkqh,bksh->bkqs", q, block.keys, **EXACT) for block in blocks]
    scores = jnp.concatenate(products, axis=-1) * scale
    if softcap is not None:
        scores = jnp.tanh(scores / softcap) * softcap
    scores = scores.reshape(b, kv, n // kv, t, -1)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1).astype(q.dtype)
    ends = np.cumsum([block.slots for block in blocks])
    parts = jnp.split(weights.reshape(b, kv, n // kv * t, -1), ends[:-1], axis=-1)
    z = sum(jnp.einsum("bkqs,bksh->bkqh", w, x.values, **EXACT) for w, x in zip(parts, blocks, strict=True))
    z = z.astype(q.dtype)
    return z.reshape(b, kv, n // kv, t, h).transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def _fused(
    kernel: str,
    window: int | None,
    scale: float,
    softcap: float | None,
    position: Int[Array, "b t"],
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k t h"],
    values: Float[Array, "b k t h"],
) -> Float[Array, "b t n h"]:
    return _by_kernel(kernel, scale, softcap, visible(position, position, window), q, keys, values)


@_fused.defjvp
def _derivatives_by_xla(
    kernel: str, window: int | None, scale: float, softcap: float | None, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    position, *qkv = primals
    plain = lambda q, k, v: _by_xla(window, scale, softcap, position, q, (Block(k, v, position),))
    return _fused(kernel, window, scale, softcap, *primals), jax.jvp(plain, tuple(qkv), tangents[1:])[1]


def _by_kernel(
    kernel: str,
    scale: float,
    softcap: float | None,
    mask: Bool[Array, "b t t"],
    q: Float[Array, "b t n h"],
    keys: Float[Array, "b k t h"],
    values: Float[Array, "b k t h"],
) -> Float[Array, "b t n h"]:
    """The same by a kernel, which never holds the scores of a head; the mask is causal, so blocks can be left out.

    Raises:
      NotImplementedError: where the kernel cannot compute it.
    """
    qkv = q, keys.swapaxes(1, 2), values.swapaxes(1, 2)
    shared = {"mask": mask[:, None], "scale": scale, "is_causal": True}
    if kernel == "cudnn":
        if softcap is not None:
            raise NotImplementedError("it has no soft cap of scores")
        return jax.nn.dot_product_attention(*qkv, implementation="cudnn", **shared)
    import tokamax
    from absl import flags

    if not flags.FLAGS.is_parsed():  # tokamax would take the words of any command for options of its own
        flags.FLAGS.mark_as_parsed()
    shared["precision"] = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    return tokamax.dot_product_attention(*qkv, logits_soft_cap=softcap, implementation=("mosaic", "triton"), **shared)


def choose_kernel(attention: str, config: ModelConfig, dtype: str, mesh: Mesh | None = None) -> str:
    """Return the kernel that computes a model's attention: "xla", "tokamax" or "cudnn".

    A fused kernel is taken only where it passes a trial on this device, with the model's heads, scale and dtype, and a
    soft cap where it has one: short and long texts, padded on the left, on the right and not at all, with and without
    a window. No real token's output may be more than three times as far from float32 as XLA's is.

    Args:
      attention: "xla"; a kernel by name, or "auto": the first that passes, XLA where none does.
      config: of the model.
      dtype: of its activations.
      mesh: the devices it is sharded over.

    Raises:
      AtlasError: for an unknown name, or a kernel that is named and does not pass; with the reason.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import choose_kernel, load_config
      >>> choose_kernel("auto", load_config(SUBJECT)[0], "float32")
      'xla'
    """
    if attention == "xla":
        return "xla"
    if attention not in ("auto", *KERNELS):
        raise AtlasError(f"unknown attention '{attention}'; known are auto, xla, {', '.join(KERNELS)}")
    for kernel in KERNELS if attention == "auto" else [attention]:
        if mesh is not None and mesh.size > 1:
            reason = f"it runs on one device, and the model is on {mesh.size}"
        else:
            heads = config.num_heads, config.num_kv_heads, config.head_dim
            reason = _fault(kernel, *heads, config.query_scale, config.attn_softcap is not None, dtype)
        if reason is None:
            return kernel
    if attention == "auto":
        return "xla"
    raise AtlasError(f"attention '{attention}' cannot be used here: {reason}; use xla, or auto")


@functools.cache
def _fault(kernel: str, heads: int, kv_heads: int, head_dim: int, scale: float, capped: bool, dtype: str) -> str | None:
    """The reason why a kernel is not used on this device for such heads; None where it passes the trial."""
    rng, cap = np.random.default_rng(0), _SCORES if capped else None
    for length, window in itertools.product(_LENGTHS, (None, 8)):
        draw = lambda n, size, length=length: jnp.asarray(size * rng.standard_normal((3, length, n, head_dim)), dtype)
        qkv = draw(heads, _SCORES / (scale * head_dim**0.5)), draw(kv_heads, 1.0), draw(kv_heads, 1.0)
        position = _padded(length)
        by = functools.partial(_heads, position=position, window=window, scale=scale, cap=cap)
        try:
            found = by(kernel, *qkv)
        except ImportError as error:
            return f"{error.name} is not installed (pip install 'atlas-jax[{kernel}]')"
        except (NotImplementedError, RuntimeError, TypeError, ValueError, ExceptionGroup) as error:
            return _first_line(error)
        exact = by("xla", *(x.astype(jnp.float32) for x in qkv))
        error, rounding = (_largest_error(z, exact, position) for z in (found, by("xla", *qkv)))
        if not bool(jnp.all(jnp.isfinite(found))):
            return "it gives values that are not finite where texts are padded"
        if not error <= max(_FLOOR, _ROUNDING * rounding):
            return f"its error is {error:.1g}, that of xla {rounding:.1g}"
    return None


def _padded(length: int) -> Int[Array, "3 t"]:
    """Positions in a text without padding, one padded on the left, and one on the right."""
    slots, padding = np.arange(length), length // 5
    return jnp.asarray([slots, np.maximum(slots - padding, -1), np.where(slots < length - padding, slots, -1)])


def _heads(
    kernel: str, q: Array, k: Array, v: Array, *, position: Array, window: int | None, scale: float, cap: float | None
) -> Float[Array, "b t n h"]:
    return attention(kernel, q, (Block(k.swapaxes(1, 2), v.swapaxes(1, 2), position),), position, window, scale, cap)


def _largest_error(x: Float[Array, "b t n h"], exact: Float[Array, "b t n h"], position: Int[Array, "b t"]) -> float:
    """The largest relative error of a real token."""
    norm = lambda y: jnp.linalg.norm(y.reshape(*position.shape, -1).astype(jnp.float32), axis=-1)
    return float(jnp.max(jnp.where(position >= 0, norm(x.astype(jnp.float32) - exact) / norm(exact), 0)))


def _first_line(error: Any) -> str:
    reasons = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    return ", ".join(dict.fromkeys(str(e).strip().split("\n")[0].rstrip(".") or type(e).__name__ for e in reasons))
