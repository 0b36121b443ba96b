"""A run directory that is damaged is refused in a sentence that names the file; a finished one is known again."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.corpus import build_corpus, installed_documentation
from atlas_jax.errors import AtlasError
from atlas_jax.experiments import evaluate_quality, measured
from atlas_jax.pipeline import Alignment, AlignSettings, align, is_finished, load_pair
from atlas_jax.types import Site

SETTINGS = AlignSettings(("mlp_act.1",), ("procrustes", "covariance"), max_length=16, token_budget=512)
TRANSLATION = "translations/mlp_act.1/covariance"
TOP = "top/mlp_act.1.safetensors"


@pytest.fixture(scope="module")
def pair():
    return load_pair(SUBJECT, ATLAS, SETTINGS)


@pytest.fixture(scope="module")
def corpus():
    return build_corpus(installed_documentation(max_bytes=100_000), n_fit=160, n_eval=100)


@pytest.fixture(scope="module")
def whole(pair, corpus, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    directory.mkdir()
    measured(align(pair, corpus, SETTINGS)).save(directory)
    return directory


@pytest.fixture
def run(whole, pair, tmp_path, monkeypatch):
    """A copy to damage, whose models need not be loaded again."""
    monkeypatch.setattr("atlas_jax.pipeline._alignment.load_pair", lambda *a: pair)
    return shutil.copytree(whole, tmp_path / "run")


def _json(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _settings(**changes):
    return lambda path: _json(settings=json.loads(path.read_text())["settings"] | changes)(path)


def _array(change):
    return lambda path: np.save(path, change(np.load(path)))


def _tensors(change):
    return lambda path: save_file(change(load_file(path)), path)


def _text(content):
    return lambda path: path.write_text(content)


FILES = ["run.json", "rate.npy", TOP, f"{TRANSLATION}/translation.json", f"{TRANSLATION}/translation.safetensors"]
FILES += [f"{TRANSLATION}-mean/translation.json", f"{TRANSLATION}-mean/translation.safetensors"]
FILES += ["corpus/fit.arrow", "corpus/eval.arrow"]
DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
}
CASES = [(file, how) for file in FILES for how in DAMAGE.items()] + [
    *(("run.json", (text, _text(text))) for text in ("[]", "5", "null", '"run"', "{}", '{"settings": []}')),
    ("run.json", ("no sources", _json(sources={}))),
    ("run.json", ("path of a number", _json(sources={"subject": {"path": 3, "sha256": "x"}, "atlas": {}}))),
    ("run.json", ("settings of nobody", _settings(colour="red"))),
    ("run.json", ("site", _settings(sites=["nowhere.1"]))),
    ("run.json", ("sites", _settings(sites=7))),
    ("run.json", ("method", _settings(methods=["magic"]))),
    ("run.json", ("left out", _json(left_out=["all"]))),
    ("rate.npy", ("shape", _array(lambda x: x[:-1]))),
    ("rate.npy", ("axes", _array(lambda x: x[None]))),
    ("rate.npy", ("counts", _array(lambda x: (100 * x).astype(int)))),
    ("rate.npy", ("nan", _array(lambda x: np.where(x > 0.5, np.nan, x) * np.nan))),
    ("rate.npy", ("objects", _array(lambda x: x.astype(object)))),
    (TOP, ("renamed", _tensors(lambda t: {f"old_{k}": v for k, v in t.items()}))),
    (TOP, ("one missing", _tensors(lambda t: {k: v for k, v in t.items() if k != "index"}))),
    (TOP, ("shape", _tensors(lambda t: {k: v[:5] for k, v in t.items()}))),
    (TOP, ("axes", _tensors(lambda t: {k: v[:, 0].copy() for k, v in t.items()}))),
    (TOP, ("dtype", _tensors(lambda t: t | {"index": t["index"].astype(np.float32)}))),
    (TOP, ("sentences of another corpus", _tensors(lambda t: t | {"index": t["index"] + 10**6}))),
    (f"{TRANSLATION}/translation.json", ("site", _json(site="mlp_act.2"))),
    (f"{TRANSLATION}-mean/translation.json", ("pooling", _json(pooling="max"))),
    ("run.json", ("strengths", _json(strengths={"mlp_act.1": "much"}))),
    ("run.json", ("pooling for steering", _settings(steer_pooling="median"))),
    (f"{TRANSLATION}/translation.json", ("list", _text("[1]"))),
    (f"{TRANSLATION}/translation.json", ("certificate", _json(certificate=3))),
    (f"{TRANSLATION}/translation.safetensors", ("renamed", _tensors(lambda t: {k.upper(): v for k, v in t.items()}))),
    (f"{TRANSLATION}/translation.safetensors", ("shape", _tensors(lambda t: t | {"matrix": t["matrix"][:3]}))),
]


@pytest.mark.parametrize(("file", "how"), CASES, ids=lambda x: x if isinstance(x, str) else x[0])
def test_damage_is_one_sentence_that_names_the_file(run, file, how):
    how[1](run / file)
    with pytest.raises(AtlasError) as refusal:
        Alignment.load(run)
    folder, _, name = file.rpartition("/")
    said = str(refusal.value)
    if (file, how[0]) == ("run.json", "missing"):
        assert "is not a run (no run.json)" in said
    else:
        assert folder in said
        assert name in said or name.startswith("translation")
        assert "is missing; " in said or "is damaged (" in said
        assert said.endswith("align again with --overwrite")
    assert "\n" not in said


def test_a_sound_run_is_read_back_as_it_was(run, pair, corpus):
    found = Alignment.load(run)
    site = Site.parse("mlp_act.1")
    assert found.settings == SETTINGS
    assert found.corpus == corpus
    assert set(found.translations) == {(site, "procrustes"), (site, "covariance")}
    again = evaluate_quality(found)[1].to_dict()
    assert json.loads(json.dumps(again)) == json.loads((run / "tables" / "quality.json").read_text())
    assert set(found.steering) == {(site, "covariance")}
    assert found.recommended("steer") == ("covariance", "mean")
    assert found.translation(site, "covariance", "mean") is found.translation(site, "covariance:mean")
    assert (
        found.translation(site, "covariance").pooling == found.translation(site, "covariance", "max").pooling == "max"
    )
    assert found.strongest("mlp_act.1").index.shape == (384, 5)
    with pytest.raises(AtlasError, match="does not know the strongest sentences of mlp_act.2"):
        found.strongest("mlp_act.2")


def test_runs_of_before_this_version_are_read(run):
    """They do not say whether they hold the strongest sentences, nor in what dtype they are stored."""
    record = json.loads((run / "run.json").read_text())
    del record["top"], record["dtype"]
    (run / "run.json").write_text(json.dumps(record))
    assert Alignment.load(run).top is not None
    shutil.rmtree(run / "top")
    assert Alignment.load(run).top is None


def test_runs_of_before_steering_had_a_pooling_are_read(run, pair, corpus):
    """They steer with what they have, and the same command leaves them as they are."""
    record = json.loads((run / "run.json").read_text())
    del record["settings"]["steer_pooling"], record["settings"]["steer_methods"], record["strengths"]
    (run / "run.json").write_text(json.dumps(record))
    shutil.rmtree(run / f"{TRANSLATION}-mean")
    for file in run.glob("translations/*/*/translation.json"):
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "pooling"}))
    found = Alignment.load(run)
    assert (found.settings.steer_pooling, dict(found.steering), dict(found.strengths)) == (None, {}, {})
    assert [found.recommended(use) for use in ("detect", "retrieve")] == [("procrustes", "max")] * 2
    assert found.recommended("steer") == ("covariance", "max")
    assert found.translation("mlp_act.1", "covariance", "max").matrix.shape == (384, 1536)
    with pytest.raises(AtlasError, match=r"by covariance with mean pooling; it has .* by procrustes, covariance$"):
        found.translation("mlp_act.1", "covariance:mean")
    assert is_finished(run, pair, corpus, SETTINGS)
    with pytest.raises(AtlasError, match="finished run of something else: seed was 0 and is 5; "):
        is_finished(run, pair, corpus, dataclasses.replace(SETTINGS, seed=5))


def test_a_finished_run_is_known_again_and_any_other_is_named(whole, pair, corpus, tmp_path):
    same = lambda settings=SETTINGS, **options: is_finished(whole, pair, corpus, settings, **options)
    assert same()
    assert not is_finished(tmp_path, pair, corpus, SETTINGS)
    for change, words in (
        ({"seed": 5}, "seed was 0 and is 5"),
        ({"steer_pooling": "last"}, "steer_pooling was mean and is last"),
        ({"steer_methods": ("ridge",)}, "steer_methods was covariance and is ridge"),
        ({"pooling": "absmax"}, "pooling was max and is absmax"),
        ({"methods": ("ridge",)}, "methods was procrustes, covariance and is ridge"),
    ):
        with pytest.raises(AtlasError, match=f"finished run of something else: {words}; .*--overwrite"):
            same(dataclasses.replace(SETTINGS, **change))
    with pytest.raises(AtlasError, match="save dtype was float32 and is bfloat16"):
        same(dtype="bfloat16")
    other = pair._replace(sources=pair.sources | {"subject": {"path": "elsewhere", "sha256": "f00"}})
    with pytest.raises(AtlasError, match="subject was .* and is f00"):
        is_finished(whole, other, corpus, SETTINGS)
    with pytest.raises(AtlasError, match="corpus was .* and is f00"):
        is_finished(whole, pair, dataclasses.replace(corpus, hash="f00"), SETTINGS)


def test_a_run_that_cannot_be_measured_is_kept(pair, corpus, whole, tmp_path, monkeypatch):
    """Too little text is told; a fault of another kind is raised when the run is there."""
    few = dataclasses.replace(Alignment.load(whole), rate=np.zeros(pair.atlas.width))
    found = measured(few)
    assert found.quality is None
    assert "no atlas feature fires" in str(found.fault)
    found.save(tmp_path)
    found.raise_fault()
    assert Alignment.load(tmp_path).strongest("mlp_act.1").values.shape == (384, 5)

    def broken(*a, **k):
        raise MemoryError("no room for the scores")

    monkeypatch.setattr("atlas_jax.experiments._quality.translation_quality", broken)
    with pytest.raises(MemoryError, match="no room"):
        measured(Alignment.load(whole)).raise_fault()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sites": "mlp_act.2"}, r"sites is 'mlp_act.2', which is one; give a tuple of them"),
        ({"sites": Site("mlp_act", 2)}, "sites is 'mlp_act.2', which is one"),
        ({"methods": "ridge"}, "methods is 'ridge', which is one"),
        ({"sites": ("mlp_act",)}, "unknown site 'mlp_act'"),
        ({"methods": ("ridge", "magic")}, "unknown method 'magic'"),
        ({"pooling": "median"}, "unknown pooling 'median'; known are max"),
        ({"steer_pooling": "median"}, "unknown steer_pooling 'median'; known are none, max"),
        ({"steer_methods": ("magic",)}, "unknown method 'magic'"),
        ({"steer_methods": "ridge"}, "steer_methods is 'ridge', which is one"),
        ({"steer_methods": ("semantic_lens",)}, "semantic_lens needs a second pass, which is not made for steering"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; known are float32, bfloat16"),
        ({"max_length": 0}, "max_length is 0; give a whole number of at least 1"),
        ({"token_budget": -4096}, "token_budget is -4096"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"seed": -1}, "seed is -1; give a whole number of at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, sentence):
    settings = copy.copy(SETTINGS)
    for name, value in change.items():  # the constructor's types are checked in tests, and nowhere else
        object.__setattr__(settings, name, value)
    with pytest.raises(AtlasError, match=sentence):
        settings.__post_init__()


@pytest.mark.parametrize("given", [{"steer_pooling": None}, {"steer_pooling": "none"}, {"pooling": "mean"}])
def test_settings_without_another_pooling_for_steering(given):
    settings = AlignSettings(("mlp_act.1",), ("ridge",), **given)
    assert (settings.steer_pooling, settings.steer_methods) == (None, ())


def test_a_site_given_twice_is_one():
    twice = AlignSettings((Site("mlp_act", 1), "mlp_act.1", "blocks.1.mlp.hook_post", "z.0"), ("ridge", "ridge"))
    assert (twice.sites, twice.methods) == (("mlp_act.1", "z.0"), ("ridge",))
