"""Evaluation: scores, strongest sentences and activations of held-out sentences, pooled and token by token."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.models import LanguageModel, forward
from atlas_jax.pipeline._run import encode_batch, encode_peaks, run_stream
from atlas_jax.pipeline._stream import SentenceStream
from atlas_jax.pooling import Pooled
from atlas_jax.progress import Progress
from atlas_jax.rows import unit
from atlas_jax.sae import Quality, finish_quality, init_quality, update_quality
from atlas_jax.sharding import replicate, to_host
from atlas_jax.statistics import (
    PassStatistics,
    TopK,
    update_pass,
)
from atlas_jax.types import FeatureSpace, Site, Tokens


class Scored(NamedTuple):
    """The result of an evaluation pass, sentences in the order of their ids.

    Attributes:
      scores: by site, similarity of each sentence to each direction, ``[directions, n]``.
      positive: true where the atlas feature of each query fired in a sentence, ``[features, n]``.
      top: by site, the sentences that activate each subject feature most, with the token of the peak.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.pipeline import Scored
      >>> site = Site("mlp_act", 1)
      >>> scored = Scored({site: np.array([[0.9, 0.1]])}, np.array([[True, False]]), top={})
      >>> scored.scores[site][scored.positive].tolist()
      [0.9]
    """

    scores: dict[Site, Float[np.ndarray, "r n"]]
    positive: Bool[np.ndarray, "q n"]
    top: dict[Site, TopK]


def score_sentences(
    stream: SentenceStream,
    directions: dict[Site, Float[Array, "r d_s"]],
    features: Int[np.ndarray, " q"],
    *,
    top_k: int = 5,
    stage: str = "measure",
    progress: Progress | None = None,
) -> Scored:
    """Score held-out sentences by the cosine of their subject activations with directions, the measure of Table 3.

    Args:
      stream: the evaluation half.
      directions: by site, rows to score against (similarity vectors ``s_c``).
      features: the atlas features whose firing marks a sentence as positive.
      top_k: maximally activating sentences to keep per subject feature.
      stage: name of the pass for ``progress``.
      progress: called after every batch.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> from atlas_jax import AlignSettings, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, score_sentences
      >>> pair = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("covariance",)))
      >>> texts = ["the font of a text", "a list of numbers", "an open file"]
      >>> stream, site = SentenceStream.from_texts(pair[:2], texts), pair.subject.sites[0]
      >>> scored = score_sentences(stream, {site: jnp.eye(384)[:2]}, np.array([3]))
      >>> scored.scores[site].shape, bool((abs(scored.scores[site]) <= 1).all())
      ((2, 3), True)
    """
    subject, atlas = stream.spaces
    top = _peaks(subject, top_k, stream.mesh)
    along = {site: unit(d) for site, d in directions.items()}
    parts: list[tuple[np.ndarray, dict[Site, np.ndarray], np.ndarray]] = []
    for tokens_s, tokens_c in stream.batches(stage=stage, progress=progress):
        pooled, a_c = encode_peaks(subject, tokens_s), encode_batch(atlas, tokens_c)[atlas.site]
        top, scored = _score_step(top, pooled, a_c, tokens_s.index, along, jnp.asarray(features), mesh=stream.mesh)
        parts.append(jax.tree.map(np.asarray, scored))
    index = np.concatenate([p[0] for p in parts])
    order = np.argsort(index)[np.sum(index < 0) :]
    gather = lambda arrays: np.ascontiguousarray(np.concatenate(arrays)[order].T)
    scores = {site: gather([p[1][site] for p in parts]) for site in directions}
    return Scored(scores, gather([p[2] for p in parts]), jax.tree.map(to_host, top.top))


@partial(jax.jit, donate_argnames="top", static_argnames="mesh")
def _score_step(
    top: PassStatistics,
    pooled: dict[Site, Pooled],
    a_c: Float[Array, "b d_c"],
    index: Int[Array, " b"],
    along: dict[Site, Float[Array, "r d_s"]],
    features: Int[Array, " q"],
    *,
    mesh: Mesh | None,
) -> tuple[PassStatistics, tuple[Int[Array, " b"], dict[Site, Float[Array, "b r"]], Bool[Array, "b q"]]]:
    scores = {
        site: jnp.matmul(unit(pooled[site].values), d.T, precision=jax.lax.Precision.HIGHEST)
        for site, d in along.items()
    }
    fires = a_c[:, features] > 0
    return _add_peaks(top, pooled, index, mesh), replicate((index, scores, fires), mesh)


def top_sentences(
    stream: SentenceStream, *, top_k: int, stage: str = "strongest", progress: Progress | None = None
) -> dict[Site, TopK]:
    """Return the sentences that activate every feature of one space most, with the token of each peak.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, top_sentences
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> texts = ["the font of a text", "a list of numbers", "an open file"]
      >>> stream = SentenceStream.from_texts([subject], texts)
      >>> top_sentences(stream, top_k=2)[subject.sites[0]].index.shape
      (384, 2)
    """
    (space,) = stream.spaces
    step = lambda top, tokens: _top_step(top, encode_peaks(space, tokens), tokens.index, mesh=stream.mesh)
    state = run_stream(stream, step, _peaks(space, top_k, stream.mesh), name=stage, progress=progress)
    return jax.tree.map(to_host, state.top)


@partial(jax.jit, donate_argnames="top", static_argnames="mesh")
def _top_step(
    top: PassStatistics, pooled: dict[Site, Pooled], index: Int[Array, " b"], *, mesh: Mesh | None
) -> PassStatistics:
    return _add_peaks(top, pooled, index, mesh)


def pooled_activations(stream: SentenceStream) -> dict[Site, Float[np.ndarray, "n d"]]:
    """Return pooled activations of every sentence of a pass over one space: for small sets, never for fitting.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, pooled_activations
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> texts = ["the font of a text", "a list of numbers", "an open file"]
      >>> stream = SentenceStream.from_texts([subject], texts)
      >>> pooled_activations(stream)[subject.sites[0]].shape
      (3, 384)
    """
    (space,) = stream.spaces
    batches = ((tokens.index, encode_batch(space, tokens)) for (tokens,) in stream.batches())
    parts = [jax.device_get(_everywhere(pair, mesh=stream.mesh)) for pair in batches]
    index = np.concatenate([p[0] for p in parts])
    order = np.argsort(index, kind="stable")[np.sum(index < 0) :]
    return {site: np.concatenate([p[1][site] for p in parts])[order] for site in space.widths}


@partial(jax.jit, static_argnames="mesh")
def _everywhere(tree: Any, *, mesh: Mesh | None) -> Any:
    return replicate(tree, mesh)


def _peaks(space: FeatureSpace, top_k: int, mesh: Mesh | None) -> PassStatistics:
    return PassStatistics.init(["top_k"], space.widths, 1, top_k=top_k, peaks=True, mesh=mesh)


def _add_peaks(
    top: PassStatistics, pooled: dict[Site, Pooled], index: Int[Array, " b"], mesh: Mesh | None
) -> PassStatistics:
    weight = (index >= 0).astype(jnp.float32)
    values = {site: p.values for site, p in pooled.items()}
    peaks = {site: p.argmax_position for site, p in pooled.items()}
    return update_pass(top, values, weight[:, None], weight, index, peaks, mesh=mesh)


def site_activations(
    stream: SentenceStream, sites: tuple[Site, ...], *, stage: str = "activations", progress: Progress | None = None
) -> Iterator[tuple[dict[Site, Float[Array, "b t d"]], Tokens]]:
    """Yield activations of every token at some sites of a pass over one space, with the tokens.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, site_activations
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> texts = ["the font of a text", "a list of numbers", "an open file"]
      >>> stream = SentenceStream.from_texts([subject], texts)
      >>> acts, tokens = next(site_activations(stream, subject.sites))
      >>> acts[subject.sites[0]].shape == (*tokens.ids.shape, 384)
      True
    """
    (space,) = stream.spaces
    for (tokens,) in stream.batches(stage=stage, progress=progress):
        yield _activations(space.model, tokens, sites), tokens


def token_activations(
    stream: SentenceStream, site: Site, *, progress: Progress | None = None
) -> Iterator[tuple[Float[Array, "b t d"], Bool[Array, "b t"]]]:
    """Yield activations of every token of a pass over one space, with the mask of those that count.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, token_activations
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> texts = ["the font of a text", "a list of numbers", "an open file"]
      >>> stream = SentenceStream.from_texts([subject], texts)
      >>> acts, mask = next(token_activations(stream, subject.sites[0]))
      >>> acts.shape[:2] == mask.shape
      True
    """
    for acts, tokens in site_activations(stream, (site,), progress=progress):
        yield acts[site], tokens.mask


@partial(jax.jit, static_argnames="sites")
def _activations(model: LanguageModel, tokens: Tokens, sites: tuple[Site, ...]) -> dict[Site, Float[Array, "b t d"]]:
    return forward(model.decoder, tokens, capture=sites, logits=False).acts


def sae_quality(stream: SentenceStream, *, progress: Progress | None = None) -> Quality:
    """Measure FVU, L0 and dead share of an atlas's SAE on the tokens of a pass over the atlas.

    A transcoder is held against the site its reconstruction belongs to; its FVU is nan where that is not known.

    Example:
      >>> from atlas_jax import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.pipeline import SentenceStream, sae_quality
      >>> stream = SentenceStream.from_texts([ConceptAtlas.from_pretrained(ATLAS)], ["the font of a text"])
      >>> bool(0 < sae_quality(stream).fvu < 1)
      True
    """
    (atlas,) = stream.spaces
    config, state = atlas.sae.config, init_quality(atlas.sae)
    sites = (atlas.site,) if config.site_out is None else (atlas.site, config.site_out)
    for acts, tokens in site_activations(stream, sites, stage="SAE", progress=progress):
        x = acts[atlas.site]
        target = acts[config.site_out] if config.site_out else jnp.zeros((*x.shape[:-1], config.width_out))
        state = update_quality(state, atlas.sae, x, tokens.mask, target if config.transcoder else None)
    return finish_quality(state)
