"""Building a corpus: sentences a second beside a plain NLTK loop, and peak memory at 1 and 10 million sentences.

Claim: faster than NLTK's tokenizer in a loop though it also hashes, deduplicates, filters and writes, and with a peak
of memory that does not grow with the text. Worker processes take about two seconds to start, which a text of this size
does not earn back on two CPUs; the build starts them by itself only after 20 million characters.

The text to time is documentation that is installed with the project. The text to measure memory on is synthetic, one
sentence a paragraph, nearly all of them different. Memory is what the process has to itself (``RssAnon``): pages of
mapped files, which the system takes back when it needs them, are not in it.

    python benchmarks/corpus.py [--quick] [--part throughput|memory] [--out corpus.json]
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

FULL = {"megabytes": 12, "sentences": [1_000_000, 10_000_000]}
QUICK = {"megabytes": 2, "sentences": [50_000, 100_000]}
WORDS = ["matrix", "vector", "theorem", "signal", "window", "garden", "river", "letter", "colour", "number", "picture"]


def installed(megabytes: int) -> list:
    from atlas_jax.corpus import installed_documentation

    return list(installed_documentation(max_bytes=megabytes * 1_000_000))


def synthetic(sentences: int) -> Iterator:
    """Documents of 1000 sentences of 90 characters on average, in ten domains."""
    from atlas_jax.corpus import Document

    draw = random.Random(0)
    tails = [" ".join(draw.choices(WORDS, k=draw.randint(4, 21))) for _ in range(10_007)]
    for start in range(0, sentences, 1000):
        rows = (f"{i:x} {tails[i % len(tails)]}." for i in range(start, start + 1000))
        yield Document("\n\n".join(rows), f"domain {start // 1000 % 10}", "synthetic")


def nltk_loop(megabytes: int) -> dict:
    """What one would write first: tokenize every document, keep the sentences in a set."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

    documents = installed(megabytes)
    trainer = PunktTrainer()
    trainer.train("\n\n".join(document.text for document in documents)[:1_000_000], finalize=True)
    tokenizer = PunktSentenceTokenizer(trainer.get_params())
    start, kept, found = time.perf_counter(), set(), 0
    for document in documents:
        for sentence in tokenizer.tokenize(document.text):
            found += 1
            kept.add(sentence)
    return {"sentences": found, "seconds": time.perf_counter() - start}


def built(megabytes: int, workers: int) -> dict:
    """The whole build but for training Punkt, which the loop is spared too."""
    from atlas_jax.corpus import _build, build_corpus, train_splitter

    documents = installed(megabytes)
    splitter = train_splitter([document.text for document in documents])
    _build.published_splitter = lambda: splitter
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        corpus = build_corpus(documents, workers=workers, directory=Path(folder, "corpus"))
        seconds = time.perf_counter() - start
    return {"sentences": corpus.statistics.split, "seconds": seconds, "hash": corpus.hash}


def memory(sentences: int) -> dict:
    """Time and peak memory of a build and of reading all of it once, in this process."""
    from atlas_jax.corpus import build_corpus

    peak = Peak()
    before = peak.now()
    with tempfile.TemporaryDirectory() as folder, peak:
        start = time.perf_counter()
        corpus = build_corpus(synthetic(sentences), workers=1, directory=Path(folder, "corpus"))
        seconds = time.perf_counter() - start
        characters = sum(map(len, corpus.fit)) + sum(map(len, corpus.eval))
        disk = sum(file.stat().st_size for file in Path(folder, "corpus").iterdir())
    return {
        "sentences": sentences,
        "kept": len(corpus),
        "characters": characters,
        "seconds": seconds,
        "disk_mb": disk / 1e6,
        "start_mb": before / 1e6,
        "peak_mb": peak.bytes / 1e6,
        "peak_with_mapped_pages_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "hash": corpus.hash,
    }


class Peak:
    """The largest ``RssAnon`` of this process while the block runs, looked at every 20 ms."""

    def __enter__(self) -> "Peak":
        self.bytes, self._done = self.now(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def now(self) -> int:
        """Bytes the process has to itself."""
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line)
        return int(line.split()[1]) * 1024

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, self.now())


def in_process(what: str, *arguments: int) -> dict:
    command = [sys.executable, __file__, "--only", what, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def throughput(sizes: dict) -> dict:
    cpus, megabytes = len(os.sched_getaffinity(0)), sizes["megabytes"]
    rates = {
        "nltk_loop": in_process("nltk_loop", megabytes),
        "build_1_worker": in_process("built", megabytes, 1),
        f"build_{cpus}_workers": in_process("built", megabytes, cpus),
    }
    for row in rates.values():
        row["sentences_per_second"] = row["sentences"] / row["seconds"]
    machine = {"cpus": cpus, "processor": platform.processor(), "python": platform.python_version()}
    return {"machine": machine, "megabytes": megabytes, "throughput": rates}


def growth(sizes: dict) -> dict:
    return {"memory": [in_process("memory", count) for count in sizes["sentences"]]}


PARTS = {"throughput": throughput, "memory": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=PARTS, help="measure this alone and keep the rest of the results")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "corpus.json")
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        what, *numbers = args.only
        print(json.dumps({"nltk_loop": nltk_loop, "built": built, "memory": memory}[what](*map(int, numbers))))
        return
    result = json.loads(args.out.read_text()) if args.part and args.out.is_file() else {}
    for part in [args.part] if args.part else PARTS:
        result |= PARTS[part](QUICK if args.quick else FULL)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
