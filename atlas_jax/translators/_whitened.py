"""The whitened family: powers of both Gram matrices around the cross product."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from atlas_jax.checks import as_number
from atlas_jax.errors import AtlasError
from atlas_jax.sharding import mesh_of
from atlas_jax.statistics import Statistics, cross_product, on_one_device
from atlas_jax.translators._moments import semantic_lens
from atlas_jax.translators._solution import Solution, laid_out, solution, times
from atlas_jax.translators._spectrum import Spectrum

CUT = 3e-7  # float32 statistics carry rounding of about 1e-7 of the largest eigenvalue


class Member(NamedTuple):
    """One member of the family, in the arguments of :func:`whitened`.

    Example:
      >>> from atlas_jax.translators import Member
      >>> sorted(Member(alpha=1.0, normalize_rows=False).needs)
      ['cross', 'subject_gram']
    """

    alpha: float = 0.5
    beta: float = 0.0
    normalize_rows: bool = True
    centre: bool = False
    ridge: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """The statistics it reads."""
        read = ["cross", *["subject_gram"] * (self.alpha != 0), *["atlas_gram"] * (self.beta != 0)]
        return frozenset("unit_" * self.normalize_rows + name for name in read)


def whitened(
    stats: Statistics,
    *,
    alpha: float | int = 0.5,
    beta: float | int = 0.0,
    normalize_rows: bool = True,
    centre: bool = False,
    ridge: float | int = 0.0,
    cut: float = CUT,
) -> Solution:
    """``(A_s^T A_s)^-alpha A_s^T A_c (A_c^T A_c)^-beta``; not in the paper.

    Without ``normalize_rows``, (0, 0) is covariance when centred, (0, 1) least squares (Eq. 8), (1, 0) the reverse
    regression, (1/2, 1/2) canonical correlation. Powers are of the pseudo-inverse, so dead features have exactly zero
    rows and columns.

    Args:
      stats: statistics with ``"cross"``, ``"subject_gram"`` unless alpha is 0 and ``"atlas_gram"`` unless beta is 0,
        each with the prefix ``unit_`` when ``normalize_rows``; in numpy, on one device or sharded over a mesh, also one
        of several processes (which must all call).
      alpha: power of the subject side.
      beta: power of the atlas side.
      normalize_rows: use rows divided by their L2 norm.
      centre: subtract the column means (after the normalisation).
      ridge: added to each Gram matrix, in units of its mean eigenvalue over the features that are not dead.
      cut: eigenvalues up to ``cut`` times the largest of the centred Gram matrix count as zero.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``, on the mesh of the statistics where they have one; ``certificate`` with the
      arguments, and for each side that was whitened the rank, the number of dead features, the condition number over
      the range and the shift that the ridge added. All is computed in float64 on one device.

    Raises:
      AtlasError: if a need is missing, there are no rows, or an option is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import whitened
      >>> x = jnp.array([[3.0], [4.0]])
      >>> stats = update(Statistics.init(["cross", "subject_gram"], 1, 1), x, x)
      >>> whitened(stats, alpha=0.5, beta=0.0, normalize_rows=False).matrix.tolist()
      [[5.0]]
    """
    member = Member(alpha, beta, normalize_rows, centre, ridge)
    return Whitening.from_statistics(stats, [member], cut=cut).solve(member)


def whitened_family(
    stats: Statistics,
    powers: Iterable[tuple[float | int, float | int]],
    *,
    normalize_rows: bool = True,
    centre: bool = False,
    ridge: float | int = 0.0,
    cut: float = CUT,
) -> dict[tuple[float | int, float | int], Solution]:
    """Solve :func:`whitened` for many ``(alpha, beta)`` from one eigendecomposition a side.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import whitened_family
      >>> x = jnp.array([[3.0], [4.0]])
      >>> stats = update(Statistics.init(["cross", "subject_gram"], 1, 1), x, x)
      >>> family = whitened_family(stats, [(0.0, 0.0), (0.5, 0.0)], normalize_rows=False)
      >>> [solution.matrix.tolist() for solution in family.values()]
      [[[25.0]], [[5.0]]]
    """
    members = [Member(a, b, normalize_rows, centre, ridge) for a, b in powers]
    whitening = Whitening.from_statistics(stats, members, cut=cut)
    return {(m.alpha, m.beta): whitening.solve(m) for m in members}


def whitened_lens(
    stats: Statistics, *, power: float | int = 0.5, ridge: float | int = 1e-2, cut: float = CUT
) -> Solution:
    """SemanticLens centred and whitened by the atlas, ``(L - 1 m^T) C^-power``; not in the paper.

    L is the matrix of :func:`semantic_lens` (Eq. 9), m and C mean and scatter of the atlas activations, the ridge
    added. Features that are nearly always active then count for no more than others. Made for retrieval by averaged
    queries: each row is such a query, of other sentences.

    Args:
      stats: statistics with the needs ``"top_k"`` and ``"atlas_gram"``, and ``lens`` filled as for
        :func:`semantic_lens`.
      power: of the scatter.
      ridge: added to the scatter, in units of its mean eigenvalue over the features that are not dead.
      cut: eigenvalues up to ``cut`` times the largest count as zero.

    Returns:
      ``matrix`` float32 ``[d_s, d_c]``, zero in the columns of dead atlas features and in the rows of subject features
      that do not vary; ``certificate`` with the arguments, the rank, the number of dead features, the condition number
      over the range and the shift of the ridge.

    Raises:
      AtlasError: as :func:`semantic_lens`; or if a need is missing or an option is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.statistics import lens_init, lens_update
      >>> from atlas_jax.translators import whitened_lens
      >>> a_s, a_c = jnp.array([[1.0], [3.0], [2.0]]), jnp.array([[0.0], [4.0], [8.0]])
      >>> stats = update(Statistics.init(["top_k", "atlas_gram"], 1, 1, top_k=2), a_s, a_c)
      >>> lens = lens_update(lens_init(stats.top, 1), jnp.arange(3), a_c)
      >>> whitened_lens(stats._replace(lens=lens), power=1.0, ridge=0.0).matrix.tolist()
      [[0.0625]]
    """
    for name, value in {"power": power, "the ridge": ridge, "cut": cut}.items():
        as_number(value, name, least=0)
    own = semantic_lens(stats)
    atlas = Spectrum.from_statistics(stats, "atlas", normalize_rows=False, centre=True, cut=cut)
    with jax.enable_x64(True):
        parts = own.matrix, jnp.asarray(stats.atlas.raw.mean), jnp.asarray(stats.subject.raw.scatter)
        rows, mean, scatter = on_one_device(parts)
        centred = jnp.where(scatter[:, None] > 0, rows.astype(jnp.float64) - mean.astype(jnp.float64)[None, :], 0.0)
        matrix = atlas.apply_power(power, ridge, centred.T).T
    facts = _facts("atlas", atlas, ridge) | {"power": power, "ridge": ridge, "k": own.certificate["k"]}
    return solution(matrix, mesh_of(stats), solver="eigh", cut=cut, **facts)


class Whitening(NamedTuple):
    """One view of the statistics (rows normalised or not, centred or not) with its Gram matrices diagonalised.

    Every member of the family in this view, whatever its powers and its ridge, is two scalings away.

    Attributes:
      cross: ``A_s^T A_c [d_s, d_c]``, float64 on one device.
      subject: its spectrum, None where no member has alpha.
      atlas: its spectrum, None where no member has beta.
      cut: below which eigenvalues count as zero.
      mesh: of the statistics, None where they have none.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import Member, Whitening
      >>> x = jnp.array([[3.0], [4.0]])
      >>> stats = update(Statistics.init(["cross", "subject_gram"], 1, 1), x, x)
      >>> member = Member(0.5, normalize_rows=False)
      >>> Whitening.from_statistics(stats, [member]).solve(member).matrix.tolist()
      [[5.0]]
    """

    cross: Float[Array, "d_s d_c"]
    subject: Spectrum | None
    atlas: Spectrum | None
    cut: float
    mesh: Mesh | None

    @classmethod
    def from_statistics(
        cls,
        stats: Statistics,
        members: Iterable[Member],
        *,
        cut: float = CUT,
        atlas: Spectrum | None = None,
    ) -> "Whitening":
        """Diagonalise the Gram matrices that some members of one view need.

        Args:
          stats: the statistics.
          members: they share ``normalize_rows`` and ``centre``.
          cut: as in :func:`whitened`.
          atlas: the spectrum of the atlas side if it is known, from another site of the same pass.

        Raises:
          AtlasError: if the members are of several views or none, a need is missing, there are no rows, an option is
            out of range, or a Gram matrix is too large.
        """
        members = list(members)
        as_number(cut, "cut", least=0)
        for member in members:
            for name in ("alpha", "beta"):
                as_number(getattr(member, name), name)
            as_number(member.ridge, "the ridge", least=0)
        views = {(m.normalize_rows, m.centre) for m in members}
        if len(views) != 1:
            raise AtlasError(f"members of one view are diagonalised together, got {len(views)} views")
        ((unit, centre),) = views
        cross = cross_product(stats, unit=unit, centre=centre, one_device=True)
        spectrum = lambda side: Spectrum.from_statistics(stats, side, normalize_rows=unit, centre=centre, cut=cut)
        subject = spectrum("subject") if any(m.alpha for m in members) else None
        if atlas is None and any(m.beta for m in members):
            atlas = spectrum("atlas")
        return cls(cross, subject, atlas, cut, mesh_of(stats))

    def solve(self, member: Member) -> Solution:
        """The matrix of a member."""
        facts: dict[str, Any] = {"solver": "eigh" if member.alpha or member.beta else "moments", "cut": self.cut}
        matrix = self.cross
        with jax.enable_x64(True):
            if member.alpha:
                facts |= _facts("subject", self.subject, member.ridge)
                matrix = self.subject.apply_power(member.alpha, member.ridge, matrix)
            if member.beta:
                facts |= _facts("atlas", self.atlas, member.ridge)
                matrix = self.atlas.apply_power(member.beta, member.ridge, matrix.T).T
        return solution(matrix, self.mesh, **facts, **member._asdict())

    def in_eigenbasis(self) -> "Eigenbasis":
        """Return this view in the eigenbases, float32 where the statistics are, to compare members cheaply."""
        sides = self.subject, self.atlas
        with jax.enable_x64(True):
            core = self.cross if self.subject is None else self.subject.in_basis(self.cross)
            core = core if self.atlas is None else self.atlas.in_basis(core.T).T
        vectors = [None if side is None else laid_out(side.vectors, self.mesh) for side in sides]
        values = [
            None if side is None else jnp.asarray(side.values / (side.unit or 1.0), jnp.float32) for side in sides
        ]
        return Eigenbasis(laid_out(core, self.mesh), *vectors, *values)


class Eigenbasis(NamedTuple):
    """A view of the statistics in the eigenbases of its Gram matrices, without the way back to the atlas features.

    A cosine of a row of T with a query is the cosine of a row of :meth:`rows` with the query in that basis, but for the
    query's part outside the range of the atlas, which scales all rows alike.

    Attributes:
      core: cross product ``[r_s, r_c]``; ``d_s`` or ``d_c`` where that side has no eigenbasis.
      subject: eigenvectors ``[d_s, r_s]``, None where no member has alpha.
      atlas: eigenvectors ``[d_c, r_c]``, None where no member has beta.
      subject_values: eigenvalues over their mean ``[r_s]``.
      atlas_values: eigenvalues over their mean ``[r_c]``.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Statistics, update
      >>> from atlas_jax.translators import Member, Whitening
      >>> x = jnp.array([[3.0, 1.0], [4.0, 0.0]])
      >>> stats = update(Statistics.init(["cross", "atlas_gram"], 2, 2), x, x)
      >>> member = Member(0.0, 1.0, normalize_rows=False)
      >>> view = Whitening.from_statistics(stats, [member]).in_eigenbasis()
      >>> rows, query = view.rows(member), view.queries(jnp.array([[1.0, 0.0]]))[0]
      >>> abs(rows @ query / jnp.linalg.norm(rows, axis=1)).round(2).tolist()
      [1.0, 0.0]
    """

    core: Float[Array, "r_s r_c"]
    subject: Float[Array, "d_s r_s"] | None
    atlas: Float[Array, "d_c r_c"] | None
    subject_values: Float[Array, " r_s"] | None
    atlas_values: Float[Array, " r_c"] | None

    def rows(self, member: Member) -> Float[Array, "d_s r_c"]:
        """``T V_c`` of a member of this view, up to a positive factor."""
        return _rows(self, float(member.alpha), float(member.beta), float(member.ridge))

    def queries(self, q: Float[Array | np.ndarray, "q d_c"]) -> Float[Array, "q r_c"]:
        """Queries in the basis of :meth:`rows`: ``q V_c``."""
        q = jnp.asarray(q, jnp.float32)
        return q if self.atlas is None else times(q, self.atlas)


@jax.jit
def _rows(
    view: Eigenbasis, alpha: Float[ArrayLike, ""], beta: Float[ArrayLike, ""], ridge: Float[ArrayLike, ""]
) -> Float[Array, "d_s r_c"]:
    core = view.core
    if view.atlas_values is not None:
        core = core * ((view.atlas_values + ridge) ** -beta)[None, :]
    if view.subject_values is None:
        return core
    core = core * ((view.subject_values + ridge) ** -alpha)[:, None]
    return times(view.subject, core)


def _facts(side: str, spectrum: Spectrum, ridge: float | int) -> dict[str, Any]:
    shift, values = ridge * spectrum.unit, spectrum.values
    condition = float((values[-1] + shift) / (values[0] + shift)) if values.size else 1.0
    return {
        f"rank_{side}": values.size, f"dead_{side}": spectrum.dead, f"condition_{side}": condition,
        f"shift_{side}": float(shift),
    }  # fmt: skip
