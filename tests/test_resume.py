"""Work is not lost: a run killed at any moment ends with the same bits, and nothing damaged is gone on from."""

import io
import json
import os
import resource
import signal
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import resume_worker as worker
from helpers.commands import start_command, start_worker
from helpers.logged import logged
from rich.console import Console
from typer.testing import CliRunner

from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.cli import _console
from atlas_jax.cli._app import app
from atlas_jax.corpus import build_corpus, installed_documentation
from atlas_jax.errors import AtlasError
from atlas_jax.pipeline import Checkpoints, Cursor, SentenceStream, run_stream
from atlas_jax.pipeline._fit import LEFT_OUT
from atlas_jax.pooling import POOLINGS, propagate_nonfinite
from atlas_jax.statistics import Statistics, update

KILLS = int(os.environ.get("ATLAS_JAX_KILLS", "1"))
STATE = {"a": jnp.arange(3000.0), "b": (jnp.int32(7), None)}


def _later(step):
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), STATE)


def _two(directory, **options):
    """Checkpoints with one after 10 and one after 20 sentences."""
    saved = Checkpoints(directory, **options)
    saved.fingerprint = {"methods": ("procrustes",), "seed": 0}
    for step in (1, 2):
        saved.save("fit", Cursor(0, step, 10 * step, 100 * step), _later(step))
    return saved


def _read(directory, **fingerprint):
    """What a new process would go on from."""
    saved = Checkpoints(directory)
    saved.fingerprint = {"methods": ["procrustes"], "seed": 0} | fingerprint
    with logged() as said:
        cursor, state = saved.restore("fit", STATE, 50)
    return cursor, state, said


