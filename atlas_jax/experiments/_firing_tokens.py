"""Where concepts fire: the atlas's features at the subject's tokens, and what the subject is about to say there."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.models import LanguageModel, forward, match_tokens, pad_spans
from atlas_jax.pipeline import Alignment, SentenceStream
from atlas_jax.progress import Progress
from atlas_jax.statistics import PassStatistics, update_pass
from atlas_jax.translators import whitened
from atlas_jax.types import Site, Tokens

LENGTH = 48  # tokens that are read of a sentence
RIDGE = 0.01  # of the token covariance, in its mean eigenvalues


class Firing(NamedTuple):
    """Activations of concepts at the subject's tokens of some sentences.

    Attributes:
      tokens: of the subject ``[n, t]``, numpy.
      scores: activation of each concept's atlas features, weighted as in its query ``[n, t, q]``.
    """

    tokens: Tokens
    scores: Float[np.ndarray, "n t q"]

    @property
    def read(self) -> int:
        """Tokens that were read."""
        return int(np.sum(self.tokens.attention_mask))


def evenly(alignment: Alignment, sentences: int) -> list[str]:
    """Return so many sentences of the fit half, evenly spread."""
    fit = alignment.corpus.fit
    return [fit[i] for i in np.unique(np.linspace(0, len(fit) - 1, sentences).astype(int)).tolist()]


def scored_tokens(
    alignment: Alignment, queries: Float[np.ndarray, "q d_c"], texts: Sequence[str], progress: Progress | None
) -> Iterator[tuple[Tokens, Float[Array, "b t q"]]]:
    """Yield the subject's tokens of each batch, with the activation of every concept at them."""
    atlas, subject = alignment.atlas, alignment.subject
    budget = alignment.settings.token_budget
    stream = SentenceStream.from_texts([subject, atlas], texts, max_length=LENGTH, token_budget=budget)
    spans = [space.model.tokenizer.spans(texts, stream.max_length) for space in (subject, atlas)]
    weights = jnp.asarray(queries / np.abs(queries).sum(axis=1, keepdims=True), jnp.float32)
    for batch in stream.batches(stage="firing tokens", progress=progress):
        rows = np.asarray(batch[0].index).tolist()
        own, other = (
            pad_spans([s[i] if i >= 0 else [] for i in rows], tokens.ids.shape[1])
            for s, tokens in zip(spans, batch, strict=True)
        )
        yield batch[0], _scores(atlas, batch[1], weights, jnp.asarray(match_tokens(other, own)))


@jax.jit
def _scores(
    atlas: ConceptAtlas, tokens: Tokens, weights: Float[Array, "q d_c"], match: Int[Array, "b t"]
) -> Float[Array, "b t q"]:
    """Activations along queries at the atlas token of each subject token, 0 where there is none or it is not finite."""
    along = lambda x: jnp.dot(atlas.sae.encode(x), weights.T, precision=jax.lax.Precision.HIGHEST)
    acts = forward(atlas.model.decoder, tokens, capture=atlas.sites, logits=False, pool=along).acts[atlas.site]
    acts = jnp.where(jnp.isfinite(acts) & tokens.mask[:, :, None], acts, 0.0)
    return jnp.where(match[:, :, None] >= 0, jnp.take_along_axis(acts, jnp.maximum(match, 0)[:, :, None], axis=1), 0.0)


def firing(
    alignment: Alignment, queries: Float[np.ndarray, "q d_c"], texts: Sequence[str], progress: Progress | None
) -> Firing:
    """Read where concepts fire in some sentences."""
    ids, mask, real = np.zeros((len(texts), LENGTH), np.int32), *np.zeros((2, len(texts), LENGTH), bool)
    scores = np.zeros((len(texts), LENGTH, len(queries)), np.float32)
    for tokens, of_batch in scored_tokens(alignment, queries, texts, progress):
        there = np.asarray(tokens.index) >= 0
        index, width = np.asarray(tokens.index)[there], tokens.ids.shape[1]
        parts = tokens.ids, tokens.mask, tokens.attention_mask, of_batch
        for whole, part in zip((ids, mask, real, scores), parts, strict=True):
            whole[index, :width] = np.asarray(part)[there]
    return Firing(Tokens(ids, mask, np.arange(len(texts), dtype=np.int32), real), scores)


def ahead(
    alignment: Alignment,
    queries: Float[np.ndarray, "q d_c"],
    texts: Sequence[str],
    sites: Sequence[Site],
    progress: Progress | None,
) -> tuple[dict[Site, Float[np.ndarray, "q d"]], int]:
    r"""Compute :math:`C^{-1/2} \mathrm{cov}(a_t, s_{t+1})`: what the subject holds before concepts fire.

    C is the covariance of the subject's activations at single tokens, s the activation of a concept. Beside the vectors
    stands the number of tokens that were read.
    """
    model = alignment.subject.model
    widths = {site: model.config.width(site) for site in sites}
    state, read = PassStatistics.init(["cross", "subject_gram"], widths, len(queries)), 0
    for tokens, scores in scored_tokens(alignment, queries, texts, progress):
        rows, after, weight = _before_and_after(model, tokens, scores, tuple(sites))
        state, read = update_pass(state, rows, after, weight), read + int(tokens.attention_mask.sum())
    options = {"alpha": 0.5, "beta": 0.0, "normalize_rows": False, "centre": True, "ridge": RIDGE}
    return {site: np.asarray(whitened(state.statistics(site), **options).matrix).T for site in sites}, read


@partial(jax.jit, static_argnames="sites")
def _before_and_after(
    model: LanguageModel, tokens: Tokens, scores: Float[Array, "b t q"], sites: tuple[Site, ...]
) -> tuple[dict[Site, Float[Array, "n d"]], Float[Array, "n q"], Float[Array, " n"]]:
    """Activations of every token but the last, those of the concepts at the token after it, and which count."""
    acts = forward(model.decoder, tokens, capture=sites, logits=False).acts
    counts = tokens.mask[:, :-1] & tokens.mask[:, 1:] & (tokens.index >= 0)[:, None]
    flat = lambda x: x.reshape(-1, x.shape[-1])
    before = {site: flat(x[:, :-1].astype(jnp.float32)) for site, x in acts.items()}
    return before, flat(scores[:, 1:]), counts.reshape(-1).astype(jnp.float32)
