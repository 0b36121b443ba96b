"""Every field of other libraries' configurations is used, irrelevant or refused; damage is one sentence."""

import dataclasses
import importlib
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sae_files
from helpers.sae_files import D, M, arrays, weights_of

from atlas_jax.errors import AtlasError
from atlas_jax.sae import SAEConfig, SparseAutoencoder
from atlas_jax.sae._formats import _native, _saelens, _sparsify
from atlas_jax.sae._formats._fields import TEXT, WHOLE, Only, read_fields

pytest.importorskip("torch")
CONFIGS = {
    sae_files.gemma_scope_2: "config.json",
    sae_files.native: "sae.json",
    sae_files.saelens: "cfg.json",
    sae_files.sparsify: "cfg.json",
    sae_files.dictionary_learning: "config.json",
    sae_files.llama_scope: "hyperparams.json",
    sae_files.llama_scope_r1: "config.json",
}


def described(layout, tmp_path, change):
    """An SAE of a layout whose configuration was changed; ``change`` gets and returns the whole of it."""
    place = layout(tmp_path)
    file = place / CONFIGS[layout]
    cfg = json.loads(file.read_text()) if file.exists() else {"architecture": "jump_relu", "width": M, "l0": 20}
    file.write_text(json.dumps(change(cfg)))
    return place


def with_fields(**fields):
    return lambda cfg: cfg | fields


def with_trainer(**fields):
    return lambda cfg: cfg | {"trainer": cfg["trainer"] | fields}


def with_metadata(**fields):
    return lambda cfg: cfg | {"metadata": cfg["metadata"] | fields}


@pytest.mark.parametrize(
    ("layout", "change", "says"),
    [
        (sae_files.llama_scope, with_fields(act_fn="relu"), "act_fn = 'relu', and only 'jumprelu' or 'topk' or None"),
        (sae_files.llama_scope, with_fields(norm_activation="token-wise"), "norm_activation = 'token-wise'"),
        (sae_files.llama_scope, with_fields(norm_activation="batch-wise"), "norm_activation = 'batch-wise'"),
        (sae_files.llama_scope, with_fields(use_glu_encoder=True), "use_glu_encoder = True"),
        (sae_files.llama_scope, with_fields(sae_type="crosscoder"), "sae_type = 'crosscoder'"),
        (sae_files.llama_scope, with_fields(act_fn="topk", jump_relu_threshold=0.0), "no jump_relu_threshold"),
        (sae_files.llama_scope, with_fields(encoder_power=3), "unknown field encoder_power = 3"),
        (sae_files.llama_scope, with_fields(dataset_average_activation_norm={"in": 2, "out": 3}), "different average"),
        (sae_files.llama_scope_r1, with_fields(norm_activation="dataset-wise"), "give norm_scaling_factor"),
        (sae_files.sparsify, with_fields(activation="relu"), "activation = 'relu', and only 'topk' or 'groupmax'"),
        (sae_files.sparsify, with_fields(signed=True), "signed = True"),
        (sae_files.sparsify, with_fields(post_encoder="tanh"), "unknown field post_encoder"),
        (sae_files.saelens, with_fields(reshape_activations="hook_q"), "reshape_activations = 'hook_q'"),
        (sae_files.saelens, with_fields(some_new_gate=0.5), "unknown field some_new_gate"),
        (sae_files.saelens, with_metadata(hook_head_index=3), "hook_head_index = 3"),
        (sae_files.gemma_scope_2, with_fields(architecture="topk"), "architecture = 'topk'"),
        (sae_files.gemma_scope_2, with_fields(affine_connection=True), "disagree about an affine skip path"),
        (sae_files.native, with_fields(normalization="batch_norm"), "normalization = 'batch_norm', and only"),
        (sae_files.native, with_fields(kindness="much"), "unknown field kindness"),
        (sae_files.dictionary_learning, with_trainer(dict_size=M + 1), "disagree about the size"),
    ],
)
def test_a_field_that_is_not_computed_is_refused(layout, change, says, tmp_path):
    with pytest.raises(AtlasError, match=says) as caught:
        SparseAutoencoder.from_pretrained(described(layout, tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        (sae_files.llama_scope, with_fields(use_ghost_grads=True, initial_k=4, strict_loading=False, act_fn="topk")),
        (sae_files.llama_scope, with_fields(a_new_switch=False, another=None, third="none", norm_activation=None)),
        (sae_files.saelens, with_fields(l1_coefficient=5.0, jumprelu_bandwidth=0.01, dtype="bfloat16")),
        (sae_files.saelens, with_metadata(prepend_bos=False, whatever={"a": 1}, seqpos_slice=[None])),
        (sae_files.saelens, with_fields(d_in=float(D), k=40.5, reshape_activations="hook_z")),
        (sae_files.sparsify, with_fields(multi_topk=True, normalize_decoder=False, signed=False)),
        (sae_files.dictionary_learning, with_trainer(auxk_alpha=0.1, wandb_name="x", something_own=[1, 2])),
        (sae_files.gemma_scope_2, with_fields(type="sae", width=16384, hf_hook_point_out=None)),
    ],
)
def test_a_field_that_changes_nothing_is_no_obstacle(layout, change, tmp_path):
    plain = SparseAutoencoder.from_pretrained(described(layout, tmp_path / "a", lambda cfg: cfg))
    sae = SparseAutoencoder.from_pretrained(described(layout, tmp_path / "b", change))
    assert sae.config == plain.config
    assert all(np.array_equal(sae.parameters[name], value) for name, value in plain.parameters.items())


