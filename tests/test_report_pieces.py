"""The pieces of a report: escaping, tables, plots, curves, tokens, and records read back from stored tables."""

import csv
import io
import json

import numpy as np
import pytest
from helpers.report_records import (
    FORBIDDEN,
    HOSTILE,
    INTERVAL,
    RECORDS,
    SCRIPT,
    as_stored,
    tables_of,
)
from markupsafe import Markup
from sklearn.metrics import precision_recall_curve, roc_curve

from atlas_jax.bundled import SUBJECT
from atlas_jax.experiments._domains import ALL
from atlas_jax.models import Tokenizer
from atlas_jax.report import _stored, table_csv, table_html, table_latex
from atlas_jax.report._figures import CURVE_POINTS, detection_curves, singular_values
from atlas_jax.report._svg import Axis, Point, bars, heatmap, lines
from atlas_jax.report._text import embedded
from atlas_jax.report._tokens import pieces
from atlas_jax.table import Column, Marked, Table, clean

# The pieces.


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a\x00b\x1b[1m", "ab[1m"),
        ("\u202edog\u202c", "dog"),
        ("\u2067x\u2069\u200e\u200f\u061c", "x"),
        ("half \ud83d pair", "half \ufffd pair"),
        ("line\n\ttab", "line\n\ttab"),
        ("שלום 👩‍🚀 é", "שלום 👩‍🚀 é"),
    ],
)
def test_marks_and_control_characters_are_removed_and_words_are_not(text, left):
    assert clean(text) == left


@pytest.mark.parametrize("value", [SCRIPT, "<!--<script>", "a\u2028b\u2029", "]]>&amp;", {"</script>": [SCRIPT]}])
def test_embedded_json_is_the_value_and_ends_nothing(value):
    text = embedded(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value
    assert json.loads(embedded([float("nan"), float("inf"), 1.5])) == [None, None, 1.5]


TABLE = Table(
    HOSTILE,
    (Column("site", group=True), Column("label", group=True), Column("AP", ".2f"), Column("n", "d")),
    [
        ("z.1", "50% & $x_1$ {~^\\}", (0.312345, 0.25, 0.4), 3),
        ("z.1", "50% & $x_1$ {~^\\}", 0.5, None),
        ("z.2", Marked(SCRIPT, "a ", " b"), None, 12345),
    ],
    best=frozenset({1}),
)


def test_csv_has_all_digits_and_intervals_in_columns():
    header, *rows = csv.reader(io.StringIO(table_csv(TABLE)))
    assert header == ["site", "label", "AP", "AP low", "AP high", "n"]
    assert rows[0][2:] == ["0.312345", "0.25", "0.4", "3"]
    assert rows[1] == ["z.1", "50% & $x_1$ {~^\\}", "0.5", "", "", ""]
    assert rows[2] == ["z.2", f"a {SCRIPT} b", "", "", "", "12345"]


def test_latex_escapes_what_latex_would_take_for_commands():
    lines_ = table_latex(TABLE).splitlines()
    assert lines_[:2] == [r"\begin{tabular}{llrr}", r"\toprule"]
    escaped = r"50\% \& \$x\_1\$ \{\textasciitilde{}\textasciicircum{}\textbackslash{}\}"
    assert lines_[4] == rf"z.1 & {escaped} & 0.31 [0.25, 0.40] & 3 \\"
    assert lines_[5] == r" &  & \textbf{0.50} &  \\"
    assert r"a \textbf{</script>" in lines_[6]


def test_html_escapes_marks_and_groups():
    page = table_html(TABLE)
    assert "<script" not in page
    assert not FORBIDDEN.search(page)
    assert page.count("50% &amp; $x_1$") == 1
    assert "<mark>&lt;/script&gt;" in page
    assert '<tr class="best">' in page
    assert page.count('<th scope="row"') == 2


@pytest.mark.parametrize(
    "plot",
    [
        lambda: lines({HOSTILE: [Point(1, 2)], "b": [Point(2, 3)]}, HOSTILE, HOSTILE, title=HOSTILE),
        lambda: heatmap([HOSTILE], [HOSTILE], {(0, 0): Point(0, 0.5, 0.4, 0.6)}, title=HOSTILE),
        lambda: bars({HOSTILE: Point(0, 0.5, 0.4, 0.6)}, title=HOSTILE),
    ],
)
def test_plots_escape_names(plot):
    page = plot()
    assert isinstance(page, Markup)
    assert "<script" not in page
    assert "<img" not in page
    assert not FORBIDDEN.search(page)


@pytest.mark.parametrize(
    "points",
    [[], [Point(1, float("nan"))], [Point(1, 1.0)], [Point(0, 0.0), Point(0, 0.0)], [Point(1, float("inf"), 0, 1)]],
)
@pytest.mark.parametrize("log", [False, True])
def test_plots_of_little_or_nothing_are_drawn(points, log):
    page = lines({"a": points}, "x", "y", title="t", log_x=log, log_y=log)
    assert "nan" not in page
    assert "inf" not in page


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0.0, 1.0, False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.5, 0.75, False, [-0.5, 0.0, 0.5]),
        (100, 400, True, [100, 200]),
        (1, 1000, True, [1, 10, 100, 1000]),
    ],
)
def test_ticks_are_round(low, high, log, ticks):
    assert Axis("", low, high, log, 0, 1).ticks() == pytest.approx(ticks)


