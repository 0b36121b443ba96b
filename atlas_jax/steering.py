"""Edits: values placed at a site that change what flows through it.

An edit is a pytree called as ``edit(x, where) -> x`` with ``x[b, t, d]``. Its arrays may carry a leading row axis, so
that every row of a batch is edited in its own way; they are traced, so changing them never compiles again.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from atlas_jax.types import Where


class Steer(NamedTuple):
    r"""Concept steering, Eq. 4: :math:`a' = (a + \lambda s) \lVert a \rVert / \lVert a + \lambda s \rVert`.

    The norm of every position is kept. Where ``a`` is zero it stays zero, and where ``strength`` is zero the
    activation is returned bit for bit.

    Attributes:
      direction: ``s``, ``[d]`` or ``[b, d]``.
      strength: ``λ`` in units of the raw activation, a scalar or ``[b]``.

    Example:
      >>> edit = Steer(jnp.ones(4), 2.0)
      >>> float(jnp.linalg.norm(edit(jnp.ones((1, 1, 4)), None)))
      2.0
    """

    direction: Any
    strength: Any

    @property
    def width(self) -> int:
        """Features of the sites this fits."""
        return jnp.shape(self.direction)[-1]

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        a = x.astype(jnp.float32)
        strength = _rows(self.strength, 0)
        moved = a + strength * _rows(self.direction, 1)
        norm = jnp.linalg.norm(moved, axis=-1, keepdims=True)
        kept = jnp.linalg.norm(a, axis=-1, keepdims=True) / jnp.where(norm > 0, norm, 1.0)
        return jnp.where(strength == 0, x, (moved * kept).astype(x.dtype))


class Add(NamedTuple):
    """``a + strength * direction``, with the norm left to grow. Shapes as in :class:`Steer`."""

    direction: Any
    strength: Any = 1.0

    @property
    def width(self) -> int:
        """Features of the sites this fits."""
        return jnp.shape(self.direction)[-1]

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        return (x.astype(jnp.float32) + _rows(self.strength, 0) * _rows(self.direction, 1)).astype(x.dtype)


class Replace(NamedTuple):
    """The activation becomes ``value``: ``[d]`` or ``[b, d]``."""

    value: Any

    @property
    def width(self) -> int:
        """Features of the sites this fits."""
        return jnp.shape(self.value)[-1]

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        return jnp.broadcast_to(_rows(self.value, 1), x.shape).astype(x.dtype)


class Ablate(NamedTuple):
    """Chosen features are set to ``value`` (zero, or their mean).

    Attributes:
      features: boolean ``[d]`` or ``[b, d]``, true where a feature is ablated.
      value: a scalar, ``[d]`` or ``[b, d]``.
    """

    features: Any
    value: Any = 0.0

    @property
    def width(self) -> int:
        """Features of the sites this fits."""
        return jnp.shape(self.features)[-1]

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        value = jnp.asarray(self.value, jnp.float32)
        value = jnp.broadcast_to(value if value.ndim == 0 else _rows(value, 1), x.shape)
        features = jnp.asarray(self.features)
        features = features[:, None, :] if features.ndim == 2 else features[None, None, :]
        return jnp.where(features, value.astype(x.dtype), x)


class ProjectOut(NamedTuple):
    """The component along ``direction`` (``[d]`` or ``[b, d]``, any length) is removed."""

    direction: Any

    @property
    def width(self) -> int:
        """Features of the sites this fits."""
        return jnp.shape(self.direction)[-1]

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        v = _rows(self.direction, 1)
        norm2 = jnp.sum(v * v, axis=-1, keepdims=True)
        a = x.astype(jnp.float32)
        along = jnp.sum(a * v, axis=-1, keepdims=True) / jnp.where(norm2 > 0, norm2, 1.0)
        return (a - along * v).astype(x.dtype)


class At(NamedTuple):
    """An edit restricted to some positions; made by :func:`at`."""

    edit: Any
    first: Any
    last: Any
    from_prompt_end: Any

    @property
    def width(self) -> int | None:
        """Features of the sites the edit fits, None where it does not say."""
        return getattr(self.edit, "width", None)

    def __call__(self, x: Float[Array, "b t d"], where: Where) -> Float[Array, "b t d"]:
        shift = jnp.where(_column(self.from_prompt_end), where.prompt_length[:, None], 0)
        p = where.position - shift
        chosen = (p >= _column(self.first)) & (p <= _column(self.last)) & (where.position >= 0)
        return jnp.where(chosen[:, :, None], self.edit(x, where), x)


def at(edit: Any, positions: "str | tuple[ArrayLike, ArrayLike]") -> At:
    """Restrict an edit to positions of the text.

    Args:
      edit: any edit.
      positions: "all", "generated" (tokens after the prompt), "prompt", "last" (the prompt's last token and all that
        is generated from it), or ``(first, last)``: inclusive 0-based positions, scalars or one a row.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> x = jnp.ones((1, 3, 2))
      >>> where = Where(jnp.arange(3)[None, :], jnp.array([3]))
      >>> at(Replace(jnp.zeros(2)), (1, 1))(x, where)[0, :, 0].tolist()
      [1.0, 0.0, 1.0]
    """
    big = 2**30
    ranges = {
        "all": (0, big, False),
        "generated": (0, big, True),
        "prompt": (-big, -1, True),
        "last": (-1, big, True),
    }
    if isinstance(positions, str):
        if positions not in ranges:
            raise ValueError(f"unknown positions '{positions}'; use {', '.join(ranges)} or (first, last)")
        first, last, relative = ranges[positions]
        return At(edit, jnp.int32(first), jnp.int32(last), jnp.bool_(relative))
    first, last = positions
    return At(edit, jnp.asarray(first), jnp.asarray(last), jnp.bool_(False))


def _rows(value: ArrayLike, axes: int) -> Float[Array, "..."]:
    """Float32 with ``[b?]`` in front of ``axes`` trailing axes turned into ``[b or 1, 1, d or 1]``."""
    v = jnp.asarray(value, jnp.float32)
    v = v if v.ndim > axes else v[None]
    return v[:, None, :] if axes else v[:, None, None]


def _column(value: ArrayLike) -> Array:
    v = jnp.asarray(value)
    return v[:, None] if v.ndim else v[None, None]