def scope(tmp_path, layout=sae_files.llama_scope, **fields):
    return SparseAutoencoder.from_pretrained(described(layout, tmp_path, with_fields(**fields)))


def test_llama_scopes_other_fields_are_computed(tmp_path, rng):
    x, w, s = rng.normal(size=(30, D)), {k: v.astype(np.float64) for k, v in arrays().items()}, np.sqrt(D) / 2
    jump = lambda pre, threshold: np.where(pre > threshold, pre, 0)
    for number, (fields, shift, factor, bias) in enumerate(
        [
            ({"apply_decoder_bias_to_pre_encoder": True}, w["b_dec"], s, w["b_dec"]),
            ({"use_decoder_bias": False}, 0, s, 0),
            ({"norm_activation": "inference"}, 0, 1, w["b_dec"]),
        ]
    ):
        sae = scope(tmp_path / str(number), **fields)
        f = jump((factor * x - shift) @ w["W_enc"] + w["b_enc"], 0.5 * factor)
        assert 0.05 < (f > 0).mean() < 0.95
        np.testing.assert_allclose(sae.encode(jnp.asarray(x, jnp.float32)), f, atol=1e-4)
        np.testing.assert_allclose(sae(jnp.asarray(x, jnp.float32)), (f @ w["W_dec"] + bias) / factor, atol=1e-3)


def test_thresholds_of_each_feature_are_in_units_that_include_the_decoders_norm(tmp_path, rng):
    """As lm-saes encodes: ``pre * norm`` goes through the activation and is divided by the norm again."""
    x, w = rng.normal(size=(30, D)), {k: v.astype(np.float64) for k, v in arrays().items()}
    pre, norm = x @ w["W_enc"] + w["b_enc"], np.linalg.norm(w["W_dec"], axis=1)
    for told, n in ((True, norm), (False, np.ones(M))):
        sae = scope(tmp_path / str(told), sae_files.llama_scope_r1, sparsity_include_decoder_norm=told)
        f = np.where(pre * n > w["threshold"], pre * n, 0) / n
        assert 0.05 < (f > 0).mean() < 0.95
        np.testing.assert_allclose(sae.encode(jnp.asarray(x, jnp.float32)), f, atol=1e-4)


def test_gemma_scope_2_states_its_l0(tmp_path):
    place = described(sae_files.gemma_scope_2, tmp_path, with_fields(hf_hook_point_in="model.layers.5.output"))
    config = SparseAutoencoder.from_pretrained(place).config
    assert (config.advertised_l0, str(config.site)) == (20, "resid_post.5")


