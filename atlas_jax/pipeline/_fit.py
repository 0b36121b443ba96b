"""Fitting: both spaces read every batch, pooled activations enter the statistics at once, and these are solved."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.pipeline._checkpoint import Checkpoints
from atlas_jax.pipeline._run import encode_batch, encode_norms, encode_poolings, run_stream
from atlas_jax.pipeline._stream import SentenceStream
from atlas_jax.progress import Progress
from atlas_jax.sharding import mesh_of, replicate
from atlas_jax.statistics import (
    Lens,
    NormSums,
    PassStatistics,
    TokenNorms,
    add_norms,
    lens_init,
    lens_update,
    merge_norms,
    merge_pass,
    on_mesh,
    selected_samples,
    update_pass,
)
from atlas_jax.translation import Translation
from atlas_jax.translators import METHODS
from atlas_jax.types import Site, Tokens

LEFT_OUT = 64  # more sentences than these that are not finite stop a run


class Fitted(NamedTuple):
    """The result of a fitting pass.

    Attributes:
      statistics: of every subject site against the atlas.
      active: sentences in which each atlas feature fired.
      left_out: ids of the sentences with activations that are not finite, in no statistic; -1 in empty places.
      norms: of the subject's activations at single tokens, by site.
      further: statistics of the same sentences by other poolings of the subject, by their names.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import PassStatistics, Site
      >>> from atlas_jax.pipeline import Fitted
      >>> from atlas_jax.statistics import TokenNorms
      >>> site = Site("mlp_act", 1)
      >>> statistics, norms = PassStatistics.init(["cross"], {site: 2}, 3), TokenNorms.init([site])
      >>> fitted = Fitted(statistics, jnp.ones(3, jnp.int32), jnp.array([7, -1]), norms)
      >>> fitted.faulty, fitted.token_norm(site)
      ([7], None)
    """

    statistics: PassStatistics
    active: Int[Array, " d_c"]
    left_out: Int[Array, " f"]
    norms: TokenNorms
    further: dict[str, PassStatistics] = {}

    @property
    def faulty(self) -> list[int]:
        """The sentences left out, ascending."""
        return sorted(i for i in self.left_out.tolist() if i >= 0)

    def token_norm(self, site: Site) -> float | None:
        """Return the mean norm of the subject's activations at a token; None where there was none."""
        mean = self.norms.mean(site)
        return mean if math.isfinite(mean) else None


def fit_statistics(
    stream: SentenceStream,
    needs: Iterable[str],
    *,
    top_k: int = 10,
    name: str = "fit",
    stage: str = "align",
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    state: Fitted | None = None,
    further: Mapping[str, Iterable[str]] | None = None,
    device: jax.Device | None = None,
) -> Fitted:
    """Run one pass over the fit half that serves every method that needs no second one.

    No activation is kept but the pooled ones of a batch, until they are added. A few sentences with activations that
    are not finite are left out and named; more of them stop the pass, for then it is the model and not the sentences.

    Args:
      stream: the fit half, through subject and atlas.
      needs: names of statistics, see :data:`atlas_jax.statistics.NEEDS`.
      top_k: how many activations per subject feature the need ``"top_k"`` keeps.
      name: of the pass, among the checkpoints.
      stage: its name for ``progress``.
      progress: called after every batch.
      checkpoints: where the state is saved now and then, and from where a stopped pass continues.
      state: what a pass over other sentences left, to add these to; donated. Empty by default.
      further: names of statistics by other poolings of the subject, each accumulated in the same pass.
      device: where the statistics are held and added to, such as the host of an accelerator; that of the models by
        default.

    Raises:
      AtlasError: if more than :data:`LEFT_OUT` sentences have activations that are not finite, naming the first; or
        as :func:`run_stream`.

    Example:
      >>> from atlas_jax import AlignSettings, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, fit_statistics
      >>> pair = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("covariance",)))
      >>> texts = ["the font of a text", "a list of numbers", "an open file"]
      >>> stream = SentenceStream.from_texts(pair[:2], texts)
      >>> fitted = fit_statistics(stream, ["cross"])
      >>> float(fitted.statistics.sums.weight)
      3.0
    """
    (subject, atlas), further = stream.spaces, further or {}
    if further:
        subject = dataclasses.replace(subject, further=tuple(further))
    empty = lambda: empty_fitted(needs, subject.widths, atlas.width, further, top_k=top_k)

    def step(state: Fitted, tokens_s: Tokens, tokens_c: Tokens) -> Fitted:
        _check_finite(state)
        others: dict[str, Any] = {}
        if further:
            others, *norms = encode_poolings(subject, tokens_s)
            a_s = others.pop(subject.pooling)
        else:
            a_s, *norms = encode_norms(subject, tokens_s)
        a_c = encode_batch(atlas, tokens_c)[atlas.site]
        rows = beside(state, (a_s, others, a_c, NormSums(*norms), tokens_s.index))
        return fit_step(state, *rows, mesh=stream.mesh)

    if state is None and device is None:
        state = on_mesh(empty, stream.mesh)
    elif state is None:
        with jax.default_device(device):
            state = jax.device_put(empty(), device)
    named = {"name": name, "stage": stage}
    state = run_stream(stream, step, state, **named, progress=progress, checkpoints=checkpoints)
    _check_finite(state)
    return state


