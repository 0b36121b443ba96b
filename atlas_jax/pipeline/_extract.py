"""Extraction: the activations of a corpus, stored for later runs and for other programs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.pipeline._evaluate import _activations
from atlas_jax.pipeline._run import encode_batch
from atlas_jax.pipeline._stream import BLOCK, Cursor, SentenceStream
from atlas_jax.progress import Progress, unreported
from atlas_jax.sharding import to_host
from atlas_jax.stored import SHARD_BYTES, ActivationWriter, Manifest, writing_activations
from atlas_jax.types import FeatureSpace, Tokens

HALVES = ("fit", "eval")


def extract_activations(
    space: FeatureSpace,
    corpus: Corpus,
    directory: str | Path,
    *,
    model: str,
    rows: str = "sentence",
    dtype: str = "float32",
    max_length: int = 128,
    token_budget: int = 4096,
    shard_bytes: int = SHARD_BYTES,
    asked: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Store the activations of every sentence of a corpus, shard by shard.

    What a stopped extraction had stored is kept: with the same arguments it goes on from there.

    Args:
      space: a subject, or an atlas whose features of sentences are stored.
      corpus: the sentences.
      directory: where to.
      model: its name.
      rows: "sentence" for pooled rows, "token" for those of every token.
      dtype: of the stored rows.
      max_length: tokens at which sentences are cut.
      token_budget: tokens of a batch.
      shard_bytes: about how large a shard is.
      asked: what else decides the rows, such as hashes of the model.
      overwrite: whether activations that are there may be replaced.
      progress: called after every batch.

    Raises:
      AtlasError: in a run of several processes, or as :func:`atlas_jax.stored.writing_activations`.

    Example:
      >>> import tempfile
      >>> from atlas_jax import LanguageModel, Subject, build_corpus
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.corpus import Document
      >>> from atlas_jax.pipeline import extract_activations
      >>> from atlas_jax.stored import StoredModel
      >>> text = "Rows sum to one. Columns sum to two. Diagonals are zero. The trace is nil. All entries are real."
      >>> corpus = build_corpus([Document(text, "matrices", "example")], percentiles=(0, 100))
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> extract_activations(subject, corpus, f"{tempfile.mkdtemp()}/acts", model="bundled")
    """
    if jax.process_count() > 1:
        raise AtlasError("activations are extracted by one process; start it without others")
    cut = min(max_length, space.model.config.max_positions)
    sites = {str(site): width for site, width in space.widths.items()}
    if rows == "token":
        sites = {str(site): space.model.config.width(site) for site in space.sites}
    pooling = space.pooling if rows == "sentence" else None
    manifest = Manifest(model, rows, "block", dtype, sites, (), pooling, cut, corpus.hash)
    asked = (asked or {}) | {"model": model, "rows": rows, "dtype": dtype, "sites": sites, "pooling": pooling}
    asked |= {"max length": cut, "token budget": token_budget, "corpus": corpus.hash, "block": BLOCK}
    report = progress or unreported
    options = {"max_length": cut, "token_budget": token_budget}
    with writing_activations(directory, manifest, asked=asked, overwrite=overwrite) as writer:
        for half, after, tokens in _batches(space, corpus, options, writer.position):
            _add(writer, space, corpus, tokens, rows)
            writer.save([half, *after], least=shard_bytes)
            report(f"{HALVES[half]} half", after.sentences, len((corpus.fit, corpus.eval)[half]), after.tokens)


def _batches(
    space: FeatureSpace, corpus: Corpus, options: dict[str, Any], position: list[int] | None
) -> Iterator[tuple[int, Cursor, Tokens]]:
    """Batches of both halves, from a position on, each with the position behind it."""
    start, *cursor = position or [0, *Cursor()]
    for half, (texts, first) in enumerate([(corpus.fit, 0), (corpus.eval, len(corpus.fit))]):
        if half >= start and len(texts):
            stream = SentenceStream.from_texts([space], texts, first=first, **options)
            for after, (tokens,) in stream.steps(Cursor(*cursor) if half == start else None):
                yield half, after, tokens


def _add(writer: ActivationWriter, space: FeatureSpace, corpus: Corpus, tokens: Tokens, rows: str) -> None:
    index = to_host(tokens.index)
    there = index >= 0
    texts = [corpus.sentence(i) for i in index[there].tolist()]
    if rows == "sentence":
        values = {str(site): to_host(x)[there] for site, x in encode_batch(space, tokens).items()}
        writer.add(texts, values, index=index[there])
        return
    acts = _activations(space.model, tokens, space.sites)
    real = to_host(tokens.attention_mask) & there[:, None]
    values = {str(site): np.asarray(to_host(x))[real] for site, x in acts.items()}
    lengths = real.sum(axis=1)[there]
    writer.add(texts, values, index=index[there], lengths=lengths, counts=to_host(tokens.mask)[real])
