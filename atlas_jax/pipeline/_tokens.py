"""Statistics of single tokens: subject and atlas are paired at matched characters instead of pooled over sentences."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.errors import AtlasError
from atlas_jax.models import forward
from atlas_jax.pipeline._checkpoint import Checkpoints
from atlas_jax.pipeline._fit import LEFT_OUT, Fitted, _check_finite
from atlas_jax.pipeline._run import run_stream
from atlas_jax.pipeline._stream import SentenceStream
from atlas_jax.pooling import norm_sum
from atlas_jax.progress import Progress
from atlas_jax.sharding import replicate
from atlas_jax.statistics import NormSums, PassStatistics, TokenNorms, add_norms, on_mesh, update_pass
from atlas_jax.subject import Subject
from atlas_jax.types import Site, Tokens

PAIRS: dict[str, str] = {
    "all": "a token's activations with those of the atlas at the token that ends with it",
    "next": "a token's activations with those of the atlas at the token after that",
    "peak": "as all, but each atlas feature only where it is highest in its sentence",
}


class TokenFitted(NamedTuple):
    """The result of a fitting pass over single tokens.

    Attributes:
      fitted: statistics whose rows are pairs of tokens, for :func:`solve`; ``active`` counts sentences.
      matched: tokens of the atlas that have a counterpart.
      tokens: all that count.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.pipeline import TokenFitted
      >>> TokenFitted(None, matched=jnp.int32(90), tokens=jnp.int32(100)).share
      0.9
    """

    fitted: Fitted
    matched: Int[Array, ""]
    tokens: Int[Array, ""]

    @property
    def share(self) -> float:
        """Share of the atlas's tokens that have a counterpart."""
        return float(self.matched) / max(1, int(self.tokens))


class TokenPairs(NamedTuple):
    """Activations of a batch at matched tokens, at the positions of the atlas.

    Attributes:
      subject: by site, activations at the token that ends with the atlas's.
      atlas: features of the SAE.
      paired: the positions where both models have a token that counts.
      finite: sentences in which all activations at tokens that count are finite.
      norms: sums of the subject's token norms, by sentence.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Site
      >>> from atlas_jax.pipeline import TokenPairs
      >>> site, paired = Site("mlp_act", 1), jnp.array([[False, True]])
      >>> pairs = TokenPairs({site: jnp.ones((1, 2, 3))}, jnp.ones((1, 2, 5)), paired, jnp.array([True]), None)
      >>> pairs.subject[site][pairs.paired].shape, pairs.atlas[pairs.paired].shape
      ((1, 3), (1, 5))
    """

    subject: dict[Site, Float[Array, "b t _"]]
    atlas: Float[Array, "b t d_c"]
    paired: Bool[Array, "b t"]
    finite: Bool[Array, " b"]
    norms: NormSums


