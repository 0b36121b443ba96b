"""Choice of members of the whitened family on a held-out part of the fit half, which is merged back afterwards."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.pipeline._checkpoint import Checkpoints
from atlas_jax.pipeline._fit import Fitted, fit_statistics, merge_fitted
from atlas_jax.pipeline._stream import SentenceStream
from atlas_jax.progress import Progress
from atlas_jax.statistics import PassStatistics
from atlas_jax.table import Column, Table
from atlas_jax.translation import Translation
from atlas_jax.translators import Member, Whitening
from atlas_jax.types import Site

SHARE, MOST = 0.1, 10_000  # of the fit half held out, and sentences beyond which more would decide nothing


class Choice(NamedTuple):
    """Members of the whitened family, and the record of their choice.

    Attributes:
      members: by site and by the name of the translation that each becomes.
      record: the grid and its scores on the held-out part, as plain values; where nothing could be chosen, why, under
        ``"fault"``.

    Example:
      >>> from atlas_jax import Site
      >>> from atlas_jax.pipeline import Choice
      >>> from atlas_jax.translators import Member
      >>> choice = Choice({(Site("mlp_act", 1), "whitened_detect"): Member(0.5)}, {"chosen": []})
      >>> [member.alpha for member in choice.members.values()]
      [0.5]
    """

    members: Mapping[tuple[Site, str], Member]
    record: Mapping[str, Any]

    def table(self) -> Table:
        """Tabulate the chosen members of the whitened family, with their scores on the part held out for it."""
        uses = "; ".join(f"{use}: {meaning}" for use, meaning in self.record["uses"].items())
        rows = [
            (
                r["site"], r["use"], float(r["alpha"]), float(r["beta"]),
                "unit" if r["normalize_rows"] else "raw", r["centre"], float(r["ridge"]), r["score"],
            )
            for r in self.record["chosen"]
        ]  # fmt: skip
        columns = (
            Column("site"), Column("use"), Column("α", "g"), Column("β", "g"),
            Column("rows"), Column("centred"), Column("ridge", "g"), Column("score", ".3f"),
        )  # fmt: skip
        caption = (
            "the family is (AsᵀAs)^-α AsᵀAc (AcᵀAc)^-β: α whitens the subject's side, β the atlas's; "
            f"scores on {self.record['held_out']} held-out sentences of the fit half; {uses}"
        )
        return Table("Chosen members of the whitened family", columns, rows, caption)


@runtime_checkable
class Chooser(Protocol):
    """A choice of members from statistics of one part of the fit half and sentences of the other.

    ``needs`` names the statistics its members read, and ``names`` the translations it adds at every site.

    Example:
      >>> from atlas_jax import experiments
      >>> from atlas_jax.pipeline import Chooser
      >>> isinstance(experiments.Chooser(("detect",)), Chooser)
      True
    """

    @property
    def needs(self) -> frozenset[str]:
        """Names of statistics."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of translations."""

    def __call__(
        self, held: SentenceStream, fitted: Fitted, held_fitted: Fitted, *, progress: Progress | None = None
    ) -> Choice:
        """Choose members.

        Args:
          held: a pass over the held-out part.
          fitted: of the other part.
          held_fitted: of the held-out part, its top-k included.
          progress: called after every batch of each pass.
        """


def held_out(stream: SentenceStream, *, seed: int) -> tuple[SentenceStream, SentenceStream]:
    """Divide a pass in two: most of its sentences, and a random tenth (at most 10,000 of them).

    Raises:
      AtlasError: if there are fewer than ten sentences.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, held_out
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> stream = SentenceStream.from_texts([subject], [f"text {i}" for i in range(20)])
      >>> most, held = held_out(stream, seed=0)
      >>> most.size, held.size
      (18, 2)
    """
    n = len(stream.texts)
    count = min(int(SHARE * n), MOST)
    if not count:
        raise AtlasError(f"{n} sentences are too few to hold some out for choosing a translation; give more text")
    held = np.zeros(n, bool)
    held[np.random.default_rng(seed).choice(n, count, replace=False)] = True
    return stream.only(np.flatnonzero(~held) + stream.first), stream.only(np.flatnonzero(held) + stream.first)


