"""Does an atlas's SAE do on real activations what its release says? If not, which usual mistake would explain it?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from atlas_jax.atlas import ConceptAtlas, Manifest
from atlas_jax.experiments._sae_trials import Trial, trials

L0_RATIO = 1.5
FVU_RATIO, FVU_SLACK = 1.5, 0.05
POOR_FVU = 0.7
DEAD_SLACK = 0.25
FIRINGS = 20
SHOWN = 3


class Advertised(NamedTuple):
    """What an SAE should show on its own model, None where nobody states it.

    Attributes:
      l0: mean number of active features.
      fvu: fraction of variance unexplained.
      dead: share of features that never fire.
    """

    l0: float | None = None
    fvu: float | None = None
    dead: float | None = None

    @classmethod
    def of(cls, atlas: ConceptAtlas) -> "Advertised":
        """What the SAE's own files state; what they leave open, as measured when the atlas was made, if it was sound.

        An FVU above 0.7 then was a fault to be warned of, not a standard.
        """
        c = atlas.sae.config
        own = (c.advertised_l0, c.advertised_fvu, c.advertised_dead)
        kept = {} if atlas.home is None else Manifest.read(atlas.home).metadata.get("measured") or {}
        kept = {} if kept.get("FVU", 0.0) > POOR_FVU else kept
        names = ("L0", "FVU", "dead share")
        return cls(*(kept.get(name) if value is None else value for name, value in zip(names, own, strict=True)))


class SAECheck(NamedTuple):
    """The verdict on an SAE.

    Attributes:
      advertised: what it should show.
      warnings: what disagrees with that, and what would explain it; empty when all is well.
      trials: the usual mistakes undone one at a time, the best explanation first; empty when all is well.
    """

    advertised: Advertised
    warnings: list[str]
    trials: list[Trial]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        tried = [t._asdict() for t in self.trials]
        return {"advertised": self.advertised._asdict(), "warnings": self.warnings, "trials": tried}


def check_sae(atlas: ConceptAtlas, texts: Sequence[str], facts: dict[str, Any]) -> SAECheck:
    """Compare measured L0, FVU and dead share with what is advertised; where they disagree, look for the reason.

    L0 disagrees beyond a factor of 1.5, FVU above 1.5 times what is stated plus 0.05 (above 0.7 where none is
    stated), the dead share 0.25 above what is stated, given text enough for 20 firings a feature. No equation in the
    paper.

    Args:
      atlas: the atlas.
      texts: sentences to try the usual mistakes on; a few hundred are enough.
      facts: of :func:`atlas_facts`.
    """
    advertised = Advertised.of(atlas)
    wrong = _disagreements(advertised, facts)
    if not wrong:
        return SAECheck(advertised, [], [])
    tried = trials(atlas, texts, advertised.l0)
    agreeing = [t for t in tried if _agrees(advertised, t.l0, t.fvu, facts["FVU"])]
    rest = [t for t in tried if t not in agreeing]
    ranked = [t._replace(agrees=True) for t in sorted(agreeing, key=lambda t: t.fvu)] + rest
    return SAECheck(advertised, [f"{'; '.join(wrong)}. {_explained(ranked)}"], ranked)


def _disagreements(advertised: Advertised, facts: dict[str, Any]) -> list[str]:
    l0, fvu, dead = facts["L0"], facts["FVU"], facts["dead share"]
    wrong = []
    if advertised.l0 is not None and not _near(l0, advertised.l0):
        wrong.append(f"L0 is {l0:.3g} and {advertised.l0:.3g} is stated")
    if fvu > _fvu_limit(advertised):
        stated = "none is stated, 1 is no better than the mean"
        wrong.append(f"FVU is {fvu:.3g} and {stated if advertised.fvu is None else f'{advertised.fvu:.3g} is stated'}")
    enough = facts["tokens"] * (advertised.l0 or l0) >= FIRINGS * facts["features"]
    if advertised.dead is not None and enough and dead > advertised.dead + DEAD_SLACK:
        wrong.append(f"{dead:.0%} of the features never fire and {advertised.dead:.0%} is stated")
    return wrong


def _agrees(advertised: Advertised, l0: float, fvu: float, before: float) -> bool:
    same_l0 = advertised.l0 is None or _near(l0, advertised.l0)
    better = advertised.fvu is not None or not fvu >= before / 2
    return same_l0 and fvu <= _fvu_limit(advertised) and (better or fvu <= POOR_FVU / 2)


def _near(l0: float, stated: float) -> bool:
    return stated / L0_RATIO <= l0 <= stated * L0_RATIO


def _fvu_limit(advertised: Advertised) -> float:
    return POOR_FVU if advertised.fvu is None else FVU_RATIO * advertised.fvu + FVU_SLACK


def _explained(ranked: Sequence[Trial]) -> str:
    named = [f"{t.name} (L0 {t.l0:.3g}, FVU {t.fvu:.3g})" for t in ranked if t.agrees]
    if not named:
        return "None of the usual mistakes explains it: is this SAE of this model, and the text of its language?"
    return f"What would agree: {'; or '.join(named[:SHOWN])}"
