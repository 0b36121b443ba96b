"""Claim: the stand-in by which a direction to steer along is chosen ranks directions as generation does.

Directions of many kinds, by atlas features drawn from those that fire now and then, on the bundled pair. Measured are
the share of sampled continuations in which the feature fires where they are twice as perplexing as unsteered ones, and
the stand-ins on sentences of the fit half; told is Spearman's rank correlation, of the means over features (which
decide) and within each feature.

    python benchmarks/steering_preference.py [--quick] [--out steering_preference.json]
"""

import json
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from _common import arguments_of, machine, seconds_of, write
from scipy.stats import spearmanr
from steering import PROMPTS

import atlas_jax as aj
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.corpus import build_corpus, installed_documentation
from atlas_jax.experiments import difference_of_means, perplexities
from atlas_jax.experiments._quality import one_hot
from atlas_jax.experiments._steering import concept_activations

SITE = aj.Site("resid_post", 2)
MAX = ("procrustes", "covariance", "correlation", "least_squares", "semantic_lens", "whitened", "random")
MEAN = ("covariance", "correlation", "least_squares", "procrustes", "whitened")
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5)  # mean token norms of the site
MORE = ("Use", "This class", "To", "For example,", "In", "These", "There is", "By default")


def aligned(sentences: int) -> aj.Alignment:
    """The bundled pair, with translations of two poolings."""
    settings = aj.AlignSettings((str(SITE),), MAX, steer_methods=MEAN)
    corpus = build_corpus(installed_documentation(max_bytes=sentences * 600), n_fit=sentences)
    return aj.align(aj.load_pair(SUBJECT, ATLAS, settings), corpus, settings)


def directions_of(run: aj.Alignment, features: np.ndarray) -> dict[str, np.ndarray]:
    """Unit directions ``[q, d]`` by name."""
    queries = one_hot(features, run.atlas.width)
    found = {m: np.asarray(run.translation(SITE, m).similarity(queries)) for m in run.methods}
    means = difference_of_means(run, dict(zip(map(str, features), queries, strict=True)), [SITE])
    found["difference of means"] = np.stack([means[SITE, str(f)] for f in features])
    for i in range(2):
        found[f"random {i}"] = np.random.default_rng(i).standard_normal(found["procrustes"].shape)
    return {m: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for m, x in found.items()}


def generated(
    run: aj.Alignment, features: np.ndarray, along: dict[str, np.ndarray], prompts: tuple[str, ...], tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of texts that fire each feature, and mean log perplexities: ``[m, q, 1 + s]``, unsteered first."""
    model, strengths = run.subject.model, np.array([0.0, *STRENGTHS], np.float32)
    norm = run.translation(SITE, "procrustes").token_norm
    queries, shape = one_hot(features, run.atlas.width).T, (len(along), len(strengths), len(prompts))
    ids = [model.tokenizer.encode([p])[0] for p in prompts]
    rows, seeds = ids * (shape[0] * shape[1]), list(range(len(prompts))) * (shape[0] * shape[1])
    rates, nats = [], []
    for i in range(len(features)):
        vectors = np.repeat(np.stack([x[i] for x in along.values()]), shape[1] * shape[2], axis=0)
        dose = np.tile(np.repeat(strengths * norm, shape[2]), shape[0])
        edits = {SITE: aj.Steer(jnp.asarray(vectors), jnp.asarray(dose))}
        texts = aj.generate(model, rows, max_new_tokens=tokens, temperature=0.5, edits=edits, seed=seeds)
        fires = concept_activations(run.atlas, queries[:, i : i + 1], texts.texts)[:, 0] > 0
        log = np.log([p or np.nan for p in perplexities(model, rows, texts)])
        rates.append(fires.reshape(shape).mean(-1))
        nats.append(np.nanmean(log.reshape(shape), axis=-1))
    return np.stack(rates, 1), np.stack(nats, 1)


def at_equal_perplexity(rates: np.ndarray, nats: np.ndarray, factor: float = 2.0) -> np.ndarray:
    """The gain in the share where perplexity first reaches a factor, interpolated: ``[*m, s] -> [*m]``."""
    cost = np.maximum.accumulate(nats - nats[..., :1], axis=-1).reshape(-1, nats.shape[-1])
    shares = rates.reshape(cost.shape)
    found = [np.interp(np.log(factor), c + 1e-9 * np.arange(len(c)), s) for c, s in zip(cost, shares, strict=True)]
    return np.reshape(found, nats.shape[:-1]) - rates[..., 0]


def agreement(stand_in: np.ndarray, measured: np.ndarray, means: np.ndarray) -> dict[str, float]:
    """Rank correlations of ``[m, q]``: of the means, and the mean of those within each feature."""
    within = [spearmanr(a, b).statistic for a, b in zip(stand_in.T, measured.T, strict=True) if np.ptp(b) > 0]
    return {
        "of the means": float(spearmanr(stand_in.mean(1), means).statistic),
        "within features": float(np.nanmean(within)),
    }
