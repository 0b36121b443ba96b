"""Datasets, files and directories as sources of one corpus, and the command that reads them."""

import json

import datasets
import huggingface_hub.constants
import nltk.data
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

import atlas_jax.corpus
from atlas_jax.cli import _corpus
from atlas_jax.cli._app import app
from atlas_jax.cli._corpus import read_corpus
from atlas_jax.corpus import Corpus, Document, read_dataset, read_sources
from atlas_jax.errors import AtlasError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def like_the_hub(tmp_path):
    """A directory as a dataset lies on the hub: two splits in Parquet shards."""
    folder = tmp_path / "poems"
    (folder / "data").mkdir(parents=True)
    for name, texts in {
        "train-00000-of-00002": ["Roses are red.", "Violets are blue."],
        "train-00001-of-00002": ["Sugar is sweet.", None],
        "test-00000-of-00001": ["Held out."],
    }.items():
        table = pyarrow.table({"body": texts, "domain": ["own"] * len(texts), "n": [1] * len(texts)})
        pyarrow.parquet.write_table(table, folder / "data" / f"{name}.parquet")
    return folder


def test_a_dataset_directory_is_streamed(like_the_hub):
    found = read_dataset(like_the_hub, column="body")
    assert list(found) == [
        Document(text, "own", "poems") for text in ("Roses are red.", "Violets are blue.", "Sugar is sweet.")
    ]
    held_out = read_sources([like_the_hub], split="test", column="body", domain_column="none")
    assert list(held_out) == [Document("Held out.", "poems", "poems")]


def test_streaming_writes_no_cache(like_the_hub, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert len(list(read_dataset(like_the_hub, column="body"))) == 3
    assert not [path for path in tmp_path.glob("cache/**/*") if path.is_file() and path.suffix != ".lock"]


def test_saved_datasets(tmp_path):
    train = datasets.Dataset.from_dict({"text": ["One.", " ", "Two."], "domain": ["a", "b", None]})
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=train.select([0])).save_to_disk(tmp_path / "several")
    expected = [Document("One.", "a", "one"), Document("Two.", "one", "one")]
    assert list(read_sources([tmp_path / "one"])) == expected
    assert [d.text for d in read_sources([tmp_path / "several"], split="test")] == ["One."]
    with pytest.raises(AtlasError, match="no split 'dev'; it has train, test"):
        read_sources([tmp_path / "several"], split="dev")
    with pytest.raises(AtlasError, match="one dataset without split 'dev'"):
        read_sources([tmp_path / "one"], split="dev")
    with pytest.raises(AtlasError, match="without subsets"):
        read_sources([tmp_path / "one"], subset="x")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(AtlasError, match="is damaged .*save it again"):
        read_sources([tmp_path / "one"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no column 'text'; it has body, domain, n"),
        ({"column": "n"}, "column 'n' of .* holds int64, not text"),
        ({"split": "dev", "column": "body"}, "Bad split: dev. Available splits: .'train', 'test'"),
        ({"subset": "english", "column": "body"}, "BuilderConfig 'english' not found. Available: .'default'"),
    ],
)
def test_wrong_names_are_answered_with_those_there_are(like_the_hub, options, message):
    with pytest.raises(AtlasError, match=message) as caught:
        read_dataset(like_the_hub, **options)
    assert "\n" not in str(caught.value)


