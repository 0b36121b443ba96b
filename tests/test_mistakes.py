"""Mistakes on the command line are told in a sentence before any work; what is printed is what was there."""

import io
import json
import logging
import os
import resource
import shutil
import sys

import numpy as np
import pytest
from helpers import plain_text
from safetensors.numpy import save_file
from typer.testing import CliRunner

from atlas_jax import names
from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled import ATLAS
from atlas_jax.cli import _console
from atlas_jax.cli._app import app
from atlas_jax.corpus import Document, build_corpus
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import USES, Identified, Peak, hits_table, identified_table
from atlas_jax.files import KINDS, new_directory, new_file
from atlas_jax.labels import Hit
from atlas_jax.pooling import POOLINGS
from atlas_jax.table import Column, Table
from atlas_jax.translators import METHODS
from atlas_jax.types import POINTS

LABELS = ["sae", "label", "--model", "nowhere", "--sae", "nowhere"]
COMMANDS = {  # without --out, and so that each would be refused for something else soon after
    "quickstart": ["quickstart", "--site", "nowhere.1"],
    "align": ["align", "--subject", "nowhere", "--atlas", "nowhere", "--site", "nowhere.1"],
    "sae train": ["sae", "train", "--model", "nowhere", "--site", "nowhere.1"],
    "sae label": [*LABELS, "--dry-run"],
    "atlas build": ["atlas", "build", "--model", "nowhere", "--sae", "nowhere"],
    "corpus build": ["corpus", "build", "nowhere"],
}
MADE = {"quickstart": "a run", "align": "a run", "sae train": "a trained SAE", "sae label": None}
MADE |= {"atlas build": "a Concept Atlas", "corpus build": "a corpus"}
NUMBERS = {
    "quickstart": {"--strength": "nan inf -inf", "--sentences": "0 -5 1", "--seed": "-1"},
    "align": {
        "--checkpoint-every": "nan inf -1", "--sentences": "0 -5", "--token-budget": "0 -4096", "--top-k": "0",
        "--max-length": "-3", "--seed": "-1 4294967296", "--model-parallel": "0",
    },
    "sae train": {
        "--k": "nan inf 0 -3", "--learning-rate": "0 nan inf 1e6 -1", "--sparsity-warmup": "nan 1.5 -0.1",
        "--dead-after": "-5 0", "--norm-limit": "nan inf -1", "--checkpoint-every": "nan", "--training-tokens": "0",
        "--tokens": "-1", "--batch": "1", "--held-out": "0", "--seed": "-7",
    },
    "sae label": {"--workers": "0", "--contexts": "-1", "--sentences": "1"},
    "atlas build": {"--norm-scaling-factor": "nan inf 0 -2", "--sentences": "-100"},
}  # fmt: skip
GOOD = {
    "quickstart": "--strength -40 --strength 0.5 --sentences 2 --seed 4294967295",
    "align": "--checkpoint-every 0 --sentences 2 --token-budget 1 --top-k 1 --pooling median",
    "sae train": "--k 0.5 --learning-rate 1e-3 --sparsity-warmup 0 --dead-after 1 --norm-limit 0 --tokens 10",
    "sae label": "--workers 1 --price 0 0.5",
    "atlas build": "--norm-scaling-factor 0.25",
}


def _run(command, *more, out):
    return CliRunner().invoke(app, [*COMMANDS[command], "--out", str(out), *map(str, more)])


def _place(command, path):
    return path.with_suffix(".jsonl") if command == "sae label" else path


REFUSED = [(c, o, v) for c, options in NUMBERS.items() for o, values in options.items() for v in values.split()]


@pytest.mark.parametrize(("command", "option", "value"), REFUSED)
def test_numbers_out_of_range_are_refused_by_the_name_of_the_option(tmp_path, command, option, value):
    found = _run(command, option, value, out=_place(command, tmp_path / "out"))
    said = " ".join(found.output.replace("│", " ").split())
    assert found.exit_code == 2
    assert "Invalid value for" in said
    assert option in said or option == "--tokens"
    assert list(tmp_path.iterdir()) == []


