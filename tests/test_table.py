"""Tables: what cells look like, and what is rendered of them."""

import io
import json

import pytest

from atlas_jax.cli import _console, _layout
from atlas_jax.metrics import Interval
from atlas_jax.table import Column, Marked, Table

GROUPED = Table(
    "Features",
    (Column("feature", "d", group=True), Column("similarity", ".2f", group=True), Column("sentence")),
    [(7, 0.5, Marked("dog", "a ", " barks")), (7, 0.5, "none"), (9, 0.25, Marked("cat"))],
    "caption",
    frozenset({2}),
)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        (Column(format=".3f"), (0.8124, 0.7899, 0.8333), "0.812 [0.790, 0.833]"),
        (Column(format=".1e"), Interval(1.0, 0.5, 1.0, 9, 0)[:3], "1.0e+00 [5.0e-01, 1.0e+00]"),
        (Column(format=".4g"), [0.81236, 3], "0.8124 to 3"),
        (Column(format=".4g"), 123456, "123456"),
        (Column(format=","), 123456, "123,456"),
        (Column(format=".1f", unit=" MB"), 0.25, "0.2 MB"),
        (Column(format="g"), None, ""),
        (Column(format="g"), "unknown", "unknown"),
        (Column(), True, "yes"),
        (Column(), False, "no"),
    ],
)
def test_the_text_of_a_cell(column, value, text):
    assert column.text(value) == text
    assert column.parts(Marked(value, "(", ")")) == ("(", text, ")")


def test_a_table_is_plain_values():
    rows = [[7, 0.5, "a dog barks"], [7, 0.5, "none"], [9, 0.25, "cat"]]
    assert GROUPED.to_dict()["rows"] == rows
    intervals = Table("", (Column("x", ".1f"),), [((1.0, 0.0, 2.0),)]).to_dict()
    assert json.loads(json.dumps(intervals))["rows"] == [[{"mean": 1.0, "low": 0.0, "high": 2.0}]]


def test_groups_are_shown_once_marks_stand_out_and_the_best_is_bold(monkeypatch):
    console = _console._Console(file=(file := io.StringIO()), width=80, force_terminal=True, color_system="standard")
    monkeypatch.setattr(_console, "out", console)
    _console.emit(False, None, GROUPED)
    shown = file.getvalue()
    assert [shown.count(x) for x in ("0.50", "0.25", "├", "caption")] == [1, 1, 1, 1]
    assert "\x1b[1;7mdog\x1b[0m barks" in shown
    assert "\x1b[1m" in next(line for line in shown.splitlines() if "0.25" in line)
    assert not any("\x1b[1m" in line.split("│")[1] for line in shown.splitlines() if "0.50" in line)


def test_json_is_what_the_record_says(monkeypatch):
    monkeypatch.setattr(_console, "out", _console._Console(file=(file := io.StringIO()), width=80))
    _console.emit(True, {"own": 1}, GROUPED)
    assert json.loads(file.getvalue()) == {"own": 1}


WIDE = Table(
    "Steering",
    (
        Column("sites", group=True), Column("method"), Column("faithfulness", ".1f"),
        Column("distinct-2", ".2f", optional=True),
        Column("perplexity", ".3g", "×"), Column("kept", ".0%"), Column("change", ".4f"), Column("sentence"),
    ),
    [
        ("mlp_act.1+resid_post.2", "whitened_detect", (12.5, 3.25, 25.0), 0.75, 1.375, 0.25, 1234.5678, "one of many"),
        ("mlp_act.1+resid_post.2", "procrustes", (100.0, 99.5, 100.0), 1.0, 12.5, 1.0, -0.1234, "incomprehensibility"),
    ],
    "means",
)  # fmt: skip


def _shown(table, width):
    console = _console._Console(file=(file := io.StringIO()), width=width)
    console.print(_layout.render(table, width))
    return file.getvalue()


