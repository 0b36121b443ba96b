"""Edits: values placed at a site that change what flows through it.

An edit is a pytree called as ``edit(x, where) -> x`` with ``x[b, t, d]``. Its arrays may carry a leading row axis, so
that every row of a batch is edited in its own way; they are traced, so changing them never compiles again. Where an
edit has the properties ``width`` and ``rows``, both are checked before a pass: the features of the sites it fits, and
the rows its arrays are for (1: any number).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from atlas_jax.types import Where


class Steer(NamedTuple):
    r"""Concept steering, Eq. 4: :math:`a' = (a + \lambda s) \lVert a \rVert / \lVert a + \lambda s \rVert`.

    The norm of every position is kept. Where ``a`` is zero it stays zero; where ``strength`` is zero, or
    ``a + strength * s`` vanishes, the activation is returned bit for bit and gradients are zero.

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

    @property
    def rows(self) -> int:
        """Rows of the batches this fits, 1 for any."""
        return _row_count((self.direction, 1), (self.strength, 0))

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Steer ``x`` at every position."""
        a = x.astype(jnp.float32)
        strength = _rows(self.strength, 0)
        moved = a + strength * _rows(self.direction, 1)
        squares = jnp.sum(jnp.square(moved), axis=-1, keepdims=True)
        defined = squares > 0
        kept = _norm(a) / jnp.sqrt(jnp.where(defined, squares, 1.0))
        return jnp.where((strength == 0) | ~defined, x, (moved * kept).astype(x.dtype))


class Add(NamedTuple):
    """``a + strength * direction``, with the norm left to grow. Shapes as in :class:`Steer`."""

    direction: Any
    strength: Any = 1.0

    @property
    def width(self) -> int:
        """Features of the sites this fits."""
        return jnp.shape(self.direction)[-1]

    @property
    def rows(self) -> int:
        """Rows of the batches this fits, 1 for any."""
        return _row_count((self.direction, 1), (self.strength, 0))

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Add to ``x`` at every position."""
        return (x.astype(jnp.float32) + _rows(self.strength, 0) * _rows(self.direction, 1)).astype(x.dtype)


class Replace(NamedTuple):
    """The activation becomes ``value``: ``[d]`` or ``[b, d]``."""

    value: Any

    @property
    def width(self) -> int:
        """Features of the sites this fits."""
        return jnp.shape(self.value)[-1]

    @property
    def rows(self) -> int:
        """Rows of the batches this fits, 1 for any."""
        return _row_count((self.value, 1))

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Replace ``x`` at every position."""
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

    @property
    def rows(self) -> int:
        """Rows of the batches this fits, 1 for any."""
        return _row_count((self.features, 1), (self.value, 1))

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Ablate features of ``x`` at every position."""
        value = jnp.asarray(self.value, jnp.float32)
        value = value[None, None, None] if value.ndim == 0 else _rows(value, 1)
        features = jnp.asarray(self.features, bool)
        features = features[:, None, :] if features.ndim == 2 else features[None, None, :]
        return jnp.where(features, value.astype(x.dtype), x)


