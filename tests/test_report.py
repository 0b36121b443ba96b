"""The page of a run: what is in it, hostile text, bad input, and a real browser."""

import csv
import dataclasses
import io
import json
import re
import shutil

import pytest
from helpers.browser import MISSING, chromium, find, look, shown_in, until
from helpers.report_records import (
    FORBIDDEN,
    HOSTILE,
    RECORDS,
    SCRIPT,
    SETTINGS,
    as_stored,
)
from typer.testing import CliRunner

from atlas_jax import Alignment
from atlas_jax.cli._app import app
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import (
    Cell,
)
from atlas_jax.experiments._steering_texts import Row
from atlas_jax.labels import Label, Labels
from atlas_jax.report import _concepts, _figures, write_report
from atlas_jax.report._content import Hint, Source, sections, steered_texts
from atlas_jax.table import Table, clean

# The page.


@pytest.fixture(scope="module")
def run(bundled_run, tmp_path_factory):
    """A copy of the bundled run, with the tables that a quickstart does not make, of this run or another."""
    directory = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(bundled_run, directory)
    return directory


@pytest.fixture(scope="module")
def alignment(run):
    return Alignment.load(run, verify=False)


@pytest.fixture(scope="module")
def page(run, alignment):
    return write_report(run, curves=3, alignment=alignment).path


def data_of(page, name="data"):
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', page.read_text(), re.S)[1])


def test_the_quickstart_writes_a_page(bundled_run):
    page = bundled_run / "report.html"
    assert page.stat().st_size < 5e6
    assert "src=" not in page.read_text()
    assert "Precision-recall and ROC curves are not drawn here." in page.read_text()


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(page):
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert len(re.findall("<script", text)) == 3
    assert not re.search(r"(src|href)=\"?(https?:|//)", text)
    assert " style=" not in text
    assert not re.search(r" on\w+=", re.sub(r"<script.*?</script>", "", text, flags=re.S))


def test_numbers_of_the_page_are_those_of_the_run(run, page):
    quality = json.loads((run / "tables/quality.json").read_text())["rows"]
    copies = [t["csv"] for t in data_of(page, "tables")]
    table = next(c for c in copies if c.startswith("site,method,AUROC,AUROC low"))
    rows = list(csv.reader(io.StringIO(table)))[1:]
    assert [(r[0], r[1], float(r[5])) for r in rows] == [(q["site"], q["method"], q["ap"]["mean"]) for q in quality]
    for row in quality:
        assert f"{row['ap']['mean']:.3f}</text>" in page.read_text()


def test_concepts_of_the_page_are_those_of_the_alignment(page, alignment):
    data = data_of(page)
    t = alignment.translation(data["sites"][0], data["method"])
    feature, label, rate, similar = next(row for row in data["atlas"] if row[0] == 39)
    assert (label, rate) == (alignment.atlas.labels[39], pytest.approx(float(alignment.rate[39]), abs=1e-5))
    ranked = t.top_features(alignment.atlas.query([39]), 3)
    assert [f for f, _ in similar[0]] == ranked.features.tolist()
    assert [s for _, s in similar[0]] == pytest.approx(ranked.scores.tolist(), abs=1e-3)
    first = str(similar[0][0][0])
    named = t.name_feature(int(first), 5)
    assert [f for f, _ in data["subject"][data["sites"][0]][first]["names"]] == named.features.tolist()


def test_sentences_are_cut_and_coloured_at_the_peak(page, alignment):
    data = data_of(page)
    site, tokenizer = alignment.subject.sites[0], alignment.subject.model.tokenizer
    top = alignment.strongest(site)
    for feature, own in list(data["subject"][str(site)].items())[:20]:
        for j, (sentence, activation, levels, peak) in enumerate(own["peaks"]):
            text = alignment.corpus.sentence(int(top.index[int(feature), j]))
            cut = data["sentences"][sentence]
            assert "".join(cut) == clean(text)
            assert activation == pytest.approx(float(top.values[int(feature), j]), abs=1e-3)
            start, end = tokenizer.span(text, int(top.position[int(feature), j]))
            assert cut[peak].strip() == clean(text[start:end]).strip()
            assert levels[peak] == max(levels)
        assert own["peaks"][0][2][own["peaks"][0][3]] == "9"


