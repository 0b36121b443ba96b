"""The commands that use a run: what it holds, concepts in every way they can be given, and features by name."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from atlas_jax.bundled import SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.cli._options import weights
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import choose_features
from atlas_jax.experiments._dose import DIRECTIONS, GRID, SENTENCES, _crossing
from atlas_jax.models import LanguageModel, run
from atlas_jax.pipeline import Alignment
from atlas_jax.steering import Steer
from atlas_jax.types import Site

SITE = "resid_post.2"
TEXT = "The size of the font is a number."
PROMPTS = ["--prompt", "This function", "--max-new-tokens", "4"]


@pytest.fixture(scope="module")
def alignment(bundled_run):
    return Alignment.load(bundled_run)


@pytest.fixture
def command(alignment, bundled_run, monkeypatch):
    """A command on the run, whose models are not loaded anew; what it printed as JSON, or the whole of it."""
    monkeypatch.setattr(Alignment, "load", lambda directory: alignment)

    def run(name, *arguments, refused=False, as_json=True):
        done = CliRunner().invoke(app, [name, str(bundled_run), *arguments, *(["--json"] if as_json else [])])
        if refused:
            assert isinstance(done.exception, AtlasError), done.output  # main() ends with it and 2: test_mistakes
            return str(done.exception)
        assert done.exit_code == 0, done.output
        if not as_json:
            return " ".join(done.output.replace("│", " ").split())
        return json.loads(done.stdout)

    return run


def _query(alignment, found):
    """The concept query of a command's answer."""
    pairs = [(f["index"], f["weight"]) for f in found["atlas_features"]]
    return alignment.atlas.query([i for i, _ in pairs], [w for _, w in pairs])


def _recommended(alignment, use, site=SITE):
    return alignment.translation(site, *alignment.recommended(use))


def test_info_tells_what_the_run_holds(command, alignment):
    found = command("info")
    assert found["facts"]["sites"] == [str(s) for s in alignment.settings.sites]
    assert found["facts"]["methods"] == [*alignment.settings.methods, "whitened_detect"]
    assert found["facts"]["fit sentences"] == len(alignment.corpus.fit)
    rows = {(r["site"], r["method"]): r for r in found["translations"]}
    assert len(rows) == 24
    for site in ("mlp_act.1", SITE):
        assert rows[site, "covariance:mean"]["pooling"] == "mean"
        assert rows[site, "covariance"]["pooling"] == "max"
        assert rows[site, "covariance"]["strength"] == alignment.strengths[Site.parse(site)] > 0
        t = alignment.translation(site, "procrustes")
        row = rows[site, "procrustes"]
        assert (row["subject features"], row["atlas features"]) == (t.d_s, t.d_c)
        assert row["token norm"] == t.token_norm > 0
    assert SITE in command("info", as_json=False)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["17"], {17: 1.0}),
        (["17:0.5", "40:-1"], {17: 0.5, 40: -1.0}),
        (["3:1e-2", "3:0.01"], {3: 0.01}),
    ],
)
def test_features_have_weights(command, alignment, texts, expected):
    assert weights(texts) == expected
    found = command("identify", "--site", SITE, *(a for t in texts for a in ("--feature", t)))
    assert {f["index"]: f["weight"] for f in found["atlas_features"]} == expected
    best = _recommended(alignment, "identify").top_features(_query(alignment, found), 5)
    assert [i["feature"] for i in found["identified"]] == np.asarray(best.features).tolist()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("17:nan", "--feature '17:nan': the weight must be a finite number"),
        ("17:-inf", "--feature '17:-inf': the weight must be a finite number"),
        ("a:1", "is not ID or ID:WEIGHT"),
        ("17:", "is not ID or ID:WEIGHT"),
        ("1.5", "is not ID or ID:WEIGHT"),
        ("17:1:2", "is not ID or ID:WEIGHT"),
        ("99999:1", "atlas feature 99999 does not exist"),
        ("-1:1", "atlas feature -1 does not exist"),
    ],
)
def test_features_that_make_no_sense_are_refused(command, text, sentence):
    assert sentence in command("identify", "--site", SITE, f"--feature={text}", refused=True)


