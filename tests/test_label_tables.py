"""Tables of labels that are of several SAEs, or whose columns are not what they seem."""

import json

import pytest
from helpers.label_files import write

from atlas_jax.atlas import assemble
from atlas_jax.bundled import ATLAS
from atlas_jax.errors import AtlasError
from atlas_jax.labels import Label, Labels, Origin

MODEL, SAE, NAMED = ATLAS / "model", ATLAS / "sae", {"model_name": ["foundation"]}


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        ("feature_id,description", ["0,a", "1,b"], "it has feature_id, description.*: --column index=feature_id$"),
        ("row,latent,description", ["0,7,a"], "--column index=latent$"),
        ("concept_id,description", ["0,a", "1,b"], "has a column 'concept_id': are these labels of features?"),
        ("index,concept_id,description", ["0,4,a"], "has a column 'concept_id'"),
        ("name,description", ["x,a"], "it has name, description.*: --column index=NAME$"),
        ("index,feature,description", ["0,17,a"], "several numbers .index = 0, feature = 17.; say which"),
        ("index,neuron,description", ["1,1,a", "2,5,a"], "row 2 of .* several numbers .index = 2, neuron = 5."),
        ("index,words", ["0,a"], "it has index, words. Name the column of the text: --column description=NAME"),
        (
            "index,description",
            ["0,a", "0,b", "1,c", "1,d"],
            "describes 2 of 2 features several times, such as 0",
        ),
        ("index,description,explainer", ["0,a,m", "0,b,m", "1,c,m"], "1 of 2 features several times, .* 'a' and 'b'"),
    ],
)
def test_a_column_that_is_not_the_features_number_is_refused(tmp_path, header, rows, says):
    path = tmp_path / "l.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    with pytest.raises(AtlasError, match=says) as caught:
        Labels.load(path)
    assert "\n" not in str(caught.value)


