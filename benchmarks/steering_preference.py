"""Claim: the stand-in by which a direction to steer along is chosen ranks directions as generation does.

Directions of many kinds, by atlas features drawn from those that fire now and then, on the bundled pair. Measured are
the share of sampled continuations in which the feature fires where they are twice as perplexing as unsteered ones, and
``experiments.steering_preference`` on sentences of the fit half; told is Spearman's rank correlation, of the means over
features (which decide) and within each feature.

    python benchmarks/steering_preference.py [--quick] [--out steering_preference.json]
"""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
from _common import arguments_of, machine, seconds_of, write
from scipy.stats import spearmanr
from steering import PROMPTS

import atlas_jax as aj
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.corpus import build_corpus, installed_documentation
from atlas_jax.experiments import difference_of_means, perplexities, steering_preference
from atlas_jax.experiments._choose import EACH, LENGTH
from atlas_jax.experiments._quality import one_hot
from atlas_jax.experiments._steering import concept_activation
from atlas_jax.pipeline import SentenceStream, pooled_activations
from atlas_jax.rows import unit

SITE = aj.Site("resid_post", 2)
MAX = ("procrustes", "covariance", "correlation", "least_squares", "semantic_lens", "whitened", "random")
MEAN = ("covariance", "correlation", "least_squares", "procrustes", "whitened")
STRENGTHS = (0.3, 0.6, 0.9, 1.2)  # mean token norms of the site
TOKENS = 24


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
    return {m: unit(x).astype(np.float32) for m, x in found.items()}


def generated(
    run: aj.Alignment, features: np.ndarray, along: dict[str, np.ndarray], texts: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of texts that fire each feature, and mean log perplexities: ``[m, q, 1 + s]``, unsteered first."""
    model, strengths = run.subject.model, np.array([0.0, *STRENGTHS]) * run.translation(SITE, "procrustes").token_norm
    shape = len(along), len(strengths), len(texts)
    rows = model.tokenizer.encode(list(texts)) * (shape[0] * shape[1])
    seeds, doses = list(range(shape[2])) * (shape[0] * shape[1]), np.tile(np.repeat(strengths, shape[2]), shape[0])
    shares, nats = [], []
    for i, query in enumerate(one_hot(features, run.atlas.width)):
        vectors = np.repeat(np.stack([x[i] for x in along.values()]), shape[1] * shape[2], axis=0)
        edits = {SITE: aj.Steer(jnp.asarray(vectors), jnp.asarray(doses, jnp.float32))}
        made = aj.generate(model, rows, max_new_tokens=TOKENS, temperature=0.5, edits=edits, seed=seeds)
        fires = np.array(concept_activation(run.atlas, query, made.texts)) > 0
        log = np.log([p or np.nan for p in perplexities(model, rows, made)])
        shares.append(fires.reshape(shape).mean(-1))
        nats.append(np.nanmean(log.reshape(shape), axis=-1))
    return np.stack(shares, 1), np.stack(nats, 1)


def gain_at_equal_perplexity(shares: np.ndarray, nats: np.ndarray) -> np.ndarray:
    """The gain in the share ``[*m, s]`` where perplexity is twice that without steering, interpolated."""
    cost = np.maximum.accumulate(nats - nats[..., :1], axis=-1) + 1e-9 * np.arange(nats.shape[-1])
    pairs = zip(cost.reshape(-1, cost.shape[-1]), shares.reshape(-1, cost.shape[-1]), strict=True)
    return np.reshape([np.interp(np.log(2), x, y) for x, y in pairs], cost.shape[:-1]) - shares[..., 0]


def agreement(stand_in: np.ndarray, measured: np.ndarray, means: np.ndarray) -> dict[str, float]:
    """Rank correlations of ``[m, q]``: of the means, and the mean of those within each feature."""
    within = [spearmanr(a, b).statistic for a, b in zip(stand_in.T, measured.T, strict=True) if np.ptp(b) > 0]
    return {
        "of the means": float(spearmanr(stand_in.mean(1), means).statistic),
        "within features": float(np.nanmean(within)),
    }


def preferences(run: aj.Alignment, features: np.ndarray, along: dict[str, np.ndarray]) -> np.ndarray:
    """The stand-in by likelihood of every direction and feature ``[m, q]``, on sentences of the fit half."""
    texts, model, rng = list(run.corpus.fit)[:3000], run.subject.model, np.random.default_rng(0)
    fires = pooled_activations(SentenceStream.from_texts([run.atlas], texts))[run.atlas.site][:, features] > 0
    found = []
    for i, own in enumerate(fires.T):
        chosen = [rng.choice(np.flatnonzero(kind), EACH, replace=False) for kind in (own, ~own)]
        tokens = model.tokenize([texts[j] for j in np.concatenate(chosen)], length=LENGTH, max_length=LENGTH)
        vectors = jnp.asarray(np.stack([x[i] for x in along.values()]))
        found.append(steering_preference(model, SITE, vectors, tokens, np.arange(2 * EACH) < EACH))
    return np.stack(found, axis=1)


def report_of(
    run: aj.Alignment, features: np.ndarray, along: dict[str, np.ndarray], shares: np.ndarray, nats: np.ndarray
) -> dict[str, Any]:
    """The stand-in beside what generation gives."""
    gains = gain_at_equal_perplexity(shares, nats)
    means = gain_at_equal_perplexity(shares.mean(1), nats.mean(1))
    seconds, found = seconds_of(lambda: preferences(run, features, along))
    some = [not name.startswith("random") for name in along]
    return machine() | {
        "site": str(SITE), "features": features.tolist(), "strengths": STRENGTHS, "seconds": seconds,
        "rank_correlation": agreement(found, gains, means),
        "rank_correlation_without_random": agreement(found[some], gains[some], means[some]),
        "directions": {
            name: {"gain": float(gain), "preference": float(own)}
            for name, gain, own in zip(along, means, found.mean(1), strict=True)
        },
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    arguments = arguments_of(__doc__).parse_args()
    sentences, count, texts = (600, 3, PROMPTS[:2]) if arguments.quick else (4000, 20, PROMPTS)
    run = aligned(sentences)
    usable = np.flatnonzero((run.rate > 0.01) & (run.rate < 0.1))
    features = np.sort(np.random.default_rng(0).choice(usable, count, replace=False))
    along = directions_of(run, features)
    report = report_of(run, features, along, *generated(run, features, along, texts))
    print(json.dumps(report, indent=1))
    write(report, arguments.out)


if __name__ == "__main__":
    main()