def test_a_feature_with_two_weights_is_refused():
    with pytest.raises(AtlasError, match="17 was given with two weights, 0.5 and 1"):
        weights(["17:0.5", "17"])


def test_texts_make_a_query(command, alignment):
    like, unlike = ["Return the sum of the array.", "Returns a sum."], ["Dates and times."]
    found = command("identify", "--site", SITE, *_options("--like", like), *_options("--unlike", unlike))
    atlas, t = alignment.atlas, _recommended(alignment, "retrieve")
    query = atlas.query_from(like) - atlas.query_from(unlike)
    best = t.top_features(query, 5)
    assert [i["feature"] for i in found["identified"]] == np.asarray(best.features).tolist()
    near = command("identify", "--site", SITE, *_options("--like", like))
    best = t.top_features(atlas.query_from(like, mean=t.mean_atlas), 5)
    assert [i["feature"] for i in near["identified"]] == np.asarray(best.features).tolist()
    assert near["identified"] != found["identified"]


def _options(name, texts):
    return [a for text in texts for a in (name, text)]


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--concept", "font", "--feature", "17"],
        ["--like", "a text", "--concept", "font"],
        ["--unlike", "a text"],
        ["--unlike", "a text", "--feature", "17"],
    ],
)
@pytest.mark.parametrize("name", ["identify", "steer", "inspect"])
def test_the_concept_is_given_in_one_way(command, name, given):
    more = {"identify": ["--site", SITE], "steer": ["--site", SITE, *PROMPTS], "inspect": ["--text", TEXT]}[name]
    assert "give the concept in one way" in command(name, *more, *given, refused=True)


def test_a_concept_shows_the_atlas_features_it_became(command):
    found = command("identify", "--site", SITE, "--concept", "font")
    assert any("font" in f["label"] for f in found["atlas_features"])
    said = command("identify", "--site", SITE, "--concept", "font", as_json=False)
    assert all(f["label"].split(",")[0] in said for f in found["atlas_features"])


def test_a_concept_that_no_label_names_is_warned_of(command):
    said = command("identify", "--site", SITE, "--concept", "dog", as_json=False)
    assert "no label of the features found has a word of 'dog'" in said


def test_inspect_shows_the_concept_at_every_token(command, alignment):
    found = command("inspect", "--text", TEXT, "--feature", "39:2", "--feature", "17:-1", "--site", SITE)
    atlas, subject = found["atlas"], found["subject"]
    values = np.asarray(atlas["values"])
    assert values.shape == (len(atlas["tokens"]), 2)
    peaks = np.asarray(alignment.atlas.activations(TEXT))[0]
    np.testing.assert_allclose(values.max(0), peaks[[39, 17]], atol=1e-4)
    t, (acts,) = _recommended(alignment, "detect"), run_at(alignment.subject.model).values()
    along = (
        np.asarray(t.direction(alignment.atlas.query([39, 17], [2.0, -1.0]))) / t.token_norm**2
    )  # projections are in token norms
    np.testing.assert_allclose(np.asarray(subject["values"])[:, 0], np.asarray(acts)[0, 1:] @ along, atol=1e-4)
    assert found["sites"] == [SITE]
    assert "".join(subject["tokens"]) == TEXT


def run_at(model):
    """The subject's residual stream on the text, BOS first."""
    return run(model, model.tokenize(TEXT), capture=[SITE], logits=False).acts


