"""What a bridge is measured on beside statistics: held-out activations, outlying tokens, tokenizers, and its cost."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.bridge import Bridge
from atlas_jax.metrics import mutual_neighbours
from atlas_jax.models import Tokenizer, forward
from atlas_jax.pipeline import SentenceStream, encode_batch, token_pairs
from atlas_jax.progress import Progress
from atlas_jax.subject import Subject
from atlas_jax.types import Tokens

NEIGHBOURS = 10
A_SENTENCE = 8  # tokens that a sentence gives to a sample, about
SPACES = ("Ġ", "▁")  # which byte-level tokenizers and those of SentencePiece write for a space


class BridgeRow(NamedTuple):
    """A bridge, measured on held-out text.

    Attributes:
      method: "ridge" or "procrustes".
      r2: share of the variance about the held-out mean that it explains, of all dimensions together.
      cosine: mean cosine of the predicted with the true activation.
      centred_cosine: the same with the mean of the fit half subtracted from both, which most of the other is.
      length: mean length of the predicted deviation from that mean over the mean length of the true one.

    Example:
      >>> from atlas_jax.experiments import BridgeRow
      >>> BridgeRow("ridge", 0.5, 0.95, 0.7, 0.6).r2
      0.5
    """

    method: str
    r2: float
    cosine: float
    centred_cosine: float
    length: float


class HeldOutRows(NamedTuple):
    """Activations of both sides at the same held-out sentences or tokens.

    Attributes:
      source: ``[n, d_source]``.
      target: ``[n, d_target]``.
      tokens: of the sentences they are from, source and target.
      outlying: how many of those tokens were left out for their norm.
    """

    source: Float[np.ndarray, "n _"]
    target: Float[np.ndarray, "n _"]
    tokens: tuple[int, int] | None = None
    outlying: tuple[int, int] | None = None

    def row(self, method: str, r2: float, bridge: Bridge, kept: Bool[np.ndarray, " d"]) -> BridgeRow:
        """Measure a bridge over the target's dimensions that were kept."""
        mean = np.asarray(bridge.translation.mean_subject, np.float64)[kept]
        true = self.target[:, kept].astype(np.float64)
        predicted = np.asarray(bridge(self.source), np.float64)[:, kept]
        size = [np.linalg.norm(x - mean, axis=1).mean() for x in (predicted, true)]
        cosines = _cosine(predicted, true), _cosine(predicted - mean, true - mean)
        return BridgeRow(method, r2, *cosines, float(size[0] / size[1]) if size[1] > 0 else float("nan"))

    def facts(self, source: Bool[np.ndarray, " d"], target: Bool[np.ndarray, " e"]) -> dict[str, Any]:
        """Return the agreement of both sides on neighbours, in the dimensions kept, and outlying tokens."""
        known: dict[str, Any] = {"mutual_neighbours": None}
        if len(self.source) > NEIGHBOURS + 1:
            known["mutual_neighbours"] = mutual_neighbours(self.source[:, source], self.target[:, target], NEIGHBOURS)
            known["chance_of_neighbours"] = NEIGHBOURS / (len(self.source) - 1)
        if self.tokens is not None:
            shares = [n / max(1, of) for n, of in zip(self.outlying, self.tokens, strict=True)]
            known |= {"outlying_source_tokens": shares[0], "outlying_target_tokens": shares[1]}
        return known


def held_out_rows(stream: SentenceStream, level: str, most: int, progress: Progress | None = None) -> HeldOutRows:
    """Read both sides at some sentences or tokens, spread evenly over a stream of target and source."""
    target, source = stream.spaces
    sentences = most if level == "sentence" else max(2, most // A_SENTENCE)
    chosen = np.unique(np.linspace(0, stream.size - 1, sentences).astype(int))
    some = stream.only(chosen + stream.first)._replace(matched=level == "token")
    parts, counts = [], np.zeros((2, 2), np.int64)
    for tokens_t, tokens_s, *match in some.batches(stage="measure", progress=progress):
        counts += [[int(n) for n in _outlying(*side)] for side in ((source, tokens_s), (target, tokens_t))]
        if match:
            pairs = token_pairs(target, source, tokens_t, tokens_s, *match)
            keep, x, y = pairs.paired & pairs.finite[:, None], pairs.atlas, pairs.subject[target.site]
        else:
            x, y = encode_batch(source, tokens_s)[source.site], encode_batch(target, tokens_t)[target.site]
            keep = (tokens_s.index >= 0) & jnp.all(jnp.isfinite(x), axis=1) & jnp.all(jnp.isfinite(y), axis=1)
        parts.append([np.asarray(a.astype(jnp.float32))[np.asarray(keep)] for a in (x, y)])
    x, y = (np.concatenate(side) for side in zip(*parts, strict=True))
    rows = np.unique(np.linspace(0, len(x) - 1, most).astype(int))
    return HeldOutRows(x[rows], y[rows], tuple(counts[:, 0].tolist()), tuple(counts[:, 1].tolist()))


@jax.jit
def _outlying(space: Subject, tokens: Tokens) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """How many tokens count, and how many of them are left out."""
    x = forward(space.model.decoder, tokens, capture=space.sites, logits=False).acts[space.site]
    mask = tokens.mask & (tokens.index >= 0)[:, None]
    return jnp.sum(mask), jnp.sum(mask & ~space.counted(x, tokens.mask))


def _cosine(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> float:
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / np.where(norm > 0, norm, 1.0)))


def shared_tokens(a: Tokenizer, b: Tokenizer) -> float:
    """Return the tokens that two vocabularies have in common over all of either; marks of a space are a space.

    Example:
      >>> from atlas_jax import LanguageModel
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.experiments import shared_tokens
      >>> tokenizer = LanguageModel.from_pretrained(SUBJECT).tokenizer
      >>> shared_tokens(tokenizer, tokenizer)
      1.0
    """
    words = [{_spaced(word) for word in t.backend.get_vocab(with_added_tokens=False)} for t in (a, b)]
    return len(words[0] & words[1]) / max(1, len(words[0] | words[1]))


def _spaced(word: str) -> str:
    for mark in SPACES:
        word = word.replace(mark, " ")
    return word


def bridge_cost(
    source: Subject, target: Subject, rows: HeldOutRows, tokens: int, counts: Sequence[int], states: Any, penalties: int
) -> dict[str, dict[str, float]]:
    """Count the floating-point operations of a fit from its shapes, and the bytes of its statistics.

    Reading is two operations a parameter and token, of the blocks up to the site; the statistics are two a row and
    entry of each matrix; the solution is one diagonalisation (9 d³) and its products.
    """
    n, d, e = sum(counts), source.width, target.width
    share = rows.tokens[0] / max(1, sum(rows.tokens))
    reading = 2 * tokens * (share * _parameters(source) + (1 - share) * _parameters(target))
    statistics = 2 * n * d * (d + e) + 2 * counts[1] * e * e
    solution = 9 * d**3 + 2 * (2 * d**3 + 4 * d * d * e) + 4 * penalties * d * d
    flops = {"text": reading, "statistics": statistics, "solution": solution}
    return {"operations": flops, "bytes": {"statistics": sum(x.nbytes for x in jax.tree.leaves(states))}}


def _parameters(space: Subject) -> int:
    layers = space.model.decoder.layers
    return sum(x.size for i in range(space.site.layer + 1) for x in jax.tree.leaves(layers[i]))