def test_steered_texts_are_those_of_the_run(run, page):
    stored, shown = json.loads((run / "tables/concepts.json").read_text())[0], data_of(page)["steered"][0]
    assert [("".join(r[2]), r[1]) for r in shown["rows"]] == [
        (clean(s["text"]), s["strength"]) for s in stored["steered"]
    ]
    assert [f for f, _ in shown["features"]] == [f["index"] for f in stored["atlas_features"]]
    assert max(max(r[3]) for r in shown["rows"]) in ("9", "0")


@pytest.fixture(scope="module")
def hostile(run, alignment, tmp_path_factory):
    """The page of a run whose sentences, labels, concept and continuations are hostile."""
    directory = tmp_path_factory.mktemp("hostile") / f"run {SCRIPT.replace('/', '')[:40]}"
    shutil.copytree(run, directory)
    concepts = json.loads((directory / "tables/concepts.json").read_text())
    concepts[0]["text"] = HOSTILE
    for steered in concepts[0]["steered"]:
        steered |= {"text": HOSTILE + steered["text"], "prompt": HOSTILE}
    (directory / "tables/concepts.json").write_text(json.dumps(concepts))
    atlas, corpus = alignment.atlas, alignment.corpus
    labels = Labels.from_rows([Label(i, f"{HOSTILE} {i}") for i in range(atlas.width)], atlas.width)
    turned = dataclasses.replace(
        alignment,
        atlas=dataclasses.replace(atlas, labels=labels),
        corpus=dataclasses.replace(corpus, eval=[f"{HOSTILE} {text}" for text in corpus.eval]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_concepts, "ATLAS_FEATURES", 200)
        return write_report(directory, alignment=turned, curves=3).path


def test_hostile_text_is_text(hostile):
    text = hostile.read_text()
    assert not FORBIDDEN.search(text)
    assert len(re.findall("<script", text)) == 3
    assert "<img" not in text
    assert "<!--" not in text
    assert SCRIPT in data_of(hostile)["atlas"][0][1]


# What is measured later.


@pytest.mark.parametrize(
    ("name", "titles", "tables"),
    [
        ("curve", ["AP at z.1 by number of fit sentences"], ["Translation quality by number of fit sentences"]),
        ("layers", ["AP at z by layer"], ["Translation quality by layer"]),
        ("domains", ["AP at z.1 by ridge: fit domain by test domain"], ["AP across domains at z.1 by ridge"]),
        ("retrieval", ["MRR by site and method", "MPP by site and method"], ["Semantic retrieval"]),
        ("causality", ["Expression of the concept at z.1 by condition"], ["Causality of steering at z.1 by ridge"]),
    ],
)
def test_what_is_measured_later_is_on_the_page(run, alignment, tmp_path, monkeypatch, name, titles, tables):
    monkeypatch.setattr(_figures, "SVD_WIDEST", 0)
    parts = lambda: [p for s in sections(Source.read(copy, None, alignment), paper=False, curves=0) for p in s.parts]
    shutil.copytree(run, copy := tmp_path / "run")
    assert f"atlas-jax evaluate {name} {copy}" in {p.command for p in parts() if isinstance(p, Hint)}
    (copy / "tables" / f"{name}.json").write_text(json.dumps(as_stored(RECORDS[name])))
    shown = {p.title for p in parts() if not isinstance(p, Hint | str)}
    assert shown >= {*titles, *tables}
    assert f"atlas-jax evaluate {name} {copy}" not in {p.command for p in parts() if isinstance(p, Hint)}


def test_steering_is_on_the_page_with_its_doses(run, alignment, tmp_path, monkeypatch):
    monkeypatch.setattr(_figures, "SVD_WIDEST", 0)
    shutil.copytree(run, copy := tmp_path / "run")
    (copy / "steering").mkdir()
    (copy / "steering/table-proxy.json").write_text(json.dumps(as_stored(RECORDS["evaluation"])))
    (copy / "steering/settings.json").write_text(json.dumps(SETTINGS.to_dict() | {"run": {}}))
    cells = [(None, "unsteered", "", 0.0, 0.0), ("dogs", "ridge", "z.1+z.2", 0.5, 2.5), (None, "native", "", 0.0, 1.0)]
    rows = [Row(Cell(*c[:4]), "I", 0, f" saw {c[1]}", [1], {"dogs": c[4]}, 9.0).to_dict() for c in cells]
    (copy / "steering/generations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = Source.read(copy, None, alignment)
    (section,) = [s for s in sections(source, paper=False, curves=0) if s.id == "steering"]
    dose = next(p for p in section.parts if isinstance(p, _figures.Figure))
    assert dose.title == "Concept in the text by strength at z.1+z.2"
    assert dose.table.rows == [("ridge", 0.0, 0.0), ("ridge", 0.5, 2.5)]
    assert "Steering (Table 5)" in {p.title for p in section.parts if isinstance(p, Table)}
    assert "ridge at z.1+z.2" in {t.where for t in steered_texts(source)}


# Bad input.


def damaged_rate(run):
    (run / "rate.npy").write_text("no array")


def without_top(run):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"top": False}))