def empty_fitted(
    needs: Iterable[str],
    widths: Mapping[Site, int],
    d_c: int,
    further: Mapping[str, Iterable[str]],
    *,
    top_k: int,
) -> Fitted:
    """Make the state of a pass before its first sentence."""
    init = lambda names: PassStatistics.init(names, widths, d_c, top_k=top_k)
    active, left_out = jnp.zeros(d_c, jnp.int32), jnp.full(LEFT_OUT, -1, jnp.int32)
    others = {pooling: init(names) for pooling, names in further.items()}
    return Fitted(init(needs), active, left_out, TokenNorms.init(widths), others)


def beside(state: Any, rows: Any) -> Any:
    """Put rows on the one device that a state was put on; where it was put on none, or on a mesh, they stay."""
    leaf = jax.tree.leaves(state)[0]
    if not leaf.committed or mesh_of(state) is not None:
        return rows
    return jax.device_put(rows, leaf.sharding)


def merge_fitted(a: Fitted, b: Fitted) -> Fitted:
    """Return the result of a pass over the sentences of both, to rounding; without top-k where ``a`` has none.

    Raises:
      AtlasError: as :func:`fit_statistics`, for the sentences left out of both together.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import PassStatistics, Site
      >>> from atlas_jax.pipeline import Fitted, merge_fitted
      >>> from atlas_jax.statistics import TokenNorms
      >>> site = Site("mlp_act", 1)
      >>> statistics, norms = PassStatistics.init(["cross"], {site: 2}, 3), TokenNorms.init([site])
      >>> fitted = Fitted(statistics, jnp.ones(3, jnp.int32), jnp.array([7, -1]), norms)
      >>> merge_fitted(fitted, fitted).active.tolist()
      [2, 2, 2]
    """
    faulty = np.array(a.faulty + b.faulty, np.int32)
    left_out = np.full(max(LEFT_OUT, faulty.size), -1, np.int32)
    left_out[: faulty.size] = np.sort(faulty)
    statistics, norms = merge_pass(a.statistics, b.statistics), merge_norms(a.norms, b.norms)
    further = {pooling: merge_pass(own, b.further[pooling]) for pooling, own in a.further.items()}
    merged = Fitted(statistics, a.active + b.active, jnp.asarray(left_out), norms, further)
    _check_finite(merged)
    return merged


def _check_finite(state: Fitted) -> None:
    if (rows := int(state.statistics.nonfinite.rows)) > LEFT_OUT:
        first = ", ".join(map(str, state.faulty[:8]))
        raise AtlasError(
            f"{rows} sentences so far gave activations that are not finite, among them sentences {first}; "
            "use float32, or check the model and the SAE"
        )


@partial(jax.jit, donate_argnames="state", static_argnames="mesh")
def fit_step(
    state: Fitted,
    a_s: dict[Site, Float[Array, "b _"]],
    others: dict[str, dict[Site, Float[Array, "b _"]]],
    a_c: Float[Array, "b d_c"],
    norms: NormSums,
    index: Int[Array, " b"],
    *,
    mesh: Mesh | None,
) -> Fitted:
    real = index >= 0
    add = lambda old, acts: update_pass(old, acts, a_c, real.astype(jnp.float32), index, mesh=mesh)
    statistics = add(state.statistics, a_s)
    further = {pooling: add(old, others[pooling]) for pooling, old in state.further.items()}
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a), axis=1) for a in (a_c, *a_s.values())]), axis=0)
    active = jnp.sum((a_c > 0) & (real & finite)[:, None], axis=0, dtype=jnp.int32)
    faulty = real & ~finite
    place = state.statistics.nonfinite.rows + jnp.cumsum(faulty, dtype=jnp.int32) - 1
    left_out = state.left_out.at[jnp.where(faulty, place, LEFT_OUT)].set(index, mode="drop")
    kept = jax.tree.map(lambda x: jnp.sum(jnp.where(real & finite, x, 0.0)), norms)
    whole = replicate((state.active + active, left_out, add_norms(state.norms, kept)), mesh)
    return Fitted(statistics, *whole, further)


