"""A check of an atlas's SAE against the figures of its release, and the usual mistakes in reading one, each undone."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from atlas_jax.atlas import ConceptAtlas, Manifest, same_place
from atlas_jax.models import LanguageModel, Tokenizer, positions, run
from atlas_jax.sae import SparseAutoencoder, finish_quality, init_quality, update_quality
from atlas_jax.table import Column, Table
from atlas_jax.types import Site

TOKENS = 4096
MAX_LENGTH = 128
CELLS = 1 << 26
SAME_NORM = 0.01
_KIN = (
    ("resid_pre", "resid_mid", "resid_post"),
    ("mlp_in", "mlp_out", "mlp_out_post"),
    ("attn_in", "z", "attn_out", "attn_out_post"),
    ("mlp_gate_act", "mlp_act"),
)


class Trial(NamedTuple):
    """One usual mistake undone.

    Attributes:
      name: the change.
      l0: mean number of active features then.
      fvu: fraction of variance unexplained then, nan for a transcoder whose output site is not known.
      dead: share of features that never fired.
      agrees: true if that agrees with the figures of the release.

    Example:
      >>> from atlas_jax.sae_lab import Trial
      >>> Trial("the SAE reads resid_mid.3", l0=6.7, fvu=0.15, dead=0.0).agrees
      False
    """

    name: str
    l0: float
    fvu: float
    dead: float
    agrees: bool = False


class _Rows(NamedTuple):
    """The real tokens of some texts.

    Attributes:
      acts: activations by site.
      counts: false for BOS and special tokens.
      first: true for the first token of a text.
    """

    acts: dict[Site, Float[np.ndarray, "n d"]]
    counts: Bool[np.ndarray, " n"]
    first: Bool[np.ndarray, " n"]


def trials(atlas: ConceptAtlas, texts: Sequence[str], l0: float | None) -> list[Trial]:
    """Measure an SAE with each usual mistake undone, on about 4096 tokens.

    Sites near the atlas's, other tokens counted, BOS added, activations or thresholds multiplied by
    ``sqrt(d) / mean norm`` or divided by it, thresholds divided by the norms of the decoder's rows, rows normalised,
    ``b_dec`` subtracted or not, top-k for ReLU.

    Args:
      atlas: the atlas.
      texts: some sentences.
      l0: the stated number of active features, for the trial of a top-k SAE read as ReLU.

    Example:
      >>> from atlas_jax.atlas import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.sae_lab import trials
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> trials(atlas, ["Return the value.", "Raise an error."], l0=None)[0].name  # doctest: +SKIP
      'the SAE reads resid_pre.2'
    """
    near, out = _near_sites(atlas), atlas.sae.config.site_out
    sites = tuple(dict.fromkeys([atlas.site, *near, *([] if out is None else [out])]))
    rows = _rows(atlas.model, texts, sites)
    kept = rows.counts
    tried = [_measure(f"the SAE reads {site}", atlas.sae, rows, site, out, kept) for site in near]
    for name, chosen in (("every token counts, BOS too", np.ones_like(kept)), ("no first token", kept & ~rows.first)):
        if chosen.any() and not np.array_equal(chosen, kept):
            tried.append(_measure(name, atlas.sae, rows, atlas.site, out, chosen))
    for name, sae, scale in _readings(atlas.sae, rows.acts[atlas.site][kept], l0):
        tried.append(_measure(name, sae, rows, atlas.site, out, kept, scale))
    if (model := _with_bos(atlas.model)) is not None:
        again = _rows(model, texts, sites)
        tried.append(_measure("BOS stands before every text", atlas.sae, again, atlas.site, out, again.counts))
    return tried


def _near_sites(atlas: ConceptAtlas) -> list[Site]:
    """Other sites of the same width and kind in this block and its neighbours, each tensor once."""
    config, site = atlas.model.config, atlas.site
    points = next((kin for kin in _KIN if site.point in kin and site.head is None), (site.point,))
    layers = range(max(0, site.layer - 1), min(config.num_layers, site.layer + 2))
    points = [p for p in points if config.width(p) == config.width(site.point) and config.absent(p) is None]
    fitting = [Site(p, i, site.head) for i in layers for p in points]
    tensors = {same_place(config, s): s for s in reversed(fitting)}
    tensors.pop(same_place(config, site))
    return list(tensors.values())[::-1]


def _readings(
    sae: SparseAutoencoder, x: Float[np.ndarray, "n d"], l0: float | None
) -> Iterator[tuple[str, SparseAutoencoder, float]]:
    """Yield other descriptions of the SAE, each with the factor of its input."""
    c = sae.config
    scale = math.sqrt(c.d_in) / float(np.linalg.norm(x, axis=1).mean())
    for name, factor in ((f"times {scale:.3g} (sqrt(d) / mean norm)", scale), (f"divided by {scale:.3g}", 1 / scale)):
        yield f"activations {name}", sae, factor
        if sae.threshold is not None:
            yield f"thresholds {name}", dataclasses.replace(sae, threshold=sae.threshold * factor), 1.0
    for name, threshold in _thresholds(sae, scale):
        yield name, dataclasses.replace(sae, threshold=threshold), 1.0
    described = lambda **change: dataclasses.replace(sae, config=dataclasses.replace(c, **change))
    if c.transcoder:
        return
    for how in ("none", "constant_norm_rescale", "layer_norm"):
        if how != c.normalization:
            yield f"rows normalised by '{how}'", described(normalization=how), 1.0
    verb = "not subtracted from" if c.apply_b_dec_to_input else "subtracted from"
    yield f"b_dec {verb} the input", described(apply_b_dec_to_input=not c.apply_b_dec_to_input), 1.0
    if c.kind == "relu" and l0 is not None:
        yield f"the {round(l0)} largest features kept", described(kind="topk", k=max(1, round(l0))), 1.0


def _thresholds(sae: SparseAutoencoder, scale: float) -> Iterator[tuple[str, Float[Array, " m"]]]:
    """Yield thresholds divided and multiplied by the norms of the decoder's rows, where that makes a difference.

    Where training activations were scaled, the norm was that of the row as it was for them, ``scale`` times today's,
    and the threshold itself may have been scaled or not. Combinations that are left out equal another trial.
    """
    if sae.threshold is None:
        return
    norms = jnp.maximum(jnp.linalg.norm(sae.W_dec, axis=1), 1e-12)
    for power, also in ((0, ""), (1, f" times {scale:.3g}"), (2, f" times {scale:.3g} squared")):
        rows = norms * scale**power
        if float(jnp.max(jnp.abs(jnp.log(rows)))) > SAME_NORM:
            yield f"thresholds divided by the decoder norms{also}", sae.threshold / rows
            yield f"thresholds times the decoder norms{also}", sae.threshold * rows


def _with_bos(model: LanguageModel) -> LanguageModel | None:
    """Return the model with BOS before every text, None where it has that already or has no BOS."""
    bos, tokenizer = model.hf_config.get("bos_token_id"), model.tokenizer
    if tokenizer.bos_id is not None or not isinstance(bos, int) or tokenizer.encode(["a"])[0][:1] == [bos]:
        return None
    added = Tokenizer.from_backend(tokenizer.backend, tokenizer.backend.id_to_token(bos))
    return model.replace(tokenizer=added)


def _rows(model: LanguageModel, texts: Sequence[str], sites: tuple[Site, ...]) -> _Rows:
    """Run as many texts as fit :data:`TOKENS`, in one batch, so that one program is compiled."""
    length = min(MAX_LENGTH, model.config.max_positions)
    total = np.cumsum([min(len(ids), length) for ids in model.tokenizer.encode(texts[:TOKENS])])
    tokens = model.tokenize(texts[: max(1, int(np.searchsorted(total, TOKENS)))], max_length=length)
    acts = run(model, tokens, capture=sites, logits=False).acts
    position = np.asarray(positions(tokens))
    real = position >= 0
    held = {site: np.asarray(x.astype(jnp.float32))[real] for site, x in acts.items()}
    return _Rows(held, np.asarray(tokens.mask)[real], position[real] == 0)


def _measure(
    name: str,
    sae: SparseAutoencoder,
    rows: _Rows,
    site: Site,
    out: Site | None,
    chosen: Bool[np.ndarray, " n"],
    scale: float = 1.0,
) -> Trial:
    x = rows.acts[site][chosen] * np.float32(scale)
    target = x if not sae.config.transcoder else None if out is None else rows.acts[out][chosen]
    state, height = init_quality(sae), max(1, CELLS // sae.config.d_sae)
    for i in range(0, len(x), height):
        part: Array = jnp.asarray(x[i : i + height])
        nothing = jnp.zeros((len(part), sae.config.width_out))
        wanted = nothing if target is None else jnp.asarray(target[i : i + height])
        state = update_quality(state, sae, part, None, wanted)
    quality = jax.device_get(finish_quality(state))
    return Trial(name, float(quality.l0), float(quality.fvu), float(quality.dead))


L0_RATIO = 1.5
FVU_RATIO, FVU_SLACK = 1.5, 0.05
POOR_FVU = 0.7
DEAD_SLACK = 0.25
FIRINGS = 20
SHOWN = 3


class Advertised(NamedTuple):
    """The figures that an SAE should show on its own model, None where they are not stated.

    Attributes:
      l0: mean number of active features.
      fvu: fraction of variance unexplained.
      dead: share of features that never fire.

    Example:
      >>> from atlas_jax.sae_lab import Advertised
      >>> Advertised(l0=71.0).or_else(Advertised(l0=50.0, fvu=0.2))
      Advertised(l0=71.0, fvu=0.2, dead=None)
    """

    l0: float | None = None
    fvu: float | None = None
    dead: float | None = None

    @classmethod
    def from_atlas(cls, atlas: ConceptAtlas) -> "Advertised":
        """Read the figures that the SAE's own files state.

        Example:
          >>> from atlas_jax.atlas import ConceptAtlas
          >>> from atlas_jax.bundled import ATLAS
          >>> from atlas_jax.sae_lab import Advertised
          >>> Advertised.from_atlas(ConceptAtlas.from_pretrained(ATLAS)).l0
          10.0
        """
        c = atlas.sae.config
        return cls(c.advertised_l0, c.advertised_fvu, c.advertised_dead)

    @classmethod
    def when_built(cls, atlas: ConceptAtlas) -> "Advertised":
        """Read the figures measured when the atlas was built, if they were sound.

        An FVU above 0.7 was a fault, of which the command warned, and no standard.

        Example:
          >>> from atlas_jax.atlas import ConceptAtlas
          >>> from atlas_jax.bundled import ATLAS
          >>> from atlas_jax.sae_lab import Advertised
          >>> round(Advertised.when_built(ConceptAtlas.from_pretrained(ATLAS)).fvu, 3)
          0.089
        """
        kept = {} if atlas.home is None else Manifest.read(atlas.home).metadata.get("measured")
        numbers = {k: v for k, v in kept.items() if isinstance(v, int | float)} if isinstance(kept, Mapping) else {}
        if numbers.get("FVU", 0.0) > POOR_FVU:
            return cls()
        return cls(*(numbers.get(name) for name in ("L0", "FVU", "dead share")))

    def or_else(self, other: "Advertised") -> "Advertised":
        """Return these figures, and another's where there are none."""
        return Advertised(*(b if a is None else a for a, b in zip(self, other, strict=True)))


