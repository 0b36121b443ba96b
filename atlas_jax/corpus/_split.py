"""Documents to sentences, a chunk at a time, here or in worker processes; the result is the same."""

import functools
import hashlib
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt64

from atlas_jax.corpus._document import Document
from atlas_jax.corpus._sentences import Splitter
from atlas_jax.errors import AtlasError

CHUNK_CHARACTERS = 500_000
ALONE_CHARACTERS = 20_000_000
_LETTER = re.compile(r"[^\W\d_]")


class Split(NamedTuple):
    """The sentences of a chunk of documents.

    Attributes:
      domains: domain of each document.
      found: sentences with a letter, of each document.
      lengths: how many sentences have each length in characters.
      unlettered: the same for those without a letter.
      digest: keyed hash of each sentence with a letter.
      texts: these sentences.
    """

    domains: list[str]
    found: list[int]
    lengths: Counter[int]
    unlettered: Counter[int]
    digest: UInt64[np.ndarray, " n"]
    texts: pa.Array


def split_documents(
    splitter: Splitter, documents: Iterable[Document], seed: int, workers: int | None
) -> Iterator[Split]:
    """The sentences of documents, in their order.

    Args:
      splitter: splits a text.
      documents: the texts, read no further ahead than the workers need.
      seed: key of the hash.
      workers: processes; 1 splits in this one, None in this one until the text proves long and then on every CPU.
    """
    chunks = _chunks(documents)
    split = functools.partial(split_chunk, splitter, seed)
    if workers is None:
        seen = 0
        while seen < ALONE_CHARACTERS:
            if (chunk := next(chunks, None)) is None:
                return
            seen += sum(len(document.text) for document in chunk)
            yield split(chunk)
    count = workers or _cpus()
    yield from map(split, chunks) if count == 1 else _in_processes(splitter, seed, chunks, count)


def _cpus() -> int:
    """CPUs this process may use."""
    import joblib

    return joblib.cpu_count()


def split_chunk(splitter: Splitter, seed: int, chunk: list[Document]) -> Split:
    """The sentences of a few documents."""
    key = str(seed).encode()
    lengths: Counter[int] = Counter()
    unlettered: Counter[int] = Counter()
    found, kept = [], []
    for document in chunk:
        sentences = list(splitter.split(document.text))
        lettered = [sentence for sentence in sentences if _LETTER.search(sentence)]
        lengths.update(map(len, sentences))
        if len(lettered) < len(sentences):
            unlettered.update(len(sentence) for sentence in sentences if not _LETTER.search(sentence))
        found.append(len(lettered))
        kept += lettered
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in kept)
    digest = np.frombuffer(digests, ">u8").astype(np.uint64)
    domains = [document.domain for document in chunk]
    return Split(domains, found, lengths, unlettered, digest, pa.array(kept, pa.large_string()))


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _in_processes(splitter: Splitter, seed: int, chunks: Iterator[list[Document]], count: int) -> Iterator[Split]:
    """Split in processes that start without running the caller's script again, two chunks ahead of each."""
    from joblib.externals import loky

    executor = loky.ProcessPoolExecutor(count, initializer=_set_splitter, initargs=(splitter, seed))
    ahead: deque = deque()
    try:
        for chunk in chunks:
            ahead.append(executor.submit(_split_in_worker, chunk))
            if len(ahead) > 2 * count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except loky.BrokenProcessPool as error:
        raise AtlasError(
            "a process that splits sentences was killed (out of memory?); run again with fewer workers"
        ) from error
    finally:
        executor.shutdown(kill_workers=True)


_worker: list[functools.partial] = []


def _set_splitter(splitter: Splitter, seed: int) -> None:
    _worker[:] = [functools.partial(split_chunk, splitter, seed)]


def _split_in_worker(chunk: list[Document]) -> Split:
    return _worker[0](chunk)
