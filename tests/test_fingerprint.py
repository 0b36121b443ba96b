"""The fingerprint of a forward pass: the same pass agrees, one with a fault does not."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.models import LanguageModel, decoder_shapes, fingerprint_difference, is_small, numerical_fingerprint
from atlas_jax.subject import Subject


@pytest.fixture(scope="module")
def subject():
    return Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1", "resid_post.2"])


@pytest.fixture(scope="module")
def recorded(subject):
    return json.loads(json.dumps(numerical_fingerprint(subject)))


def with_config(subject, **changes):
    """The same parameters under a changed config."""
    model = subject.model
    config = dataclasses.replace(model.config, **changes)
    graph = nnx.graphdef(decoder_shapes(config))
    decoder = nnx.merge(graph, nnx.state(model.decoder))
    return dataclasses.replace(subject, model=LanguageModel(config, model.tokenizer, decoder, model.hf_config))


def scaled(subject, factor, part):
    """One parameter of the last layer multiplied."""
    graph, state = nnx.split(subject.model.decoder)
    scale = lambda path, x: x * factor if f"layers.2.{part}" in ".".join(map(str, path)) else x
    flat = [(path, leaf.replace(scale(path, leaf[...]))) for path, leaf in nnx.to_flat_state(state)]
    model = subject.model
    decoder = nnx.merge(graph, nnx.from_flat_state(flat))
    return dataclasses.replace(subject, model=LanguageModel(model.config, model.tokenizer, decoder, model.hf_config))


def test_the_same_pass_agrees(subject, recorded):
    assert list(recorded["values"]) == ["logits", "mlp_act.1", "resid_post.2"]
    assert fingerprint_difference(recorded, subject) is None
    assert is_small(subject.model)


@pytest.mark.parametrize(
    "fault",
    [
        lambda s: with_config(s, ropes=tuple(dataclasses.replace(r, theta=5e5) for r in s.model.config.ropes)),
        lambda s: with_config(s, norm_eps=1e-2),
        lambda s: with_config(s, activation="gelu_pytorch_tanh"),
        lambda s: with_config(s, query_scale=s.model.config.query_scale * 1.05),
        lambda s: with_config(s, windows=(4,) * s.model.config.num_layers),
        lambda s: scaled(s, 1.01, "mlp.up_proj"),
        lambda s: dataclasses.replace(s, pooling="mean"),
    ],
)
def test_a_pass_with_a_fault_does_not(subject, recorded, fault):
    assert "differ by" in fingerprint_difference(recorded, fault(subject))


def test_rounding_is_no_difference(subject, recorded):
    half = Subject.from_model(LanguageModel.from_pretrained(SUBJECT, dtype="bfloat16"), subject.sites)
    assert fingerprint_difference(recorded, half) is None
    assert numerical_fingerprint(half)["dtype"] == "bfloat16"
    assert fingerprint_difference(recorded, scaled(subject, 1 + 1e-6, "mlp")) is None


def test_a_spread_model_agrees_with_that_of_one_device(recorded):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model = LanguageModel.from_pretrained(SUBJECT, mesh=mesh)
    assert fingerprint_difference(recorded, Subject.from_model(model, ["mlp_act.1", "resid_post.2"])) is None


def test_an_atlas_is_checked_against_the_pass_it_was_built_with(tmp_path, recwarn):
    ConceptAtlas.from_pretrained(ATLAS, verify=True)
    assert not [w for w in recwarn if "no longer computes" in str(w.message)]
    copy = shutil.copytree(ATLAS, tmp_path / "atlas")
    manifest = json.loads((copy / "atlas.json").read_text())
    values = manifest["fingerprint"]["values"]
    values["resid_post.3"] = (np.array(values["resid_post.3"]) * 1.1).tolist()
    (copy / "atlas.json").write_text(json.dumps(manifest))
    ConceptAtlas.from_pretrained(copy)
    with pytest.warns(UserWarning, match="no longer computes what it was built with: resid_post.3 differ by 9.1e-02"):
        ConceptAtlas.from_pretrained(copy, verify=True)


def test_a_saved_atlas_agrees_in_whatever_precision_it_is_stored(tmp_path, recwarn):
    atlas = ConceptAtlas.from_pretrained(ATLAS)
    for dtype in ("float32", "bfloat16"):
        atlas.save_pretrained(tmp_path / dtype, {}, dtype=dtype)
        ConceptAtlas.from_pretrained(tmp_path / dtype, verify=True)
    assert not [w for w in recwarn if "no longer computes" in str(w.message)]