def _equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def _files(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_the_newest_checkpoint_is_gone_on_from_and_two_are_kept(tmp_path):
    saved = _two(tmp_path)
    saved.save("fit", Cursor(1, 0, 30, 300), _later(3))
    assert [p.name for p in sorted((tmp_path / "fit").iterdir())] == ["000000000020", "000000000030"]
    cursor, state, said = _read(tmp_path)
    assert (cursor, said) == (Cursor(1, 0, 30, 300), ["going on with the fit pass after 30 of 50 sentences"])
    _equal(state, _later(3))


def test_another_run_is_refused_with_every_difference(tmp_path):
    _two(tmp_path)
    with pytest.raises(AtlasError) as refusal:
        _read(tmp_path, methods=["covariance", "random"], corpus="f00")
    for words in ("methods was procrustes and is covariance, random", "corpus was None and is f00", "--restart"):
        assert words in str(refusal.value)
    assert "seed" not in str(refusal.value)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "cursor"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    _two(tmp_path)
    newest = tmp_path / "fit" / "000000000020"
    target = max((p for p in (newest / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(target.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    elif damage == "truncate":
        target.write_bytes(content[:-9])
    elif damage == "remove":
        target.unlink()
    else:
        manifest = newest / "manifest.json"
        text = manifest.read_text()
        manifest.write_text(text[: len(text) // 2] if damage == "manifest" else text.replace("200", "201"))
    cursor, state, said = _read(tmp_path)
    assert cursor == Cursor(0, 1, 10, 100)
    _equal(state, _later(1))
    assert "000000000020' is damaged" in said[0]
    assert not newest.exists()


def test_with_no_sound_checkpoint_the_pass_begins_again(tmp_path):
    _two(tmp_path)
    for path in (tmp_path / "fit").iterdir():
        (path / "manifest.json").write_text("")
    cursor, state, said = _read(tmp_path)
    assert cursor == Cursor()
    assert state is STATE
    assert said[-1] == "no sound checkpoint of the fit pass is left; beginning it again"
    assert said[0].endswith("going back to the one before it")
    assert said[1].endswith("there is none before it")


def test_a_full_disk_is_one_sentence_and_leaves_the_one_before(tmp_path):
    saved = _two(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(AtlasError) as failure:
            saved.save("fit", Cursor(1, 0, 30, 300), _later(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could be written" in str(failure.value)
    assert "(File too large)" in str(failure.value)
    assert str(failure.value).endswith("give the same command again, which goes on from the one before it")
    assert len(list((tmp_path / "fit").iterdir())) == 2
    assert _read(tmp_path)[0].sentences == 20


def test_a_first_checkpoint_that_cannot_be_written_is_not_said_to_have_one_before_it(tmp_path):
    (tmp_path / "fit").write_text("a file in the way")
    with pytest.raises(AtlasError, match="give the same command again$"):
        Checkpoints(tmp_path).save("fit", Cursor(0, 1, 1, 1), STATE)


def test_a_fault_of_another_kind_is_not_called_a_full_disk(tmp_path):
    with pytest.raises((TypeError, ValueError)) as failure:
        Checkpoints(tmp_path).save("fit", Cursor(0, 1, 1, 1), {"a": object()})
    assert not isinstance(failure.value, AtlasError)
    assert list((tmp_path / "fit").iterdir()) == []


def test_a_signal_saves_the_whole_state_and_stops(tmp_path):
    """The signal comes while a step is at work on a donated state."""
    stream = SentenceStream.from_texts(worker.spaces(), worker.Sentences(300), token_budget=256)
    add = jax.jit(lambda total, a, b: total + jnp.sum(a.ids) + jnp.sum(b.ids), donate_argnums=0)
    steps = []

    def step(total, *tokens):
        steps.append(tokens)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(total, *tokens)

    zero = lambda: jnp.zeros((), jnp.int32)
    whole = run_stream(stream, add, zero())
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_stream(stream, step, zero(), name="sum", checkpoints=Checkpoints(tmp_path))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert len(steps) == 4
    seen = []
    report = lambda stage, done, total, tokens: seen.append((done, total))
    assert int(run_stream(stream, step, zero(), name="sum", checkpoints=Checkpoints(tmp_path), progress=report)) == int(
        whole
    )
    assert len(steps) == len(list(stream.steps()))
    assert seen[0] == (sum(int(jnp.sum(t[0].index >= 0)) for t in steps[:4]), 300)


def test_progress_counts_and_rates_from_the_checkpoint(monkeypatch):
    shown, clock = io.StringIO(), iter((10.0, 12.0))
    monkeypatch.setattr(_console, "err", Console(file=shown, width=120))
    monkeypatch.setattr(_console, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with _console.progress_bars() as progress:
        progress("align", 9000, 10000, 90000)
        progress("align", 9500, 10000, 94000)
    assert "9500/10000" in shown.getvalue()
    assert "250 sentences/s  2,000 tokens/s" in shown.getvalue()


def test_every_pass_has_a_bar_of_its_own(monkeypatch):
    """Two of one name one after another too."""
    monkeypatch.setattr(_console, "err", Console(file=(shown := io.StringIO()), width=120))
    with _console.progress_bars("steps") as progress:
        for stage, total in (("align", 30), ("align", 70), ("measure", 50)):
            for done in (0, total):
                progress(stage, done, total, 10 * done)
    assert [f"{n}/{n}" in shown.getvalue() for n in (30, 70, 50)] == [True] * 3
    assert "steps/s" in shown.getvalue()


def test_no_feature_space_hides_what_is_not_finite():
    """Every pooling, with one nan or infinity among the positions that count."""
    rng = np.random.default_rng(0)
    for name, pooling in POOLINGS.items():
        for fault in (np.nan, np.inf, -np.inf):
            x = rng.normal(size=(16, 32, 24)).astype(np.float32)
            mask = np.arange(32) < rng.integers(2, 32, 16)[:, None]
            x[3, 1, 5] = x[9, 31, 7] = fault
            values = propagate_nonfinite(
                pooling(jnp.asarray(x), jnp.asarray(mask)), jnp.asarray(x), jnp.asarray(mask)
            ).values
            assert np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist() == [3], name


def test_a_row_with_one_number_that_is_not_finite_is_in_no_statistic():
    x = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
    for row in range(64):
        broken = x.copy()
        broken[row, row % 48] = (np.nan, np.inf, -np.inf)[row % 3]
        stats = update(Statistics.init(["cross"], 48, 48), broken, x)
        assert (float(stats.weight), int(stats.nonfinite.first)) == (63, row)


def _worker(*arguments):
    process = start_worker(worker, *arguments)
    printed, said = process.communicate()
    assert process.returncode == 0, said
    return json.loads(printed)


def test_faulty_sentences_are_named_and_in_no_statistic():
    found = _worker("faulty")
    assert found["found"] == found["expected"]
    assert (found["weight"], found["active"]) == (495, True)
    assert found["difference"] < 1e-5
    assert "not finite, among them sentences" in found["refusal"]
    assert "use float32" in found["refusal"]
    assert LEFT_OUT < found["done"] < 1000


def test_twenty_kills_change_no_bit(tmp_path):
    found = _worker("chain", tmp_path, 0, 20)
    assert (found["status"], found["same"]) == (0, True)
    assert found["torn"] >= 5
    assert found["resumed"] >= 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of memory are read from /proc")
def test_memory_does_not_grow_with_the_corpus():
    one, four = _worker("memory", 8_000, 32_000)
    assert four < one + 10  # MB: an activation kept for each of the 24,000 more sentences would take 37


ALIGN = ["--site", "mlp_act.1", "--method", "semantic_lens", "--max-length", "16", "--token-budget", "256"]
"""A few seconds of ``align``: several batches in each of three passes."""


@pytest.fixture(scope="module")
def align(tmp_path_factory):
    """A folder with a small corpus, and the arguments of ``align`` on it."""
    folder = tmp_path_factory.mktemp("align")
    build_corpus(installed_documentation(max_bytes=100_000), n_fit=128, n_eval=64).save(folder / "corpus")
    where = ["--subject", SUBJECT, "--atlas", ATLAS, "--text", folder / "corpus"]
    return folder, lambda out, *options: [*map(str, ["align", *where, *ALIGN, "--out", folder / out, *options])]


def _checkpoints(folder, out, name="fit"):
    return len(list((folder / f"{out}.partial" / "checkpoints" / name).glob("*[0-9]")))


def _until(process, ready):
    while process.poll() is None and not ready():
        time.sleep(0.002)


def test_align_killed_and_interrupted_ends_as_if_it_was_not(align):
    folder, arguments = align
    start = lambda out, every="0", **env: start_command(
        *arguments(out, "--checkpoint-every", every), env=os.environ | env
    )
    refused = lambda *options: str(CliRunner().invoke(app, arguments("run", *options)).exception)
    whole, process = start("whole", "1e9", PYTHONHASHSEED="7"), start("run")
    rng = np.random.default_rng(1)
    for kill in range(KILLS):
        process = start("run") if kill else process
        _until(process, lambda: _checkpoints(folder, "run"))
        time.sleep(rng.uniform(0, 0.5 if KILLS == 1 else 4.0))
        process.kill()
        process.wait()
    assert "seed was 0 and is 5" in refused("--seed", "5")
    process = start("run")
    _until(process, lambda: _checkpoints(folder, "run", "second"))
    process.send_signal(signal.SIGINT)
    said = " ".join(process.communicate()[1].split())
    assert process.returncode == 130, said
    assert "going on with the fit pass after" in said
    assert "saved the second pass after" in said
    assert "give the same command again" in said
    last = start("run")
    said = " ".join(last.communicate()[1].split())
    assert last.returncode == 0, said
    assert "going on with the second pass after" in said
    said = whole.communicate()[1]
    assert whole.returncode == 0, said
    before = _files(folder / "run")
    assert before == _files(folder / "whole")
    again = CliRunner().invoke(app, arguments("run"), catch_exceptions=False)
    assert "holds this run already; --overwrite makes it anew" in " ".join(again.output.split())
    assert "finished run of something else: seed was 0 and is 5" in refused("--seed", "5")
    assert _files(folder / "run") == before
    assert sorted(p.name for p in folder.iterdir()) == ["corpus", "run", "whole"]