def test_prices_are_two_finite_numbers(tmp_path):
    for price in (("1", "nan"), ("inf", "0"), ("0", "-1")):
        found = _run("sae label", "--price", *price, out=tmp_path / "out.jsonl")
        assert (found.exit_code, "--price" in found.output) == (2, True)


@pytest.mark.parametrize("command", GOOD)
def test_numbers_in_range_are_not_what_is_refused(tmp_path, command):
    found = _run(command, *GOOD[command].split(), out=_place(command, tmp_path / "out"))
    assert isinstance(found.exception, AtlasError), found.output
    assert any(w in str(found.exception) for w in ("nowhere", "median", "--chat-model")), found.exception


PLACES = {"below a file": "file/out", "too long a name": "x" * 250}
if sys.platform.startswith("linux"):
    PLACES["not a place for files"] = "/proc/out"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, command, place):
    (tmp_path / "file").write_text("mine")
    found = _run(command, out=_place(command, tmp_path / PLACES[place]))
    assert isinstance(found.exception, AtlasError), found.output
    assert "cannot be written (" in str(found.exception)
    assert "\n" not in str(found.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("there", [*KINDS, "text"])
@pytest.mark.parametrize("command", [c for c, kind in MADE.items() if kind is not None])
def test_what_is_finished_is_not_overwritten(tmp_path, command, there):
    """One of the same kind with --overwrite alone; what is of another kind, never."""
    marker = "thesis.tex" if there == "text" else KINDS[there].marker
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / marker).write_text("{}")
    plain, meant = (str(_run(command, *more, out=tmp_path / "out").exception) for more in ((), ("--overwrite",)))
    if there == MADE[command]:
        late = command in ("align", "sae train")  # which may be asked for what is there, and see that later
        assert late or plain.endswith(
            f"out' holds {there} already; choose another place, or replace it with --overwrite"
        )
        assert "nowhere" in meant
    elif there == "text":
        assert plain == meant
        assert plain.endswith(f"out' exists and is not {MADE[command]}; choose another place")
    else:
        assert plain == meant
        assert plain.endswith(f"out' holds {there}, not {MADE[command]}; choose another place")
    assert (tmp_path / "out" / marker).read_text() == "{}"


def test_labels_are_not_overwritten(tmp_path):
    (tmp_path / "own.jsonl").write_text("mine")
    run = lambda *more: str(CliRunner().invoke(app, [*LABELS, "--out", str(tmp_path / "own.jsonl"), *more]).exception)
    assert "own.jsonl' exists already; choose another name, or replace it with --overwrite" in run()
    assert "nowhere" in run("--overwrite")
    assert (tmp_path / "own.jsonl").read_text() == "mine"


def test_a_second_quickstart_finds_a_place_of_its_own(tmp_path, monkeypatch):
    from atlas_jax.cli._quickstart import OUT, _free

    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart-2", "quickstart-3"):
        assert _free(OUT).as_posix() == f"runs/{name}"
        (tmp_path / "runs" / name).mkdir(parents=True)


@pytest.fixture(scope="module")
def atlas():
    return ConceptAtlas.from_pretrained(ATLAS)


@pytest.fixture(scope="module")
def corpus():
    return build_corpus([Document(" ".join(plain_text.sentences(300)), "plain", "test")])


def _labels(atlas, place):
    with new_file(place) as file:
        atlas.labels.save(file)


def _tensors(place):
    with new_directory(place) as directory:
        save_file({"x": np.zeros(10_000, np.float32)}, directory / "x.safetensors")


def _array(place):
    with new_directory(place) as directory:
        np.save(directory / "x.npy", np.zeros(10_000, np.float32))