def test_strength_is_in_token_norms_and_raw_strength_is_not(command, alignment):
    t = _recommended(alignment, "steer")
    norm = command("steer", "--site", SITE, "--feature", "39", *PROMPTS, "--strength", "0.5")
    assert norm["unit"] == "norm"
    assert [(s["along"], s["strength"]) for s in norm["steered"]] == [("concept", 0), ("concept", 0.5), ("random", 0.5)]
    assert len({s["text"] for s in norm["steered"]}) == 3
    query = alignment.atlas.query([39])
    length = float(np.linalg.norm(t.similarity(query)))
    np.testing.assert_allclose(np.linalg.norm(t.direction(query)), t.token_norm, rtol=1e-5)
    raw = command(
        "steer", "--site", SITE, "--feature", "39", *PROMPTS, "--raw-strength", str(0.5 * t.token_norm / length)
    )
    assert raw["unit"] == "raw"
    assert [s["text"] for s in raw["steered"]] == [s["text"] for s in norm["steered"]]
    assert all(s["perplexity"] > 1 for s in norm["steered"])
    both = ["--strength", "1", "--raw-strength", "1"]
    assert "not both" in command("steer", "--site", SITE, "--feature", "39", *PROMPTS, *both, refused=True)


def test_each_use_has_the_translation_recommended_for_it(command, alignment):
    assert alignment.recommended("steer") == ("covariance", "mean")
    asked = {
        "identify": (["--feature", "39"], "correlation (max pooling)"),
        "name": (["--feature", "3"], "correlation (max pooling)"),
        "steer": (["--feature", "39", *PROMPTS, "--strength", "0.5"], "covariance (mean pooling)"),
    }
    for name, (options, described) in asked.items():
        assert f"by {described}" in command(name, "--site", SITE, *options, as_json=False)
        said = command(name, "--site", SITE, *options, "--method", "procrustes", as_json=False)
        assert "by procrustes (max pooling)" in said
    said = command("identify", "--site", SITE, "--feature", "39", "--method", "covariance:mean", as_json=False)
    assert "by covariance (mean pooling)" in said
    said = command("identify", "--site", SITE, "--feature", "1", "--method", "procrustes:mean", refused=True)
    assert "by procrustes with mean pooling; it has mlp_act.1" in said
    assert said.endswith("covariance:mean")


def test_strengths_that_are_not_given_are_those_of_the_run(command, alignment, monkeypatch):
    options = ["--feature", "39", *PROMPTS]
    most = alignment.strengths[Site.parse(SITE)]
    found = command("steer", "--site", SITE, *options)
    assert [s["strength"] for s in found["steered"]] == [0, most / 2, most, most]
    said = command("steer", "--site", SITE, *options, as_json=False)
    assert f"strengths {most / 2:g} and {most:g}: up to {most:g} token norms at {SITE} the perplexity of" in said
    both = command("steer", "--site", SITE, "--site", "mlp_act.2", *options)
    assert 0 < max(s["strength"] for s in both["steered"]) < most
    unknown = dataclasses.replace(alignment, strengths={}, rate=np.zeros_like(alignment.rate))
    monkeypatch.setattr(Alignment, "load", lambda directory: unknown)
    found = command("steer", "--site", SITE, *options)
    assert [s["strength"] for s in found["steered"]] == [0, 0.25, 0.5, 0.5]
    said = command("steer", "--site", SITE, *options, as_json=False)
    assert "none could be found for this run: no atlas feature fires" in said


@pytest.mark.parametrize(
    ("nats", "strength"),
    [
        (np.log(2) * np.array(GRID), 1.0),
        (np.log(2) * np.array(GRID) / 0.7654, 0.76),
        (np.log(2) * (np.array(GRID) / 0.7654) ** 2.5, 0.76),
        (np.log(2) * (np.array(GRID) * 32) ** 2, 0.031),
        (0.1 * np.array(GRID), 4.0),
        (np.where(np.array(GRID) > 0.5, np.nan, 0.1), 0.5),
        (np.where(np.array(GRID) > 0.5, np.inf, 0.1), 0.5),
    ],
)
def test_a_strength_is_where_the_cost_first_reaches_the_limit(nats, strength):
    assert _crossing(nats, np.log(2)) == pytest.approx(strength)