def fit_and_choose(
    stream: SentenceStream,
    needs: frozenset[str],
    chooser: Chooser,
    *,
    top_k: int,
    seed: int,
    further: Mapping[str, frozenset[str]] | None = None,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[Fitted, Choice]:
    """Fit the fit half in two parts, choose between them, and return the statistics of the whole.

    Arguments as in :func:`fit_statistics`; no sentence is lost to the choice.
    """
    most, held = held_out(stream, seed=seed)
    options = {"top_k": top_k, "further": further, "checkpoints": checkpoints, "progress": progress}
    fitted = fit_statistics(most, needs, **options)
    rest = fit_statistics(held, needs | {"top_k"}, name="held-out", stage="held out", **options)
    try:
        choice = chooser(held, fitted, rest, progress=progress)
    except AtlasError as fault:  # the pass is not lost by it
        choice = Choice({}, {"fault": str(fault), "chosen": []})
    return merge_fitted(fitted, rest), choice


def merge_choices(choices: Sequence[Choice]) -> Choice:
    """Return the choices at several groups of sites as one, with the fault of the first that has one."""
    record = {name: value for choice in reversed(choices) for name, value in choice.record.items()}
    for name in ("grid", "chosen"):
        if rows := [row for choice in choices for row in choice.record.get(name, ())]:
            record[name] = rows
    return Choice({key: member for choice in choices for key, member in choice.members.items()}, record)


def solve_choice(
    fitted: Fitted, choice: Choice, pooling: str, names: Sequence[str]
) -> dict[tuple[Site, str], Translation]:
    """Solve the chosen members of some names from the statistics of the whole fit half, of one pooling."""
    statistics = fitted.further.get(pooling, fitted.statistics)
    chosen = {key: member for key, member in choice.members.items() if key[1] in names}
    wanted = {site: [m for (s, _), m in chosen.items() if s == site] for site in statistics.sites}
    solved = {
        (site, member): whitening.solve(member)
        for site, whitening, members in views(statistics, wanted)
        for member in members
    }
    translations = {}
    for (site, name), member in chosen.items():
        at, (matrix, certificate) = statistics.statistics(site), solved[site, member]
        means = jnp.array(at.subject.raw.mean), jnp.array(at.atlas.raw.mean)
        known = {"token_norm": fitted.token_norm(site), "pooling": pooling}
        translations[site, name] = Translation(matrix, *means, name, site, certificate, **known)
    return translations


def views(
    statistics: PassStatistics, wanted: Mapping[Site, Sequence[Member]]
) -> Iterator[tuple[Site, Whitening, list[Member]]]:
    """Yield members by view and site, each diagonalised once, the atlas side once for all sites of a view.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import PassStatistics, Site
      >>> from atlas_jax.pipeline import views
      >>> from atlas_jax.statistics import update_pass
      >>> from atlas_jax.translators import Member
      >>> site, x = Site("mlp_act", 1), jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> state = PassStatistics.init(["unit_cross", "unit_subject_gram"], {site: 2}, 2)
      >>> state = update_pass(state, {site: x}, x)
      >>> [len(members) for _, _, members in views(state, {site: [Member(0.5), Member(1.0)]})]
      [2]
    """
    view_of = lambda m: (m.normalize_rows, m.centre)
    for view in dict.fromkeys(view_of(m) for members in wanted.values() for m in members):
        atlas = None
        for site, members in wanted.items():
            if here := [m for m in dict.fromkeys(members) if view_of(m) == view]:
                whitening = Whitening.from_statistics(statistics.statistics(site), here, atlas=atlas)
                atlas = atlas if whitening.atlas is None else whitening.atlas
                yield site, whitening, here
