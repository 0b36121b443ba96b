"""Which member of the whitened family suits a use, found without labels on a held-out part of the fit half."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._member_scores import score_members
from atlas_jax.experiments._quality import BAND, choose_features
from atlas_jax.pipeline import Choice, Fitted, Pass
from atlas_jax.progress import Progress
from atlas_jax.translators import Member
from atlas_jax.types import Site

USES: dict[str, str] = {
    "detect": "mean of AUROC and AP of Table 3's measure",
    "retrieve": "MRR of Table 4's measure, averaged queries with the mean atlas activations subtracted",
    "steer": "how much steering favours sentences in which the concept fires, see experiments.preference",
}
FEATURES = 50  # atlas features that decide on detection


def whitened_grid(
    *,
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0),
    betas: tuple[float, ...] = (0.0, 0.5, 1.0),
    ridges: tuple[float, ...] = (0.0, 0.1),
) -> tuple[Member, ...]:
    """Members with every pair of powers, in all four views, with every ridge where there is something to regularise.

    Example:
      >>> len(whitened_grid())
      68
    """
    grid = itertools.product((True, False), (False, True), alphas, betas, ridges)
    plain = [Member(a, b, unit, centre, ridge if a or b else 0.0) for unit, centre, a, b, ridge in grid]
    return tuple(dict.fromkeys(plain))


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Chooses, at every site and for every use, the member of the whitened family that scores best.

    Give it to :func:`atlas_jax.pipeline.align`: a random tenth of the fit half is held out, the members are solved
    from the rest and scored there, and the chosen ones are solved again from the statistics of the whole fit half, as
    translations ``whitened_detect``, ``whitened_retrieve`` and ``whitened_steer``. No label and no sentence of the
    eval half is read. Ties go to the first member of the grid.

    Attributes:
      uses: names in :data:`USES`.
      grid: the members to choose from.
      seed: of the atlas features that are looked at.

    Raises:
      AtlasError: for an unknown use, or none.

    Example:
      >>> Chooser(("detect",), grid=(Member(0.5), Member(1.0))).names
      ('whitened_detect',)
    """

    uses: tuple[str, ...]
    grid: tuple[Member, ...] = dataclasses.field(default_factory=whitened_grid)
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [use for use in self.uses if use not in USES]:
            raise AtlasError(f"unknown use '{unknown[0]}' of a translation; known are {', '.join(USES)}")
        if not self.uses or not self.grid:
            raise AtlasError(f"nothing to choose: name a use of {', '.join(USES)}, and at least one member")

    @property
    def needs(self) -> frozenset[str]:
        """The statistics that the members read together."""
        return frozenset().union(*(member.needs for member in self.grid))

    @property
    def names(self) -> tuple[str, ...]:
        """The translations it adds at every site."""
        return tuple(f"whitened_{use}" for use in self.uses)

    def __call__(self, held: Pass, fitted: Fitted, held_fitted: Fitted, *, progress: Progress | None = None) -> Choice:
        """Score the grid on the held-out part; arguments as in :class:`atlas_jax.pipeline.Chooser`.

        Raises:
          AtlasError: if the text is too little for a score.
        """
        rate = np.asarray(fitted.active) / float(fitted.statistics.sums.weight)
        features = choose_features(rate, count=FEATURES, band=BAND, seed=self.seed + 1)
        options = {"seed": self.seed, "progress": progress}
        scores = score_members(self.uses, self.grid, features, held, fitted, held_fitted, **options)
        chosen = {
            (site, use): max(self.grid, key=lambda m, s=scores[use][site]: s[m]["score"])
            for site in held.spaces[0].sites
            for use in self.uses
        }
        record = {
            "uses": {use: USES[use] for use in self.uses},
            "held_out": held.size,
            "features": features.tolist(),
            "chosen": [_row(site, use, m, scores[use][site][m]) for (site, use), m in chosen.items()],
            "grid": [_row(s, u, m, found) for u in scores for s in scores[u] for m, found in scores[u][s].items()],
        }
        return Choice({(site, f"whitened_{use}"): member for (site, use), member in chosen.items()}, record)


def _row(site: Site, use: str, member: Member, scores: Mapping[str, float]) -> dict[str, Any]:
    return {"site": str(site), "use": use} | member._asdict() | dict(scores)