def older(run):
    """A run of version 0.1: other names in certificates, no coverage, no fingerprints."""
    record = json.loads((run / "run.json").read_text())
    del record["fingerprints"], record["dtype"]
    (run / "run.json").write_text(json.dumps(record))
    (run / "tables/coverage.json").unlink()
    for path in run.glob("translations/*/procrustes/translation.json"):
        path.write_text(path.read_text().replace("within_tolerance", "accepted"))


def moved(run):
    record = json.loads((run / "run.json").read_text())
    record["sources"]["subject"]["path"] = "/nowhere/model"
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("quality", "{"),
        ("whitened", '{"chosen": [{}]}'),
        ("concepts", '[{"text": 1}]'),
        ("curve", "[]"),
        ("layers", '{"rows": [{"site": "nowhere.1"}]}'),
        ("coverage", '{"sentences": 3}'),
    ],
)
def test_a_damaged_table_is_named_in_its_place(run, alignment, tmp_path, monkeypatch, name, content):
    monkeypatch.setattr(_figures, "SVD_WIDEST", 0)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/tables" / f"{name}.json").write_text(content)
    source = Source.read(tmp_path / "run", None, alignment)
    told = [part for section in sections(source, paper=False, curves=0) for part in section.parts]
    sentences = [part for part in told if isinstance(part, str) and "is damaged (" in part]
    assert len(sentences) == len(set(sentences)) == len(source.faults) == 1
    assert sentences[0].startswith(f"'{tmp_path}/run/tables/{name}.json' is damaged")
    assert sentences[0].endswith("; delete it, or make it again by the command that wrote it.")


