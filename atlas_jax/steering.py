"""Edits: values placed at a site that change what flows through it.

An edit is a pytree called as ``edit(x, where) -> x`` with ``x[b, t, d]``. Its arrays may carry a leading row axis, so
that every row of a batch is edited in its own way; they are traced, so changing them never compiles again. Where an
edit has the properties ``width`` and ``rows``, both are checked before a pass: the features of the sites it fits, and
the rows its arrays are for (1: any number). Before that its method ``check``, if it has one, refuses values and shapes
that make no sense.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from atlas_jax.checks import as_numbers, finite_numbers, known, refuse
from atlas_jax.errors import AtlasError
from atlas_jax.types import Where


def _of_arrays(**axes: int) -> Callable[[type], type]:
    """Give an edit ``width``, ``rows`` and, where it has none, ``check``, from each field's axes without that of rows.

    The first field is as wide as the sites that the edit fits.
    """
    first = next(iter(axes))

    def check(self: Any) -> None:
        """Refuse values that are not finite numbers, and other shapes.

        Raises:
          AtlasError: naming the field.
        """
        _check(self, **axes)

    def width(self: Any) -> int:
        """Features of the sites this fits."""
        return jnp.shape(getattr(self, first))[-1]

    def rows(self: Any) -> int:
        """Rows of the batches this fits, 1 for any."""
        return _row_count(*((getattr(self, name), number) for name, number in axes.items()))

    def complete(edit: type) -> type:
        edit.width, edit.rows = property(width), property(rows)
        if "check" not in vars(edit):
            edit.check = check
        return edit

    return complete


@_of_arrays(direction=1, strength=0)
class Steer(NamedTuple):
    r"""Concept steering, Eq. 4: :math:`a' = (a + \lambda s) \lVert a \rVert / \lVert a + \lambda s \rVert`.

    The norm of every position is kept. Where ``a`` is zero it stays zero; where ``strength`` is zero, or
    ``a + strength * s`` vanishes, the activation is returned bit for bit and gradients are zero.

    Attributes:
      direction: ``s``, ``[d]`` or ``[b, d]``.
      strength: ``λ`` in units of the raw activation, a scalar or ``[b]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Steer
      >>> edit = Steer(jnp.ones(4), 2.0)
      >>> float(jnp.linalg.norm(edit(jnp.ones((1, 1, 4)), None)))
      2.0
    """

    direction: Any
    strength: Any

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Steer ``x`` at every position."""
        a = x.astype(jnp.float32)
        strength = _rows(self.strength, 0)
        moved = a + strength * _rows(self.direction, 1)
        squares = jnp.sum(jnp.square(moved), axis=-1, keepdims=True)
        defined = squares > 0
        kept = _norm(a) / jnp.sqrt(jnp.where(defined, squares, 1.0))
        return jnp.where((strength == 0) | ~defined, x, (moved * kept).astype(x.dtype))


@_of_arrays(direction=1, strength=0)
class Add(NamedTuple):
    """Addition of ``strength * direction``, after which the norm is larger. Shapes as in :class:`Steer`.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Add
      >>> Add(jnp.ones(2), 3.0)(jnp.zeros((1, 1, 2)), None).tolist()
      [[[3.0, 3.0]]]
    """

    direction: Any
    strength: Any = 1.0

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Add to ``x`` at every position."""
        return (x.astype(jnp.float32) + _rows(self.strength, 0) * _rows(self.direction, 1)).astype(x.dtype)


@_of_arrays(value=1)
class Replace(NamedTuple):
    """Replacement of the activation by ``value``: ``[d]`` or ``[b, d]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Replace
      >>> Replace(jnp.array([5.0, 6.0]))(jnp.zeros((1, 1, 2)), None).tolist()
      [[[5.0, 6.0]]]
    """

    value: Any

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Replace ``x`` at every position."""
        return jnp.broadcast_to(_rows(self.value, 1), x.shape).astype(x.dtype)


