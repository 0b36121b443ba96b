"""Key-value caches: blocks of consecutive times, so that room is added without copying."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from atlas_jax.models._config import ModelConfig


class Block(NamedTuple):
    """Keys and values of consecutive times, one time a slot. Empty slots have position -1."""

    keys: Float[Array, "b k s h"]
    values: Float[Array, "b k s h"]
    position: Int[Array, "b s"]

    @property
    def slots(self) -> int:
        """Number of times that fit."""
        return self.position.shape[1]


LayerCache = tuple[Block, ...]
"""Blocks of one layer in the order of time; a block that is alone is a ring, with time ``t`` in slot ``t % slots``."""


def extend(
    cache: LayerCache,
    k: Float[Array, "b k t h"],
    v: Float[Array, "b k t h"],
    position: Int[Array, "b t"],
    time: Int[Array, ""],
) -> LayerCache:
    """Add new tokens to a cache: a prompt as the first block, later one token at a time in the last block.

    They are float32 on a CPU, which would otherwise convert a whole bfloat16 cache back and forth at every token.
    """
    dtype = jnp.dtype("float32") if jax.default_backend() == "cpu" else k.dtype
    new = Block(k.astype(dtype), v.astype(dtype), position)
    if not cache:
        return (new,)
    *full, last = cache
    slot = (time - sum(block.slots for block in full)) % last.slots
    put = lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, slot, axis=_slot_axis(old))
    return (*full, Block(*map(put, last, new)))


def trim(config: ModelConfig, caches: tuple[LayerCache, ...], length: int) -> tuple[LayerCache, ...]:
    """Cut caches to what texts of ``length`` tokens need: a layer whose window is shorter keeps a ring."""

    def layer(cache: LayerCache, window: int | None) -> LayerCache:
        return cache if window is None or window >= length else (_ring(cache[0], window),)

    return tuple(map(layer, caches, config.windows))


def grow(config: ModelConfig, caches: tuple[LayerCache, ...], slots: int, length: int) -> tuple[LayerCache, ...]:
    """Add an empty block of ``slots`` slots to each cache; rings stay as they are."""

    def layer(cache: LayerCache, window: int | None) -> LayerCache:
        if window is not None and window < length:
            return cache
        rows, heads, _, width = cache[0].keys.shape
        empty = jnp.zeros((rows, heads, slots, width), cache[0].keys.dtype)
        return (*cache, Block(empty, empty, jnp.full((rows, slots), -1)))

    return tuple(map(layer, caches, config.windows))


def _ring(block: Block, slots: int) -> Block:
    """The last times of a block, each in its slot."""
    length = block.slots
    if length <= slots:
        pad = lambda x, value: jnp.pad(
            x, [(0, slots - length if a == _slot_axis(x) else 0) for a in range(x.ndim)], constant_values=value
        )
        return Block(pad(block.keys, 0), pad(block.values, 0), pad(block.position, -1))
    last = lambda x: jax.lax.slice_in_dim(x, length - slots, length, axis=_slot_axis(x))
    return Block(*(jnp.roll(last(x), length % slots, axis=_slot_axis(x)) for x in block))


def _slot_axis(x: Array) -> int:
    """Axis of the slots; keys and values have the head before it, so products over a head read memory in order."""
    return 2 if x.ndim == 4 else 1