@pytest.mark.parametrize(
    ("change", "said", "searched"),
    [
        (damaged_rate, r"rate\.npy&#39; is damaged", False),
        (moved, "models of this run could not be loaded: .*/nowhere/model", False),
        (without_top, "saved without the strongest held-out sentences", True),
        (older, 'id="coverage"', True),
    ],
)
def test_a_run_that_lacks_something_has_a_page_that_says_so(run, tmp_path, change, said, searched):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    change(copy)
    written = write_report(copy, curves=0)
    text = written.path.read_text()
    assert re.search(said, text)
    assert ('id="data"' in text) == searched == (not written.faults)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-run"], "'no-run' is not a run"),
        (["RUN", "--method", "magic"], "this run has no translation of mlp_act.1 by magic; it has mlp_act.1, "),
        (
            ["RUN", "-o", "there.html"],
            "'there.html' exists already; choose another name, or replace it with --overwrite",
        ),
        (["RUN", "-o", "."], "'.' is a directory"),
    ],
)
def test_mistakes_end_in_one_sentence(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    done = CliRunner().invoke(app, ["report", *(str(run) if a == "RUN" else a for a in arguments)])
    assert isinstance(done.exception, AtlasError), done.output
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert (tmp_path / "there.html").read_text() == "mine"


def test_the_command_writes_where_it_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr(_concepts, "ATLAS_FEATURES", 200)
    (tmp_path / "page.html").write_text("old")
    options = [
        "-o",
        str(tmp_path / "page.html"),
        "--overwrite",
        "--json",
        "--method",
        "ridge",
        "--paper",
        "--curves",
        "0",
    ]
    done = CliRunner().invoke(app, ["report", str(run), *[o if o != "ridge" else "covariance" for o in options]])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bytes"] == (tmp_path / "page.html").stat().st_size
    assert data_of(tmp_path / "page.html")["method"] == "covariance"
    assert "the paper has no figures of these layers and methods" in (tmp_path / "page.html").read_text()


# A browser. Tests that ask for one are skipped where there is none.


@pytest.fixture(scope="module")
def browser():
    if MISSING:
        pytest.skip(f"{' and '.join(MISSING)} not installed")
    with chromium() as driver:
        yield driver


def titled(driver, start):
    """Wait until the page shows what it was asked for."""
    until(lambda: "".join(shown_in(driver, "#found h3")).startswith(start))


def test_a_query_finds_a_feature_and_its_sentences(browser, page, alignment):
    look(browser, page)
    (box,) = find(browser, "#query")
    box.send_keys("attention")
    until(lambda: shown_in(browser, "#results a bdi")[:1] == [alignment.atlas.labels[39]])
    box.send_keys("\ue007")  # Enter
    titled(browser, "Atlas feature 39: attention")
    assert browser.current_url.endswith("#atlas-39")
    assert shown_in(browser, "#found h4")[:3] == [str(s) for s in alignment.subject.sites]
    assert all(shown_in(browser, "#found .sentence mark"))
    assert len(find(browser, "#found .sentence")) >= 9
    assert browser.get_log("browser") == []


def test_subject_features_are_named_and_links_lead_back(browser, page, alignment):
    look(browser, page)
    (box,) = find(browser, "#query")
    box.send_keys("mlp_act.1:237")
    until(lambda: shown_in(browser, "#results a bdi")[:1] == ["mlp_act.1:237"])
    find(browser, "#results a")[0].click()
    titled(browser, "Subject feature 237 at mlp_act.1")
    first = find(browser, "#found li a")[0]
    feature = first.text.split()[0]
    first.click()
    titled(browser, f"Atlas feature {feature}")
    browser.back()
    titled(browser, "Subject feature 237 at mlp_act.1")
    look(browser, f"{page.as_uri()}#steered-0")
    titled(browser, "Steered along file")
    assert shown_in(browser, "#found .dose strong")[0] == "baseline"
    for bad in ("atlas-99999", "subject-x:1", "steered-99", "atlas-%"):
        look(browser, f"{page.as_uri()}#{bad}")
    assert browser.get_log("browser") == []


def test_the_keyboard_is_enough(browser, page):
    look(browser, page)
    (box,) = find(browser, "#query")
    active = lambda: browser.switch_to.active_element
    focused = lambda: browser.execute_script("return document.activeElement.localName")
    box.send_keys("file", "\ue015")  # down
    until(lambda: focused() == "a")
    active().send_keys("\ue015")
    active().send_keys("\ue013")  # up
    active().send_keys("\ue007")
    until(lambda: focused() == "h3")
    box.clear()
    box.send_keys("zzzzzz")
    until(lambda: shown_in(browser, "#status")[0].startswith("Nothing matches"))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser, page, width, dark):
    look(browser, f"{page.as_uri()}#atlas-39", width=width, dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    ink, paper = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    brightness = lambda colour: sum(map(int, re.findall(r"\d+", colour)[:3]))
    assert (brightness(ink) > brightness(paper)) == dark
    assert browser.get_log("browser") == []


def test_tables_are_copied(browser, page):
    look(browser, page)
    browser.execute_script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    button = next(b for b in find(browser, "#quality > .table button") if b.text == "Copy LaTeX")
    button.click()
    until(lambda: browser.execute_script("return window.copied"))
    assert browser.execute_script("return window.copied").startswith("\\begin{tabular}{llrr}")


def test_it_prints(browser, page):
    import base64

    look(browser, page)
    assert base64.b64decode(browser.print_page()).startswith(b"%PDF")


def test_hostile_text_does_nothing_in_a_browser(browser, hostile):
    look(browser, hostile)
    for place in ("#atlas-39", "#steered-0", "#subject-mlp_act.1:237"):
        browser.execute_script("location.hash = arguments[0]", place)
        until(lambda place=place: browser.current_url.endswith(place))
    look(browser, f"{hostile.as_uri()}#atlas-39")
    titled(browser, "Atlas feature 39")
    assert browser.title != "owned"
    assert SCRIPT in shown_in(browser, "#found h3")[0]
    assert find(browser, "img") == []
    assert browser.get_log("browser") == []
