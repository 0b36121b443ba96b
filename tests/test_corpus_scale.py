"""A corpus larger than what is held: the same corpus, whatever the limits, the workers and the order of the text."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from atlas_jax.corpus import Corpus, Document, _build, _files, _split, build_corpus, train_splitter
from atlas_jax.corpus._split import percentile, quotas
from atlas_jax.errors import AtlasError

WORDS = ["matrix", "vector", "theorem", "signal", "window", "garden", "river", "letter", "colour", "number"]
WORDS += ["picture", "station", "winter"]


@pytest.fixture(scope="module")
def splitter():
    """What the build would train on these documents, trained once."""
    return train_splitter([document.text for document in _documents(400)])


@pytest.fixture(autouse=True)
def one_splitter(monkeypatch, splitter):
    monkeypatch.setattr(_build, "published_splitter", lambda: splitter)


def _documents(count: int, seed: int = 3) -> list[Document]:
    draw = random.Random(seed)
    documents = []
    for i in range(count):
        sentences = (
            " ".join(draw.choices(WORDS, k=draw.randint(1, 20))).capitalize() + draw.choice([".", "?", " 12.", "!"])
            for _ in range(draw.randint(1, 30))
        )
        documents.append(Document(" ".join(sentences) + "\n\n12 34.\n\n", draw.choice("abcdé"), str(i)))
    return documents


@pytest.fixture
def tiny(monkeypatch):
    """Limits so small that a small corpus takes the road of a large one."""
    monkeypatch.setattr(_files, "HELD_BYTES", 20_000)
    monkeypatch.setattr(_split, "CHUNK_CHARACTERS", 5_000)


GOLDEN = [
    ({}, 2691, 2645, "524e9332d7aaea9d3000901ff51976fa"),
    ({"n_fit": 500, "n_eval": 120}, 500, 120, "3e8708e465e0339a5df1dcd83a1dffe9"),
    ({"percentiles": (12.5, 60.3), "seed": 4, "n_eval": 77}, 1576, 77, "5c25b7bfcd2d9363932c249141ce9ddb"),
    ({"n_fit": 0}, 0, 2645, "8fe22d264bdc7131b9e48a647611f3ea"),
]
"""Hashes that the first version of the build, which held everything in memory, gave for ``_documents(400)``."""


@pytest.mark.parametrize(("options", "n_fit", "n_eval", "digest"), GOLDEN)
def test_corpora_are_those_of_the_build_in_memory(options, n_fit, n_eval, digest):
    corpus = build_corpus(_documents(400), **options)
    assert (len(corpus.fit), len(corpus.eval), corpus.hash) == (n_fit, n_eval, digest)


@pytest.mark.parametrize(("options", "n_fit", "n_eval", "digest"), GOLDEN[:3])
def test_spilled_corpora_are_the_same(tiny, tmp_path, options, n_fit, n_eval, digest):
    kept = build_corpus(_documents(400), **options)
    saved = build_corpus(iter(_documents(400)), **options, directory=tmp_path / "corpus")
    assert kept.hash == saved.hash == digest
    assert kept == saved == Corpus.load(tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert {path.name for path in (tmp_path / "corpus").iterdir()} == {"fit.arrow", "eval.arrow", "corpus.json"}


def test_workers_change_nothing(monkeypatch):
    documents = _documents(400)
    alone = build_corpus(documents, n_fit=500, workers=1)
    monkeypatch.setattr(_split, "CHUNK_CHARACTERS", 20_000)
    assert build_corpus(documents, n_fit=500, workers=3) == alone


def test_long_text_goes_on_in_workers(monkeypatch):
    documents = _documents(400)
    alone = build_corpus(documents, workers=1)
    began = []
    inside = _split._in_processes
    monkeypatch.setattr(_split, "CHUNK_CHARACTERS", 20_000)
    monkeypatch.setattr(_split, "ALONE_CHARACTERS", 100_000)
    monkeypatch.setattr(_split, "_cpus", lambda: 2)
    monkeypatch.setattr(_split, "_in_processes", lambda *a: began.append(a[-1]) or inside(*a))
    assert build_corpus(documents) == alone
    assert began == [2]


def test_workers_start_in_a_script_without_a_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from atlas_jax.corpus import Document, build_corpus\n"
        "print('once')\n"
        "documents = [Document(f'Line {i} is here.', 'a', 'b') for i in range(200)]\n"
        "print(len(build_corpus(documents, workers=2, percentiles=(0, 100))))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["once", "200"]


def test_a_killed_worker_is_one_sentence(monkeypatch):
    def killed(chunk):
        os.kill(os.getpid(), signal.SIGKILL)

    killed.__module__ = "__main__"  # so that the workers get the function itself and not its name
    monkeypatch.setattr(_split, "_split_in_worker", killed)
    with pytest.raises(AtlasError, match="was killed .*fewer workers"):
        build_corpus(_documents(50), workers=2)


def test_an_error_of_the_source_comes_through_the_workers():
    def broken():
        yield from _documents(50)
        raise AtlasError("the file is damaged")

    with pytest.raises(AtlasError, match="the file is damaged"):
        build_corpus(broken(), workers=2)


PEAK = """
import sys, tracemalloc, pyarrow
from atlas_jax.corpus import Document, _build, _corpus, _files, _files, _split, build_corpus, train_splitter
splitter = train_splitter(["A line. Another line."])
_build.published_splitter = lambda: splitter
_files.HELD_BYTES, _split.CHUNK_CHARACTERS = 200_000, 20_000
_corpus.ROWS = _files.ROWS = 500
def documents(count):
    for start in range(0, count, 500):
        lines = (f"{i:x} is a number of {i % 13} digits by the river {i % 7}." for i in range(start, start + 500))
        yield Document("\\n\\n".join(lines), f"d{start % 3}", "x")