def fit_token_statistics(
    stream: SentenceStream,
    needs: Iterable[str],
    *,
    which: str = "all",
    name: str = "tokens",
    stage: str = "align tokens",
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    state: TokenFitted | None = None,
) -> TokenFitted:
    """Run one pass over the fit half whose rows are tokens of subject and atlas that end at the same character.

    The statistics are those of :func:`fit_statistics`, so :func:`solve` and every method take them. No activation is
    kept but those of a batch. A pair of tokens weighs one over the number of pairs in its sentence, so that long
    sentences do not dominate; for "peak" every pair weighs one, and each feature has one position a sentence.

    Args:
      stream: the fit half, through subject and atlas.
      needs: names of statistics, see :data:`atlas_jax.statistics.NEEDS`; all but ``"top_k"``.
      which: what is paired, see :data:`PAIRS`.
      name: of the pass, among the checkpoints.
      stage: its name for ``progress``.
      progress: called after every batch.
      checkpoints: where the state is saved now and then, and from where a stopped pass continues.
      state: what a pass over other sentences left, to add these to; donated. Empty by default.

    Raises:
      AtlasError: for an unknown ``which``, or the need ``"top_k"``, which is of sentences; or as
        :func:`fit_statistics`.

    Example:
      >>> from atlas_jax import AlignSettings, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, fit_token_statistics
      >>> pair = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("covariance",)))
      >>> texts = ["the font of a text", "a list of numbers", "an open file"]
      >>> result = fit_token_statistics(SentenceStream.from_texts(pair[:2], texts), ["cross"])
      >>> round(float(result.fitted.statistics.sums.weight), 3), result.share
      (3.0, 1.0)
    """
    if which not in PAIRS:
        raise AtlasError(f"unknown pairs of tokens '{which}'; known are {', '.join(PAIRS)}")
    needs = frozenset([needs] if isinstance(needs, str) else needs)
    if "top_k" in needs:
        raise AtlasError(
            "semantic_lens and whitened_lens average over sentences; leave them out where statistics are of tokens"
        )
    subject, atlas = stream.spaces

    def empty() -> TokenFitted:
        statistics = PassStatistics.init(needs, subject.widths, atlas.width)
        active, left_out = jnp.zeros(atlas.width, jnp.int32), jnp.full(LEFT_OUT, -1, jnp.int32)
        fitted = Fitted(statistics, active, left_out, TokenNorms.init(subject.widths))
        return TokenFitted(fitted, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def step(state: TokenFitted, tokens_s: Tokens, tokens_c: Tokens, match: Int[Array, "b t"]) -> TokenFitted:
        _check_finite(state.fitted)
        pairs = token_pairs(subject, atlas, tokens_s, tokens_c, match)
        return _token_step(state, pairs, tokens_c, which=which, mesh=stream.mesh)

    state = on_mesh(empty, stream.mesh) if state is None else state
    named = {"name": name, "stage": stage, "progress": progress, "checkpoints": checkpoints}
    state = run_stream(stream._replace(matched=True), step, state, **named)
    _check_finite(state.fitted)
    return state


@jax.jit
def token_pairs(
    subject: Subject, atlas: ConceptAtlas | Subject, tokens_s: Tokens, tokens_c: Tokens, match: Int[Array, "b t"]
) -> TokenPairs:
    """Compute activations of both models at the tokens that end at the same character.

    Example:
      >>> from atlas_jax import AlignSettings, load_pair
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, token_pairs
      >>> subject, atlas, _ = load_pair(SUBJECT, ATLAS, AlignSettings(("mlp_act.1",), ("covariance",)))
      >>> stream = SentenceStream.from_texts([subject, atlas], ["the font of a text"])._replace(matched=True)
      >>> pairs = token_pairs(subject, atlas, *next(stream.batches()))
      >>> pairs.subject[subject.sites[0]].shape[2], pairs.atlas.shape[2], int(pairs.paired.sum())
      (384, 1536, 6)
    """
    counted = lambda space, x, mask: space.counted(x, mask) if isinstance(space, Subject) else mask
    acts = forward(subject.model.decoder, tokens_s, capture=subject.sites, logits=False).acts
    x = forward(atlas.model.decoder, tokens_c, capture=atlas.sites, logits=False).acts[atlas.site]
    at = jnp.maximum(match, 0)
    mask_s = tokens_s.mask
    for h in acts.values():
        mask_s &= counted(subject, h, tokens_s.mask)
    paired = (match >= 0) & counted(atlas, x, tokens_c.mask) & jnp.take_along_axis(mask_s, at, axis=1)
    there = {site: jnp.take_along_axis(h, at[:, :, None], axis=1) for site, h in acts.items()}
    finite = _finite(x, tokens_c.mask)
    for h in acts.values():
        finite &= _finite(h, tokens_s.mask)
    norms = {site: norm_sum(h, tokens_s.mask) for site, h in acts.items()}
    counts = jnp.sum(tokens_s.mask, axis=1, dtype=jnp.float32)
    return TokenPairs(there, atlas.features(x), paired, finite, NormSums(norms, counts))


def _finite(x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Bool[Array, " b"]:
    return jnp.all(jnp.all(jnp.isfinite(x), axis=-1) | ~mask, axis=1)


@partial(jax.jit, donate_argnames="state", static_argnames=("which", "mesh"))
def _token_step(state: TokenFitted, pairs: TokenPairs, tokens: Tokens, *, which: str, mesh: Mesh | None) -> TokenFitted:
    fitted, real = state.fitted, tokens.index >= 0
    faulty = real & ~pairs.finite
    a_c, weight = _weighted(pairs.atlas.astype(jnp.float32), pairs.paired, tokens.mask, which)
    # A faulty sentence is offered as one row that is not finite, which the statistics leave out and count.
    first = jnp.arange(weight.shape[1])[None, :] == 0
    weight = jnp.where(faulty[:, None], first.astype(jnp.float32), weight)
    a_c = jnp.where(faulty[:, None, None], jnp.nan, a_c)
    rows = lambda x: x.reshape(-1, x.shape[-1])
    index = jnp.repeat(tokens.index, weight.shape[1])
    acts = {site: rows(h) for site, h in pairs.subject.items()}
    statistics = update_pass(fitted.statistics, acts, rows(a_c), weight.reshape(-1), index, mesh=mesh)
    place = fitted.statistics.nonfinite.rows + jnp.cumsum(faulty, dtype=jnp.int32) - 1
    left_out = fitted.left_out.at[jnp.where(faulty, place, LEFT_OUT)].set(tokens.index, mode="drop")
    kept = real & pairs.finite
    fires = jnp.any((pairs.atlas > 0) & tokens.mask[:, :, None], axis=1)
    active = fitted.active + jnp.sum(fires & kept[:, None], axis=0, dtype=jnp.int32)
    sums = jax.tree.map(lambda x: jnp.sum(jnp.where(kept, x, 0.0)), pairs.norms)
    active, left_out, norms = replicate((active, left_out, add_norms(fitted.norms, sums)), mesh)
    fitted = fitted._replace(statistics=statistics, active=active, left_out=left_out, norms=norms)
    counts = (
        state.matched + jnp.sum(pairs.paired, dtype=jnp.int32),
        state.tokens + jnp.sum(tokens.mask, dtype=jnp.int32),
    )
    return TokenFitted(fitted, *replicate(counts, mesh))


def _weighted(
    a: Float[Array, "b t d"], paired: Bool[Array, "b t"], mask: Bool[Array, "b t"], which: str
) -> tuple[Float[Array, "b t d"], Float[Array, "b t"]]:
    """The atlas's side of each pair, and the weights of the pairs."""
    if which == "peak":
        height = jnp.where(paired[:, :, None], a, -jnp.inf)
        place = jnp.arange(a.shape[1])[None, :, None]
        return jnp.where(place == jnp.argmax(height, axis=1)[:, None, :], a, 0.0), paired.astype(jnp.float32)
    if which == "next":
        a, follows = jnp.roll(a, -1, axis=1), jnp.roll(mask, -1, axis=1).at[:, -1].set(False)
        paired &= follows
    count = jnp.sum(paired, axis=1, keepdims=True, dtype=jnp.float32)
    return a, jnp.where(paired, 1.0 / jnp.maximum(count, 1.0), 0.0)
