"""Taps: the one road by which activations are read and edited. A forward pass calls one at every point of a block."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxtyping import Array, Float

from atlas_jax.types import Site, Where

Pool = Callable[[Float[Array, "b t d"]], Any]


class Taps:
    """Applies the edits of a site, then keeps what was asked for. Lives only while a pass is traced."""

    def __init__(self, where: Where, capture: Collection[Site], edits: Mapping[Site, Any], pool: Pool | None):
        self.where, self.capture, self.edits, self.pool = where, capture, edits, pool
        self.acts: dict[Site, Any] = {}

    def __call__(self, point: str, layer: int, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        site = Site(point, layer)
        if site in self.edits:
            x = _apply(self.edits[site], site, x, self.where)
        if site in self.capture:
            self.acts[site] = x if self.pool is None else self.pool(x)
        return x


def _apply(edit: Any, site: Site, x: Array, where: Where) -> Array:
    edits = (edit,) if callable(edit) else edit
    for one in edits:
        y = one(x, where)
        if y.shape != x.shape or y.dtype != x.dtype:
            raise ValueError(f"the edit at {site} turned {x.dtype}{x.shape} into {y.dtype}{y.shape}; it must keep both")
        x = y
    return x
