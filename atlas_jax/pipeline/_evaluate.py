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
from atlas_jax.sae import Quality, finish_quality, init_quality, update_quality
from atlas_jax.sharding import replicate, to_host
from atlas_jax.statistics import (
    PassStatistics,
    TopK,
    update_pass,
)
from atlas_jax.types import FeatureSpace, Site, Tokens


class Scored(NamedTuple):
    """What an evaluation pass leaves behind, sentences in the order of their ids.

    Attributes:
      scores: by site, similarity of each sentence to each direction, ``[directions, n]``.
      positive: whether the atlas feature of each query fired in a sentence, ``[features, n]``.
      top: by site, the sentences that activate each subject feature most, with the token of the peak.
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
      top_k: how many maximally activating sentences to keep per subject feature.
      stage: name of the pass for ``progress``.
      progress: called after every batch.
    """
    subject, atlas = stream.spaces
    top = _peaks(subject, top_k, stream.mesh)
    unit = {site: _unit(d) for site, d in directions.items()}
    parts: list[tuple[np.ndarray, dict[Site, np.ndarray], np.ndarray]] = []
    for tokens_s, tokens_c in stream.batches(stage=stage, progress=progress):
        pooled, a_c = encode_peaks(subject, tokens_s), encode_batch(atlas, tokens_c)[atlas.site]
        top, found = _score_step(top, pooled, a_c, tokens_s.index, unit, jnp.asarray(features), mesh=stream.mesh)
        parts.append(jax.tree.map(np.asarray, found))
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
    unit: dict[Site, Float[Array, "r d_s"]],
    features: Int[Array, " q"],
    *,
    mesh: Mesh | None,
) -> tuple[PassStatistics, tuple[Int[Array, " b"], dict[Site, Float[Array, "b r"]], Bool[Array, "b q"]]]:
    scores = {
        site: jnp.matmul(_unit(pooled[site].values), d.T, precision=jax.lax.Precision.HIGHEST)
        for site, d in unit.items()
    }
    fires = a_c[:, features] > 0
    return _add_peaks(top, pooled, index, mesh), replicate((index, scores, fires), mesh)


def top_sentences(
    stream: SentenceStream, *, top_k: int, stage: str = "strongest", progress: Progress | None = None
) -> dict[Site, TopK]:
    """The sentences that activate every feature of one space most, with the token of each peak."""
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
    """Pooled activations of every sentence of a pass over one space, held whole: for small sets, never for fitting."""
    (space,) = stream.spaces
    found = ((tokens.index, encode_batch(space, tokens)) for (tokens,) in stream.batches())
    parts = [jax.device_get(_everywhere(pair, mesh=stream.mesh)) for pair in found]
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


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)


def site_activations(
    stream: SentenceStream, sites: tuple[Site, ...], *, stage: str = "activations", progress: Progress | None = None
) -> Iterator[tuple[dict[Site, Float[Array, "b t d"]], Tokens]]:
    """Activations of every token at some sites of a pass over one space, with the tokens."""
    (space,) = stream.spaces
    for (tokens,) in stream.batches(stage=stage, progress=progress):
        yield _activations(space.model, tokens, sites), tokens


def token_activations(
    stream: SentenceStream, site: Site, *, progress: Progress | None = None
) -> Iterator[tuple[Float[Array, "b t d"], Bool[Array, "b t"]]]:
    """Activations of every token of a pass over one space, with the mask of those that count."""
    for acts, tokens in site_activations(stream, (site,), progress=progress):
        yield acts[site], tokens.mask


@partial(jax.jit, static_argnames="sites")
def _activations(model: LanguageModel, tokens: Tokens, sites: tuple[Site, ...]) -> dict[Site, Float[Array, "b t d"]]:
    return forward(model.decoder, tokens, capture=sites, logits=False).acts


def sae_quality(stream: SentenceStream, *, progress: Progress | None = None) -> Quality:
    """FVU, L0 and dead share of an atlas's SAE on the tokens of a pass over the atlas.

    A transcoder is held against the site its reconstruction belongs to; its FVU is nan where that is not known.
    """
    (atlas,) = stream.spaces
    config, state = atlas.sae.config, init_quality(atlas.sae)
    sites = (atlas.site,) if config.site_out is None else (atlas.site, config.site_out)
    for acts, tokens in site_activations(stream, sites, stage="SAE", progress=progress):
        x = acts[atlas.site]
        target = acts[config.site_out] if config.site_out else jnp.zeros((*x.shape[:-1], config.width_out))
        state = update_quality(state, atlas.sae, x, tokens.mask, target if config.transcoder else None)
    return finish_quality(state)
