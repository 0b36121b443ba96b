"""The streamed passes: both spaces read every batch, and what is pooled goes into the statistics at once."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.mesh import everywhere, to_host
from atlas_jax.pipeline._checkpoint import Checkpoints
from atlas_jax.pipeline._encode import encode_batch, encode_norms, encode_peaks
from atlas_jax.pipeline._fold import fold
from atlas_jax.pipeline._pass import Pass
from atlas_jax.pooling import Pooled
from atlas_jax.progress import Progress
from atlas_jax.statistics import (
    Lens,
    NormSums,
    PassStatistics,
    TokenNorms,
    TopK,
    add_norms,
    lens_init,
    lens_update,
    merge_norms,
    merge_pass,
    on_mesh,
    selected_samples,
    update_pass,
)
from atlas_jax.types import FeatureSpace, Site, Tokens

LEFT_OUT = 64  # more sentences than these that are not finite stop a run


class Fitted(NamedTuple):
    """What a fitting pass leaves behind.

    Attributes:
      statistics: of every subject site against the atlas.
      active: sentences in which each atlas feature fired.
      left_out: ids of the sentences with activations that are not finite, in no statistic; -1 in empty places.
      norms: of the subject's activations at single tokens, by site.
    """

    statistics: PassStatistics
    active: Int[Array, " d_c"]
    left_out: Int[Array, " f"]
    norms: TokenNorms

    @property
    def faulty(self) -> list[int]:
        """The sentences left out, ascending."""
        return sorted(i for i in self.left_out.tolist() if i >= 0)

    def token_norm(self, site: Site) -> float | None:
        """The mean norm of the subject's activations at a token; None where there was none, or none was told."""
        mean = self.norms.mean(site)
        return mean if math.isfinite(mean) else None


def fit_statistics(
    stream: Pass,
    needs: Iterable[str],
    *,
    top_k: int = 10,
    name: str = "fit",
    stage: str = "align",
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fitted:
    """One pass over the fit half that serves every method that needs no second one.

    No activation is kept but the pooled ones of a batch, until they are added. A few sentences with activations that
    are not finite are left out and named; more of them stop the pass, for then it is the model and not the sentences.

    Args:
      stream: the fit half, through subject and atlas.
      needs: names of statistics, see :data:`atlas_jax.statistics.NEEDS`.
      top_k: how many activations per subject feature the need ``"top_k"`` keeps.
      name: of the pass, among the checkpoints.
      stage: its name for ``progress``.
      progress: called after every batch.
      checkpoints: where the state is saved now and then, and from where a stopped pass goes on.

    Raises:
      AtlasError: if more than :data:`LEFT_OUT` sentences have activations that are not finite, naming the first; or
        as :func:`fold`.
    """
    subject, atlas = stream.spaces

    def empty() -> Fitted:
        statistics = PassStatistics.init(needs, subject.widths, atlas.width, top_k=top_k)
        active, left_out = jnp.zeros(atlas.width, jnp.int32), jnp.full(LEFT_OUT, -1, jnp.int32)
        return Fitted(statistics, active, left_out, TokenNorms.init(subject.widths))

    def step(state: Fitted, tokens_s: Tokens, tokens_c: Tokens) -> Fitted:
        _check_finite(state)
        a_s, *norms = encode_norms(subject, tokens_s)
        a_c = encode_batch(atlas, tokens_c)[atlas.site]
        return _fit_step(state, a_s, a_c, NormSums(*norms), tokens_s.index, mesh=stream.mesh)

    named = {"name": name, "stage": stage}
    state = fold(stream, step, on_mesh(empty, stream.mesh), **named, progress=progress, checkpoints=checkpoints)
    _check_finite(state)
    return state


def merge_fitted(a: Fitted, b: Fitted) -> Fitted:
    """What a pass over the sentences of both would have left, to rounding; without top-k where ``a`` has none.

    Raises:
      AtlasError: as :func:`fit_statistics`, for the sentences left out of both together.
    """
    faulty = np.array(a.faulty + b.faulty, np.int32)
    left_out = np.full(max(LEFT_OUT, faulty.size), -1, np.int32)
    left_out[: faulty.size] = np.sort(faulty)
    statistics, norms = merge_pass(a.statistics, b.statistics), merge_norms(a.norms, b.norms)
    merged = Fitted(statistics, a.active + b.active, jnp.asarray(left_out), norms)
    _check_finite(merged)
    return merged


def _check_finite(state: Fitted) -> None:
    if (rows := int(state.statistics.faults.rows)) > LEFT_OUT:
        first = ", ".join(map(str, state.faulty[:8]))
        raise AtlasError(
            f"{rows} sentences so far gave activations that are not finite, among them sentences {first}; "
            "use float32, or check the model and the SAE"
        )


@partial(jax.jit, donate_argnames="state", static_argnames="mesh")
def _fit_step(
    state: Fitted,
    a_s: dict[Site, Float[Array, "b _"]],
    a_c: Float[Array, "b d_c"],
    norms: NormSums,
    index: Int[Array, " b"],
    *,
    mesh: Mesh | None,
) -> Fitted:
    real = index >= 0
    statistics = update_pass(state.statistics, a_s, a_c, real.astype(jnp.float32), index, mesh=mesh)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a), axis=1) for a in (a_c, *a_s.values())]), axis=0)
    active = jnp.sum((a_c > 0) & (real & finite)[:, None], axis=0, dtype=jnp.int32)
    faulty = real & ~finite
    place = state.statistics.faults.rows + jnp.cumsum(faulty, dtype=jnp.int32) - 1
    left_out = state.left_out.at[jnp.where(faulty, place, LEFT_OUT)].set(index, mode="drop")
    kept = jax.tree.map(lambda x: jnp.sum(jnp.where(real & finite, x, 0.0)), norms)
    return Fitted(statistics, *everywhere((state.active + active, left_out, add_norms(state.norms, kept)), mesh))


