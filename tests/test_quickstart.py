"""The main job end to end on a slice of installed text, twice, and the mistakes a newcomer makes."""

import hashlib
import json
import subprocess
import sys

import pytest

from atlas_jax.bundled import ATLAS, SUBJECT

SMALL = ["--sentences", "600", "--concept", "file", "--prompt", "The", "--strength", "0", "--strength", "60"]


def _command(*arguments, **options):
    code = "from atlas_jax.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    done = [_command("quickstart", "--json", "--out", folder / name, *SMALL) for name in ("one", "two")]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    return folder, done


def test_two_runs_give_identical_tables(runs):
    folder, done = runs
    assert done[0].stdout == done[1].stdout
    for table in ("quality", "concepts"):
        assert (folder / "one/tables" / f"{table}.json").read_bytes() == (
            folder / "two/tables" / f"{table}.json"
        ).read_bytes()


def test_the_table_has_every_method_and_site_and_beats_chance(runs):
    quality = json.loads((runs[0] / "one/tables/quality.json").read_text())
    rows = {(r["site"], r["method"]): r for r in quality["rows"]}
    assert len(rows) == 3 * 7
    for site in ("mlp_act.1", "mlp_act.2", "resid_post.2"):
        procrustes, random = rows[site, "procrustes"], rows[site, "random"]
        assert procrustes["ap"]["low"] > quality["chance"]
        assert procrustes["auroc"]["low"] > 0.55 > random["auroc"]["mean"] - 0.1
        assert abs(random["auroc"]["mean"] - 0.5) < 0.1


def test_a_run_is_read_back_and_used(runs):
    folder, done = runs
    found = _command("identify", folder / "one", "--site", "mlp_act.2", "--concept", "file", "--json")
    assert found.returncode == 0, found.stderr
    asked = json.loads(found.stdout)
    assert all(f["weight"] > 0 for f in asked["atlas_features"])
    features = asked["identified"]
    assert features[0]["similarity"] >= features[-1]["similarity"]
    assert all(p["token"] for f in features for p in f["peaks"])
    named = _command("name", folder / "one", "--site", "mlp_act.2", "--feature", 3, "--json")
    assert named.returncode == 0, named.stderr
    steered = json.loads(done[0].stdout)["concepts"][0]["steered"]
    assert steered[0]["strength"] == 0
    assert steered[0]["text"] != steered[1]["text"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["quickstart", "--text", "missing.txt"], "missing.txt"),
        (["quickstart", "--text", "one.txt", "two.txt"], "one.txt"),
        (["quickstart", "stray.txt"], "unexpected 'stray.txt'"),
        (["quickstart", "--site", "mlp_act.9", *SMALL], "site mlp_act.9 is past the last layer"),
        (["quickstart", "--site", "nowhere.1", *SMALL], "unknown site 'nowhere.1'"),
        (["quickstart", "--method", "magic", *SMALL], "unknown method 'magic'"),
        (["identify", "no-run", "--site", "mlp_act.1", "--concept", "x"], "'no-run' is not a run"),
        (["align", "--subject", "/nowhere", "--atlas", str(ATLAS), "--site", "mlp_act.0", "--out", "x"], "/nowhere"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, arguments, sentence):
    done = _command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.json"))


def test_bad_text_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("One sentence only. And another one.")
    for name, words in (("empty.txt", "empty.txt"), ("short.txt", "too few sentences")):
        done = _command("quickstart", "--text", tmp_path / name, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr


def test_unknown_feature_ids_are_named(runs):
    folder, _ = runs
    done = _command("identify", folder / "one", "--site", "mlp_act.2", "--feature", 999999)
    assert done.returncode == 2
    assert "atlas feature 999999 does not exist" in done.stderr
    done = _command("name", folder / "one", "--site", "mlp_act.2", "--feature", 999999)
    assert done.returncode == 2
    assert "subject feature 999999 does not exist" in done.stderr


def test_the_package_data_is_small_and_recorded():
    package = SUBJECT.parent.parent
    data = [p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert sum(p.stat().st_size for p in data) <= 12e6
    for model in (SUBJECT, ATLAS / "model"):
        record = json.loads((model / "training.json").read_text())
        assert record["log"]["perplexity"] < record["log"]["unigram_perplexity"] / 5
        weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
        assert record["sha256"]["model.safetensors"] == weights
