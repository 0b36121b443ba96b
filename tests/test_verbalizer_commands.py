"""A small verbalizer trained by its command, and features explained by it: arms, washout, bridges, and going on."""

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from atlas_jax import AtlasError, Bridge, ConceptAtlas, Site, Translation
from atlas_jax.bundled import ATLAS
from atlas_jax.cli._app import app
from atlas_jax.experiments import Explained, ExplainedFeature, draw_features, explain_features, mean_unit_activation
from atlas_jax.experiments._explain import NOTHING, OWN, RANDOM, SHUFFLED, TEXT, WRONG, _compared
from atlas_jax.labels import StaticEmbedding
from atlas_jax.models import LanguageModel
from atlas_jax.sae_lab import VerbalizerSettings, train_verbalizer
from atlas_jax.verbalizers import Contract, load_verbalizer, verbalize

TEXTS = [f"Return the {noun} of the {other}." for noun in ("value", "file", "array") for other in ("list", "name")]
SMALL = VerbalizerSettings(steps=3, batch=8, activations=0.5)


def command(*arguments):
    """A command in this process, which shares its compiled programs."""
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def atlas():
    return ConceptAtlas.from_pretrained(ATLAS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A verbalizer of a few steps in a directory of its own."""
    directory = tmp_path_factory.mktemp("verbalizer")
    text = directory / "text.txt"
    nouns = ["value", "file", "array", "list", "name", "table", "string", "key", "number", "model", "test", "error"]
    kinds = ["new", "long", "empty", "sorted", "given", "first", "last", "whole", "small", "large", "short", "next"]
    text.write_text(" ".join(f"Return the {kind} {noun} of the {other}." for kind in kinds for noun in nouns
                             for other in ("object", "function")))  # fmt: skip
    options = ["--steps", 3, "--batch", 8, "--sentences", 100, "--text", text, "--json"]
    done = command("verbalizer", "train", "--atlas", ATLAS, "--out", directory / "av", *options)
    assert done.exit_code == 0, done.output
    return directory / "av", text, json.loads(done.stdout)


def test_training_is_deterministic_and_lowers_the_loss(atlas):
    first, second = (train_verbalizer(atlas, TEXTS, SMALL) for _ in range(2))
    assert first.losses == second.losses
    assert first.held_out == second.held_out
    assert set(first.new_words) < set(first.held_out) < set(atlas.labels.described())
    assert train_verbalizer(atlas, TEXTS, dataclasses.replace(SMALL, seed=1)).losses != first.losses
    longer = train_verbalizer(atlas, TEXTS, dataclasses.replace(SMALL, steps=25))
    assert np.mean(longer.losses[-3:]) < 0.8 * longer.losses[0]


def test_training_leaves_the_atlas_as_it_was(atlas):
    before = np.asarray(atlas.model.decoder.norm.weight[...]).copy()
    train_verbalizer(atlas, TEXTS, SMALL)
    np.testing.assert_array_equal(np.asarray(atlas.model.decoder.norm.weight[...]), before)
    assert atlas.model.tokenizer.hf.chat_template is None


def test_the_trained_directory_loads_as_a_verbalizer(trained, atlas):
    directory, _, told = trained
    model, contract = load_verbalizer(directory)
    record = json.loads((directory / "verbalizer.json").read_text())
    assert record["held_out"] == told["held_out"]
    assert (contract.layer, contract.d_model, contract.where, contract.how) == (3, 160, "embedding", "replace")
    assert contract.neighbours is not None
    said = verbalize(model, np.asarray(atlas.sae.W_dec[:3]), contract, max_new_tokens=3)
    assert len(said.texts) == 3


def test_the_command_explains_and_goes_on(trained, tmp_path):
    directory, text, _ = trained
    options = ["--source", ATLAS, "--verbalizer", directory, "--split", "held_out", "--count", 40, "--text", text]
    options += ["--max-new-tokens", 4, "--alpha", 0.5, "--out", tmp_path / "kept", "--json"]
    done = command("bridge", "explain", *options)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [arm["name"] for arm in result["arms"]] == [
        OWN, WRONG, RANDOM, SHUFFLED, "bridge, α +0.5", TEXT, NOTHING]  # fmt: skip
    kept = (tmp_path / "kept" / f"{OWN}.jsonl").read_text()
    (tmp_path / "kept" / f"{OWN}.jsonl").write_text("".join(kept.splitlines(keepends=True)[:1]) + '"torn')
    (tmp_path / "kept" / f"{TEXT}.jsonl").unlink()
    again = command("bridge", "explain", *options)
    assert json.loads(again.stdout) == result
    assert (tmp_path / "kept" / f"{OWN}.jsonl").read_text() == kept
    other = command("bridge", "explain", *options, "--seed", 1)
    assert isinstance(other.exception, AtlasError)
    assert "holds explanations of another kind" in str(other.exception)
    assert "seed was 0 and is 1" in str(other.exception)


# The measures, with explanations that are known.


def features() -> list[ExplainedFeature]:
    words = ["dog", "piano", "river", "computer"]
    texts = [["the dog barks", "a dog runs"], ["she plays the piano"], ["the river flows"], ["the computer starts"]]
    return [ExplainedFeature(i, w, [w], t) for i, (w, t) in enumerate(zip(words, texts, strict=True))]


def compared(**said) -> Explained:
    right = [f.reference for f in features()]
    return _compared(features(), {OWN: right} | said, StaticEmbedding.default(), 0)


def test_right_explanations_have_cosine_one_and_rank_their_own_texts_first():
    found = {arm.name: arm for arm in compared(**{NOTHING: ["stone"] * 4}).arms}
    assert found[OWN].cosine.mean == pytest.approx(1.0, abs=1e-5)
    assert found[OWN].mrr.mean == 1.0
    assert found[OWN].lift is None
    words = StaticEmbedding.default().encode([f.reference for f in features()])
    unit = words / np.linalg.norm(words, axis=1, keepdims=True)
    others = ((unit @ unit.T).sum(1) - 1) / 3
    assert found[WRONG].cosine.mean == pytest.approx(others.mean(), abs=1e-5)
    assert found[WRONG].lift.mean == pytest.approx((1 - others).mean(), abs=1e-5)
    assert found[NOTHING].lift.mean == pytest.approx(1 - found[NOTHING].cosine.mean, abs=1e-5)


def test_a_control_that_is_as_good_has_no_lift_and_one_that_is_constant_the_rank_of_chance():
    right = [f.reference for f in features()]
    result = compared(**{TEXT: right, NOTHING: [""] * 4, RANDOM: right[1:] + right[:1]})
    found = {arm.name: arm for arm in result.arms}
    assert found[TEXT].lift.mean == 0
    assert found[NOTHING].mrr.mean == pytest.approx(0.4)  # rank 2.5 of 4
    assert found[RANDOM].mrr.mean < 0.5
    assert result.chance == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert list(result.tables()[1].texts())[0][:3] == ["0", "dog", "dog"]


def bridged(matrix, source="resid_post.3", width=160) -> Bridge:
    known = {"site": Site("resid_post", 2), "metadata": {"source_site": source}}
    return Bridge(Translation(matrix, np.zeros(len(matrix), "f"), np.zeros(width, "f"), "ridge", **known))


def test_a_bridge_is_passed_by_its_linear_part(trained, atlas, rng):
    model, contract = load_verbalizer(trained[0])
    directions = np.asarray(atlas.sae.W_dec[:4], np.float32)
    turn = np.linalg.qr(rng.normal(size=(160, 160)))[0].astype(np.float32)
    options = {"max_new_tokens": 4, "bridge": bridged(turn)}
    found = explain_features(features(), directions @ turn, model, contract, StaticEmbedding.default(), **options)
    same = explain_features(features(), directions, model, contract, StaticEmbedding.default(), max_new_tokens=4)
    assert found.explanations[OWN] == same.explanations[OWN]
    assert found.explanations[RANDOM] != found.explanations[OWN]


def test_washout_adds_the_background_to_unit_directions(trained, atlas):
    model, contract = load_verbalizer(trained[0])
    directions = 5 * np.asarray(atlas.sae.W_dec[:4], np.float32)
    background = mean_unit_activation(atlas.model, atlas.site, TEXTS)
    options = {"max_new_tokens": 4, "background": background, "alphas": [0.0, -0.7]}
    found = explain_features(features(), directions, model, contract, StaticEmbedding.default(), **options)
    assert found.explanations["bridge, α +0"] == found.explanations[OWN]
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    washed = unit(directions) - 0.7 * unit(background)
    expected = verbalize(model, washed, contract, max_new_tokens=4).explanations
    assert found.explanations["bridge, α -0.7"] == expected


def test_drawn_features_are_labelled_ones_in_order(atlas):
    drawn = draw_features(atlas, 10)
    assert drawn == sorted(drawn) == draw_features(atlas, 10)
    assert draw_features(atlas, 10, seed=1) != drawn
    assert draw_features(atlas, 5, among=[0, 2, 99999]) == [0, 2]
    with pytest.raises(AtlasError, match="none of these features has a label"):
        draw_features(atlas, 5, among=[99999])


CONTRACT = Contract("a {injection_char} b", "~", 5, None, 1.0, 160)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (3, {}, r"4 features and directions of shape \(3, 160\)"),
        (4, {"bridge": bridged(np.zeros((128, 160), "f"))}, "of width 160, and the bridge to resid_post.2 gives 128"),
        (4, {"alphas": [0.5]}, "washout needs the background"),
        (4, {"alphas": [np.nan], "background": np.ones(160)}, "α of washout must be a number"),
    ],
)
def test_what_does_not_fit_is_refused(as_for_users, rows, options, message):
    with pytest.raises(AtlasError, match=message):
        explain_features(features(), np.ones((rows, 160)), None, CONTRACT, StaticEmbedding.default(), **options)


def test_an_atlas_of_too_few_labels_or_another_width_is_refused(atlas):
    from atlas_jax.labels import Label, Labels

    few = dataclasses.replace(atlas, labels=Labels.from_rows([Label(0, "cats")], n_features=atlas.width))
    with pytest.raises(AtlasError, match="the atlas has 1 labelled features, too few to train on"):
        train_verbalizer(few, TEXTS, SMALL)
    wide = dataclasses.replace(atlas, sae=dataclasses.replace(atlas.sae, W_dec=np.zeros((atlas.width, 48), "f")))
    with pytest.raises(AtlasError, match="160 wide, and this SAE decodes into 48 at resid_post.3"):
        train_verbalizer(wide, TEXTS, SMALL)
    assert isinstance(atlas.model, LanguageModel)