def _cells(text):
    """The words of each column of what was printed, line by line."""
    lines = [line.strip("│┃").replace("┃", "│").split("│") for line in text.splitlines() if line[:1] in "│┃"]
    return [[cell.strip() for cell in column] for column in zip(*lines, strict=True)]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_word_or_number_is_broken_at_any_width(width):
    shown = _shown(WIDE, width)
    assert max(map(len, shown.splitlines())) <= width
    columns = _cells(shown)
    for column in WIDE.columns:
        own = [c for c in columns if " ".join(c).startswith(column.name)]
        assert len(own) == 1 or column.name in shown.split("left out to fit: ")[1], column.name
    words = {word for column in columns for cell in column for word in cell.split()}
    whole = {w for row in WIDE.texts() for cell in row for w in cell.split()}
    whole |= {w for column in WIDE.columns for w in column.name.split()}
    assert words <= whole
    assert ("left out" in shown) == (width < 130)


def test_optional_columns_go_first_then_numbers_and_the_first_stays():
    assert "left out to fit: distinct-2 (--wide" in " ".join(_shown(WIDE, 121).split())
    assert "left out to fit: distinct-2, change (--wide" in " ".join(_shown(WIDE, 109).split())
    assert "mlp_act.1+resid_post.2" in _shown(WIDE, 30)


@pytest.mark.parametrize("word", ["x" * 30, "np.testing.assert_allclose_units", "日本語" * 6])
def test_long_words_of_sentences_give_way_before_numbers(word):
    columns = (
        Column("prompt", group=True), Column("along"), Column("strength", "g"), Column("concept", ".2f"),
        Column("perplexity", ".3g"), Column("continuation"),
    )  # fmt: skip
    rows = [("This function", "concept", 0.5, 1.25, 9.5, f"returns {word} of it"), ("A", "random", 0.5, 0.0, 1e5, "a")]
    narrow, wide = (_shown(Table("Steering", columns, rows), width) for width in (80, 120))
    assert "left out" not in narrow
    assert all(part in narrow for part in ("perplexity", "9.5", "1e+05", "returns", "…", "of it"))
    assert word not in narrow
    assert word in wide
    assert "…" not in wide


def test_names_are_not_cut():
    columns = Column("site"), Column("method"), Column("AP", ".2f"), Column("AUROC", ".2f")
    shown = _shown(Table("", columns, [("mlp_act.1", "a_method_of_a_long_name_23", 0.5, 0.75)]), 50)
    assert "a_method_of_a_long_name_23" in shown
    assert "left out to fit: AUROC" in " ".join(shown.split())


@pytest.mark.parametrize(("before", "after"), [(300, 0), (0, 300), (300, 300), (10, 300), (300, 10), (5, 5)])
def test_samples_are_cut_around_what_is_marked(before, after):
    before, after = "b " * (before // 2), " a" * (after // 2)
    table = Table("", (Column("feature", "d"), Column("sample")), [(7, Marked("peak", before, after))])
    shown = _cells(_shown(table, 40))[1][1:]
    text = " ".join(filter(None, shown))
    assert "peak" in text
    assert len(shown) <= 5
    assert ("…" in text) == (len(before) + len(after) > 100)
    assert text.startswith("…") == (len(before) > 100 or (len(before) > 50 and len(after) > 50))


def test_wide_prints_every_column(monkeypatch):
    from typer.testing import CliRunner

    from atlas_jax.cli._options import AsJson, Commands

    app = Commands()

    @app.command()
    def show(as_json: AsJson = False) -> None:
        _console.emit(as_json, None, WIDE)

    narrow, wide = (CliRunner(env={"COLUMNS": "80"}).invoke(app, options) for options in ([], ["--wide"]))
    assert "left out to fit" in " ".join(narrow.output.split())
    assert "left out" not in wide.output
    assert "incomprehensibility" in wide.output
    assert _console.out.width < _console.WIDE