def test_curves_are_those_of_scikit_learn(rng):
    scores, positive = np.round(rng.standard_normal(60), 1), rng.random(60) < 0.3
    precision, roc = detection_curves(scores, positive)
    p, r, _ = precision_recall_curve(positive, scores)
    of = {(round(a, 9), round(b, 9)) for a, b in zip(r, p, strict=True)}
    assert {(round(q.x, 9), round(q.y, 9)) for q in precision[1:]} <= of
    f, t, _ = roc_curve(positive, scores, drop_intermediate=False)
    assert {(round(q.x, 9), round(q.y, 9)) for q in roc} <= {
        (round(a, 9), round(b, 9)) for a, b in zip(f, t, strict=True)
    }
    assert roc[0][:2] == (0, 0)
    assert roc[-1][:2] == (1, 1)
    assert precision[-1].x == 1


def test_long_curves_are_thinned_along_their_length(rng):
    precision, roc = detection_curves(rng.standard_normal(5000), rng.random(5000) < 0.3)
    steps = np.abs(np.diff([q[:2] for q in roc], axis=0)).sum(axis=1)
    assert len(roc) <= CURVE_POINTS + 2
    assert steps.max() < 3 * 2 / CURVE_POINTS
    assert precision[-1].x == 1


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (7, 7)])
def test_the_spectrum_is_that_of_a_svd(rng, shape):
    matrix = rng.standard_normal(shape)
    exact = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(singular_values(matrix), exact / exact[0], atol=1e-7)
    assert singular_values(np.zeros(shape)).max() == 0


@pytest.mark.parametrize("text", ["The font family", "naïve 👩‍🚀 שלום\n  end", " x y", HOSTILE])
def test_pieces_of_a_text_are_the_text(text):
    tokenizer = Tokenizer.load(SUBJECT)
    places = range(1, len(tokenizer.spans([text])[0]))
    cut = pieces(tokenizer, text, places)
    assert "".join(cut) == text
    assert [len(pieces(tokenizer, text, places[:1])), "".join(pieces(tokenizer, text, places[:1]))] == [2, text]
    assert cut[0] == text[: tokenizer.span(text, 1)[1]]


# Tables that a run has stored.


@pytest.mark.parametrize("name", RECORDS)
def test_stored_tables_are_read_back(name):
    record, back = RECORDS[name], getattr(_stored, name)(as_stored(RECORDS[name]))
    assert as_stored(back) == as_stored(record)
    if name not in ("domains", "coverage"):  # the order of domains is not stored
        assert [list(t.texts()) for t in tables_of(back)] == [list(t.texts()) for t in tables_of(record)]
    if name == "domains":
        assert list(back.domains) == ["a", "b", ALL]


def test_a_table_of_another_experiment_is_shown_as_it_is():
    rows = [{"site": "z.1", "ap": INTERVAL._asdict(), "features": [1, 2], "ok": True}, {"site": "z.2", "more": None}]
    table = _stored.rows_of("heads", {"rows": rows, "caption": "said"})
    assert list(table.texts())[0] == ["z.1", "0.500 [0.400, 0.600]", "1, 2", "yes", ""]
    nested = _stored.rows_of("tokens", {"rows": [{"rows": "paired", "tokens": {"ap": INTERVAL._asdict()}}]})
    assert nested.to_dict()["columns"] == ["rows", "tokens ap"]
    assert nested.rows[0][1] == INTERVAL[:3]
    assert (table.title, table.caption) == ("heads", "said")
    assert [_stored.rows_of("x", d) for d in ({}, [], {"rows": []}, {"rows": [1]})] == [None] * 4