def test_at_the_suggested_strength_neutral_text_is_twice_as_perplexing(alignment):
    """Against sentences read one after the other, along the directions of the same features."""
    model, t, most = alignment.subject.model, _recommended(alignment, "steer"), alignment.strengths[Site.parse(SITE)]
    features = choose_features(alignment.rate, count=DIRECTIONS, band=(0.005, 0.2), seed=0)
    texts = [alignment.corpus.fit[i] for i in np.linspace(0, len(alignment.corpus.fit) - 1, SENTENCES).astype(int)]
    tokens = model.tokenize(texts, length=64, max_length=64)
    counted = np.asarray(tokens.attention_mask)[:, 1:]

    def nats(edits):
        log = np.asarray(jax.nn.log_softmax(run(model, tokens, edits=edits).logits[:, :-1]), np.float64)
        return -np.take_along_axis(log, np.asarray(tokens.ids)[:, 1:, None], -1)[..., 0][counted].mean()

    along = [t.direction(alignment.atlas.query([int(f)])) for f in features]
    times = lambda strength: np.exp(np.mean([nats({SITE: Steer(v, strength)}) for v in along]) - nats({}))
    assert 1.7 < times(most) < 2.05
    assert times(1.25 * most) > 2.05


def test_prompts_come_from_a_file(command, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffThis function\r\n\r\nA file\r\n".encode())
    options = ["--site", SITE, "--feature", "39", "--max-new-tokens", "4", "--strength", "0.5"]
    found = command("steer", *options, "--prompts", str(file), "--prompt", "We")
    assert list(dict.fromkeys(s["prompt"] for s in found["steered"])) == ["We", "This function", "A file"]
    for content, sentence in (
        (b"\n \n", "has no prompt"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
        (None, "cannot be"),
    ):
        file.unlink() if content is None else file.write_bytes(content)
        assert sentence in command("steer", *options, "--prompts", str(file), refused=True)
    assert "there is no prompt" in command("steer", *options, refused=True)


def test_chat_needs_a_template_and_uses_it(command, alignment, monkeypatch):
    options = ["--site", SITE, "--feature", "39", *PROMPTS, "--chat"]
    assert "chat template" in command("steer", *options, refused=True)
    asked = []
    ids = alignment.subject.model.tokenizer.encode(["This function"])[0]
    monkeypatch.setattr(LanguageModel, "chat", lambda self, messages: asked.append(messages) or ids)
    found = command("steer", *options)
    assert asked == [[{"role": "user", "content": "This function"}]]
    assert found["steered"][0]["prompt"] == "This function"


def test_all_features_are_named_into_a_file(command, alignment, tmp_path):
    file, t = tmp_path / "names.jsonl", _recommended(alignment, "identify", "mlp_act.1")
    command("name", "--site", "mlp_act.1", "--all", "--out", str(file), as_json=False)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [r["feature"] for r in rows] == list(range(t.d_s))
    for feature in (0, 3, t.d_s - 1):
        one = command("name", "--site", "mlp_act.1", "--feature", str(feature))
        assert [(h["index"], h["label"]) for h in one] == [
            (h["index"], h["label"]) for h in rows[feature]["atlas_features"]
        ]
    before = file.read_bytes()
    assert "already" in command("name", "--site", "mlp_act.1", "--all", "--out", str(file), refused=True)
    assert file.read_bytes() == before
    command("name", "--site", "mlp_act.1", "--all", "--out", str(file), "--overwrite", as_json=False)
    assert file.read_bytes() == before


@pytest.mark.parametrize("given", [[], ["--all"], ["--feature", "1", "--all"], ["--feature", "1", "--out", "x"]])
def test_name_needs_one_feature_or_all_with_a_file(command, given):
    assert "give either --feature ID, or --all with --out FILE" in command("name", "--site", SITE, *given, refused=True)


def test_a_site_or_method_that_the_run_lacks_is_named(command):
    for arguments in (["--site", "mlp_act.0"], ["--site", SITE, "--method", "ridge"]):
        said = command("identify", *arguments, "--feature", "1", refused=True)
        assert "mlp_act.0" in said or "ridge" in said


def test_the_subject_of_the_run_is_the_bundled_one(alignment):
    assert str(SUBJECT) in str(alignment.sources["subject"]["path"])
