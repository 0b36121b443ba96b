"""How good an atlas is on given text: its SAE, and its labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.labels import WordTable, terms, words_of
from atlas_jax.metrics import Interval, auroc, bootstrap_mean
from atlas_jax.pipeline import Pass, encode_batch, sae_quality
from atlas_jax.progress import Progress

LABELS_MEASURED = 4096
CELLS = 1 << 28


class LabelQuality(NamedTuple):
    """Do sentences that contain a label's words activate the feature?

    Attributes:
      auroc: mean over features, with its interval.
      by_feature: AUROC of each feature, nan where no or every sentence contains its words.
    """

    auroc: Interval
    by_feature: Float[np.ndarray, " d_c"]


def label_quality(atlas: ConceptAtlas, texts: Sequence[str], stream: Pass) -> LabelQuality:
    """AUROC of pooled feature activations for "the sentence contains a word of the label".

    Of every labelled feature, or of 4096 drawn at random where there are more. Function words of a label do not count
    unless it has no other. ``texts`` are the sentences of ``stream``, in order; the activations of these features on
    all of them are held.
    """
    described = np.array(atlas.labels.described(), np.int32)
    drawn = np.random.default_rng(0).permutation(described)[:LABELS_MEASURED]
    features = np.sort(drawn)
    acts = _activations(atlas, stream, features)
    table = WordTable.of(texts, min_count=1)
    scores = np.full(atlas.width, np.nan)
    for column, feature in enumerate(features.tolist()):
        contains = table.contains_any(_content_words(str(atlas.labels[feature])))
        scores[feature] = auroc(np.ascontiguousarray(acts[:, column]), contains)
    return LabelQuality(bootstrap_mean(scores), scores)


def mean_activation(atlas: ConceptAtlas, texts: Sequence[str]) -> Float[np.ndarray, " d_c"]:
    """Mean pooled activation of every feature over some sentences."""
    total = np.zeros(atlas.width, np.float64)
    for (tokens,) in _stream(atlas, texts).batches():
        total += np.asarray(_sum(encode_batch(atlas, tokens)[atlas.site], tokens.index), np.float64)
    return (total / len(texts)).astype(np.float32)


@jax.jit
def _sum(acts: Float[Array, "b d_c"], index: Int[Array, " b"]) -> Float[Array, " d_c"]:
    return jnp.sum(jnp.where(index[:, None] >= 0, acts, 0.0), axis=0)


def _activations(atlas: ConceptAtlas, stream: Pass, features: Int[np.ndarray, " f"]) -> Float[np.ndarray, "n f"]:
    """Pooled activations of some features on every sentence, in the order of their ids."""
    chosen = lambda tokens: encode_batch(atlas, tokens)[atlas.site][:, features]
    parts = [jax.device_get((tokens.index, chosen(tokens))) for (tokens,) in stream.batches()]
    index = np.concatenate([p[0] for p in parts])
    order = np.argsort(index, kind="stable")[np.sum(index < 0) :]
    return np.concatenate([p[1] for p in parts])[order]


def _content_words(label: str) -> list[str]:
    words = sorted(words_of(label))
    return [word for word in words if terms(word)] or words


def _stream(atlas: ConceptAtlas, texts: Sequence[str]) -> Pass:
    """Batches whose features fit into memory however wide the SAE is."""
    return Pass.of([atlas], texts, token_budget=min(4096, max(256, CELLS // atlas.width)))


def atlas_facts(atlas: ConceptAtlas, texts: Sequence[str], *, progress: Progress | None = None) -> dict[str, Any]:
    """FVU, L0 and dead share of the SAE, coverage and quality of the labels, on the given sentences."""
    stream = _stream(atlas, texts)
    found = sae_quality(stream, progress=progress)
    facts = {
        "site": str(atlas.site),
        "features": atlas.width,
        "sentences": len(texts),
        "tokens": int(found.count),
        "FVU": float(found.fvu),
        "L0": float(found.l0),
        "dead share": float(found.dead),
        "densest feature": float(jnp.max(found.frequency)),
        "label coverage": atlas.labels.coverage,
    }
    if atlas.labels.described():
        labels = label_quality(atlas, texts, stream)
        facts["label AUROC"] = labels.auroc.mean
        facts["label AUROC, 95% interval"] = [labels.auroc.low, labels.auroc.high]
    return facts
