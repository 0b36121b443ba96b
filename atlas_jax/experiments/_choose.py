"""Choice of a member of the whitened family for a use, without labels, on a held-out part of the fit half."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._quality import BAND, choose_features, one_hot
from atlas_jax.experiments._retrieval import SENTENCES, Averaged, averaged_queries, ranked
from atlas_jax.metrics import auroc, detection
from atlas_jax.models import LanguageModel, forward
from atlas_jax.pipeline import Choice, Fitted, SentenceStream, score_sentences, views
from atlas_jax.progress import Progress
from atlas_jax.rows import unit
from atlas_jax.sharding import mesh_of, replicate
from atlas_jax.statistics import PassStatistics
from atlas_jax.steering import Steer
from atlas_jax.translators import Member
from atlas_jax.types import Site, Tokens

USES: dict[str, str] = {
    "detect": "mean of AUROC and AP of Table 3's measure",
    "retrieve": "MRR of Table 4's measure, averaged queries with the mean atlas activations subtracted",
    "steer": "how much steering favours sentences in which the concept fires, see experiments.steering_preference",
}
FEATURES = 50  # atlas features that decide on detection
STEERED, EACH = 16, 8  # atlas features that decide on steering, and sentences of either kind for each
LENGTH = 48  # tokens that are read of these
SHARES = (0.3, 1.0)  # strengths tried, in units of the site's mean token norm


def whitened_grid(
    *,
    alphas: tuple[float, ...] = (0.0, 0.5, 1.0),
    betas: tuple[float, ...] = (0.0, 0.5, 1.0),
    ridges: tuple[float, ...] = (0.0, 0.1),
) -> tuple[Member, ...]:
    """Return members with every pair of powers, in all four views, with every ridge where it has an effect.

    Example:
      >>> from atlas_jax.experiments import whitened_grid
      >>> len(whitened_grid())
      68
    """
    grid = itertools.product((True, False), (False, True), alphas, betas, ridges)
    plain = [Member(a, b, unit, centre, ridge if a or b else 0.0) for unit, centre, a, b, ridge in grid]
    return tuple(dict.fromkeys(plain))


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Choice, at every site and for every use, of the member of the whitened family that scores best.

    Give it to :func:`atlas_jax.pipeline.align`: a random tenth of the fit half is held out, the members are solved
    from the rest and scored there, and the chosen ones are solved again from the statistics of the whole fit half, as
    translations ``whitened_detect``, ``whitened_retrieve`` and ``whitened_steer``, the last one of the pooling for
    steering where there is one. No label and no sentence of the
    eval half is read. Ties go to the first member of the grid.

    Attributes:
      uses: names in :data:`USES`.
      grid: the members to choose from.
      seed: of the atlas features that are looked at.

    Raises:
      AtlasError: for an unknown use, or none.

    Example:
      >>> from atlas_jax.experiments import Chooser
      >>> from atlas_jax.translators import Member
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

    def __call__(
        self, held: SentenceStream, fitted: Fitted, held_fitted: Fitted, *, progress: Progress | None = None
    ) -> Choice:
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
            "grid": [_row(s, u, m, own) for u in scores for s in scores[u] for m, own in scores[u][s].items()],
        }
        return Choice({(site, f"whitened_{use}"): member for (site, use), member in chosen.items()}, record)


def _row(site: Site, use: str, member: Member, scores: Mapping[str, float]) -> dict[str, Any]:
    return {"site": str(site), "use": use} | member._asdict() | dict(scores)


Scores = dict[Site, dict[Member, dict[str, float]]]
"""By site and member: ``score``, which decides, and the measures it is made of."""


def score_members(
    uses: Sequence[str],
    grid: Sequence[Member],
    features: Int[np.ndarray, " q"],
    held: SentenceStream,
    fitted: Fitted,
    held_fitted: Fitted,
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Return scores by use.

    Args:
      uses: "detect", "retrieve" and "steer", any of them.
      grid: the members.
      features: atlas features that decide on detection and steering.
      held: the sentences to score on.
      fitted: statistics of other sentences, from which the members are solved.
      held_fitted: statistics of these sentences, with their top-k.
      seed: of the sentences that decide on steering.
      progress: called after every batch of each pass.

    Raises:
      AtlasError: if the sentences are too few for one of the scores.
    """
    averaged = None
    if "retrieve" in uses:
        averaged = averaged_queries(held, held_fitted.statistics, SENTENCES, progress=progress)
    directions, retrieved = _solve_grid(grid, features, fitted.statistics, averaged)
    scores = {} if averaged is None else {"retrieve": retrieved}
    if "detect" in uses or "steer" in uses:
        flat = {site: jnp.asarray(d.reshape(-1, d.shape[-1])) for site, d in directions.items()}
        scored = score_sentences(held, flat, features, stage="choose", progress=progress)
        if "detect" in uses:
            scores["detect"] = {s: _detection(grid, x, scored.positive) for s, x in scored.scores.items()}
        if "steer" in uses:
            for other in fitted.further.values():
                directions, _ = _solve_grid(grid, features, other, None)
            scores["steer"] = _steering(grid, held, directions, scored.positive, seed)
    return {use: scores[use] for use in uses}