WRITERS = {
    "atlas": lambda atlas, corpus, place: atlas.save_pretrained(place),
    "sae": lambda atlas, corpus, place: atlas.sae.save_pretrained(place, format="native"),
    "labels": lambda atlas, corpus, place: _labels(atlas, place),
    "corpus": lambda atlas, corpus, place: corpus.save(place),
    "safetensors": lambda atlas, corpus, place: _tensors(place),
    "numpy": lambda atlas, corpus, place: _array(place),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, atlas, corpus, what):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(AtlasError, match=r"out' cannot be written \((File too large|No space left on device)\)"):
            WRITERS[what](atlas, corpus, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    WRITERS[what](atlas, corpus, tmp_path / "out")
    assert (tmp_path / "out").exists()


def test_saving_an_atlas_again_leaves_the_files_of_others(atlas, tmp_path):
    place = tmp_path / "atlas"
    shutil.copytree(ATLAS, place)
    (place / "mean.npy").write_bytes(b"of an atlas that had one")
    others = {"README.md": "# mine", ".git/refs/main": "f00", "model/notes.txt": "slow", "index/own/words.txt": "x"}
    for name, content in others.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    (place / ".git" / "objects").mkdir()
    (place / "link").symlink_to("README.md")
    atlas.save_pretrained(place, {"note": "second"})
    assert {name: (place / name).read_text() for name in others} == others
    assert (place / ".git" / "objects").is_dir()
    assert os.readlink(place / "link") == "README.md"
    assert not (place / "mean.npy").exists()
    assert ConceptAtlas.from_pretrained(place).width == atlas.width
    assert json.loads((place / "atlas.json").read_text())["metadata"] == {"note": "second"}
    assert [p.name for p in tmp_path.iterdir()] == ["atlas"]


TEXTS = ["a [/b] dog", "[bold]dog[/bold]", "[link=x]", ":dog: [red", "\\[/b]", "x[/]"]
CONTROL = ["dog \x1b[2J", "a\x00b", "\x9b31m", "bell\x07", "two\rone", "back\x08", "\x7f"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_printed_as_it_is(monkeypatch, text):
    peak = Peak(3, 1.0, f"{text} ", text, f" {text}")
    shown = [
        Table(text, (Column(text),), [], text),
        hits_table(text, [Hit(1, text, 1.0, 1.0)]),
        identified_table(text, [Identified(3, 0.5, [peak])]),
    ]
    for table in shown:
        file = io.StringIO()
        monkeypatch.setattr(_console, "out", _console._Console(file=file, width=200))
        _console.emit(False, None, table)
        assert text in file.getvalue()
    for say in (_console.note, _console.warn, logging.getLogger("atlas_jax.somewhere").info):
        monkeypatch.setattr(_console, "err", _console._Console(file=(file := io.StringIO()), width=200))
        with _console.log_shown():
            say(text)
        assert file.getvalue().count(text) == 1


@pytest.mark.parametrize("text", CONTROL)
def test_no_control_character_reaches_the_terminal(text):
    file = io.StringIO()
    console = _console._Console(file=file, width=200)
    console.print(_console.render(hits_table(text, [Hit(1, text, 1.0, 1.0)]), 200))
    console.print(text)
    kept = "".join(c for c in text if c >= " " and not "\x7f" <= c <= "\x9f")
    assert kept in file.getvalue()
    assert not any(c != "\n" and (c < " " or "\x7f" <= c <= "\x9f") for c in file.getvalue())


def test_half_a_character_is_printed_as_a_replacement():
    console = _console._Console(file=(file := io.StringIO()), width=200)
    console.print(_console.render(hits_table("labels", [Hit(1, "dog \ud83d", 1.0, 1.0)]), 200))
    assert "dog \ufffd" in file.getvalue()


def test_a_search_for_markup_is_a_search():
    found = CliRunner().invoke(app, ["atlas", "search", "a [/b] file"], catch_exceptions=False)
    assert found.exit_code == 0
    assert "a [/b] file" in found.output


def test_help_lists_what_there_is():
    """From names that are written down a second time, so that help imports nothing heavy."""
    assert (tuple(METHODS), tuple(POOLINGS)) == (names.METHOD_NAMES, names.POOLING_NAMES)
    assert (tuple(POINTS), tuple(USES)) == (names.POINT_NAMES, names.USE_NAMES)
    words = " ".join(CliRunner().invoke(app, ["align", "--help"]).output.replace("│", " ").split())
    for name in (*METHODS, *POINTS, *POOLINGS, *USES):
        assert name in words
    assert CliRunner().invoke(app, ["--version"]).output.startswith("atlas-jax 0.")