@pytest.mark.parametrize(
    ("layout", "change", "says"),
    [
        (sae_files.saelens, with_fields(d_in=str(D)), f"d_in in .*cfg.json should be a whole number, it is '{D}'"),
        (sae_files.saelens, with_fields(d_sae=None), "cfg.json has no d_sae"),
        (sae_files.saelens, with_fields(d_in=[D]), "d_in in .* should be a whole number"),
        (sae_files.saelens, with_fields(architecture=["jumprelu"]), "architecture in .* should be text"),
        (sae_files.saelens, with_fields(metadata=[1]), "metadata in .* should be an object"),
        (sae_files.saelens, with_fields(apply_b_dec_to_input="yes"), "apply_b_dec_to_input in .* true or false"),
        (sae_files.saelens, with_metadata(hook_name=7), "hook_name in .* should be text"),
        (sae_files.saelens, with_fields(architecture="topk", k=4.5), "k in .* should be a whole number"),
        (sae_files.saelens, lambda cfg: [cfg], r"cfg.json' is damaged \(it holds no JSON object\)"),
        (sae_files.sparsify, with_fields(k="3"), "k in .* should be a whole number"),
        (sae_files.sparsify, with_fields(k=None), "cfg.json has no k"),
        (sae_files.sparsify, with_fields(num_latents=True), "num_latents in .* should be a whole number"),
        (sae_files.dictionary_learning, with_fields(trainer="BatchTopK"), "trainer in .* should be an object"),
        (sae_files.dictionary_learning, with_trainer(layer="4"), "layer in .* should be a whole number"),
        (sae_files.dictionary_learning, with_trainer(lm_name=["m"]), "lm_name in .* should be text"),
        (sae_files.llama_scope, with_fields(jump_relu_threshold="0.5"), "jump_relu_threshold in .* should be a number"),
        (sae_files.llama_scope, with_fields(jump_relu_threshold=math.nan), "should be a number, it is nan"),
        (sae_files.llama_scope, with_fields(dataset_average_activation_norm=2.0), "should be an object"),
        (
            sae_files.llama_scope,
            with_fields(dataset_average_activation_norm={"in": "2"}),
            "in in .* should be a number",
        ),
        (sae_files.gemma_scope_2, with_fields(l0="low"), "l0 in .* should be a number"),
        (sae_files.native, with_fields(d_sae=None), "sae.json has no d_sae"),
        (sae_files.native, with_fields(site=3), "site in .* should be a site"),
        (sae_files.native, with_fields(site="nowhere.3"), "site in .*sae.json: "),
        (sae_files.native, with_fields(k=10**400), "k in .* should be a whole number"),
        (sae_files.native, with_fields(advertised_l0=math.inf), "advertised_l0 in .* should be a number"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(layout, change, says, tmp_path):
    with pytest.raises(AtlasError, match=says) as caught:
        SparseAutoencoder.from_pretrained(described(layout, tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", CONFIGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("content", [b"", b'{"k": ', b"\xff\xfe{}", b"null", b"[" * 100_000, b'"text"'])
def test_a_damaged_configuration_is_one_sentence(layout, content, tmp_path):
    place = layout(tmp_path)
    (place / CONFIGS[layout]).write_bytes(content)
    with pytest.raises(AtlasError, match=CONFIGS[layout]) as caught:
        SparseAutoencoder.from_pretrained(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", sae_files.TOLD, ids=lambda f: f.__name__)
@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "text"])
def test_damaged_tensors_are_one_sentence(layout, damage, tmp_path):
    place = layout(tmp_path)
    file = weights_of(place)
    whole = file.read_bytes()
    half = whole[: len(whole) // 2]
    file.write_bytes({"empty": b"", "half": half, "last byte": whole[:-1], "text": b"not a file of tensors"}[damage])
    with pytest.raises(AtlasError, match=f"cannot read .*{file.name}"):
        SparseAutoencoder.from_pretrained(place)


def spoiled(layout, tmp_path, spoil):
    """An SAE of a layout, its tensors changed by a function."""
    place = layout(tmp_path)
    file, tensors = weights_of(place), {}
    if file.suffix == ".npz":
        tensors = dict(np.load(file))
    elif file.suffix == ".safetensors":
        tensors = importlib.import_module("safetensors.numpy").load_file(file)
    else:
        torch = importlib.import_module("torch")
        tensors = {name: value.numpy() for name, value in torch.load(file, weights_only=True).items()}
    name = next(n for n, v in tensors.items() if v.dtype.kind == "f" and v.ndim and "log" not in n)
    sae_files.write(file, tensors | {name: spoil(tensors[name])})
    return place, name, file.name


@pytest.mark.parametrize("layout", sae_files.TOLD, ids=lambda f: f.__name__)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_named_with_its_tensor_and_file(layout, value, tmp_path):
    def spoil(array):
        array = array.copy()
        array.flat[1] = value
        return array

    place, name, file = spoiled(layout, tmp_path, spoil)
    with pytest.raises(AtlasError, match="not finite") as caught:
        SparseAutoencoder.from_pretrained(place)
    assert name in str(caught.value)
    assert file in str(caught.value) or str(place) in str(caught.value)


@pytest.mark.parametrize("layout", sae_files.TOLD, ids=lambda f: f.__name__)
@pytest.mark.parametrize("spoil", [lambda a: a.ravel()[:1], lambda a: a[None], lambda a: a[..., :-1]])
def test_a_tensor_of_another_shape_is_named(layout, spoil, tmp_path):
    place, _, _ = spoiled(layout, tmp_path, spoil)
    with pytest.raises(AtlasError, match="shape|axes"):
        SparseAutoencoder.from_pretrained(place)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_is_a_number_above_zero(factor, tmp_path):
    with pytest.raises(AtlasError, match="norm_scaling_factor should be a number above 0"):
        SparseAutoencoder.from_pretrained(sae_files.llama_scope(tmp_path), norm_scaling_factor=factor)


def test_a_state_dict_that_holds_no_arrays_is_named(tmp_path):
    import torch

    file = tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    torch.save({"encoder.weight": [1.0], "encoder.bias": None, "decoder.weight": 1, "decoder.bias": "x"}, file)
    with pytest.raises(AtlasError, match="'encoder.weight' in .*l19.pth should be an array of numbers"):
        SparseAutoencoder.from_pretrained(file)
    torch.save([1], file)
    with pytest.raises(AtlasError, match="should hold a state dict"):
        SparseAutoencoder.from_pretrained(file)


def test_the_tables_know_every_field_of_the_published_classes():
    """The configuration classes of the libraries that are installed, against the tables."""
    classes = []
    if found := _import("sae_lens.saes.sae", "sae_lens"):
        saes = _import("sae_lens", "sae_lens")
        kinds = [v for v in vars(saes).values() if isinstance(v, type) and issubclass(v, found.SAEConfig)]
        ours = {"standard", "gated", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk", "transcoder"}
        told = [k for k in kinds if not k.__abstractmethods__ and k.architecture() in ours]
        classes += [(kind, _saelens._FIELDS) for kind in told]
    if found := _import("sparsify.config", "sparsify"):
        classes += [(found.SparseCoderConfig, _sparsify._FIELDS)]
    if not classes:
        pytest.skip("neither sae-lens nor eai-sparsify is installed")
    for kind, table in classes:
        unknown = {field.name for field in dataclasses.fields(kind)} - table.keys()
        assert not unknown, f"{kind.__name__}: {unknown}"


def _import(name, package):
    return importlib.import_module(name) if importlib.util.find_spec(package) else None


def test_our_own_description_is_read_in_full():
    assert {field.name for field in dataclasses.fields(SAEConfig)} == _native._FIELDS.keys()


def test_read_fields(tmp_path):
    table = {"k": WHOLE, "name": TEXT, "mode": Only(("a", "b"))}
    assert read_fields({"k": 3.0, "name": None, "mode": "b", "x": 0}, table, tmp_path) == {"k": 3, "mode": "b"}
    assert read_fields({"x": 7}, table, tmp_path, others=True) == {}
    with pytest.raises(AtlasError, match="mode = 'c', and only 'a' or 'b' or None is supported"):
        read_fields({"mode": "c"}, table, tmp_path)
    with pytest.raises(AtlasError, match="unknown field x = 7"):
        read_fields({"x": 7}, table, tmp_path)
    with pytest.raises(AtlasError, match="has no k, name"):
        read_fields({"mode": "a"}, table, tmp_path, needed=("name", "k", "mode"))