class ProjectOut(NamedTuple):
    """The component along ``direction`` (``[d]`` or ``[b, d]``, any length) is removed."""

    direction: Any

    @property
    def width(self) -> int:
        """Features of the sites this fits."""
        return jnp.shape(self.direction)[-1]

    @property
    def rows(self) -> int:
        """Rows of the batches this fits, 1 for any."""
        return _row_count((self.direction, 1))

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Project ``x`` at every position."""
        v = _rows(self.direction, 1)
        norm2 = jnp.sum(v * v, axis=-1, keepdims=True)
        a = x.astype(jnp.float32)
        along = jnp.sum(a * v, axis=-1, keepdims=True) / jnp.where(norm2 > 0, norm2, 1.0)
        return (a - along * v).astype(x.dtype)


class At(NamedTuple):
    """An edit restricted to some positions; made by :func:`at`.

    Attributes:
      edit: any edit.
      first: first positions of ranges, ``[b or 1, ranges]``.
      last: their last positions, included.
      from_prompt_end: whether they count from the end of a row's prompt.
    """

    edit: Any
    first: Any
    last: Any
    from_prompt_end: Any

    @property
    def width(self) -> int | None:
        """Features of the sites the edit fits, None where it does not say."""
        return getattr(self.edit, "width", None)

    @property
    def rows(self) -> int:
        """Rows of the batches the edit and its positions fit, 1 for any."""
        return max(getattr(self.edit, "rows", 1), jnp.shape(self.first)[0], jnp.shape(self.last)[0])

    def __call__(self, x: Float[Array, "b t d"], where: Where) -> Float[Array, "b t d"]:
        """Edit ``x`` at the chosen positions."""
        return jnp.where(self.chosen(where)[:, :, None], self.edit(x, where), x)

    def chosen(self, where: Where) -> Bool[Array, "b t"]:
        """The positions that are edited; never padding."""
        start = jnp.where(self.from_prompt_end, where.prompt_length, 0)
        p = (where.position - start[:, None])[:, :, None]
        inside = (p >= self.first[:, None, :]) & (p <= self.last[:, None, :])
        return inside.any(axis=-1) & (where.position >= 0)


def at(edit: Any, positions: "str | tuple[ArrayLike, ArrayLike] | ArrayLike | list[int]") -> At:
    """Restrict an edit to positions of the text.

    Args:
      edit: any edit.
      positions: "all", "generated" (tokens after the prompt), "prompt", "last" (the prompt's last token and all that
        is generated from it); or 0-based positions: a tuple ``(first, last)``, both included, scalars or one a row, or
        a list or array of single positions, ``[p]`` for all rows or ``[b, p]``.

    Raises:
      ValueError: for an unknown name.

    Example:
      >>> x = jnp.ones((1, 4, 2))
      >>> where = Where(jnp.arange(4)[None, :], jnp.array([4]))
      >>> at(Replace(jnp.zeros(2)), (1, 2))(x, where)[0, :, 0].tolist()
      [1.0, 0.0, 0.0, 1.0]
      >>> at(Replace(jnp.zeros(2)), [0, 3])(x, where)[0, :, 0].tolist()
      [0.0, 1.0, 1.0, 0.0]
    """
    if isinstance(positions, str):
        if positions not in _NAMED:
            raise ValueError(f"unknown positions '{positions}'; use {', '.join(_NAMED)}, (first, last) or a list")
        first, last, relative = _NAMED[positions]
        return At(edit, jnp.full((1, 1), first), jnp.full((1, 1), last), jnp.bool_(relative))
    if isinstance(positions, tuple):
        first, last = (jnp.reshape(jnp.asarray(p, jnp.int32), (-1, 1)) for p in positions)
        return At(edit, first, last, jnp.bool_(False))
    single = jnp.atleast_2d(jnp.asarray(positions, jnp.int32))
    return At(edit, single, single, jnp.bool_(False))


_FAR = 2**30
_NAMED = {"all": (0, _FAR, False), "generated": (0, _FAR, True), "prompt": (-_FAR, -1, True), "last": (-1, _FAR, True)}


def _norm(x: Float[Array, "*b d"]) -> Float[Array, "*b 1"]:
    """Euclidean norm along the last axis, with gradient zero at zero."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def _row_count(*fields: tuple[ArrayLike, int]) -> int:
    """The leading row axis of values that may have one in front of so many trailing axes, 1 where none has."""
    return max((jnp.shape(v)[0] for v, axes in fields if jnp.ndim(v) > axes), default=1)


def _rows(value: ArrayLike, axes: int) -> Float[Array, "..."]:
    """Float32 with ``[b?]`` in front of ``axes`` trailing axes turned into ``[b or 1, 1, d or 1]``."""
    v = jnp.asarray(value, jnp.float32)
    v = v if v.ndim > axes else v[None]
    return v[:, None, :] if axes else v[:, None, None]