def test_the_column_that_helps_is_the_one_named(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text("feature_id,concept_id,description\n4,0,a\n2,1,b\n")
    labels = Labels.load(path, 5, columns={"index": "feature_id"})
    assert (labels[4], labels[2]) == ("a", "b")
    with pytest.raises(AtlasError, match="a label names feature 4, and there are 4"):
        Labels.load(path, 4, columns={"index": "feature_id"})


def test_several_labels_of_a_feature_in_a_known_way_are_kept(tmp_path):
    rows = [{"index": 0, "description": text, "id": text} for text in "ab"]
    rows += [{"index": 1, "description": text, "explainer": text} for text in "cd"]
    rows += [{"index": 2, "description": text, "score": i / 2} for i, text in enumerate("ef")]
    rows += [{"index": 3, "description": "g", "polarity": p} for p in (1, -1)] + [{"index": 4, "description": "h"}] * 2
    labels = Labels.load(write(tmp_path / "l.json", rows))
    assert [labels[i] for i in range(5)] == ["a", "c", "f", "g", "h"]
    rare = [{"index": i, "description": f"{i}"} for i in range(150)] + [{"index": 0, "description": "again"}]
    assert Labels.load(write(tmp_path / "rare.json", rare))[0] == "0"


@pytest.mark.parametrize("name", ["l.json", "l.csv", "l.parquet", "l.jsonl"])
@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_never_wins(tmp_path, name, score):
    rows = [{"index": 0, "description": "unscored", "score": score}, {"index": 0, "description": "low", "score": 0.1}]
    labels = Labels.load(write(tmp_path / name, rows))
    assert (labels[0], labels.alternatives(0)[0].score) == ("low", None)
    assert Labels.from_rows([Label(0, "a", score=score), Label(0, "b", score=0.1), Label(0, "c", score=0.2)])[0] == "c"


@pytest.mark.parametrize(
    ("field", "values", "says"),
    [
        ("layer", (3, 4), "labels of 2 layers: 3, 4; name one with --layer"),
        ("hook_point", ("z.3", "mlp_out.3"), "labels of 2 hooks: mlp_out.3, z.3; name one with --only hook=NAME"),
        ("release", ("a", "b"), "labels of 2 releases: a, b; name one with --only release=NAME"),
        ("sae_id", ("a", "b"), "labels of 2 releases: a, b"),
        ("modelId", ("m", "n"), "labels of 2 models: m, n; name one with --only model=NAME"),
    ],
)
def test_a_table_of_several_saes_is_narrowed_or_refused(tmp_path, field, values, says):
    rows = [{"index": i, "description": f"{i} of {value}", field: value} for value in values for i in (0, 1)]
    path = write(tmp_path / "l.parquet", rows)
    with pytest.raises(AtlasError, match=says):
        Labels.load(path)
    ours = {"layer": "layer", "hook_point": "hook", "modelId": "model"}.get(field, "release")
    labels = Labels.load(path, only={ours: str(values[1])})
    assert [labels[i] for i in (0, 1)] == [f"{i} of {values[1]}" for i in (0, 1)]
    labels.save(tmp_path / "own.jsonl")
    assert Labels.load(tmp_path / "own.jsonl").origin == labels.origin == Origin(**{ours: str(values[1])})
    with pytest.raises(AtlasError, match=f"no labels of {ours} x; it has"):
        Labels.load(path, only={ours: "x"})
    with pytest.raises(AtlasError, match="cannot be told apart by 'colour'"):
        Labels.load(path, only={"colour": "red"})


def table(path, rows):
    path.write_text(
        json.dumps([{"index": i, "description": f"{i} of {list(r.values())}"} | r for r in rows for i in (0, 1)])
    )
    return path


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([{"layer": "2"}, {"layer": "3"}, {"layer": "30"}], "0 of ['3']"),
        ([{"layer": "3-res"}, {"layer": "2-res"}], "0 of ['3-res']"),
        (
            [{"hook_point": f"blocks.3.hook_{p}"} for p in ("mlp_out", "resid_post")],
            "0 of ['blocks.3.hook_resid_post']",
        ),
        ([{"layer": 3, "hook": f"{p}.3"} for p in ("z", "resid_post")], "0 of [3, 'resid_post.3']"),
    ],
)
def test_labels_of_several_sites_are_narrowed_to_the_saes(tmp_path, rows, kept):
    parts = assemble(MODEL, SAE, table(tmp_path / "l.json", rows), **NAMED)
    assert parts.atlas.labels[0] == kept
    assert parts.atlas.labels.alternatives(0) == ()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"layer": "1"}, {"layer": "2"}], "labels of the layers 1, 2, and none of resid_post.3"),
        ([{"hook": "z.3"}, {"hook": "mlp_out.3"}], "labels of the hooks mlp_out.3, z.3, and none of resid_post.3"),
        (
            [{"hook_name": "blocks.3.hook_mlp_out"}],
            "of the hook point 'blocks.3.hook_mlp_out', and the SAE reads",
        ),
        ([{"release": "a"}, {"release": "b"}], "labels of 2 releases: a, b; name one with --only release=NAME"),
        (
            [{"layer": "3-res-1k"}, {"layer": "3-mlp-1k"}],
            "2 layers: 3-mlp-1k, 3-res-1k; name one with --layer",
        ),
    ],
)
def test_labels_of_other_sites_or_several_releases_are_refused(tmp_path, rows, says):
    with pytest.raises(AtlasError, match=says):
        assemble(MODEL, SAE, table(tmp_path / "l.json", rows), **NAMED)


def test_the_release_may_be_named(tmp_path):
    path = table(tmp_path / "l.json", [{"release": "a"}, {"release": "b"}])
    parts = assemble(MODEL, SAE, path, label_options={"only": {"release": "b"}}, **NAMED)
    assert (parts.atlas.labels[0], parts.atlas.labels.origin.release) == ("0 of ['b']", "b")
