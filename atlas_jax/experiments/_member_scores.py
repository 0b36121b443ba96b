"""Every member of a grid of the whitened family, scored for every use on sentences it was not fitted on."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._preference import preference
from atlas_jax.experiments._quality import one_hot
from atlas_jax.experiments._retrieval import SENTENCES, Averaged, averaged_queries, ranked
from atlas_jax.mesh import everywhere, mesh_of
from atlas_jax.metrics import detection
from atlas_jax.pipeline import Fitted, Pass, score_sentences, views
from atlas_jax.progress import Progress
from atlas_jax.translators import Member
from atlas_jax.types import Site

STEERED, EACH = 16, 8  # atlas features that decide on steering, and sentences of either kind for each
LENGTH = 48  # tokens that are read of these

Scores = dict[Site, dict[Member, dict[str, float]]]
"""By site and member: ``score``, which decides, and the measures it is made of."""


def score_members(
    uses: Sequence[str],
    grid: Sequence[Member],
    features: Int[np.ndarray, " q"],
    held: Pass,
    fitted: Fitted,
    held_fitted: Fitted,
    *,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Scores by use.

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
    directions, retrieved = _solve_grid(grid, features, fitted, averaged)
    scores = {} if averaged is None else {"retrieve": retrieved}
    if "detect" in uses or "steer" in uses:
        flat = {site: jnp.asarray(d.reshape(-1, d.shape[-1])) for site, d in directions.items()}
        scored = score_sentences(held, flat, features, stage="choose", progress=progress)
        if "detect" in uses:
            scores["detect"] = {s: _detection(grid, x, scored.positive) for s, x in scored.scores.items()}
        if "steer" in uses:
            scores["steer"] = _steering(grid, held, directions, scored.positive, seed)
    return {use: scores[use] for use in uses}


def _solve_grid(
    grid: Sequence[Member], features: Int[np.ndarray, " q"], fitted: Fitted, averaged: Mapping[Site, Averaged] | None
) -> tuple[dict[Site, Float[np.ndarray, "m q d_s"]], Scores]:
    """Similarity vectors of the one-hot queries by site, members in order; and the scores of retrieval."""
    statistics = fitted.statistics
    queries = one_hot(features, statistics.sums.atlas.raw.mean.shape[0])
    vectors: dict[Site, dict[Member, np.ndarray]] = {site: {} for site in statistics.sites}
    retrieved: Scores = {site: {} for site in statistics.sites}
    for site, whitening, members in views(statistics, dict.fromkeys(statistics.sites, grid)):
        turned = whitening.in_eigenbasis()
        mesh = mesh_of(turned)
        single = turned.queries(queries)
        mean = statistics.sums.atlas.raw.mean[None, :]
        mixed = None if averaged is None else turned.queries(averaged[site].queries - mean)
        for member in members:
            rows = _unit(turned.rows(member))
            vectors[site][member] = np.asarray(_cosine(single, rows, mesh))
            if mixed is not None:
                found, probability = ranked(_cosine(mixed, rows, mesh), averaged[site].valid)
                mrr = float(found.mean())
                retrieved[site][member] = {"score": mrr, "mrr": mrr, "mpp": float(probability.mean())}
    return {site: np.stack([found[m] for m in grid]) for site, found in vectors.items()}, retrieved


def _detection(
    grid: Sequence[Member], scores: Float[np.ndarray, "r n"], positive: Bool[np.ndarray, "q n"]
) -> dict[Member, dict[str, float]]:
    """The mean of AUROC and AP over the features that fire at all on the held-out part."""
    fires = positive.any(axis=1) & ~positive.all(axis=1)
    if not fires.any():
        raise AtlasError(f"no atlas feature fires in the {positive.shape[1]} held-out sentences; give more text")
    found = {}
    for member, own in zip(grid, scores.reshape(len(grid), *positive.shape), strict=True):
        measured = detection(own[fires], positive[fires])
        auroc, ap = float(measured.auroc.mean()), float(measured.average_precision.mean())
        found[member] = {"score": (auroc + ap) / 2, "auroc": auroc, "ap": ap}
    return found


def _steering(
    grid: Sequence[Member],
    held: Pass,
    directions: Mapping[Site, Float[np.ndarray, "m q d_s"]],
    positive: Bool[np.ndarray, "q n"],
    seed: int,
) -> Scores:
    """The mean of :func:`preference` over features that fire, and do not, in enough held-out sentences."""
    enough = np.flatnonzero((positive.sum(axis=1) >= EACH) & ((~positive).sum(axis=1) >= EACH))[:STEERED]
    if not len(enough):
        raise AtlasError(f"no atlas feature fires in {EACH} of the {held.size} held-out sentences; give more text")
    draw, model = np.random.default_rng(seed), held.spaces[0].model
    length = min(LENGTH, held.max_length)
    found: dict[Site, list[np.ndarray]] = {site: [] for site in directions}
    for feature in enough:
        kinds = [
            draw.choice(np.flatnonzero(where), EACH, replace=False) for where in (positive[feature], ~positive[feature])
        ]
        texts = [held.texts[held.places[i]] for i in np.concatenate(kinds)]
        tokens = model.tokenize(texts, length=length, max_length=length)
        expresses = np.arange(2 * EACH) < EACH
        for site, vectors in directions.items():
            found[site].append(preference(model, site, jnp.asarray(vectors[:, feature]), tokens, expresses))
    means = {site: np.mean(values, axis=0) for site, values in found.items()}
    return {site: {m: {"score": float(v)} for m, v in zip(grid, mean, strict=True)} for site, mean in means.items()}


@jax.jit
def _unit(x: Float[Array, "d_s r"]) -> Float[Array, "d_s r"]:
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)


@partial(jax.jit, static_argnums=2)
def _cosine(queries: Float[Array, "q r"], rows: Float[Array, "d_s r"], mesh: Mesh | None) -> Float[Array, "q d_s"]:
    """Cosines up to the norm of each query, which ranks nothing; whole on every device of a mesh."""
    return everywhere(jnp.matmul(queries, rows.T, precision=lax.Precision.HIGHEST), mesh)
