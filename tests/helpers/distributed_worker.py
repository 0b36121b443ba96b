"""One of two processes with four devices each, started by test_distributed.py: PROCESS PORT FOLDER."""

import json
import sys
from functools import partial
from pathlib import Path

import jax

SITES, BUDGET, SAMPLE, LENGTH = ("mlp_act.0",), 256, 16, 8  # one batch shape
METHODS = ("procrustes", "covariance", "correlation", "least_squares", "ridge", "semantic_lens", "whitened", "random")


def main(process: int, port: int, folder: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    patient = partial(jax.distributed.initialize, heartbeat_timeout_seconds=600)  # of a machine that is busy elsewhere
    jax.distributed.initialize = patient
    align(process, port, folder)
    found = {"shares": shares(), "resumed": resumed(folder)} | loaded(folder, process)
    (folder / f"found-{process}.json").write_text(json.dumps(found))


def align(process: int, port: int, folder: Path) -> None:
    """The command, and which texts this process tokenized."""
    from atlas_jax.cli import _app
    from atlas_jax.models import Tokenizer
    from atlas_jax.pipeline import _stream

    read, encode = [], Tokenizer.encode
    Tokenizer.encode = lambda self, texts, limit=None: read.extend(texts) or encode(self, texts, limit)
    _stream.SAMPLE = SAMPLE
    joined = ["--coordinator", f"localhost:{port}", "--processes", "2", "--process-id", process]
    _app.app([str(a) for a in [*command(folder, folder / "two"), *joined]], standalone_mode=False)
    Tokenizer.encode = encode
    (folder / f"read-{process}.json").write_text(json.dumps(read))


def command(folder: Path, out: Path) -> list:
    from atlas_jax.bundled import SUBJECT

    options = {"--subject": SUBJECT, "--atlas": folder / "atlas", "--text": folder / "corpus", "--out": out}
    options |= {"--token-budget": BUDGET, "--max-length": LENGTH, "--top-k": 5, "--model-parallel": 2}
    named = [[name, value] for name, value in options.items()]
    named += [["--site", s] for s in SITES] + [["--method", m] for m in METHODS]
    return ["align", "--json", *sum(named, [])]


def shares() -> list:
    """This process's share of the rows, by how many devices share the parameters."""
    from atlas_jax.sharding import Share, make_mesh

    return [list(Share.from_mesh(make_mesh(model=n))) for n in (1, 2, 4, 8)]


def loaded(folder: Path, process: int) -> dict:
    """What this process read of a model of which it holds a half, and activations that come of it."""
    import numpy as np

    from atlas_jax.bundled import SUBJECT
    from atlas_jax.models import LanguageModel, _weights, run
    from atlas_jax.sharding import make_mesh, to_host

    sizes, safe_open = [], _weights.safe_open
    _weights.safe_open = lambda *a, **k: Counted(safe_open(*a, **k), sizes)
    lm = LanguageModel.from_pretrained(SUBJECT, mesh=make_mesh(model=8))
    (acts,) = run(lm, lm.tokenize(["A file is read."]), capture=["mlp_act.1"], logits=False).acts.values()
    acts = to_host(acts)
    if process == 0:
        np.save(folder / "acts.npy", acts)
    held = sum(len({str(s.index): s for s in x.addressable_shards}) * x.addressable_shards[0].data.size
               for x in jax.tree.leaves(lm.decoder))  # fmt: skip
    return {"read": sum(sizes), "held": held, "whole": sum(x.size for x in jax.tree.leaves(lm.decoder))}


class Counted:
    """A safetensors file that notes how many elements are read from it."""

    def __init__(self, file, sizes):
        self.file, self.sizes = file, sizes

    def __enter__(self):
        self.file = self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def keys(self):
        return self.file.keys()

    def get_slice(self, name):
        return _CountedSlice(self.file.get_slice(name), self.sizes)


class _CountedSlice:
    def __init__(self, slice, sizes):
        self.slice, self.sizes = slice, sizes

    def get_shape(self):
        return self.slice.get_shape()

    def get_dtype(self):
        return self.slice.get_dtype()

    def __getitem__(self, index):
        value = self.slice[index]
        self.sizes.append(value.size)
        return value


class Stop(Exception):
    """A pass is cut off."""


def resumed(folder: Path) -> bool:
    """Whether a pass that was cut off and went on from a checkpoint has the bits of one that was not."""
    import numpy as np

    from atlas_jax.bundled import SUBJECT
    from atlas_jax.corpus import Corpus
    from atlas_jax.pipeline import AlignSettings, Checkpoints, SentenceStream, fit_statistics, load_pair
    from atlas_jax.sharding import make_mesh, to_host
    from helpers.logged import logged

    pair = load_pair(SUBJECT, folder / "atlas", AlignSettings(SITES, METHODS), make_mesh(model=2))
    stream = SentenceStream.from_texts(
        pair[:2], Corpus.load(folder / "corpus").fit, token_budget=BUDGET, max_length=LENGTH
    )
    fit = lambda **options: fit_statistics(stream, ["cross", "top_k"], **options)
    calls = []

    def cut(stage, done, total, tokens):
        calls.append(done)
        if len(calls) == 4:
            raise Stop

    try:
        fit(progress=cut, checkpoints=Checkpoints(folder / "checkpoints", every=0.0))
    except Stop:
        with logged() as said:
            again = fit(checkpoints=Checkpoints(folder / "checkpoints", every=1e9))
    assert "going on with the fit pass after" in said[0], said
    whole = [to_host(x) for x in jax.tree.leaves(fit())]
    assert whole[0] > 0
    return all(np.array_equal(a, to_host(b)) for a, b in zip(whole, jax.tree.leaves(again), strict=True))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
