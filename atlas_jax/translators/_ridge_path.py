"""Ridge regression along a path of penalties, from one eigendecomposition, judged on held-out statistics."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.checks import as_number
from atlas_jax.errors import AtlasError
from atlas_jax.statistics import Statistics, cross_product, gram_matrix, gram_moments, on_one_device
from atlas_jax.translators._solution import Solution, solution
from atlas_jax.translators._spectrum import eigh

PENALTIES = tuple(np.geomspace(1e-6, 1e2, 20).tolist())  # in units of the mean scatter of the atlas features


class Path(NamedTuple):
    """Ridge regressions of one pass, by penalty.

    Attributes:
      penalties: in units of the mean scatter of the atlas features that are not dead, ascending.
      r2: share of the held-out variance of all subject features together that each explains.
      best: place of the penalty with the highest of them.

    Example:
      >>> from atlas_jax.translators import Path
      >>> Path((0.1, 1.0), (0.5, 0.4), 0).penalty
      0.1
    """

    penalties: tuple[float, ...]
    r2: tuple[float, ...]
    best: int

    @property
    def penalty(self) -> float:
        """The best penalty."""
        return self.penalties[self.best]


class _Diagonal(NamedTuple):
    """The centred Gram matrix of the atlas side, diagonalised, in float64 on one device."""

    values: Float[Array, " d_c"]
    vectors: Float[Array, "d_c d_c"]
    held_out: Float[Array, "d_c d_c"]  # the held-out Gram matrix in that basis
    unit: float
    dead: int


class _HeldOut(NamedTuple):
    """What the held-out error of an affine map needs, in float64 on one device."""

    weight: Float[Array, ""]
    scatter: Float[Array, ""]
    cross: Float[Array, "d_s d_c"]
    shift_s: Float[Array, " d_s"]
    shift_c: Float[Array, " d_c"]


def ridge_path(
    stats: Statistics, held_out: Statistics, penalties: Sequence[float] = PENALTIES
) -> tuple[Solution, Path]:
    """Fit ridge regressions with an intercept at every penalty, and return the one that is best on held-out text.

    ``T_p = C (G + p s I)^-1`` with the centred cross product C and Gram matrix G of the fit statistics and the mean
    scatter s of the atlas features. The intercept is not penalised. G is diagonalised once, and the held-out
    error of every penalty is a quadratic form of held-out statistics, so no activation is read twice.

    Args:
      stats: of the fit half, with the needs ``"cross"`` and ``"atlas_gram"``.
      held_out: of other sentences, with the same needs.
      penalties: numbers from 0 up, of which 0 is least squares over the range of G.

    Returns:
      The solution of the best penalty, which is in its certificate, and the path.

    Raises:
      AtlasError: if a need is missing, there are no rows, the held-out half has no variance, or for no penalty.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import ridge_path
      >>> x = jnp.array([[1.0], [3.0], [5.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 1), 2 * x + 1, x)
      >>> solution, path = ridge_path(stats, stats, [1e-6, 1.0])
      >>> solution.matrix.round(4).tolist(), path.penalty
      ([[2.0]], 1e-06)
    """
    penalties = _checked(penalties)
    with jax.enable_x64(True):
        diagonal = _diagonalised(stats, held_out)
        rotated, scales, path = _path(stats, held_out, penalties, diagonal)
        matrix = (rotated * scales[path.best][None, :]) @ diagonal.vectors.T
        known = {"penalty": path.penalty, "shift": path.penalty * diagonal.unit, "held_out_r2": path.r2[path.best]}
        return solution(matrix, solver="eigh", **known, dead_columns=diagonal.dead), path


def ridge_paths(
    stats: Mapping[Any, Statistics], held_out: Mapping[Any, Statistics], penalties: Sequence[float] = PENALTIES
) -> dict[Any, Path]:
    """Return the paths of several subject sites against one atlas side, whose Gram matrix is diagonalised once.

    Raises:
      AtlasError: as :func:`ridge_path`.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import ridge_paths
      >>> x = jnp.array([[1.0], [3.0], [5.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 1), 2 * x + 1, x)
      >>> ridge_paths({"a": stats}, {"a": stats}, [1e-6, 1.0])["a"].penalty
      1e-06
    """
    penalties = _checked(penalties)
    with jax.enable_x64(True):
        diagonal = _diagonalised(*(next(iter(half.values())) for half in (stats, held_out)))
        return {key: _path(own, held_out[key], penalties, diagonal)[2] for key, own in stats.items()}


def _checked(penalties: Sequence[float]) -> list[float]:
    if not len(penalties):
        raise AtlasError("ridge regression needs a penalty; give at least one")
    return sorted(as_number(p, "a penalty", least=0) for p in penalties)


def _diagonalised(stats: Statistics, held_out: Statistics) -> _Diagonal:
    gram, other = (gram_matrix(gram_moments(half, "atlas", unit=False), centre=True) for half in (stats, held_out))
    nonzero = int(jnp.count_nonzero(jnp.diagonal(gram)))
    values, vectors = eigh(gram)
    turned = vectors.T @ other @ vectors
    return _Diagonal(values, vectors, turned, float(jnp.trace(gram)) / max(nonzero, 1), len(gram) - nonzero)


def _path(
    stats: Statistics, held_out: Statistics, penalties: list[float], diagonal: _Diagonal
) -> tuple[Float[Array, "d_s d_c"], Float[Array, "p d_c"], Path]:
    """The centred cross product in the eigenbasis, its factors by penalty, and what each penalty explains."""
    floor = float(np.finfo(np.float32).eps) * float(diagonal.values[-1])
    rotated = cross_product(stats, unit=False, centre=True, one_device=True) @ diagonal.vectors
    scales = jnp.stack([_scales(diagonal.values, p * diagonal.unit, floor) for p in penalties])
    explained = _explained(diagonal.vectors.T, rotated, scales, diagonal.held_out, _held_out(stats, held_out))
    r2 = tuple(float(x) for x in explained)
    return rotated, scales, Path(tuple(penalties), r2, int(np.argmax(r2)))


def explained_variance(matrix: Float[Array | np.ndarray, "d_s d_c"], stats: Statistics, held_out: Statistics) -> float:
    """Return the share of held-out variance explained by ``y = mean_s + T (x - mean_c)`` with the means of ``stats``.

    ``1 - |y - y'|^2 / |y - mean(y)|^2`` over all features and held-out rows together; the mean is that of the
    held-out rows, so predicting the mean of the fit half gives slightly less than 0.

    Raises:
      AtlasError: as :func:`ridge_path`.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import explained_variance
      >>> x = jnp.array([[1.0], [3.0], [5.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 1, 1), 2 * x, x)
      >>> [explained_variance(jnp.array([[t]]), stats, stats) for t in (0.0, 1.0, 2.0)]
      [0.0, 0.75, 1.0]
    """
    with jax.enable_x64(True):
        t = jnp.asarray(on_one_device(jnp.asarray(matrix)), jnp.float64)
        gram = gram_matrix(gram_moments(held_out, "atlas", unit=False), centre=True)
        parts = jnp.eye(t.shape[1]), t, jnp.ones((1, t.shape[1])), gram
        return float(_explained(*parts, _held_out(stats, held_out))[0])


def _held_out(stats: Statistics, held_out: Statistics) -> _HeldOut:
    cross = cross_product(held_out, unit=False, centre=True, one_device=True)
    wide = lambda x: jnp.asarray(on_one_device(x), jnp.float64)
    scatter = jnp.sum(wide(held_out.subject.raw.scatter))
    if not float(scatter) > 0:
        raise AtlasError("the held-out sentences have no variance; give more of them")
    shift = lambda side: wide(getattr(held_out, side).raw.mean) - wide(getattr(stats, side).raw.mean)
    return _HeldOut(wide(held_out.weight), scatter, cross, shift("subject"), shift("atlas"))


def _scales(values: Float[Array, " d_c"], shift: float, floor: float) -> Float[Array, " d_c"]:
    """``1 / (values + shift)``, zero where both are rounding."""
    kept = values + shift > floor
    return jnp.where(kept, 1.0 / jnp.where(kept, values + shift, 1.0), 0.0)


@jax.jit
def _explained(
    basis: Float[Array, "r d_c"],
    rotated: Float[Array, "d_s r"],
    scales: Float[Array, "p r"],
    gram: Float[Array, "r r"],
    held_out: _HeldOut,
) -> Float[Array, " p"]:
    """Held-out R^2 of the maps ``rotated diag(scales) basis``; ``gram`` is the held-out Gram matrix in that basis."""
    cross = jnp.sum(rotated * (held_out.cross @ basis.T), axis=0)
    square = (rotated.T @ rotated) * gram
    moved = basis @ held_out.shift_c

    def error(scale: Float[Array, " r"]) -> Any:
        bias = held_out.shift_s - rotated @ (scale * moved)
        fitted = scale @ square @ scale - 2 * scale @ cross
        return held_out.scatter + fitted + held_out.weight * bias @ bias

    return 1 - jax.lax.map(error, scales) / held_out.scatter


def linear_cka(stats: Statistics) -> float:
    """Return the linear centred kernel alignment of both sides, ``|A_s^T A_c|^2 / (|A_s^T A_s| |A_c^T A_c|)``.

    All centred, in the Frobenius norm: 1 where one side is a rotation of the other, scaled. With few rows for the
    width it is too high.

    Args:
      stats: with the needs ``"cross"``, ``"atlas_gram"`` and ``"subject_gram"``.

    Raises:
      AtlasError: if a need is missing, or there are no rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import linear_cka
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
      >>> empty = Statistics.init(["cross", "atlas_gram", "subject_gram"], 2, 2)
      >>> round(linear_cka(update(empty, 3 * x[:, ::-1], x)), 6)
      1.0
    """
    with jax.enable_x64(True):
        norm = lambda side: jnp.linalg.norm(gram_matrix(gram_moments(stats, side, unit=False), centre=True))
        cross = jnp.linalg.norm(cross_product(stats, unit=False, centre=True, one_device=True))
        norms = float(norm("subject") * norm("atlas"))
        return float(cross) ** 2 / norms if norms > 0 else float("nan")
