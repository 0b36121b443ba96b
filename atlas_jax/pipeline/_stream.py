"""A pass over a corpus: read, tokenized and batched a block at a time, so memory does not grow with the corpus."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from atlas_jax.errors import AtlasError
from atlas_jax.pipeline._batches import BatchShapes, Block, common_plan, share_of_rows, to_device
from atlas_jax.progress import Progress, unreported
from atlas_jax.sharding import Share, mesh_of
from atlas_jax.types import FeatureSpace

BLOCK = 32768  # sentences tokenized at once; a cursor is meaningless under another value
SAMPLE = 4096  # sentences that decide the batch shapes
SENTENCES_A_SHAPE = 1000  # fewer would spend more time compiling one more shape than it saves in padding


class Cursor(NamedTuple):
    """The position of a pass.

    Attributes:
      block: the block of the next batch.
      batch: the next batch, counted within its block.
      sentences: sentences in the batches before it.
      tokens: tokens of all models in the batches before it.

    Example:
      >>> from atlas_jax.pipeline import Cursor
      >>> Cursor(block=0, batch=2, sentences=256, tokens=4096)._replace(batch=3).batch
      3
    """

    block: int = 0
    batch: int = 0
    sentences: int = 0
    tokens: int = 0


class SentenceStream(NamedTuple):
    """Sentences to stream through feature spaces. At most two blocks of them are held.

    The batches depend on the sentences, the options and the mesh alone: they are the same on every run, and from every
    cursor. Where the mesh spans several processes, each reads and tokenizes its share of the sentences of a
    block, and of the rows of every batch; the sentences that decide the batch shapes are read by all.

    Attributes:
      spaces: feature spaces; for an alignment, the subject and the atlas.
      texts: the sentences; read by position, so they may lie in a file.
      first: sentence id of the first of them.
      rows: positions of the sentences to visit, ascending; None for all.
      max_length: tokens at which sentences are cut.
      shapes: the shapes of the batches.
      matched: whether the batches of two spaces also hold, for each token of the second, the place of the first's
        token that ends with it (:func:`atlas_jax.models.match_tokens`).

    Example:
      >>> import numpy as np
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> stream = SentenceStream.from_texts([subject], ["one text", "another", "a third"], first=10)
      >>> stream.size, stream.only(np.array([11])).size, len(list(stream.batches()))
      (3, 1, 1)
    """

    spaces: tuple[FeatureSpace, ...]
    texts: Sequence[str]
    first: int
    rows: Int[np.ndarray, " n"] | None
    max_length: int
    shapes: BatchShapes
    matched: bool = False

    @classmethod
    def from_texts(
        cls,
        spaces: Sequence[FeatureSpace],
        texts: Sequence[str],
        *,
        first: int = 0,
        max_length: int = 128,
        token_budget: int = 4096,
    ) -> "SentenceStream":
        """Fix the batch shapes from sentences spread evenly over the corpus.

        Args:
          spaces: feature spaces, see the class.
          texts: the sentences, numbered from ``first``.
          first: sentence id of the first of them.
          max_length: tokens at which sentences are cut; no more than every model can read.
          token_budget: tokens of a batch, for each model and each device along "data" of a mesh.

        Raises:
          AtlasError: if there is no sentence.
        """
        if not len(texts):
            raise AtlasError("there is no sentence to stream; give some text")
        limit = min(max_length, *(s.model.config.max_positions for s in spaces))
        rows = np.unique(np.linspace(0, len(texts) - 1, SAMPLE).astype(np.int64))
        sample = [texts[i] for i in rows.tolist()]
        lengths = Block.from_texts([s.model.tokenizer for s in spaces], sample, rows, limit).lengths
        longest = limit if len(rows) < len(texts) else int(lengths.max())
        mesh = mesh_of(spaces)
        data = 1 if mesh is None else mesh.shape["data"]
        shapes = min(5, 2 + len(texts) // SENTENCES_A_SHAPE)
        grid = BatchShapes.from_lengths(
            lengths, longest, token_budget=token_budget * data, shapes=shapes, multiple=data
        )
        return cls(tuple(spaces), texts, first, None, limit, grid)

    def only(self, index: Int[np.ndarray, " n"]) -> "SentenceStream":
        """Return the same pass over some of its sentences, given by their ids, in the same batch shapes."""
        wanted = np.unique(index) - self.first
        return self._replace(rows=wanted[(wanted >= 0) & (wanted < len(self.texts))])

    @property
    def mesh(self) -> Mesh | None:
        """Mesh of the spaces' parameters and of the batches."""
        return mesh_of(self.spaces)

    @property
    def size(self) -> int:
        """Number of sentences it visits."""
        return len(self.texts) if self.rows is None else len(self.rows)

    def batches(self, *, stage: str = "pass", progress: Progress | None = None) -> Iterator[tuple[Any, ...]]:
        """Yield the batches in order, as tokens of every model; report each when the next one is asked for."""
        report = progress or unreported
        report(stage, 0, self.size, 0)
        for after, batch in self.steps():
            yield batch
            report(stage, after.sentences, self.size, after.tokens)

    def steps(self, start: Cursor | None = None) -> Iterator[tuple[Cursor, tuple[Any, ...]]]:
        """Yield the batches from a cursor on, each with the cursor behind it."""
        tokenizers, share = tuple(s.model.tokenizer for s in self.spaces), Share.from_mesh(self.mesh)
        at = start or Cursor()
        skip = at.batch
        for number, block in self._blocks(at.block):
            plan, sizes = common_plan(block, self.shapes, share)
            for i, batch in enumerate(plan[skip:], skip):
                where = (number, i + 1) if i + 1 < len(plan) else (number + 1, 0)
                at = Cursor(*where, at.sentences + int(sizes[i, 0]), at.tokens + int(sizes[i, 1]))
                yield at, to_device(block, batch, tokenizers, self.mesh)
            skip = 0

    def _blocks(self, start: int) -> Iterator[tuple[int, Block]]:
        """Yield blocks from one on, each tokenized while the device works on the one before it."""
        count = -(-self.size // BLOCK)
        with ThreadPoolExecutor(1, "tokenize") as worker:
            ahead = worker.submit(self._block, start)
            for number in range(start, count):
                block, ahead = ahead.result(), worker.submit(self._block, number + 1)
                yield number, block

    def _block(self, number: int) -> Block:
        span = np.arange(number * BLOCK, min((number + 1) * BLOCK, self.size))
        rows = share_of_rows(span if self.rows is None else self.rows[span], Share.from_mesh(self.mesh))
        texts = [self.texts[i] for i in rows.tolist()]
        index = (rows + self.first).astype(np.int32)
        tokenizers = [s.model.tokenizer for s in self.spaces]
        return Block.from_texts(tokenizers, texts, index, self.max_length, matched=self.matched)