def _solve_grid(
    grid: Sequence[Member],
    features: Int[np.ndarray, " q"],
    statistics: PassStatistics,
    averaged: Mapping[Site, Averaged] | None,
) -> tuple[dict[Site, Float[np.ndarray, "m q d_s"]], Scores]:
    """Similarity vectors of the one-hot queries by site, members in order; and the scores of retrieval."""
    queries = one_hot(features, statistics.sums.atlas.raw.mean.shape[0])
    vectors: dict[Site, dict[Member, np.ndarray]] = {site: {} for site in statistics.sites}
    retrieved: Scores = {site: {} for site in statistics.sites}
    for site, whitening, members in views(statistics, dict.fromkeys(statistics.sites, grid)):
        eigenbasis = whitening.in_eigenbasis()
        mesh = mesh_of(eigenbasis)
        single = eigenbasis.queries(queries)
        mean = statistics.sums.atlas.raw.mean[None, :]
        mixed = None if averaged is None else eigenbasis.queries(averaged[site].queries - mean)
        for member in members:
            rows = jax.jit(unit)(eigenbasis.rows(member))
            vectors[site][member] = np.asarray(_cosine(single, rows, mesh))
            if mixed is not None:
                rank, probability = ranked(_cosine(mixed, rows, mesh), averaged[site].valid)
                mrr = float(rank.mean())
                retrieved[site][member] = {"score": mrr, "mrr": mrr, "mpp": float(probability.mean())}
    return {site: np.stack([own[m] for m in grid]) for site, own in vectors.items()}, retrieved


def _detection(
    grid: Sequence[Member], scores: Float[np.ndarray, "r n"], positive: Bool[np.ndarray, "q n"]
) -> dict[Member, dict[str, float]]:
    """The mean of AUROC and AP over the features that fire at all on the held-out part."""
    fires = positive.any(axis=1) & ~positive.all(axis=1)
    if not fires.any():
        raise AtlasError(f"no atlas feature fires in the {positive.shape[1]} held-out sentences; give more text")
    scores_of = {}
    for member, own in zip(grid, scores.reshape(len(grid), *positive.shape), strict=True):
        measured = detection(own[fires], positive[fires])
        auroc, ap = float(measured.auroc.mean()), float(measured.average_precision.mean())
        scores_of[member] = {"score": (auroc + ap) / 2, "auroc": auroc, "ap": ap}
    return scores_of


def _steering(
    grid: Sequence[Member],
    held: SentenceStream,
    directions: Mapping[Site, Float[np.ndarray, "m q d_s"]],
    positive: Bool[np.ndarray, "q n"],
    seed: int,
) -> Scores:
    """The mean of :func:`steering_preference` over features that fire, and do not, in enough held-out sentences."""
    enough = np.flatnonzero((positive.sum(axis=1) >= EACH) & ((~positive).sum(axis=1) >= EACH))[:STEERED]
    if not len(enough):
        raise AtlasError(f"no atlas feature fires in {EACH} of the {held.size} held-out sentences; give more text")
    draw, model = np.random.default_rng(seed), held.spaces[0].model
    length = min(LENGTH, held.max_length)
    preferences: dict[Site, list[np.ndarray]] = {site: [] for site in directions}
    for feature in enough:
        kinds = [
            draw.choice(np.flatnonzero(where), EACH, replace=False) for where in (positive[feature], ~positive[feature])
        ]
        texts = [held.texts[held.rows[i]] for i in np.concatenate(kinds)]
        tokens = model.tokenize(texts, length=length, max_length=length)
        expresses = np.arange(2 * EACH) < EACH
        for site, vectors in directions.items():
            preferences[site].append(
                steering_preference(model, site, jnp.asarray(vectors[:, feature]), tokens, expresses)
            )
    means = {site: np.mean(values, axis=0) for site, values in preferences.items()}
    return {site: {m: {"score": float(v)} for m, v in zip(grid, mean, strict=True)} for site, mean in means.items()}


