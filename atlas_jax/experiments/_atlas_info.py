"""How good an atlas is on given text: its SAE, and its labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.labels import WordTable, words_of
from atlas_jax.metrics import Interval, auroc, bootstrap_mean
from atlas_jax.pipeline import Pass, Stage, pooled_activations, sae_quality


class LabelQuality(NamedTuple):
    """Do sentences that contain a label's words activate the feature?

    Attributes:
      auroc: mean over features, with its interval.
      by_feature: AUROC of each feature, nan where no or every sentence contains its words.
    """

    auroc: Interval
    by_feature: Float[np.ndarray, " d_c"]


def label_quality(atlas: ConceptAtlas, texts: Sequence[str], stream: Pass) -> LabelQuality:
    """AUROC of pooled feature activations for "the sentence contains a word of the label", for every labelled feature.

    ``texts`` are the sentences of ``stream``, in order. Activations of all sentences are held: ``4 n d_c`` bytes.
    """
    acts = pooled_activations(stream)[atlas.site]
    table = WordTable.of(texts, min_count=1)
    scores = np.full(atlas.width, np.nan)
    for feature in range(atlas.width):
        label = atlas.labels[feature]
        if label is not None:
            contains = table.contains_any(sorted(words_of(label) - {","}))
            scores[feature] = auroc(np.ascontiguousarray(acts[:, feature]), contains)
    return LabelQuality(bootstrap_mean(scores), scores)


def atlas_facts(atlas: ConceptAtlas, texts: Sequence[str], *, stage: Stage) -> dict[str, Any]:
    """FVU, L0 and dead share of the SAE, coverage and quality of the labels, on the given sentences."""
    stream = Pass.of([atlas], texts)
    found = sae_quality(stream, stage("SAE"))
    labels = label_quality(atlas, texts, stream)
    advertised = atlas.sae.config.advertised_l0
    return {
        "site": str(atlas.site),
        "features": atlas.width,
        "sentences": len(texts),
        "tokens": int(found.count),
        "FVU": float(found.fvu),
        "L0": float(found.l0),
        "L0 advertised": "not stated" if advertised is None else float(advertised),
        "dead share": float(found.dead),
        "densest feature": float(jnp.max(found.frequency)),
        "label coverage": atlas.labels.coverage,
        "label AUROC": labels.auroc.mean,
        "label AUROC, 95% interval": [labels.auroc.low, labels.auroc.high],
    }