def fit_lenses(
    stream: Pass,
    statistics: PassStatistics,
    *,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> dict[Site, Lens]:
    """SemanticLens' second pass (Eq. 9), over the selected sentences alone."""
    tops = {site: statistics.statistics(site).top for site in statistics.sites}
    atlas = stream.spaces[-1]
    lenses = {site: lens_init(top, atlas.width) for site, top in tops.items()}
    selected = stream.only(selected_samples(*tops.values()))._replace(spaces=(atlas,))
    step = lambda lenses, tokens: _lens_step(
        lenses, encode_batch(atlas, tokens)[atlas.site], tokens.index, mesh=stream.mesh
    )
    named = {"name": "second", "stage": "second pass"}
    return fold(selected, step, lenses, **named, progress=progress, checkpoints=checkpoints)


@partial(jax.jit, donate_argnames="lenses", static_argnames="mesh")
def _lens_step(
    lenses: dict[Site, Lens], a_c: Float[Array, "b d_c"], index: Int[Array, " b"], *, mesh: Mesh | None
) -> dict[Site, Lens]:
    return {site: lens_update(lens, index, a_c, mesh=mesh) for site, lens in lenses.items()}


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
    stream: Pass,
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
    return _add_peaks(top, pooled, index, mesh), everywhere((index, scores, fires), mesh)


def top_sentences(
    stream: Pass, *, top_k: int, stage: str = "strongest", progress: Progress | None = None
) -> dict[Site, TopK]:
    """The sentences that activate every feature of one space most, with the token of each peak."""
    (space,) = stream.spaces
    step = lambda top, tokens: _top_step(top, encode_peaks(space, tokens), tokens.index, mesh=stream.mesh)
    state = fold(stream, step, _peaks(space, top_k, stream.mesh), name=stage, progress=progress)
    return jax.tree.map(to_host, state.top)


@partial(jax.jit, donate_argnames="top", static_argnames="mesh")
def _top_step(
    top: PassStatistics, pooled: dict[Site, Pooled], index: Int[Array, " b"], *, mesh: Mesh | None
) -> PassStatistics:
    return _add_peaks(top, pooled, index, mesh)


def pooled_activations(stream: Pass) -> dict[Site, Float[np.ndarray, "n d"]]:
    """Pooled activations of every sentence of a pass over one space, held whole: for small sets, never for fitting."""
    (space,) = stream.spaces
    found = ((tokens.index, encode_batch(space, tokens)) for (tokens,) in stream.batches())
    parts = [jax.device_get(_everywhere(pair, mesh=stream.mesh)) for pair in found]
    index = np.concatenate([p[0] for p in parts])
    order = np.argsort(index, kind="stable")[np.sum(index < 0) :]
    return {site: np.concatenate([p[1][site] for p in parts])[order] for site in space.widths}


@partial(jax.jit, static_argnames="mesh")
def _everywhere(tree: Any, *, mesh: Mesh | None) -> Any:
    return everywhere(tree, mesh)


def _peaks(space: FeatureSpace, top_k: int, mesh: Mesh | None) -> PassStatistics:
    return PassStatistics.init(["top_k"], space.widths, 1, top_k=top_k, peaks=True, mesh=mesh)


def _add_peaks(
    top: PassStatistics, pooled: dict[Site, Pooled], index: Int[Array, " b"], mesh: Mesh | None
) -> PassStatistics:
    weight = (index >= 0).astype(jnp.float32)
    values = {site: p.values for site, p in pooled.items()}
    peaks = {site: p.peak for site, p in pooled.items()}
    return update_pass(top, values, weight[:, None], weight, index, peaks, mesh=mesh)


def _unit(x: Float[Array, "b d"]) -> Float[Array, "b d"]:
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)
