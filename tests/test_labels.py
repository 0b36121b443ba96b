"""Labels from every file people exchange them in, the choice of one a feature, and refusals."""

import dataclasses
import os
from pathlib import Path

import pytest
from helpers.label_files import write

from atlas_jax.errors import AtlasError
from atlas_jax.labels import Label, Labels, Origin

DATA = os.environ.get("ATLAS_JAX_DATA")
ROWS = [
    {"index": "2", "description": " cats\n", "explainer": "m1", "score": 0.25},
    {"index": "0", "description": "dogs", "explainer": "m1"},
    {"index": "2", "description": "felines", "explainer": "m2", "score": 0.5},
    {"index": "3", "description": "  "},
]


def neuronpedia(index, description, model="gpt-4o-mini", **more):
    fields = {"modelId": "m", "layer": "20-res", "typeName": "np_max-act", "explanationModelName": model}
    return {**fields, "index": str(index), "description": description, "embedding": "[0.1,0.2]", **more}


@pytest.mark.parametrize("name", ["l.json", "l.json.gz", "l.jsonl", "l.jsonl.gz", "l.csv", "l.parquet"])
def test_every_format_reads_alike(tmp_path, name):
    labels = Labels.load(write(tmp_path / name, ROWS), n_features=5)
    assert [labels[i] for i in range(5)] == ["dogs", None, "felines", None, None]
    assert labels.alternatives(2) == (Label(2, "cats", "m1", score=0.25),)
    assert labels.chosen(0) == Label(0, "dogs", "m1")
    assert labels.coverage == 0.4
    assert labels.missing() == [1, 3, 4]
    assert len(labels) == 5


def test_neuronpedia_export_folder(tmp_path):
    folder = tmp_path / "explanations"
    folder.mkdir()
    first = [neuronpedia(10, "ten", id="a"), neuronpedia(1, "one\n", id="b"), neuronpedia(1, "uno", "claude", id="c")]
    second = [
        neuronpedia(1, "one\n", id="b"),
        neuronpedia(2, "less of it (negative activations)", id="d"),
        neuronpedia(3, "three (negative activations)", id="e"),
        neuronpedia(3, "more than two", "claude", id="f"),
        neuronpedia(4, None, id="g"),
    ]
    write(folder / "batch-0.jsonl.gz", first)
    write(folder / "batch-1.jsonl.gz", second)
    for path in (tmp_path, folder):
        labels = Labels.load(path)
        assert labels.n_features == 11
        assert labels.described() == [1, 3, 10]
        assert labels.chosen(1) == Label(1, "one", "gpt-4o-mini", "np_max-act")
        assert [row.description for row in labels.alternatives(1)] == ["uno"]
        assert labels[3] == "more than two"
        assert labels[2] is None
        assert labels.alternatives(2) == (Label(2, "less of it", "gpt-4o-mini", "np_max-act", polarity="negative"),)


def test_policy_in_its_order():
    rows = [
        Label(0, "negative", score=0.99, polarity="negative"),
        Label(0, "unscored", "common"),
        Label(0, "low", score=0.1),
        Label(0, "high", score=0.2),
        Label(1, "rare", "rare"),
        Label(1, "common", "common"),
        Label(1, "second of common", "common"),
    ]
    labels = Labels.from_rows(rows)
    assert [row.description for row in labels.entries[0]] == ["high", "low", "unscored", "negative"]
    assert [row.description for row in labels.entries[1]] == ["common", "second of common", "rare"]
    assert Labels.from_rows(rows, prefer=["rare"])[1] == "rare"


def test_transluce_style_neurons(tmp_path):
    rows = [
        {"layer": 3, "neuron": 7, "polarity": 1, "description": "up"},
        {"layer": 3, "neuron": 7, "polarity": -1, "description": "down"},
        {"layer": 4, "neuron": 7, "polarity": 1, "description": "other"},
    ]
    path = write(tmp_path / "neurons.csv", rows)
    labels = Labels.load(path, n_features=8, layer=3)
    assert labels[7] == "up"
    assert [row.polarity for row in labels.entries[7]] == ["positive", "negative"]
    with pytest.raises(AtlasError, match="2 layers"):
        Labels.load(path)
    with pytest.raises(AtlasError, match="of layer 9"):
        Labels.load(path, layer=9)


def test_columns_of_any_name_and_files_without_a_suffix(tmp_path):
    path = write(tmp_path / "l.csv", [{"id_of": "3.0", "words": "up", "who": "m", "r": 0.5, "sign": "-1"}])
    columns = {"index": "id_of", "description": "words", "explainer": "who", "score": "r", "polarity": "sign"}
    labels = Labels.load(path.rename(tmp_path / "export"), 4, columns=columns, format="csv")
    assert labels.entries[3] == (Label(3, "up", "m", "", 0.5, "negative"),)
    assert labels.coverage == 0
    with pytest.raises(AtlasError, match="labels have no field 'words'; fields are index"):
        Labels.load(tmp_path / "export", columns={"words": "words"}, format="csv")


def test_transluce_writes_model_layer_and_neuron_into_one_id(tmp_path):
    name = "meta-llama/Llama-3.1-8B-Instruct_19_{}_0"
    rows = [
        {"id": f"{name.format(n)}_{p}_v1", "neuron_id": name.format(n), "polarity": p, "description": f"{n} {p}"}
        for n in (5, 14)
        for p in (1, -1)
    ]
    labels = Labels.load(write(tmp_path / "d.parquet", rows))
    assert (labels[5], labels[14], labels.n_features) == ("5 1", "14 1", 15)
    assert [row.polarity for row in labels.entries[14]] == ["positive", "negative"]
    assert labels.origin == Origin("meta-llama/Llama-3.1-8B-Instruct", "19")


