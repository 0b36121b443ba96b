"""Tables: what cells look like, and what is rendered of them."""

import io
import json

import pytest

from atlas_jax.cli import _console
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
