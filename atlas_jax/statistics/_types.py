"""Sufficient statistics of paired activations: the result of one streamed pass, for every method.

Two *views* of the rows are kept: ``raw`` as they come, and ``unit`` with each row divided by its L2 norm (zero rows
stay zero). All second moments are centred; the uncentred product is ``centred + weight * outer(means)``.
Every number is float32 and has a twin under ``compensation`` that holds the rounding errors of the additions.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from atlas_jax.checks import as_count
from atlas_jax.errors import AtlasError
from atlas_jax.sharding import sharding_for

NEEDS: dict[str, str] = {
    "cross": "centred A_s^T A_c of the raw rows",
    "unit_cross": "centred A_s^T A_c of the unit rows",
    "atlas_gram": "centred A_c^T A_c of the raw rows",
    "unit_atlas_gram": "centred A_c^T A_c of the unit rows",
    "subject_gram": "centred A_s^T A_s of the raw rows",
    "unit_subject_gram": "centred A_s^T A_s of the unit rows",
    "top_k": "the k largest activations of each subject feature",
}


class Moments(NamedTuple):
    """First and second moments of one side in one view.

    Attributes:
      mean: column means ``[d]``.
      scatter: weighted sum of squared deviations from the mean ``[d]``; the variance times the weight.
      gram: centred Gram matrix ``[d, d]``, None unless needed.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> x = jnp.array([[1.0], [3.0]])
      >>> moments = update(Statistics.init(["cross"], 1, 1), x, x).atlas.raw
      >>> moments.mean.tolist(), moments.scatter.tolist(), moments.gram
      ([2.0], [2.0], None)
    """

    mean: Float[Array, " d"]
    scatter: Float[Array, " d"]
    gram: Float[Array, "d d"] | None


class Side(NamedTuple):
    """Moments of one side (subject or atlas): raw rows, and unit rows where a method needs them."""

    raw: Moments
    unit: Moments | None


class Cross(NamedTuple):
    """Centred cross products ``[d_s, d_c]`` of the two sides, by view; None where not needed."""

    raw: Float[Array, "d_s d_c"] | None
    unit: Float[Array, "d_s d_c"] | None


class TopK(NamedTuple):
    """The largest activations of every subject feature, best first, ties to the lowest sentence id.

    Attributes:
      values: activations ``[d_s, k]``, ``-inf`` in empty places.
      index: sentence ids ``[d_s, k]``, -1 in empty places.
      position: a number carried along (the token position of the peak) ``[d_s, k]``; None when not asked for.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> a_s = jnp.array([[1.0], [3.0], [2.0]])
      >>> top = update(Statistics.init(["top_k"], 1, 1, top_k=2), a_s, a_s).top
      >>> top.values.tolist(), top.index.tolist()
      ([[3.0, 2.0]], [[1, 2]])
    """

    values: Float[Array, "d_s k"]
    index: Int[Array, "d_s k"]
    position: Int[Array, "d_s k"] | None


class NonFinite(NamedTuple):
    """Rows left out because an activation was not finite: how many, and the id of the first (-1: none)."""

    rows: Int[Array, ""]
    first: Int[Array, ""]


class Lens(NamedTuple):
    """SemanticLens' second pass: atlas activations summed over the selected sentences of each subject feature.

    Attributes:
      index: the selected sentence ids ``[d_s, k]`` from :class:`TopK`, -1 in empty places.
      total: sum of the atlas activations seen so far ``[d_s, d_c]``.
      found: number of selected sentences seen so far ``[d_s]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.statistics import TopK, lens_init, lens_update
      >>> top = TopK(jnp.ones((1, 2)), jnp.array([[7, 3]]), None)
      >>> lens = lens_update(lens_init(top, 2), jnp.array([3]), jnp.array([[1.0, 0.0]]))
      >>> lens.total.tolist(), lens.found.tolist()
      ([[1.0, 0.0]], [1])
    """

    index: Int[Array, "d_s k"]
    total: Float[Array, "d_s d_c"]
    found: Int[Array, " d_s"]


class Sums(NamedTuple):
    """The additive part of a pass: the atlas side once, and per site the subject side and the cross products."""

    weight: Float[Array, ""]
    atlas: Side
    subjects: dict[Any, Side]
    crosses: dict[Any, Cross]


class Statistics(NamedTuple):
    """Sufficient statistics of one (subject site, atlas) pair: the input of every translator.

    Attributes:
      weight: total weight of the rows, the number of sentences when each weighs one.
      atlas: moments of the atlas side ``[d_c]``.
      subject: moments of the subject side ``[d_s]``.
      cross: centred cross products ``[d_s, d_c]``.
      top: largest activations per subject feature, None unless needed.
      seen: rows offered so far, padding included.
      nonfinite: rows left out because they were not finite.
      compensation: ``(weight, atlas, subject, cross)`` again, holding the rounding error of each sum in float32.
      lens: SemanticLens' second pass, None before it.

    Example:
      >>> from atlas_jax import Statistics
      >>> stats = Statistics.init(["cross"], d_s=3, d_c=5)
      >>> stats.cross.raw.shape, stats.atlas.raw.gram is None
      ((3, 5), True)
    """

    weight: Float[Array, ""]
    atlas: Side
    subject: Side
    cross: Cross
    top: TopK | None
    seen: Int[Array, ""]
    nonfinite: NonFinite
    compensation: tuple[Float[Array, ""], Side, Side, Cross]
    lens: Lens | None = None

    @classmethod
    def init(
        cls,
        needs: Iterable[str],
        d_s: int,
        d_c: int,
        *,
        top_k: int = 10,
        peaks: bool = False,
        mesh: Mesh | None = None,
    ) -> "Statistics":
        """Empty statistics of the names in ``needs`` (see :data:`NEEDS`).

        Args:
          needs: names of statistics, usually the union of ``METHODS[name].needs``.
          d_s: subject width.
          d_c: atlas width.
          top_k: how many activations per subject feature the need ``"top_k"`` keeps.
          peaks: carry a token position beside each of them.
          mesh: lay the statistics out on this mesh by :func:`layout`; every update keeps that.

        Raises:
          AtlasError: for an unknown need, a width or a ``top_k`` that is no whole number from 1 up.
        """
        return PassStatistics.init(needs, {"": d_s}, d_c, top_k=top_k, peaks=peaks, mesh=mesh).statistics("")


class PassStatistics(NamedTuple):
    """Statistics of one pass over several subject sites: the atlas side is held and multiplied once for all.

    Attributes:
      sums: the additive statistics.
      compensation: the same tree, holding the rounding errors of float32.
      top: :class:`TopK` by site, None unless needed.
      seen: rows offered so far, padding included.
      nonfinite: rows left out because some activation was not finite.

    Example:
      >>> from atlas_jax import PassStatistics
      >>> state = PassStatistics.init(["cross"], {"a": 3, "b": 4}, 5)
      >>> state.statistics("b").cross.raw.shape
      (4, 5)
    """

    sums: Sums
    compensation: Sums
    top: dict[Any, TopK] | None
    seen: Int[Array, ""]
    nonfinite: NonFinite

    @classmethod
    def init(
        cls,
        needs: Iterable[str],
        widths: Mapping[Any, int],
        d_c: int,
        *,
        top_k: int = 10,
        peaks: bool = False,
        mesh: Mesh | None = None,
    ) -> "PassStatistics":
        """Empty statistics for subject sites of the given widths; arguments as in :meth:`Statistics.init`."""
        needs = _checked(needs, *widths.values(), d_c, top_k=top_k)
        return on_mesh(lambda: _empty(needs, widths, d_c, top_k, peaks), mesh)

    @property
    def sites(self) -> tuple[Any, ...]:
        """The subject sites, in order."""
        return tuple(self.sums.subjects)

    def statistics(self, site: Hashable) -> Statistics:
        """The statistics of one site, sharing the arrays of this pass.

        Raises:
          AtlasError: if the pass has no such site.
        """
        if site not in self.sums.subjects:
            raise AtlasError(f"no statistics for site '{site}'; this pass has {', '.join(map(str, self.sites))}")
        view = lambda s: (s.weight, s.atlas, s.subjects[site], s.crosses[site])
        top = None if self.top is None else self.top[site]
        return Statistics(*view(self.sums), top, self.seen, self.nonfinite, view(self.compensation))


def layout(state: Any, mesh: Mesh | AbstractMesh) -> Any:
    """Return the sharding of every array of statistics, or of a pytree with some, on a ``("data", "model")`` mesh.

    Matrices (cross products, Gram matrices, their rounding errors, the sums of :class:`Lens`) have their rows
    over "data" and their columns over "model"; top-k lists have their rows over "data"; vectors and scalars are
    whole on every device. An axis that does not divide evenly is kept whole.

    Example:
      >>> import jax
      >>> from atlas_jax import Statistics, make_mesh
      >>> from atlas_jax.statistics import layout
      >>> stats = jax.eval_shape(lambda: Statistics.init(["cross", "top_k"], 16, 32))
      >>> where = layout(stats, make_mesh())
      >>> where.cross.raw.spec, where.atlas.raw.mean.spec, where.top.index.spec
      (P('data', 'model'), P(), P('data',))
    """
    rows = lambda x: sharding_for(x.shape, mesh, "data")
    matrix = lambda x: sharding_for(x.shape, mesh, *(("data", "model") if x.ndim == 2 else ()))

    def place(x: Any) -> Any:
        if isinstance(x, TopK):
            return jax.tree.map(rows, x)
        return Lens(rows(x.index), matrix(x.total), matrix(x.found)) if isinstance(x, Lens) else matrix(x)

    return jax.tree.map(place, state, is_leaf=lambda x: isinstance(x, TopK | Lens))


def on_mesh(make: Callable[[], Any], mesh: Mesh | None) -> Any:
    """Make the pytree that ``make`` returns, laid out by :func:`layout`; without a mesh, as it comes.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import make_mesh
      >>> from atlas_jax.statistics import on_mesh
      >>> zeros = on_mesh(lambda: {"cross": jnp.zeros((16, 32))}, make_mesh())
      >>> zeros["cross"].sharding.spec
      P('data', 'model')
    """
    return make() if mesh is None else jax.jit(make, out_shardings=layout(jax.eval_shape(make), mesh))()


def _checked(needs: Iterable[str], *widths: int, top_k: int) -> frozenset[str]:
    for width in widths:
        as_count(width, "the width of a site")
    as_count(top_k, "top_k")
    needs = frozenset([needs] if isinstance(needs, str) else needs)
    if unknown := sorted(needs - NEEDS.keys()):
        raise AtlasError(f"unknown statistics {', '.join(unknown)}; known are {', '.join(NEEDS)}")
    return needs


def _empty(needs: frozenset[str], widths: Mapping[Any, int], d_c: int, top_k: int, peaks: bool) -> PassStatistics:
    unit = any(need.startswith("unit_") for need in needs)
    sums = Sums(
        weight=jnp.zeros((), jnp.float32),
        atlas=_side(d_c, "atlas_gram", needs, unit),
        subjects={site: _side(d_s, "subject_gram", needs, unit) for site, d_s in widths.items()},
        crosses={
            site: Cross(
                jnp.zeros((d_s, d_c), jnp.float32) if "cross" in needs else None,
                jnp.zeros((d_s, d_c), jnp.float32) if "unit_cross" in needs else None,
            )
            for site, d_s in widths.items()
        },
    )
    return PassStatistics(
        sums=sums,
        compensation=jax.tree.map(jnp.zeros_like, sums),
        top={site: _top(d_s, top_k, peaks) for site, d_s in widths.items()} if "top_k" in needs else None,
        seen=jnp.zeros((), jnp.int32),
        nonfinite=NonFinite(jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32)),
    )


def _side(d: int, gram: str, needs: frozenset[str], unit: bool) -> Side:
    def moments(name: str) -> Moments:
        square = jnp.zeros((d, d), jnp.float32) if name in needs else None
        return Moments(jnp.zeros(d, jnp.float32), jnp.zeros(d, jnp.float32), square)

    return Side(moments(gram), moments(f"unit_{gram}") if unit else None)


def _top(d_s: int, k: int, peaks: bool) -> TopK:
    empty = lambda: jnp.full((d_s, k), -1, jnp.int32)
    return TopK(jnp.full((d_s, k), -jnp.inf, jnp.float32), empty(), empty() if peaks else None)