def test_what_labels_are_of_is_read_and_kept(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    write(folder / "batch-0.jsonl.gz", [neuronpedia(1, "one", id="a"), neuronpedia(0, "nought", id="b")])
    labels = Labels.load(folder)
    assert labels.origin == Origin("m", "20-res")
    labels.save(tmp_path / "l.jsonl")
    assert Labels.load(tmp_path / "l.jsonl").origin == Origin("m", "20-res")
    write(folder / "batch-1.jsonl.gz", [neuronpedia(2, "two", id="c", modelId="n")])
    with pytest.raises(AtlasError, match="of 2 models: m, n"):
        Labels.load(folder)


def test_save_and_load_keep_everything(tmp_path):
    rows = [Label(4, "vier ü", "b", "s", 0.5), Label(4, "four", "a"), Label(1, "eins", polarity="negative")]
    labels = Labels.from_rows(rows, n_features=9, prefer=["a"])
    labels.save(tmp_path / "labels.jsonl")
    back = Labels.load(tmp_path / "labels.jsonl", n_features=9)
    assert (back.n_features, back.entries) == (labels.n_features, labels.entries)
    with pytest.raises(AtlasError, match="9 features, and 8"):
        Labels.load(tmp_path / "labels.jsonl", n_features=8)


def test_empty_labels_survive_saving(tmp_path):
    Labels.empty(6).save(tmp_path / "labels.jsonl")
    back = Labels.load(tmp_path / "labels.jsonl")
    assert (back.n_features, back.coverage, back.missing()) == (6, 0.0, list(range(6)))


def test_labels_are_hashable_and_frozen():
    labels = Labels.empty(3)
    assert hash(labels) == hash(labels)
    with pytest.raises(dataclasses.FrozenInstanceError):
        labels.n_features = 4


@pytest.mark.parametrize("index", [-1, 3])
def test_a_foreign_feature_is_refused(index):
    with pytest.raises(AtlasError, match="0 to 2"):
        Labels.empty(3)[index]


@pytest.mark.parametrize("name", ["l.jsonl.gz", "l.json.gz"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"junk" + b, lambda b: b[:-6] + b"000000"])
def test_corrupt_gzip_is_one_sentence(tmp_path, name, damage):
    path = write(tmp_path / name, ROWS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AtlasError, match="cannot be read as labels") as caught:
        Labels.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.json", "[1, 2]", "not a list of labels"),
        ("l.json", "{", "cannot be read"),
        ("l.jsonl", '{"index": 1}\n', "no labels"),
        ("l.jsonl", '{"index": "x", "description": "a"}\n', "row 1 of .* malformed"),
        ("l.jsonl", '{"description": "a"}\n', "malformed"),
        ("l.jsonl", '{"index": 1, "description": "a", "polarity": "sideways"}\n', "malformed"),
        ("l.jsonl", '{"n_features": 3}\n{"index": "1", "description": "a"}\n', "row 2 of .* malformed"),
        ("l.jsonl", '{"n_features": 3}\n{"index": 1, "words": "a"}\n', "row 2 of .* malformed"),
        ("l.parquet", "PAR1 no", "cannot be read"),
        ("l.txt", "cats", "no known label format"),
        ("l.csv", "a,b\n1,2\n", "no labels"),
    ],
)
def test_unusable_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(AtlasError, match=message):
        Labels.load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.json", '{"explanations": null}', "not a list of labels"),
        ("l.json", "5", "not a list of labels"),
        ("l.json", "[" * 100_000, "cannot be read as labels"),
        ("l.csv", b"index,description\n1,\xff\xfe\n", "cannot be read as labels"),
        ("l.jsonl", '{"n_features": "3"}\n', "n_features is '3'"),
        ("l.jsonl", '{"n_features": null}\n', "n_features is None"),
        ("l.jsonl", '{"n_features": 3}\n{"index": 1, "description": "a", "explainer": null}\n', "row 2 .* malformed"),
        ("l.jsonl", '{"n_features": 3}\n{"index": 1, "description": "a", "score": "high"}\n', "row 2 .* malformed"),
        ("l.jsonl", '{"n_features": 3}\n{"index": 1, "description": "a", "polarity": "up"}\n', "row 2 .* malformed"),
        ("l.json", '[{"index": 1, "description": ["a"]}]', r"its description is \['a'\], not text"),
        ("l.json", '[{"index": true, "description": "a"}]', "its index is True"),
        ("l.json", '[{"index": 1.5, "description": "a"}]', "its index is 1.5"),
        ("l.json", '[{"index": 1, "description": "a", "score": "good"}]', "malformed score or polarity"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AtlasError, match=message) as caught:
        Labels.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_files_and_wrong_widths_are_refused(tmp_path):
    with pytest.raises(AtlasError, match="no file or folder"):
        Labels.load(tmp_path / "absent.json")
    with pytest.raises(AtlasError, match="no .jsonl"):
        Labels.load(tmp_path)
    with pytest.raises(AtlasError, match="feature 2, and there are 2"):
        Labels.load(write(tmp_path / "l.json", ROWS), n_features=2)
    with pytest.raises(AtlasError, match="feature -1"):
        Labels.from_rows([Label(-1, "a")])


@pytest.mark.skipif(DATA is None, reason="ATLAS_JAX_DATA is not set")
def test_real_labels_of_the_papers_atlas():
    labels = Labels.load(Path(DATA) / "labels/gemma-2-2b_20-gemmascope-res-16k.json.gz", n_features=16_384)
    assert labels.missing() == [5798]
    assert sum(len(group) for group in labels.entries.values()) == 17_008
    assert {labels.chosen(i).explainer for i in labels.described()[:9000]} == {"gpt-4o-mini"}
    assert all(row.description == row.description.strip() for group in labels.entries.values() for row in group)