class SAECheck(NamedTuple):
    """The verdict on an SAE.

    Attributes:
      advertised: the figures that its own files state.
      built: the figures measured when the atlas was built.
      warnings: the disagreements with them, and their possible reasons; empty when all is well.
      trials: the usual mistakes undone one at a time, the best explanation first; empty when all is well.

    Example:
      >>> from atlas_jax.sae_lab import Advertised, SAECheck
      >>> check = SAECheck(Advertised(l0=10.0), Advertised(), [], [])
      >>> check.to_dict()["advertised"]["l0"]
      10.0
      >>> [list(table.texts()) for table in check.tables("SAE", {"L0": 9.5})]
      [[['L0', '9.5', '10', '']]]
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
        """Make tables of the figures measured beside those stated, and of the mistakes undone where they disagree."""
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

    Figures that the files do not state are compared with those measured when the atlas was built.

    L0 disagrees beyond a factor of 1.5, FVU above 1.5 times the stated one plus 0.05 (above 0.7 where none is
    stated), the dead share 0.25 above the stated one, given text enough for 20 firings a feature. No equation in the
    paper.

    Args:
      atlas: the atlas.
      texts: sentences to try the usual mistakes on; a few hundred are enough.
      facts: the result of :func:`atlas_facts`.

    Example:
      >>> from atlas_jax.atlas import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.sae_lab import check_sae
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> facts = {"L0": 9.5, "FVU": 0.09, "dead share": 0.0, "tokens": 20, "features": atlas.width}
      >>> check_sae(atlas, ["Return the value."], facts).warnings
      []
    """
    advertised, built = Advertised.from_atlas(atlas), Advertised.when_built(atlas)
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
    phrases = [" is stated" if own is not None else " was measured when the atlas was built" for own in stated]
    wrong = []
    if expected.l0 is not None and not _near(l0, expected.l0):
        wrong.append(f"L0 is {l0:.3g} and {expected.l0:.3g}{phrases[0]}")
    if fvu > _fvu_limit(expected):
        none = "none is stated, 1 is no better than the mean"
        wrong.append(f"FVU is {fvu:.3g} and {none if expected.fvu is None else f'{expected.fvu:.3g}{phrases[1]}'}")
    enough = facts["tokens"] * (expected.l0 or l0) >= FIRINGS * facts["features"]
    if expected.dead is not None and enough and dead > expected.dead + DEAD_SLACK:
        wrong.append(f"{dead:.0%} of the features never fire and {expected.dead:.0%}{phrases[2]}")
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