def test_damage_in_a_dataset_is_one_sentence(like_the_hub):
    (like_the_hub / "data" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 is not what this file holds")
    with pytest.raises(AtlasError, match="failed after 2 documents .*magic bytes"):
        list(read_dataset(like_the_hub, column="body"))
    (like_the_hub / "data" / "train-00000-of-00002.parquet").write_bytes(b"PAR1 is not what this file holds")
    with pytest.raises(AtlasError, match="is damaged .*magic bytes.*fetch it again"):
        read_dataset(like_the_hub, column="body")


def test_hub_names_out_of_reach_or_closed(monkeypatch):
    with pytest.raises(AtlasError, match="'nobody/nothing' is no file or directory here, and the hub.*out of reach"):
        read_sources(["nobody/nothing"])

    def gated(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub.\nMore.")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(AtlasError, match=r"\(Dataset 'a/b' is a gated dataset on the Hub\); .*log in") as caught:
        read_sources(["a/b"])
    assert "\n" not in str(caught.value)


def test_sources_are_told_apart(tmp_path, like_the_hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "a.txt").write_text("Plain.")
    (tmp_path / "b.jsonl").write_text('{"text": "x."}\n{"text": "y."}\n{"text": "z."}\n')
    found = read_sources([tmp_path / "a.txt", tmp_path / "b.jsonl"], limit=2)
    assert [d.text for d in found] == ["Plain.", "x.", "y."]
    splits = {d.text for d in read_sources([like_the_hub], column="body")}
    assert splits == {"Roses are red.", "Violets are blue.", "Sugar is sweet.", "Held out."}
    for wrong, message in {
        "gone.txt": "does not exist",
        str(tmp_path / "gone"): "does not exist",
        "gone": "does not exist; .*a dataset of the hub reads owner/name",
        "tests/gone": "does not exist",
    }.items():
        with pytest.raises(AtlasError, match=message):
            read_sources([wrong])
    with pytest.raises(AtlasError, match="is a file, and a split"):
        read_sources([tmp_path / "a.txt"], split="train")
    with pytest.raises(AtlasError, match="limit must be at least 1"):
        read_sources([tmp_path / "a.txt"], limit=0)
    with pytest.raises(AtlasError, match="no text was given"):
        read_sources([])


def test_the_command(tmp_path, like_the_hub):
    rows = [{"body": f"Line number {i} of the story.", "topic": "big" if i % 4 else "small"} for i in range(400)]
    (tmp_path / "story.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["corpus", "build", str(tmp_path / "story.jsonl"), "--out", str(tmp_path / "corpus"), "--json"]
    command += ["--column", "body", "--domain-column", "topic", "--sentences", "50", "--limit", "300"]
    result = CliRunner().invoke(app, [*command, "--weight", "small=3", "--workers", "1"], catch_exceptions=False)
    facts = json.loads(result.stdout)
    corpus = Corpus.load(tmp_path / "corpus")
    assert (facts["hash"], facts["documents"], facts["fit"]) == (corpus.hash, 300, 50)
    assert facts["domains"] == {name: list(pair) for name, pair in corpus.domain_counts().items()}
    assert abs(facts["domains"]["small"][0] - 25) <= 4
    with pytest.raises(AtlasError, match="--weight 'small' is not DOMAIN=NUMBER"):
        CliRunner().invoke(app, [*command, "--weight", "small", "--overwrite"], catch_exceptions=False)
    plain = [word for word in command if word != "--json"]
    table = CliRunner().invoke(app, [*plain, "--overwrite"], catch_exceptions=False).stdout
    assert "Sentences by domain" in table
    assert "small" in table


@pytest.mark.parametrize("count", ["0", "-5", "10000"])
def test_fewer_sentences_than_asked_for_are_refused_and_nothing_is_written(tmp_path, count):
    (tmp_path / "a.txt").write_text("\n\n".join(f"Line number {i} of the story." for i in range(300)))
    out = tmp_path / "corpus"
    found = CliRunner().invoke(
        app, ["corpus", "build", str(tmp_path / "a.txt"), "--out", str(out), "--sentences", count]
    )
    assert found.exit_code != 0
    assert not out.exists()
    if count == "10000":
        available = read_corpus([tmp_path / "a.txt"], n_fit=1000, seed=0).statistics
        left = f"leaves {available.fit_available} to fit on and {available.eval_available} held out"
        assert f"{left} where 10,000 and 10,000 are needed; give more text, or ask for fewer" in str(found.exception)
    else:
        assert "--sentences" in found.stderr


def test_the_command_reads_encodings_and_tells_what_it_skipped_and_dropped(tmp_path):
    rows = [{"text": f"Café number {i % 200} of the story." if i % 4 else None} for i in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "latin-1")
    command = ["corpus", "build", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "corpus")]
    with pytest.raises(AtlasError, match="a.jsonl' is not UTF-8"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    command += ["--encoding", "latin-1"]
    facts = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).stdout)
    assert facts["skipped"] == {"a.jsonl": 100}
    assert facts["dropped"]["duplicates"] > 100
    assert facts["split"] - sum(facts["dropped"].values()) == facts["fit"] + facts["eval"]
    assert all("Café" in text for text in Corpus.load(tmp_path / "corpus").fit)
    told = " ".join(CliRunner().invoke(app, [*command, "--overwrite"], catch_exceptions=False).stdout.split())
    assert "100 records without text were skipped, in a.jsonl" in told
    assert "without a letter" in told


def test_sentences_for_other_commands(tmp_path):
    """As many as there are up to a default, and exactly as many as a user asked for."""
    (tmp_path / "a.txt").write_text("\n\n".join(f"Line number {i} of the story." for i in range(600)))
    usual = read_corpus([tmp_path / "a.txt"], n_fit=20_000, seed=0)
    assert (len(usual.fit), len(usual.eval)) == (usual.statistics.fit_available, usual.statistics.eval_available)
    usual.save(tmp_path / "saved")
    for source in ("a.txt", "saved"):
        asked = read_corpus([tmp_path / source], n_fit=150, seed=0, exact=True)
        assert (len(asked.fit), len(asked.eval)) == (150, 75)
        with pytest.raises(AtlasError, match="20,000"):
            read_corpus([tmp_path / source], n_fit=20_000, seed=0, exact=True)
    assert read_corpus([tmp_path / "saved"], n_fit=150, seed=0) == usual
    small = read_corpus([tmp_path / "a.txt"], n_fit=2, seed=0, exact=True)
    assert (len(small.fit), len(small.eval)) == (2, 1)


def test_installed_documentation_is_read_on_until_there_is_enough(monkeypatch):
    monkeypatch.setattr(_corpus, "BYTES_PER_SENTENCE", 40)
    usual = read_corpus(None, n_fit=1000, seed=0)
    assert len(usual.fit) < 1000
    asked = []
    whole = lambda max_bytes=None, seed=0: (
        asked.append(max_bytes) or documentation(max_bytes=max_bytes or 400_000, seed=seed)
    )
    documentation = atlas_jax.corpus.installed_documentation
    monkeypatch.setattr(atlas_jax.corpus, "installed_documentation", whole)
    exact = read_corpus(None, n_fit=1000, seed=0, exact=True)
    assert (len(exact.fit), len(exact.eval)) == (1000, 500)
    assert asked == [40_000, None]
