"""Measurements of SAEs and labels on text: the quality of an SAE, its effect on the model's loss, and an atlas's."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.labels import WordTable, terms, words_of
from atlas_jax.metrics import Interval, auroc, bootstrap_mean
from atlas_jax.models import LanguageModel, forward
from atlas_jax.pipeline import SentenceStream, encode_batch, sae_quality
from atlas_jax.progress import Progress
from atlas_jax.sae import QualityState, SparseAutoencoder, finish_quality, init_quality, update_quality
from atlas_jax.types import Site, Tokens, Where


class HeldOut(NamedTuple):
    """Measurements of an SAE on held-out text; losses are nats a token.

    Attributes:
      fvu: fraction of variance unexplained.
      l0: mean number of active features a token.
      dead: share of the features that were never active.
      loss: loss of the model as it is.
      loss_spliced: loss of the model that reads the SAE's reconstruction instead of the activation.
      loss_ablated: loss of the model that reads zeros instead.
      loss_recovered: ``(loss_ablated - loss_spliced) / (loss_ablated - loss)``: 1 where the reconstruction does as
        well as the activation, 0 where it does no better than zeros.
      tokens: number of activations measured.

    Example:
      >>> from atlas_jax.sae_lab import HeldOut
      >>> HeldOut(0.1, 10.0, 0.0, loss=3.0, loss_spliced=3.1, loss_ablated=8.0, loss_recovered=0.98, tokens=4096).l0
      10.0
    """

    fvu: float
    l0: float
    dead: float
    loss: float
    loss_spliced: float
    loss_ablated: float
    loss_recovered: float
    tokens: int


class Splice(NamedTuple):
    """An edit that replaces the chosen activations by their reconstructions, or by zeros without an SAE.

    Attributes:
      sae: the SAE, or None.
      chosen: the positions that change; never BOS and padding in :func:`held_out`, for SAEs do not see them.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.sae_lab import Splice
      >>> x = jnp.ones((1, 2, 3))
      >>> Splice(None, jnp.array([[False, True]]))(x, None).sum(axis=-1).tolist()
      [[3.0, 0.0]]
    """

    sae: Any
    chosen: Any

    def __call__(self, x: Float[Array, "b t d"], where: Where | None) -> Float[Array, "b t d"]:
        """Edit ``x`` at the chosen positions."""
        new = jnp.zeros_like(x) if self.sae is None else self.sae(x).astype(x.dtype)
        return jnp.where(self.chosen[..., None], new, x)


def held_out(
    sae: SparseAutoencoder,
    stream: SentenceStream,
    site: Site,
    *,
    norm_limit: float = np.inf,
    progress: Progress | None = None,
) -> HeldOut:
    """Measure an SAE on a pass over one space.

    Args:
      sae: an SAE of ``site``.
      stream: a pass over one space; its tokens other than BOS, special ones and padding are measured.
      site: site at which activations are read and spliced in.
      norm_limit: activations longer than this are neither measured nor changed.
      progress: called after every batch.

    Example:
      >>> from atlas_jax.atlas import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.pipeline import SentenceStream
      >>> from atlas_jax.sae_lab import held_out
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> stream = SentenceStream.from_texts([atlas], ["Return the value.", "Raise an error."])
      >>> held_out(atlas.sae, stream, atlas.site).loss_recovered > 0.9  # doctest: +SKIP
      True
    """
    (space,) = stream.spaces
    state, sums = init_quality(sae), np.zeros(4)
    for (tokens,) in stream.batches(stage="held out", progress=progress):
        state, batch = _measure(state, space.model, sae, tokens, site, jnp.float32(norm_limit))
        sums += np.asarray(batch, np.float64)
    clean, spliced, ablated = (float(s) for s in sums[:3] / sums[3])
    quality = finish_quality(state)
    recovered = (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")
    kept = (float(quality.fvu), float(quality.l0), float(quality.dead))
    return HeldOut(*kept, clean, spliced, ablated, recovered, int(quality.count))


@partial(jax.jit, static_argnames="site")
def _measure(
    state: QualityState,
    model: LanguageModel,
    sae: SparseAutoencoder,
    tokens: Tokens,
    site: Site,
    norm_limit: Float[Array, ""],
) -> tuple[QualityState, Float[Array, "4"]]:
    clean = forward(model.decoder, tokens, capture=(site,))
    x = clean.acts[site]
    chosen = tokens.mask & within(x, norm_limit)
    edited = lambda sae: forward(model.decoder, tokens, edits={site: Splice(sae, chosen)}).logits
    losses = [_loss(logits, tokens) for logits in (clean.logits, edited(sae), edited(None))]
    counted = jnp.sum(tokens.mask[:, 1:], dtype=jnp.float32)
    return update_quality(state, sae, x, chosen), jnp.stack([*losses, counted])


def within(x: Float[Array, "b t d"], norm_limit: Float[Array, ""]) -> Bool[Array, "b t"]:
    """Mark the activations that are not longer than a limit."""
    return jnp.linalg.norm(x.astype(jnp.float32), axis=-1) <= norm_limit


def _loss(logits: Float[Array, "b t v"], tokens: Tokens) -> Float[Array, ""]:
    """Summed cross-entropy of the tokens that count, each predicted from those before it."""
    ids: Int[Array, "b t"] = tokens.ids
    nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:])
    return jnp.sum(jnp.where(tokens.mask[:, 1:], nats, 0.0))


LABELS_MEASURED = 4096
CELLS = 1 << 28


class LabelQuality(NamedTuple):
    """Detection of the sentences that contain a label's words by its feature.

    Attributes:
      auroc: mean over features, with its interval.
      by_feature: AUROC of each feature, nan where no or every sentence contains its words.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> from atlas_jax.sae_lab import LabelQuality
      >>> scores = np.array([0.9, np.nan])
      >>> LabelQuality(bootstrap_mean(scores), scores).auroc.n
      1
    """

    auroc: Interval
    by_feature: Float[np.ndarray, " d_c"]


def label_quality(atlas: ConceptAtlas, texts: Sequence[str], stream: SentenceStream) -> LabelQuality:
    """Measure the AUROC of pooled feature activations for "the sentence contains a word of the label".

    Every labelled feature is measured, or 4096 drawn at random where there are more. Function words of a label do not
    count unless it has no other. ``texts`` are the sentences of ``stream``, in order; the activations of these features
    on all of them are held.

    Example:
      >>> from atlas_jax.atlas import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.pipeline import SentenceStream
      >>> from atlas_jax.sae_lab import label_quality
      >>> texts, atlas = ["Return the value.", "Raise an error."], ConceptAtlas.from_pretrained(ATLAS)
      >>> label_quality(atlas, texts, SentenceStream.from_texts([atlas], texts)).auroc.mean > 0.5  # doctest: +SKIP
      True
    """
    described = np.array(atlas.labels.described(), np.int32)
    drawn = np.random.default_rng(0).permutation(described)[:LABELS_MEASURED]
    features = np.sort(drawn)
    acts = _activations(atlas, stream, features)
    table = WordTable.from_texts(texts, min_count=1)
    scores = np.full(atlas.width, np.nan)
    for column, feature in enumerate(features.tolist()):
        contains = table.contains_any(_content_words(str(atlas.labels[feature])))
        scores[feature] = auroc(np.ascontiguousarray(acts[:, column]), contains)
    return LabelQuality(bootstrap_mean(scores), scores)


def mean_activation(atlas: ConceptAtlas, texts: Sequence[str]) -> Float[np.ndarray, " d_c"]:
    """Compute the mean pooled activation of every feature over some sentences.

    Example:
      >>> from atlas_jax.atlas import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.sae_lab import mean_activation
      >>> mean_activation(ConceptAtlas.from_pretrained(ATLAS), ["Return the value.", "Raise an error."]).shape
      (1536,)
    """
    total = np.zeros(atlas.width, np.float64)
    for (tokens,) in _stream(atlas, texts).batches():
        total += np.asarray(_sum(encode_batch(atlas, tokens)[atlas.site], tokens.index), np.float64)
    return (total / len(texts)).astype(np.float32)


@jax.jit
def _sum(acts: Float[Array, "b d_c"], index: Int[Array, " b"]) -> Float[Array, " d_c"]:
    return jnp.sum(jnp.where(index[:, None] >= 0, acts, 0.0), axis=0)


def _activations(
    atlas: ConceptAtlas, stream: SentenceStream, features: Int[np.ndarray, " f"]
) -> Float[np.ndarray, "n f"]:
    """Compute pooled activations of some features on every sentence, in the order of their ids."""
    chosen = lambda tokens: encode_batch(atlas, tokens)[atlas.site][:, features]
    parts = [jax.device_get((tokens.index, chosen(tokens))) for (tokens,) in stream.batches()]
    index = np.concatenate([p[0] for p in parts])
    order = np.argsort(index, kind="stable")[np.sum(index < 0) :]
    return np.concatenate([p[1] for p in parts])[order]


def _content_words(label: str) -> list[str]:
    words = sorted(words_of(label))
    return [word for word in words if terms(word)] or words


def _stream(atlas: ConceptAtlas, texts: Sequence[str]) -> SentenceStream:
    """Make batches whose features fit into memory however wide the SAE is."""
    return SentenceStream.from_texts([atlas], texts, token_budget=min(4096, max(256, CELLS // atlas.width)))


def atlas_facts(atlas: ConceptAtlas, texts: Sequence[str], *, progress: Progress | None = None) -> dict[str, Any]:
    """Measure FVU, L0 and dead share of the SAE, coverage and quality of the labels, on the given sentences.

    Example:
      >>> from atlas_jax.atlas import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.sae_lab import atlas_facts
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> facts = atlas_facts(atlas, ["Return the value.", "Raise an error."])  # doctest: +SKIP
      >>> facts["FVU"] < 0.1, facts["features"]  # doctest: +SKIP
      (True, 1536)
    """
    stream = _stream(atlas, texts)
    quality = sae_quality(stream, progress=progress)
    facts = {
        "site": str(atlas.site),
        "features": atlas.width,
        "sentences": len(texts),
        "tokens": int(quality.count),
        "FVU": float(quality.fvu),
        "L0": float(quality.l0),
        "dead share": float(quality.dead),
        "densest feature": float(jnp.max(quality.frequency)),
        "label coverage": atlas.labels.coverage,
    }
    if atlas.labels.described():
        labels = label_quality(atlas, texts, stream)
        facts["label AUROC"] = labels.auroc.mean
        facts["label AUROC, 95% interval"] = [labels.auroc.low, labels.auroc.high]
    return facts