def fit_lenses(
    stream: SentenceStream,
    statistics: PassStatistics,
    *,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> dict[Site, Lens]:
    """Run SemanticLens' second pass (Eq. 9), over the selected sentences alone.

    Example:
      >>> from atlas_jax import AlignSettings, Site, load_pair  # doctest: +SKIP
      >>> from atlas_jax.bundled import ATLAS, SUBJECT  # doctest: +SKIP
      >>> from atlas_jax.pipeline import SentenceStream, fit_lenses, fit_statistics  # doctest: +SKIP
      >>> pair = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("semantic_lens",)))  # doctest: +SKIP
      >>> stream = SentenceStream.from_texts(pair[:2], ["a text", "another", "a third"])  # doctest: +SKIP
      >>> fitted = fit_statistics(stream, ["top_k"], top_k=2)  # doctest: +SKIP
      >>> fit_lenses(stream, fitted.statistics)[Site("mlp_act", 1)].total.shape  # doctest: +SKIP
      (384, 1536)
    """
    tops = {site: statistics.statistics(site).top for site in statistics.sites}
    atlas = stream.spaces[-1]
    lenses = {site: lens_init(top, atlas.width) for site, top in tops.items()}
    selected = stream.only(selected_samples(*tops.values()))._replace(spaces=(atlas,))

    def step(lenses: dict[Site, Lens], tokens: Tokens) -> dict[Site, Lens]:
        rows = beside(lenses, (encode_batch(atlas, tokens)[atlas.site], tokens.index))
        return _lens_step(lenses, *rows, mesh=stream.mesh)

    named = {"name": "second", "stage": "second pass"}
    return run_stream(selected, step, lenses, **named, progress=progress, checkpoints=checkpoints)


@partial(jax.jit, donate_argnames="lenses", static_argnames="mesh")
def _lens_step(
    lenses: dict[Site, Lens], a_c: Float[Array, "b d_c"], index: Int[Array, " b"], *, mesh: Mesh | None
) -> dict[Site, Lens]:
    return {site: lens_update(lens, index, a_c, mesh=mesh) for site, lens in lenses.items()}


def solve(
    stream: SentenceStream,
    fitted: Fitted,
    methods: Sequence[str],
    *,
    pooling: str | None = None,
    metadata: dict[str, Any] | None = None,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> dict[tuple[Site, str], Translation]:
    """Solve every method at every site, with SemanticLens' second pass where it is asked for.

    Args:
      stream: the pass the statistics are of.
      fitted: its statistics.
      methods: names in :data:`atlas_jax.translators.METHODS`.
      pooling: of the subject, one of ``fitted.further``; that of the subject by default.
      metadata: plain values to keep with every translation.
      progress: called after every batch of the second pass.
      checkpoints: where the state of the second pass is saved now and then.

    Raises:
      AtlasError: for statistics that lack what a method needs; or as :func:`atlas_jax.pipeline.run_stream`.

    Example:
      >>> from atlas_jax import AlignSettings, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, fit_statistics, solve
      >>> pair = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("covariance",)))
      >>> texts = ["the font of a text", "a list of numbers", "an open file"]
      >>> stream = SentenceStream.from_texts(pair[:2], texts)
      >>> fitted = fit_statistics(stream, ["cross"])
      >>> [method for _, method in solve(stream, fitted, ["covariance", "correlation"])]
      ['covariance', 'correlation']
    """
    lenses, of_pass = {}, fitted.statistics if pooling is None else fitted.further[pooling]
    if any(METHODS[m].second_pass for m in methods):
        lenses = fit_lenses(stream, of_pass, progress=progress, checkpoints=checkpoints)
    translations = {}
    own = {"metadata": metadata, "pooling": pooling or getattr(stream.spaces[0], "pooling", None)}
    for site in of_pass.sites:
        statistics = of_pass.statistics(site)._replace(lens=lenses.get(site))
        for method in methods:
            options = own | {"site": site, "token_norm": fitted.token_norm(site)}
            translations[site, method] = Translation.from_statistics(statistics, method, **options)
    return translations