@partial(jax.jit, static_argnums=2)
def _cosine(queries: Float[Array, "q r"], rows: Float[Array, "d_s r"], mesh: Mesh | None) -> Float[Array, "q d_s"]:
    """Cosines up to the norm of each query, which ranks nothing; whole on every device of a mesh."""
    return replicate(jnp.matmul(queries, rows.T, precision=lax.Precision.HIGHEST), mesh)


def steering_preference(
    model: LanguageModel,
    site: Site,
    directions: Float[Array, "m d_s"],
    tokens: Tokens,
    expresses: Bool[np.ndarray, " b"],
) -> Float[np.ndarray, " m"]:
    """Score how well steering along each direction separates a concept's sentences from others; not in the paper.

    A stand-in for the faithfulness of Eq. 5 at the cost of forward passes: no text is generated. Every sentence is read
    with and without steering (Eq. 4 at every token, with directions of unit norm and :data:`SHARES` for strengths),
    and scored by the gain of steering in its mean log-likelihood a token. The AUROC of these scores for "expresses the
    concept" is 0.5 for a direction that has nothing to do with it; the best strength counts.

    Args:
      model: the subject.
      site: where it is steered.
      directions: one a row, any norm.
      tokens: sentences, some of which express the concept.
      expresses: which of them do, both kinds present.

    Returns:
      AUROC ``[m]``, the largest over the strengths.

    Example:
      >>> import jax.numpy as jnp  # doctest: +SKIP
      >>> import numpy as np  # doctest: +SKIP
      >>> from atlas_jax import LanguageModel, Site  # doctest: +SKIP
      >>> from atlas_jax.bundled import SUBJECT  # doctest: +SKIP
      >>> from atlas_jax.experiments import steering_preference  # doctest: +SKIP
      >>> lm, site = LanguageModel.from_pretrained(SUBJECT), Site("resid_post", 2)  # doctest: +SKIP
      >>> tokens = lm.tokenize(["the font of a text", "a list of numbers"])  # doctest: +SKIP
      >>> directions, expresses = jnp.eye(lm.config.width("resid_post"))[:3], np.array([True, False])  # doctest: +SKIP
      >>> steering_preference(lm, site, directions, tokens, expresses).shape  # doctest: +SKIP
      (3,)
    """
    return np.asarray(auroc(np.asarray(_gains(model, site, directions, tokens)), expresses)).max(axis=0)


@partial(jax.jit, static_argnames="site")
def _gains(model: LanguageModel, site: Site, directions: Float[Array, "m d"], tokens: Tokens) -> Float[Array, "s m b"]:
    """Compute the gain of steering in the mean log-likelihood of each sentence, by strength and direction."""
    acts = forward(model.decoder, tokens, capture=(site,), logits=False).acts[site]
    size = jnp.mean(jnp.linalg.norm(acts.astype(jnp.float32), axis=-1), where=tokens.mask)

    def score(share: Float[Array, ""], direction: Float[Array, " d"]) -> Float[Array, " b"]:
        edit = Steer(direction, share * size)
        return _log_likelihood(forward(model.decoder, tokens, edits={site: edit}).logits, tokens)

    # Unsteered sentences go through the same loop: another program would round otherwise and break ties.
    tried = jnp.concatenate([jnp.zeros_like(directions[:1]), unit(directions)])
    along = lambda share: jax.lax.map(lambda direction: score(share, direction), tried)
    likelihood = jax.lax.map(along, jnp.asarray(SHARES, jnp.float32))
    return likelihood[:, 1:] - likelihood[:, :1]


def _log_likelihood(logits: Float[Array, "b t v"], tokens: Tokens) -> Float[Array, " b"]:
    """Mean log-likelihood a token of each sentence, the first one given."""
    ahead = jnp.take_along_axis(logits[:, :-1], tokens.ids[:, 1:, None], axis=-1)[..., 0]
    nats = ahead - jax.nn.logsumexp(logits[:, :-1], axis=-1)
    real = tokens.mask[:, 1:].astype(jnp.float32)
    return jnp.sum(nats * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
