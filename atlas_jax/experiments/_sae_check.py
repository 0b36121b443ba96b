"""Does an atlas's SAE do on real activations what its release says? If not, which usual mistake would explain it?"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.atlas import ConceptAtlas, Manifest
from atlas_jax.experiments._sae_trials import Trial, trials
from atlas_jax.table import Column, Table

L0_RATIO = 1.5
FVU_RATIO, FVU_SLACK = 1.5, 0.05
POOR_FVU = 0.7
DEAD_SLACK = 0.25
FIRINGS = 20
SHOWN = 3


class Advertised(NamedTuple):
    """What an SAE should show on its own model, None where nobody says it.

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
        """What the SAE's own files state."""
        c = atlas.sae.config
        return cls(c.advertised_l0, c.advertised_fvu, c.advertised_dead)

    @classmethod
    def when_built(cls, atlas: ConceptAtlas) -> "Advertised":
        """What was measured when the atlas was built, if it was sound.

        An FVU above 0.7 then was a fault to be warned of, not a standard.
        """
        kept = {} if atlas.home is None else Manifest.read(atlas.home).metadata.get("measured")
        numbers = {k: v for k, v in kept.items() if isinstance(v, int | float)} if isinstance(kept, Mapping) else {}
        if numbers.get("FVU", 0.0) > POOR_FVU:
            return cls()
        return cls(*(numbers.get(name) for name in ("L0", "FVU", "dead share")))

    def or_else(self, other: "Advertised") -> "Advertised":
        """These figures, and another's where there are none."""
        return Advertised(*(b if a is None else a for a, b in zip(self, other, strict=True)))


class SAECheck(NamedTuple):
    """The verdict on an SAE.

    Attributes:
      advertised: what its own files state.
      built: what was measured when the atlas was built.
      warnings: what disagrees with that, and what would explain it; empty when all is well.
      trials: the usual mistakes undone one at a time, the best explanation first; empty when all is well.
    """

    advertised: Advertised
    built: Advertised
    warnings: list[str]
    trials: list[Trial]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        tried = [t._asdict() for t in self.trials]
        expected = {"advertised": self.advertised._asdict(), "when_built": self.built._asdict()}
        return expected | {"warnings": self.warnings, "trials": tried}

    as_json = to_dict

    def tables(self, title: str, facts: Mapping[str, Any]) -> list[Table]:
        """What was measured beside what is stated, and the usual mistakes undone where the two disagree."""
        stated = [dict(zip(("L0", "FVU", "dead share"), c, strict=True)) for c in (self.advertised, self.built)]
        number = lambda name: Column(name, ".4g", left=True)
        columns = Column(), number("measured"), number("stated"), number("when built")
        rows = [(name, value, *(column.get(name) for column in stated)) for name, value in facts.items()]
        caption = "stated: by the SAE's own files; when built: by atlas build, on the text it was given"
        tried = [(t.name, t.l0, t.fvu, True if t.agrees else None) for t in self.trials]
        undone = Column(), Column("L0", ".3g"), Column("FVU", ".3g"), Column("agrees")
        tables = [Table(title, columns, rows, caption), Table("The usual mistakes undone", undone, tried)]
        return tables if tried else tables[:1]


def check_sae(atlas: ConceptAtlas, texts: Sequence[str], facts: dict[str, Any]) -> SAECheck:
    """Compare measured L0, FVU and dead share with what the SAE's files state, and look for the reason of a difference.

    What the files leave open is compared with what was measured when the atlas was built.

    L0 disagrees beyond a factor of 1.5, FVU above 1.5 times what is stated plus 0.05 (above 0.7 where none is
    stated), the dead share 0.25 above what is stated, given text enough for 20 firings a feature. No equation in the
    paper.

    Args:
      atlas: the atlas.
      texts: sentences to try the usual mistakes on; a few hundred are enough.
      facts: of :func:`atlas_facts`.
    """
    advertised, built = Advertised.of(atlas), Advertised.when_built(atlas)
    expected = advertised.or_else(built)
    wrong = _disagreements(advertised, expected, facts)
    if not wrong:
        return SAECheck(advertised, built, [], [])
    tried = trials(atlas, texts, expected.l0)
    agreeing = [t for t in tried if _agrees(expected, t.l0, t.fvu, facts["FVU"])]
    rest = [t for t in tried if t not in agreeing]
    ranked = [t._replace(agrees=True) for t in sorted(agreeing, key=lambda t: t.fvu)] + rest
    return SAECheck(advertised, built, [f"{'; '.join(wrong)}. {_explained(ranked)}"], ranked)


def _disagreements(stated: Advertised, expected: Advertised, facts: dict[str, Any]) -> list[str]:
    l0, fvu, dead = facts["L0"], facts["FVU"], facts["dead share"]
    said = [" is stated" if own is not None else " was measured when the atlas was built" for own in stated]
    wrong = []
    if expected.l0 is not None and not _near(l0, expected.l0):
        wrong.append(f"L0 is {l0:.3g} and {expected.l0:.3g}{said[0]}")
    if fvu > _fvu_limit(expected):
        none = "none is stated, 1 is no better than the mean"
        wrong.append(f"FVU is {fvu:.3g} and {none if expected.fvu is None else f'{expected.fvu:.3g}{said[1]}'}")
    enough = facts["tokens"] * (expected.l0 or l0) >= FIRINGS * facts["features"]
    if expected.dead is not None and enough and dead > expected.dead + DEAD_SLACK:
        wrong.append(f"{dead:.0%} of the features never fire and {expected.dead:.0%}{said[2]}")
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
