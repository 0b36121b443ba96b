"""Models and SAEs without weights: shapes and dtypes alone, laid out over devices that need not be there."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from atlas_jax.models import Decoder, ModelConfig, decoder_shapes
from atlas_jax.sae import AXES, SAEConfig, SparseAutoencoder
from atlas_jax.sharding import AnyMesh, parameter_sharding, sharding_for
from atlas_jax.statistics import layout

State = TypeVar("State")


def abstract_decoder(config: ModelConfig, dtype: str, mesh: AnyMesh) -> Decoder:
    """Make a decoder of shapes, each with the sharding that the parameter would have."""

    def place(path: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = [str(getattr(key, "name", getattr(key, "idx", key))) for key in path[:-1]]
        sharding = None if mesh is None else parameter_sharding(".".join(names), x.shape, mesh)
        return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, decoder_shapes(config))


def abstract_sae(sae: SAEConfig, mesh: AnyMesh) -> SparseAutoencoder:
    """Make an SAE of shapes."""
    shapes = {"W_enc": (sae.d_in, sae.d_sae), "b_enc": (sae.d_sae,), "W_dec": (sae.d_sae, sae.width_out)}
    shapes |= {"b_dec": (sae.width_out,), "threshold": (sae.d_sae,)}
    place = lambda name: sharding_for(shapes[name], mesh, *AXES.get(name, ())) if mesh is not None else None
    arrays = {name: jax.ShapeDtypeStruct(shapes[name], jnp.float32, sharding=place(name)) for name in shapes}
    return SparseAutoencoder(sae, **arrays)


def abstract_state(make: Callable[[], State], mesh: AnyMesh) -> State:
    """Return the shapes of what ``make`` returns, laid out as the state of a pass is."""
    state = jax.eval_shape(make)
    if mesh is None:
        return state
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(place, state, layout(state, mesh))


def device_bytes(tree: Any) -> int:
    """Bytes of a pytree of shapes on each device."""
    here = lambda x: x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return sum(int(jnp.dtype(x.dtype).itemsize * math.prod(here(x))) for x in jax.tree.leaves(tree))
