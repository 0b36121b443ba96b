"""Translations from single tokens beside those from pooled sentences: do they detect sentences, do they localise?"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.checks import as_count
from atlas_jax.experiments._curve import directions_of, methods_of, queries_of
from atlas_jax.experiments._quality import QualityRow, quality_caption, quality_row, score_directions
from atlas_jax.metrics import Interval, bootstrap_mean, detection
from atlas_jax.pipeline import PAIRS, Alignment, SentenceStream, TokenPairs, fit_token_statistics, token_pairs
from atlas_jax.progress import Progress
from atlas_jax.rows import unit
from atlas_jax.table import Column, Table
from atlas_jax.translators import METHODS, needs_of
from atlas_jax.types import Site

SENTENCES = 2000  # held-out ones whose tokens are ranked
POOLED = "pooled"


class TokenRow(NamedTuple):
    """One method at one site, by one kind of statistics.

    Attributes:
      rows: of the statistics: "pooled" for sentences, or one of :data:`atlas_jax.pipeline.PAIRS`.
      quality: AUROC and AP of sentences in which the atlas feature fires, as in Table 3.
      auroc: of the tokens at which it fires, among those of the sentences in which it does.
      average_precision: of the same.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import QualityRow, TokenRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> value = bootstrap_mean(np.array([0.8, 0.9]))
      >>> TokenRow("peak", QualityRow(Site("mlp_act", 1), "ridge", value, value), value, value).to_dict()["rows"]
      'peak'
    """

    rows: str
    quality: QualityRow
    auroc: Interval
    average_precision: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        tokens = {"auroc": self.auroc._asdict(), "ap": self.average_precision._asdict()}
        return {"rows": self.rows} | self.quality.to_dict() | {"tokens": tokens}


class TokenLevel(NamedTuple):
    """Translation quality by the rows of the statistics.

    Attributes:
      rows: by site, method and kind of statistics.
      matched: share of the atlas's tokens that have a counterpart in the subject's, over the fit half.
      tokens: how many were ranked.
      token_chance: the AP of chance for tokens.
      features: the atlas features that were translated.
      band: the positive rates, on the fit half, between which they were drawn; None where they are the paper's.
      chance: the AP of chance for sentences.
      sentences: how many held-out sentences were ranked.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import QualityRow, TokenLevel, TokenRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> value = bootstrap_mean(np.array([0.8, 0.9]))
      >>> row = TokenRow("all", QualityRow(Site("mlp_act", 1), "ridge", value, value), value, value)
      >>> TokenLevel([row], 0.99, 500, 0.2, [3, 5], (0.005, 0.2), chance=0.04, sentences=100).table().rows[0][:3]
      ('mlp_act.1', 'ridge', 'all')
    """

    rows: list[TokenRow]
    matched: float
    tokens: int
    token_chance: float
    features: list[int]
    band: tuple[float, float] | None
    chance: float
    sentences: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict() | {"rows": [r.to_dict() for r in self.rows]}

    def table(self) -> Table:
        """Tabulate AUROC and AP of sentences and of tokens."""
        columns = (
            Column("site", group=True), Column("method", group=True), Column("rows"), Column("AP", ".3f"),
            Column("AUROC", ".3f", optional=True), Column("token AUROC", ".3f"),
            Column("token AP", ".3f", optional=True),
        )  # fmt: skip
        rows = [
            (str(q.site), q.method, name, q.average_precision[:3], q.auroc[:3], auroc.mean, ap.mean)
            for name, q, auroc, ap in self.rows
        ]
        caption = (
            f"rows: sentences, pooled, or pairs of tokens ({self.matched:.1%} of the atlas's tokens have "
            f"a counterpart); {quality_caption(*self[4:])}; tokens: where a feature fires in the sentences in which it "
            f"does, {self.tokens} tokens, AP of chance {self.token_chance:.3f}"
        )
        return Table("Translation quality by the rows of the statistics", columns, rows, caption)


def token_level(
    alignment: Alignment,
    *,
    pairs: Sequence[str] = tuple(PAIRS),
    methods: Sequence[str] | None = None,
    features: int | None = None,
    sentences: int = SENTENCES,
    progress: Progress | None = None,
) -> TokenLevel:
    """Measure translations fitted to pairs of tokens beside those of a run, which are fitted to pooled sentences.

    Each kind of pair takes one pass over the fit half. A sentence's score is the cosine of its pooled activations with
    the translated query, a token's that of its own activation.

    Args:
      alignment: the run; its sites, its features and its rules are used.
      pairs: keys of :data:`atlas_jax.pipeline.PAIRS`.
      methods: the run's own by default, without those of a second pass and members chosen from the whitened family.
      features: atlas features to translate, chosen as :func:`evaluate_quality` does.
      sentences: held-out sentences whose tokens are ranked, at most.
      progress: called after every batch.

    Raises:
      AtlasError: for a method that the run does not have or that tokens cannot be fitted by, unknown pairs, or too
        little text.

    Example:
      >>> from atlas_jax.experiments import token_level
      >>> from atlas_jax.pipeline import Alignment
      >>> token_level(Alignment.load("runs/quickstart"), pairs=["all"]).table()  # doctest: +SKIP
    """
    if methods is None:
        methods = [m for m in alignment.settings.methods if not METHODS[m].second_pass]
    methods, sites = methods_of(alignment, methods), alignment.subject.sites
    as_count(sentences, "sentences")
    chosen, band, queries = queries_of(alignment, features)
    directions: dict[tuple[Site, Any], np.ndarray] = {
        (site, (method, POOLED)): np.asarray(alignment.translation(site, method).similarity(queries))
        for site in sites
        for method in methods
    }
    stream, share = alignment.stream("fit"), 1.0
    for which in pairs:
        result = fit_token_statistics(
            stream, needs_of(methods), which=which, stage=f"tokens: {which}", progress=progress
        )
        solved = directions_of(stream, result.fitted, methods, queries, progress=progress)
        directions |= {(site, (method, which)): x for (site, method), x in solved.items()}
        share = result.share
    held_out = alignment.stream("eval")
    scores, scored = score_directions(held_out, directions, chosen, progress=progress)
    some = held_out.only(np.arange(held_out.first, held_out.first + sentences))
    located, facts = localisation(some, directions, chosen, progress=progress)
    rows = [
        TokenRow(name, quality_row(site, method, scores[key], scored.positive), *located[key])
        for site in sites
        for method in methods
        for name in (POOLED, *pairs)
        for key in [(site, (method, name))]
    ]
    chance = float(scored.positive.mean())
    return TokenLevel(rows, share, *facts, chosen.tolist(), band, chance, scored.positive.shape[1])


def localisation(
    stream: SentenceStream,
    directions: Mapping[tuple[Site, Any], Float[np.ndarray, "q d_s"]],
    features: Int[np.ndarray, " q"],
    *,
    progress: Progress | None = None,
) -> tuple[dict[tuple[Site, Any], tuple[Interval, Interval]], tuple[int, float]]:
    """Measure how well directions find the tokens at which features fire, in the sentences in which they do.

    The scores are held on the host: 4 bytes a direction and token.

    Args:
      stream: held-out sentences, through subject and atlas.
      directions: by site and anything else, the similarity vectors of the features.
      features: atlas features.
      progress: called after every batch.

    Returns:
      AUROC and AP by the keys of ``directions``; the number of tokens, and the AP of chance.

    Example:
      >>> import numpy as np  # doctest: +SKIP
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import localisation  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> t = run.translation("mlp_act.1", "covariance")  # doctest: +SKIP
      >>> query = np.asarray(run.atlas.query([17]))[None]  # doctest: +SKIP
      >>> localisation(run.stream("eval"), {(t.site, "mine"): t.similarity(query)}, np.array([17]))  # doctest: +SKIP
    """
    subject, atlas = stream.spaces
    parts: list[Any] = []
    along = {key: unit(jnp.asarray(x)) for key, x in directions.items()}
    for tokens_s, tokens_c, match in stream._replace(matched=True).batches(stage="tokens", progress=progress):
        pairs = token_pairs(subject, atlas, tokens_s, tokens_c, match)
        paired = np.asarray(pairs.paired)
        read = _read_tokens(pairs, list(along.values()), jnp.asarray(features), sites=tuple(site for site, _ in along))
        parts.append([np.asarray(x)[paired].T for x in jax.tree.leaves(read)])
    *scores, fires, counts = (np.concatenate(x, axis=1) for x in zip(*parts, strict=True))
    by_key = {}
    for key, part in zip(along, scores, strict=True):
        ranked = detection(part, fires, counts.astype(np.float32))
        by_key[key] = bootstrap_mean(ranked.auroc), bootstrap_mean(ranked.average_precision)
    among = np.where(counts.any(axis=1), counts.sum(axis=1), 1)
    share = (fires & counts).sum(axis=1) / among
    return by_key, (fires.shape[1], float(share[counts.any(axis=1)].mean()))


@partial(jax.jit, static_argnames="sites")
def _read_tokens(
    pairs: TokenPairs, along: list[Float[Array, "q _"]], features: Int[Array, " q"], *, sites: tuple[Site, ...]
) -> tuple[list[Float[Array, "b t q"]], Bool[Array, "b t q"], Bool[Array, "b t q"]]:
    """The scores of every direction; where the features fire; and whether they do so anywhere in the sentence."""
    acts = {site: unit(h.astype(jnp.float32)) for site, h in pairs.subject.items()}
    scores = [
        jnp.einsum("btd,qd->btq", acts[site], d, precision=jax.lax.Precision.HIGHEST)
        for site, d in zip(sites, along, strict=True)
    ]
    fires = (pairs.atlas[:, :, features] > 0) & pairs.paired[:, :, None]
    return scores, fires, jnp.broadcast_to(jnp.any(fires, axis=1, keepdims=True), fires.shape)
