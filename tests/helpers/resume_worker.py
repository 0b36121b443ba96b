"""Two tiny feature spaces through both passes of an alignment, as a process of its own that may be killed.

``chain FOLDER SEED KILLS`` does so once undisturbed, and again in one forked process after another, each killed with
SIGKILL at a random moment, until the last one may finish; it prints what happened as JSON. ``memory N M`` prints the
peak memory of a pass over N and one over M sentences, in MiB. ``faulty`` prints what becomes of sentences with a nan,
few and many.
"""

import dataclasses
import functools
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.bundled import SUBJECT
from atlas_jax.errors import AtlasError
from atlas_jax.models import Tokenizer
from atlas_jax.pipeline import Checkpoints, SentenceStream, _stream, fit_lenses, fit_statistics
from atlas_jax.pooling import POOLINGS, norm_sum, propagate_nonfinite
from atlas_jax.types import Site
from helpers.logged import logged

NEEDS = ("cross", "unit_cross", "atlas_gram", "top_k")
WORDS = ("array", "axis", "batch", "block", "cache", "chunk", "class", "count", "cursor", "device", "error", "file")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """A feature space: the largest of a table's rows over the tokens of a sentence."""

    rows: Any
    site: Site = dataclasses.field(metadata={"static": True})
    model: Any = dataclasses.field(metadata={"static": True})

    @property
    def width(self):
        return self.rows.shape[1]

    @property
    def widths(self):
        return {self.site: self.width}

    def tokenize(self, texts, **options):
        raise NotImplementedError

    def pooled(self, tokens):
        acts = self.rows[tokens.ids]
        return {self.site: propagate_nonfinite(POOLINGS["max"](acts, tokens.mask), acts, tokens.mask)}

    def encode_norms(self, tokens):
        return self.encode(tokens), {self.site: norm_sum(self.rows[tokens.ids], tokens.mask)}

    def encode(self, tokens):
        return {site: pooled.values for site, pooled in self.pooled(tokens).items()}


class Sentences(Sequence):
    """Any number of sentences, none of them held."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i >= self.count:
            raise IndexError(i)
        rng = np.random.default_rng(i)
        return " ".join(WORDS[j] for j in rng.integers(0, len(WORDS), rng.integers(2, 6)))


@functools.cache
def tokenizer():
    return Tokenizer.load(SUBJECT)


@functools.cache
def spaces():
    model = SimpleNamespace(tokenizer=tokenizer(), config=SimpleNamespace(max_positions=64))
    size, rng = model.tokenizer.backend.get_vocab_size(), np.random.default_rng(0)
    table = lambda width, site: Table(jnp.asarray(rng.normal(size=(size, width)), jnp.float32), Site.parse(site), model)
    return table(24, "mlp_act.0"), table(40, "resid_post.0")


def run(state: Path, out: Path, every: float, step=lambda: None) -> list[str]:
    """Both passes with checkpoints; the final state goes into ``out``. Returns what was logged."""
    _stream.BLOCK = 700
    saved = Checkpoints(state, every=every)
    saved.fingerprint = {"test": 1}
    stream = SentenceStream.from_texts(spaces(), Sentences(2000), token_budget=256)
    report = lambda *_: step()
    with logged() as said:
        fitted = fit_statistics(stream, NEEDS, top_k=5, progress=report, checkpoints=saved)
        lenses = fit_lenses(stream, fitted.statistics, progress=report, checkpoints=saved)
    out.write_bytes(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((fitted, lenses))))
    return said


def chain(folder: Path, seed: int, kills: int) -> dict:
    """Fork, kill at a random step, every second time when a checkpoint is being written, and fork again."""
    import orbax.checkpoint  # noqa: F401 - what is imported here, no fork imports

    tokenizer()
    _ended(*_forked(folder / "undisturbed", folder / "whole", every=1e9))
    state, out = folder / "killed", folder / "resumed"
    rng, torn, resumed = np.random.default_rng(seed), 0, 0
    for kill in range(kills + 1):
        resumed += any(state.glob("*/*/manifest.json"))
        child, ours = _forked(state, out)
        if kill < kills:
            _wait_for(ours, int(rng.integers(1, 40)))
            deadline = time.monotonic() + 5
            while kill % 2 and not any(state.glob("*/*.new")) and time.monotonic() < deadline:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
        status = _ended(child, ours)
        torn += any(state.glob("*/*.new"))
    same = out.is_file() and out.read_bytes() == (folder / "whole").read_bytes()
    return {"status": status, "torn": torn, "resumed": resumed, "same": same}


def _forked(state: Path, out: Path, every: float = 0.2) -> tuple[int, int]:
    """A process that runs, and a pipe with a byte from each of its steps."""
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        run(state, out, every, lambda: os.write(theirs, b"."))
        os._exit(0)
    os.close(theirs)
    return child, ours


def _ended(child: int, ours: int) -> int:
    """How it ended, when it has."""
    while os.read(ours, 4096):
        pass
    os.close(ours)
    return os.waitpid(child, 0)[1]


def _wait_for(pipe: int, steps: int) -> None:
    while steps > 0 and (read := os.read(pipe, steps)):
        steps -= len(read)


def memory(*counts: int) -> list[float]:
    """Peak memory of passes over so many sentences in MiB.

    The programs are compiled in a fork, for that takes more memory than the passes and would hide theirs.
    """
    _stream.BLOCK, peaks = 2048, []
    tokenizer()
    if (child := os.fork()) == 0:
        _pass_over(5000)
        os._exit(0)
    os.waitpid(child, 0)
    for count in (5000, *counts):
        Path("/proc/self/clear_refs").write_text("5")
        _pass_over(count)
        status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        peaks.append(int(status["VmHWM"].split()[0]) / 1024)
    return peaks[1:]


def _pass_over(count: int) -> None:
    fit_statistics(SentenceStream.from_texts(spaces(), Sentences(count), max_length=16, token_budget=4096), NEEDS)


def faulty() -> dict:
    """Fits on five sentences with a token whose activations hold a nan, on the others alone, and on many with it."""
    subject, atlas = spaces()
    token = subject.model.tokenizer.encode(["cursor"])[0][-1]
    texts = list(Sentences(500))
    few = [i for i, text in enumerate(texts) if "cursor" in text][:5]
    texts = [text if i in few else text.replace("cursor", "batch") for i, text in enumerate(texts)]
    broken = dataclasses.replace(subject, rows=subject.rows.at[token, 3].set(jnp.nan))
    fit = lambda space, texts, **more: fit_statistics(
        SentenceStream.from_texts((space, atlas), texts, token_budget=512), NEEDS, **more
    )
    fitted, clean = fit(broken, texts), fit(subject, [text for i, text in enumerate(texts) if i not in few])
    crosses = [np.asarray(f.statistics.sums.crosses[subject.site].raw) for f in (fitted, clean)]
    done = []
    try:
        fit(broken, Sentences(4000), progress=lambda stage, n, total, tokens: done.append(n))
    except AtlasError as error:
        refusal = str(error)
    return {
        "expected": few, "found": fitted.faulty, "weight": float(fitted.statistics.sums.weight),
        "active": bool(np.array_equal(fitted.active, clean.active)),
        "difference": float(np.abs(crosses[0] - crosses[1]).max() / np.abs(crosses[1]).max()),
        "refusal": refusal, "done": done[-1],
    }  # fmt: skip


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "memory":
        print(json.dumps(memory(*map(int, arguments))))
    elif command == "faulty":
        print(json.dumps(faulty()))
    else:
        print(json.dumps(chain(Path(arguments[0]), int(arguments[1]), int(arguments[2]))))