build_corpus(documents(2000), workers=1)
tracemalloc.start()
corpus = build_corpus(documents(int(sys.argv[1])), workers=1, percentiles=(0, 100), directory=sys.argv[2])
assert len(corpus) == int(sys.argv[1])
print(tracemalloc.get_traced_memory()[1] + pyarrow.default_memory_pool().max_memory())
"""


def _peak(count: int, directory: Path) -> int:
    """Bytes that Python, numpy and Arrow held at most during a build."""
    command = [sys.executable, "-c", PEAK, str(count), str(directory)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_memory_does_not_grow_with_the_text(tmp_path):
    small, large = _peak(10_000, tmp_path / "small"), _peak(40_000, tmp_path / "large")
    files = [path.stat().st_size for path in (tmp_path / "large").iterdir()]
    assert large < 1.25 * small
    assert large < sum(files)


def test_a_build_that_is_killed_leaves_nothing_and_can_be_run_again(tmp_path):
    script = (
        "import sys, time, itertools\n"
        "from atlas_jax.corpus import Document, build_corpus, _files, _split\n"
        "_files.HELD_BYTES, _split.CHUNK_CHARACTERS = 2000, 2000\n"
        "def documents():\n"
        "    for i in itertools.count():\n"
        "        yield Document(f'Line {i} is here.\\n\\n' * 50, 'a', 'b')\n"
        "        if i == 300: print('far', flush=True); time.sleep(60)\n"
        f"build_corpus(documents(), directory={str(tmp_path / 'corpus')!r}, workers=1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.kill()
    assert list(tmp_path.iterdir()) == []
    first = build_corpus(_documents(60), directory=tmp_path / "corpus")
    assert build_corpus(_documents(60), directory=tmp_path / "corpus") == first == Corpus.load(tmp_path / "corpus")


def test_a_failed_build_leaves_the_old_corpus_alone(tmp_path, monkeypatch):
    corpus = build_corpus(_documents(60), directory=tmp_path / "corpus")
    with pytest.raises(AtlasError, match="too few"):
        build_corpus(_documents(30), at_least=10_000, directory=tmp_path / "corpus")

    def full(self, texts, domains):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atlas_jax.corpus._files.HalfWriter.write", full)
    with pytest.raises(AtlasError, match="corpus. cannot be written .No space left on device"):
        build_corpus(_documents(30), directory=tmp_path / "corpus")
    assert Corpus.load(tmp_path / "corpus") == corpus
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_a_place_that_cannot_be_written_is_refused_before_reading(tmp_path):
    (tmp_path / "file").write_text("x")

    def unread():
        pytest.fail("read a document")
        yield

    for place in (tmp_path / "file", tmp_path / "file" / "corpus"):
        with pytest.raises(AtlasError, match="exists and is not a corpus|cannot be written"):
            build_corpus(unread(), directory=place)


def test_quotas_of_many_domains_are_quick():
    counts = Counter({f"{i}": 1 + i % 7 for i in range(20_000)})
    start = time.process_time()
    assert sum(quotas(counts, 30_000, {"3": 2}).values()) == 30_000
    assert time.process_time() - start < 5


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_those_of_numpy(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 50, rng.integers(1, 200)) ** 2
    for percent in (0, 5, 95, 100, *rng.uniform(0, 100, 40).tolist()):
        assert percentile(Counter(lengths.tolist()), percent) == np.percentile(lengths, percent)


@pytest.mark.parametrize("wanted", [0, 1, 10, 55, 77, 200])
def test_weights_multiply_shares_up_to_what_there_is(wanted):
    counts, weights = Counter(a=60, b=30, c=10, d=0), {"c": 10.0, "b": 0.5}
    shares = quotas(counts, wanted, weights)
    assert sum(shares.values()) == min(wanted, 100)
    assert all(shares[name] <= counts[name] for name in counts)
    open_ones = [name for name in counts if shares[name] < counts[name]]
    level = [(shares[name] - 1) / (weights.get(name, 1) * counts[name]) for name in open_ones]
    level_above = [(shares[name] + 1) / (weights.get(name, 1) * counts[name]) for name in open_ones]
    assert not open_ones or max(level) < min(level_above)


def test_weights_in_a_corpus():
    plain = build_corpus(_documents(400), n_fit=500)
    heavy = build_corpus(_documents(400), n_fit=500, weights={"a": 2})
    (before, _), (after, _) = plain.domain_counts()["a"], heavy.domain_counts()["a"]
    assert abs(after - 500 * 2 * before / (500 + before)) < 2
    assert list(heavy.eval) == list(plain.eval)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"x": 2}}, "no domain 'x' to weigh; the domains are a, b, c, d, é"),
        ({"weights": {"a": 0}}, "weight 0 of 'a' is no positive number"),
        ({"workers": 0}, "at least 1 worker, not 0"),
        ({"percentiles": (95, 5)}, "are no range"),
        ({"percentiles": (0, 101)}, "are no range"),
        ({"percentiles": (float("nan"), 95)}, "are no range"),
        ({"weights": {"a": float("nan")}}, "weight nan of 'a' is no positive number"),
        ({"n_fit": -5}, "a half cannot have -5 sentences"),
        ({"n_eval": -1}, "a half cannot have -1 sentences"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(AtlasError, match=message):
        build_corpus(_documents(60), **options)


def test_progress_counts_documents_and_sentences(tiny):
    seen = []
    corpus = build_corpus(_documents(100), progress=lambda *counts: seen.append(counts))
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == (100, corpus.statistics.split)
