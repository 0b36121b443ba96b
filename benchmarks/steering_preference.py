"""Claim: the stand-in by which a direction to steer along is chosen ranks directions as generation does.

Directions of many kinds, by atlas features drawn from those that fire now and then, on the bundled pair. Measured are
the share of sampled continuations in which the feature fires where they are twice as perplexing as unsteered ones, and
the stand-ins on sentences of the fit half; told is Spearman's rank correlation, of the means over features (which
decide) and within each feature.

    python benchmarks/steering_preference.py [--quick] [--out steering_preference.json]
"""

import json
from collections.abc import Callable

import numpy as np
from _common import arguments_of, machine, seconds_of, write
from scipy.stats import spearmanr
from steering import PROMPTS

import atlas_jax as aj
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.corpus import build_corpus, installed_documentation
from atlas_jax.experiments import difference_of_means, gain_at_equal_perplexity, steered_shares
from atlas_jax.experiments._quality import one_hot

SITE = aj.Site("resid_post", 2)
MAX = ("procrustes", "covariance", "correlation", "least_squares", "semantic_lens", "whitened", "random")
MEAN = ("covariance", "correlation", "least_squares", "procrustes", "whitened")
STRENGTHS = (0.3, 0.6, 0.9, 1.2)  # mean token norms of the site
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
    run: aj.Alignment, features: np.ndarray, along: dict[str, np.ndarray], texts: tuple[str, ...], tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of texts that fire each feature, and mean log perplexities: ``[m, q, 1 + s]``, unsteered first."""
    model, norm = run.subject.model, run.translation(SITE, "procrustes").token_norm
    prompts, doses = model.tokenizer.encode(list(texts)), [s * norm for s in STRENGTHS]
    found = [
        steered_shares(
            model,
            run.atlas,
            SITE,
            np.stack([x[i] for x in along.values()]),
            int(f),
            prompts,
            doses,
            max_new_tokens=tokens,
        )
        for i, f in enumerate(features)
    ]
    return tuple(np.stack(part, axis=1) for part in zip(*found, strict=True))


def agreement(stand_in: np.ndarray, measured: np.ndarray, means: np.ndarray) -> dict[str, float]:
    """Rank correlations of ``[m, q]``: of the means, and the mean of those within each feature."""
    within = [spearmanr(a, b).statistic for a, b in zip(stand_in.T, measured.T, strict=True) if np.ptp(b) > 0]
    return {
        "of the means": float(spearmanr(stand_in.mean(1), means).statistic),
        "within features": float(np.nanmean(within)),
    }
