"""Key-value caches of one layer: a ring that holds the layer's window, or the whole text for full attention."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atlas_jax.models._config import ModelConfig, window_or


class LayerCache(NamedTuple):
    """Keys and values by slot: time ``t`` is in slot ``t % slots``. Empty slots have position -1."""

    keys: Float[Array, "b k s h"]
    values: Float[Array, "b k s h"]
    position: Int[Array, "b s"]

    def extend(
        self, k: Float[Array, "b k t h"], v: Float[Array, "b k t h"], position: Int[Array, "b t"], time: Int[Array, ""]
    ) -> tuple[Float[Array, "b k s2 h"], Float[Array, "b k s2 h"], Int[Array, "b s2"], "LayerCache"]:
        """Store new tokens; returns the keys, values and positions to attend over, and the cache after.

        Several tokens at once (the prompt) attend over themselves; one token (decoding) over the cache.
        """
        new = LayerCache(k.astype(self.keys.dtype), v.astype(self.values.dtype), position)
        if position.shape[1] == 1:
            slot = time % self.position.shape[1]
            cache = LayerCache(*(_put(old, x, slot) for old, x in zip(self, new, strict=True)))
            return (*cache, cache)
        return (*new, LayerCache(*(_keep_last(old, x) for old, x in zip(self, new, strict=True))))


def init_cache(config: ModelConfig, rows: int, length: int, dtype: jnp.dtype) -> tuple[LayerCache, ...]:
    """Empty caches for texts of up to ``length`` tokens, one a layer.

    They are float32 on a CPU, which would otherwise convert a whole bfloat16 cache back and forth at every token.
    """
    dtype = jnp.dtype("float32") if jax.default_backend() == "cpu" else dtype

    def layer(window: int | None) -> LayerCache:
        slots = window_or(window, length)
        shape = (rows, config.num_kv_heads, slots, config.head_dim)
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.full((rows, slots), -1))

    return tuple(layer(w) for w in config.windows)


def grow(config: ModelConfig, caches: tuple[LayerCache, ...], length: int) -> tuple[LayerCache, ...]:
    """The same caches with room for texts of up to ``length`` tokens; those that have it stay.

    A ring may grow only before it has gone round, which is when it is shorter than its window.
    """

    def layer(cache: LayerCache, window: int | None) -> LayerCache:
        more = max(0, window_or(window, length) - cache.position.shape[1])
        pad = lambda x: jnp.pad(x, [(0, more if a == _slot_axis(x) else 0) for a in range(x.ndim)])
        empty = jnp.pad(cache.position, ((0, 0), (0, more)), constant_values=-1)
        return LayerCache(pad(cache.keys), pad(cache.values), empty)

    return tuple(map(layer, caches, config.windows))


def _put(old: Array, new: Array, slot: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=_slot_axis(old))


def _keep_last(old: Array, new: Array) -> Array:
    axis = _slot_axis(old)
    slots, length = old.shape[axis], new.shape[axis]
    if length <= slots:
        return jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis=axis)
    last = jax.lax.slice_in_dim(new, length - slots, length, axis=axis)
    return jnp.roll(last, (length - slots) % slots, axis=axis)


def _slot_axis(x: Array) -> int:
    """Keys and values have the head before the slot: products over a head then read memory in order."""
    return 2 if x.ndim == 4 else 1
