"""Where parameters live on a mesh: one table, matched by the end of a parameter's path. Nothing in the forward pass."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

RULES: tuple[tuple[str, P], ...] = (
    ("q_proj.weight", P(None, "model")),
    ("k_proj.weight", P(None, "model")),
    ("v_proj.weight", P(None, "model")),
    ("o_proj.weight", P("model", None)),
    ("gate_proj.weight", P(None, "model")),
    ("up_proj.weight", P(None, "model")),
    ("down_proj.weight", P("model", None)),
    ("lm_head.weight", P(None, "model")),
    ("embed_tokens.weight", P("model", None)),
)


def sharding(path: str, shape: tuple[int, ...], mesh: Mesh | None) -> jax.sharding.Sharding:
    """The sharding of one parameter; axes that do not divide evenly are kept whole.

    Example:
      >>> sharding("layers.0.mlp.up_proj.weight", (8, 16), None).num_devices
      1
    """
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    spec = next((spec for suffix, spec in RULES if path.endswith(suffix)), P())
    sizes = [1 if axis is None else mesh.shape[axis] for axis in spec]
    axes = [axis if n % size == 0 else None for axis, n, size in zip(spec, shape, sizes, strict=False)]
    return NamedSharding(mesh, P(*axes))


def shard_rows(batch: Any, parameters: Any) -> Any:
    """Spread the leading axis of a batch over "data" of the mesh that the parameters live on.

    Arrays that are already on a mesh, that are traced, or whose rows do not divide evenly are left as they are.
    """
    first = jax.tree.leaves(nnx.state(parameters))[0]
    if isinstance(first, jax.core.Tracer) or not isinstance(first.sharding, NamedSharding):
        return batch
    mesh = first.sharding.mesh
    size = mesh.shape.get("data", 1)

    def place(x: Any) -> Any:
        settled = isinstance(x, jax.core.Tracer) or isinstance(getattr(x, "sharding", None), NamedSharding)
        if settled or size == 1 or x.ndim == 0 or x.shape[0] % size:
            return x
        return jax.device_put(x, NamedSharding(mesh, P("data")))

    return jax.tree.map(place, batch)