@_of_arrays(features=1, value=1)
class Ablate(NamedTuple):
    """Ablation: chosen features are set to ``value`` (zero, or their mean).

    Attributes:
      features: boolean ``[d]`` or ``[b, d]``, true where a feature is ablated.
      value: a scalar, ``[d]`` or ``[b, d]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Ablate
      >>> Ablate(jnp.array([True, False]))(jnp.ones((1, 1, 2)), None).tolist()
      [[[0.0, 1.0]]]
    """

    features: Any
    value: Any = 0.0

    def check(self) -> None:
        """Refuse features that are no mask, values that are not finite numbers, and other shapes.

        Raises:
          AtlasError: naming the field.
        """
        _check(self, features=1, value=min(np.ndim(self.value), 1))
        mask = as_numbers(self.features, "the mask of Ablate")
        if known(mask) and mask.dtype != bool:
            refuse((mask != 0) & (mask != 1), mask, "the mask of Ablate", "a mask, true where a feature is ablated")

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Ablate features of ``x`` at every position."""
        value = jnp.asarray(self.value, jnp.float32)
        value = value[None, None, None] if value.ndim == 0 else _rows(value, 1)
        features = jnp.asarray(self.features, bool)
        features = features[:, None, :] if features.ndim == 2 else features[None, None, :]
        return jnp.where(features, value.astype(x.dtype), x)


@_of_arrays(direction=1)
class ProjectOut(NamedTuple):
    """Removal of the component along ``direction`` (``[d]`` or ``[b, d]``, any length).

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import ProjectOut
      >>> ProjectOut(jnp.array([0.0, 2.0]))(jnp.ones((1, 1, 2)), None).tolist()
      [[[1.0, 0.0]]]
    """

    direction: Any

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

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Add, at
      >>> edit = at(Add(jnp.ones(4)), "generated")
      >>> edit.width, bool(edit.from_prompt_end)
      (4, True)
    """

    edit: Any
    first: Any
    last: Any
    from_prompt_end: Any

    def check(self) -> None:
        """Check the edit.

        Raises:
          AtlasError: as the edit does.
        """
        if check := getattr(self.edit, "check", None):
            check()

    @property
    def width(self) -> int | None:
        """Features of the sites the edit fits, None where it has no width."""
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
      AtlasError: for an unknown name, positions that are not whole numbers from 0 up, a range that ends before it
        begins, or an edit that is none.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Replace, at
      >>> from atlas_jax.types import Where
      >>> x = jnp.ones((1, 4, 2))
      >>> where = Where(jnp.arange(4)[None, :], jnp.array([4]))
      >>> at(Replace(jnp.zeros(2)), (1, 2))(x, where)[0, :, 0].tolist()
      [1.0, 0.0, 0.0, 1.0]
      >>> at(Replace(jnp.zeros(2)), [0, 3])(x, where)[0, :, 0].tolist()
      [0.0, 1.0, 1.0, 0.0]
    """
    if not callable(edit):
        raise AtlasError(f"at() restricts an edit, such as Steer(direction, 2.0), and {type(edit).__name__} is none")
    if isinstance(positions, str):
        if positions not in _NAMED:
            raise AtlasError(f"unknown positions '{positions}'; use {', '.join(_NAMED)}, (first, last) or a list")
        first, last, relative = _NAMED[positions]
        return At(edit, jnp.full((1, 1), first), jnp.full((1, 1), last), jnp.bool_(relative))
    if isinstance(positions, tuple):
        if len(positions) != 2:
            raise AtlasError(
                f"a range of positions is (first, last), not {len(positions)} numbers; a list is of places"
            )
        first, last = (jnp.reshape(_places(p), (-1, 1)) for p in positions)
        if known(first) and known(last):
            refuse(
                first > last, jnp.broadcast_to(first, (first > last).shape), "the first position", "one up to the last"
            )
        return At(edit, first, last, jnp.bool_(False))
    single = jnp.atleast_2d(_places(positions))
    return At(edit, single, single, jnp.bool_(False))


def _places(positions: ArrayLike | list[int]) -> Int[Array, "..."]:
    """Positions of the text, counted from 0."""
    places = finite_numbers(positions, "a position")
    wanted = "whole numbers from 0 up, or a name such as 'last'"
    if places.dtype == bool:
        raise AtlasError(f"positions are a mask; give {wanted}")
    if known(places):
        part = jnp.issubdtype(places.dtype, jnp.floating) and places % 1 != 0
        refuse((places < 0) | part, places, "a position", wanted)
    return jnp.asarray(places, jnp.int32)


_FAR = 2**30
_NAMED = {"all": (0, _FAR, False), "generated": (0, _FAR, True), "prompt": (-_FAR, -1, True), "last": (-1, _FAR, True)}


def _norm(x: Float[Array, "*b d"]) -> Float[Array, "*b 1"]:
    """Euclidean norm along the last axis, with gradient zero at zero."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def _check(edit: Any, **axes: int) -> None:
    """Refuse fields that are not finite numbers with so many axes and perhaps one of rows in front."""
    rows = {}
    for name, number in axes.items():
        what = f"the {name} of {type(edit).__name__}"
        shape = finite_numbers(getattr(edit, name), what).shape
        if len(shape) - number not in (0, 1):
            wanted = ("a number, or one a row", "[d], or [b, d] with a row axis")[number]
            raise AtlasError(f"{what} has shape {tuple(shape)}; give {wanted}")
        if len(shape) > number:
            rows[name] = shape[0]
    if len(set(rows.values()) - {1}) > 1:
        counts = " and ".join(f"{name} {count}" for name, count in rows.items())
        raise AtlasError(f"the fields of {type(edit).__name__} are for different rows: {counts}")


def _row_count(*fields: tuple[ArrayLike, int]) -> int:
    """The leading row axis of values that may have one in front of so many trailing axes, 1 where none has."""
    return max((jnp.shape(v)[0] for v, axes in fields if jnp.ndim(v) > axes), default=1)


def _rows(value: ArrayLike, axes: int) -> Float[Array, "..."]:
    """Float32 with ``[b?]`` in front of ``axes`` trailing axes reshaped to ``[b or 1, 1, d or 1]``."""
    v = jnp.asarray(value, jnp.float32)
    v = v if v.ndim > axes else v[None]
    return v[:, None, :] if axes else v[:, None, None]
