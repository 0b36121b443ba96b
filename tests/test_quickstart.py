"""The main job end to end on a slice of installed text, and the mistakes a newcomer makes."""

import hashlib
import json

import pytest
from helpers.commands import QUICKSTART, command_line
from typer.testing import CliRunner

from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.cli._app import app
from atlas_jax.errors import AtlasError


def invoke(*arguments):
    """The command in this process; what :func:`atlas_jax.cli.main` ends with in a sentence is its exception."""
    return CliRunner().invoke(app, [*map(str, arguments)])


def refusal(*arguments):
    done = invoke(*arguments)
    assert isinstance(done.exception, AtlasError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.fixture(scope="module")
def printed(bundled_run):
    return json.loads(bundled_run.with_suffix(".json").read_text())


def test_the_table_has_every_method_and_site_and_beats_chance(bundled_run):
    quality = json.loads((bundled_run / "tables/quality.json").read_text())
    rows = {(r["site"], r["method"]): r for r in quality["rows"]}
    assert len(rows) == 3 * 7
    for site in ("mlp_act.1", "mlp_act.2", "resid_post.2"):
        procrustes, random = rows[site, "procrustes"], rows[site, "random"]
        assert procrustes["ap"]["low"] > quality["chance"]
        assert procrustes["auroc"]["low"] > 0.55 > random["auroc"]["mean"] - 0.1
        assert abs(random["auroc"]["mean"] - 0.5) < 0.1


def test_a_run_is_read_back_and_used(bundled_run, printed):
    found = invoke("identify", bundled_run, "--site", "mlp_act.2", "--concept", "file", "--json")
    assert found.exit_code == 0, found.output
    asked = json.loads(found.stdout)
    assert all(f["weight"] > 0 for f in asked["atlas_features"])
    features = asked["identified"]
    assert features[0]["similarity"] >= features[-1]["similarity"]
    assert all(p["token"] for f in features for p in f["peaks"])
    named = invoke("name", bundled_run, "--site", "mlp_act.2", "--feature", 3, "--json")
    assert named.exit_code == 0, named.output
    steered = printed["concepts"][0]["steered"]
    assert steered[0]["strength"] == 0
    assert steered[0]["text"] != steered[1]["text"]


def test_a_mistake_ends_the_process_with_one_sentence_and_2(tmp_path):
    done = command_line("quickstart", "--text", "missing.txt", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "missing.txt" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["quickstart", "--text", "missing.txt"], "missing.txt"),
        (["quickstart", "--text", "one.txt", "two.txt"], "one.txt"),
        (["quickstart", "stray.txt"], "unexpected 'stray.txt'"),
        (["quickstart", "--site", "mlp_act.9", *QUICKSTART], "site mlp_act.9 is past the last layer"),
        (["quickstart", "--site", "nowhere.1", *QUICKSTART], "unknown site 'nowhere.1'"),
        (["quickstart", "--method", "magic", *QUICKSTART], "unknown method 'magic'"),
        (["identify", "no-run", "--site", "mlp_act.1", "--concept", "x"], "'no-run' is not a run"),
        (["align", "--subject", "/nowhere", "--atlas", str(ATLAS), "--site", "mlp_act.0", "--out", "x"], "/nowhere"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(*arguments)
    assert not list(tmp_path.rglob("*.json"))


def test_bad_text_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("One sentence only. And another one.")
    for name, words in (("empty.txt", "empty.txt"), ("short.txt", "too few sentences")):
        assert words in refusal("quickstart", "--text", tmp_path / name, "--out", tmp_path / "out")


@pytest.mark.parametrize(("command", "of"), [("identify", "atlas"), ("name", "subject")])
def test_unknown_feature_ids_are_named(bundled_run, command, of):
    said = refusal(command, bundled_run, "--site", "mlp_act.2", "--feature", 999999)
    assert f"{of} feature 999999 does not exist" in said


def test_the_package_data_is_small_and_recorded():
    package = SUBJECT.parent.parent
    data = [p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert sum(p.stat().st_size for p in data) <= 12e6
    for model in (SUBJECT, ATLAS / "model"):
        record = json.loads((model / "training.json").read_text())
        assert record["log"]["perplexity"] < record["log"]["unigram_perplexity"] / 5
        weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
        assert record["sha256"]["model.safetensors"] == weights
