"""Every on-disk layout: files as their release writes them, read back, against the published math in float64."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from atlas_jax.errors import AtlasError
from atlas_jax.sae import SparseAutoencoder, quality
from atlas_jax.sae._formats._fields import site_of
from atlas_jax.types import Site

torch = pytest.importorskip("torch")
D, M = 10, 28


@pytest.fixture
def x(rng):
    return (2 * rng.normal(size=(40, D)) + rng.normal(size=D)).astype(np.float32)


@pytest.fixture
def w(rng):
    """Random parameters under the names of the canonical form, float64."""
    shapes = {"W_enc": (D, M), "b_enc": M, "W_dec": (M, D), "b_dec": D, "threshold": M, "W_skip": (D, D)}
    w = {name: rng.normal(size=shape).astype(np.float32).astype(np.float64) for name, shape in shapes.items()}
    return w | {"threshold": np.abs(w["threshold"])}


def write(path, tensors=None, torch_tensors=None, cfg=None, cfg_name="cfg.json"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if tensors is not None:
        save_file({k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()}, path)
    if torch_tensors is not None:
        as_torch = lambda v: torch.tensor(np.ascontiguousarray(v, np.float32)) if np.ndim(v) else torch.tensor(v)
        torch.save({k: as_torch(v) for k, v in torch_tensors.items()}, path)
    if cfg is not None:
        (path.parent / cfg_name).write_text(json.dumps(cfg))


def jump(pre, threshold):
    return np.maximum(pre, 0) * (pre > threshold)


def largest(pre, k):
    relu = np.maximum(pre, 0)
    return np.where(relu >= np.sort(relu, axis=1)[:, [-k]], relu, 0)


def agree(sae, x, f, y):
    assert 0.01 < (f > 0).mean() < 0.9
    np.testing.assert_allclose(sae.encode(jnp.asarray(x)), f, rtol=2e-5, atol=3e-5)
    np.testing.assert_allclose(sae(jnp.asarray(x)), y, rtol=5e-5, atol=1e-4)


def lower(w, *names):
    return {name.lower(): w[name] for name in names}


CANONICAL = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


@pytest.mark.parametrize("case", [str.lower, str])
def test_gemma_scope(tmp_path, w, x, case):
    folder = tmp_path / "gemma-scope-9b-pt-mlp" / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{case(name): w[name].astype(np.float32) for name in CANONICAL})
    sae = SparseAutoencoder.from_pretrained(folder)
    f = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])
    assert sae.config.format == "gemma_scope"
    assert sae.config.site == Site("mlp_out_post", 20)
    assert sae.config.model == "google/gemma-2-9b"
    assert sae.config.advertised_l0 == 71


def test_gemma_scope_of_the_embedding_reads_the_scaled_residual(tmp_path, w, x):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: w[name].astype(np.float32) for name in CANONICAL})
    f = jump(x / np.sqrt(D) @ w["W_enc"] + w["b_enc"], w["threshold"])
    sae = SparseAutoencoder.from_pretrained(folder)
    agree(sae, x, f, np.sqrt(D) * (f @ w["W_dec"] + w["b_dec"]))
    assert sae.config.site == Site("resid_pre", 0)


@pytest.mark.parametrize("with_config", [True, False])
def test_gemma_scope_2(tmp_path, w, x, with_config):
    file = tmp_path / "gemma-scope-2-4b-it" / "attn_out_all" / "layer_17_width_16k_l0_small" / "params.safetensors"
    cfg = {"architecture": "jump_relu", "model_name": "m", "hf_hook_point_in": "model.layers.17.self_attn.o_proj.input"}
    write(file, lower(w, *CANONICAL), cfg=cfg if with_config else None, cfg_name="config.json")
    sae = SparseAutoencoder.from_pretrained(file.parent)
    f = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])
    assert sae.config.site == Site("z", 17)
    assert sae.config.model == ("m" if with_config else "google/gemma-3-4b-it")


def test_gemma_scope_2_affine_transcoder(tmp_path, w, x):
    file = tmp_path / "transcoder" / "layer_4_width_16k_l0_big_affine" / "params.safetensors"
    write(file, lower(w, *CANONICAL) | {"affine_skip_connection": w["W_skip"]})
    sae = SparseAutoencoder.from_pretrained(file.parent)
    f = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"])
    assert (sae.config.site, sae.config.site_out) == (Site("mlp_in", 4), Site("mlp_out_post", 4))


def saelens_cfg(architecture, **more):
    metadata = {"sae_lens_version": "6.1.0", "hook_name": "blocks.3.hook_resid_post", "model_name": "m"}
    base = {"architecture": architecture, "d_in": D, "d_sae": M, "dtype": "float32", "normalize_activations": "none"}
    return base | {"apply_b_dec_to_input": True, "reshape_activations": "none", "metadata": metadata} | more


def test_saelens_topk_ranks_by_rescaled_activations(tmp_path, w, x):
    tensors = {name: w[name] for name in CANONICAL[:-1]}
    write(
        tmp_path / "sae_weights.safetensors", tensors, cfg=saelens_cfg("topk", k=4, rescale_acts_by_decoder_norm=True)
    )
    norm = np.linalg.norm(w["W_dec"], axis=1)
    f = largest(((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm, 4)
    agree(SparseAutoencoder.from_pretrained(tmp_path), x, f, (f / norm) @ w["W_dec"] + w["b_dec"])


def test_saelens_gated(tmp_path, w, x, rng):
    gate, r, mag = rng.normal(size=(3, M))
    tensors = {name: w[name] for name in ("W_enc", "W_dec", "b_dec")} | {"b_gate": gate, "r_mag": r, "b_mag": mag}
    write(tmp_path / "sae_weights.safetensors", tensors, cfg=saelens_cfg("gated", apply_b_dec_to_input=False))
    p = x @ w["W_enc"]
    f = np.maximum(x @ (w["W_enc"] * np.exp(r)) + mag, 0) * (p + gate > 0)
    agree(SparseAutoencoder.from_pretrained(tmp_path), x, f, f @ w["W_dec"] + w["b_dec"])


def test_saelens_before_6_has_its_own_defaults(tmp_path, w, x):
    cfg = {"d_in": D, "d_sae": M, "hook_point": "blocks.3.hook_resid_pre", "activation_fn_str": "topk"}
    cfg |= {"activation_fn_kwargs": {"k": 3}, "normalize_activations": False}
    tensors = {name: w[name] for name in CANONICAL[:-1]} | {"scaling_factor": np.ones(M)}
    write(tmp_path / "sae_weights.safetensors", tensors, cfg=cfg)
    sae = SparseAutoencoder.from_pretrained(tmp_path)
    f = largest((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 3)
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])
    assert sae.config.site == Site("resid_pre", 3)


def test_saelens_on_scaled_activations_needs_the_scale(tmp_path, w, x):
    tensors = {name: w[name] for name in CANONICAL}
    cfg = saelens_cfg("jumprelu", normalize_activations="expected_average_only_in", apply_b_dec_to_input=False)
    write(tmp_path / "sae_weights.safetensors", tensors, cfg=cfg)
    with pytest.raises(AtlasError, match="norm_scaling_factor"):
        SparseAutoencoder.from_pretrained(tmp_path)
    sae = SparseAutoencoder.from_pretrained(tmp_path, norm_scaling_factor=0.5)
    f = jump(0.5 * x @ w["W_enc"] + w["b_enc"], w["threshold"])
    agree(sae, x, f, (f @ w["W_dec"] + w["b_dec"]) / 0.5)


def test_saelens_skip_transcoder(tmp_path, w, x):
    tensors = {name: w[name] for name in CANONICAL[:-1]} | {"W_skip": w["W_skip"].T}
    cfg = saelens_cfg("skip_transcoder", d_out=D, apply_b_dec_to_input=False)
    write(tmp_path / "sae_weights.safetensors", tensors, cfg=cfg)
    f = np.maximum(x @ w["W_enc"] + w["b_enc"], 0)
    agree(SparseAutoencoder.from_pretrained(tmp_path), x, f, f @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"])


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify(tmp_path, w, x, activation):
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    cfg = {"d_in": D, "num_latents": M, "expansion_factor": 32, "k": 4, "activation": activation}
    write(tmp_path / "layers.5" / "sae.safetensors", tensors, cfg=cfg)
    sae = SparseAutoencoder.from_pretrained(tmp_path / "layers.5")
    pre = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    groups = pre.reshape(len(x), 4, -1)
    grouped = np.where(groups == groups.max(-1, keepdims=True), groups, 0).reshape(pre.shape)
    f = largest(pre, 4) if activation == "topk" else grouped
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])
    assert sae.config.site == Site("resid_post", 5)


def test_sparsify_skip_transcoder_subtracts_nothing(tmp_path, w, x):
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    cfg = {"d_in": D, "num_latents": 0, "expansion_factor": 2.8, "k": 4, "transcode": True, "skip_connection": True}
    cfg["num_latents"] = M
    write(tmp_path / "layers.5.mlp" / "sae.safetensors", tensors | {"W_skip": w["W_skip"].T}, cfg=cfg)
    sae = SparseAutoencoder.from_pretrained(tmp_path / "layers.5.mlp")
    f = largest(x @ w["W_enc"] + w["b_enc"], 4)
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"])
    assert (sae.config.site, sae.config.site_out) == (Site("mlp_in", 5), Site("mlp_out", 5))


def test_llama_scope_scales_threshold_and_weights(tmp_path, w, x):
    file = tmp_path / "Llama3_1-8B-Base-L15R-8x" / "checkpoints" / "final.safetensors"
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"]}
    tensors |= {"decoder.weight": w["W_dec"].T, "decoder.bias": w["b_dec"]}
    write(file, tensors)
    cfg = {"d_model": D, "d_sae": M, "hook_point_in": "blocks.15.hook_resid_post", "jump_relu_threshold": 0.8}
    cfg["dataset_average_activation_norm"] = {"in": 2.0, "out": 2.0}
    (file.parents[1] / "hyperparams.json").write_text(json.dumps(cfg))
    s = np.sqrt(D) / 2.0
    f = jump(s * x @ w["W_enc"] + w["b_enc"], 0.8 * s)
    sae = SparseAutoencoder.from_pretrained(file.parents[1])
    agree(sae, x, f, (f @ w["W_dec"] + w["b_dec"]) / s)
    assert (sae.config.site, sae.config.model) == (Site("resid_post", 15), "meta-llama/Llama-3.1-8B")
    del cfg["dataset_average_activation_norm"]
    (file.parents[1] / "hyperparams.json").write_text(json.dumps(cfg))
    with pytest.raises(AtlasError, match="norm_scaling_factor"):
        SparseAutoencoder.from_pretrained(file.parents[1])


def test_llama_scope_r1_distill(tmp_path, w, x):
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    tensors |= {"decoder.bias": w["b_dec"], "log_jumprelu_threshold": np.log(w["threshold"])}
    cfg = {"d_model": D, "expansion_factor": 8, "hook_point_in": "blocks.15.hook_resid_post"}
    write(tmp_path / "sae_weights.safetensors", tensors, cfg=cfg, cfg_name="config.json")
    f = jump(0.7 * x @ w["W_enc"] + w["b_enc"], w["threshold"])
    sae = SparseAutoencoder.from_pretrained(tmp_path, norm_scaling_factor=0.7)
    agree(sae, x, f, (f @ w["W_dec"] + w["b_dec"]) / 0.7)


def dictionary_learning(path, name, state, **trainer):
    cfg = {"trainer": {"dict_class": name, "activation_dim": D, "dict_size": M, "layer": 4, "lm_name": "m"} | trainer}
    write(path / "ae.pt", torch_tensors=state, cfg=cfg, cfg_name="config.json")
    return SparseAutoencoder.from_pretrained(path)


def linear(w, **more):
    return {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T} | more


def test_dictionary_learning_relu_classes(tmp_path, w, x):
    norm = np.linalg.norm(w["W_dec"], axis=1)
    f = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    sae = dictionary_learning(tmp_path / "a", "AutoEncoder", linear(w, bias=w["b_dec"]))
    agree(sae, x, f * norm, f @ w["W_dec"] + w["b_dec"])
    f = np.maximum(x @ w["W_enc"] + w["b_enc"], 0)
    sae = dictionary_learning(tmp_path / "b", "AutoEncoderNew", linear(w, **{"decoder.bias": w["b_dec"]}))
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])
    assert sae.config.site == Site("resid_post", 4)


def test_dictionary_learning_threshold_classes(tmp_path, w, x):
    own = {name: w[name] for name in CANONICAL}
    f = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    agree(dictionary_learning(tmp_path / "j", "JumpReluAutoEncoder", own), x, f, f @ w["W_dec"] + w["b_dec"])
    f = jump((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 1.25)
    state = linear(w, b_dec=w["b_dec"], k=4, threshold=1.25)
    agree(dictionary_learning(tmp_path / "b", "BatchTopKSAE", state, k=4), x, f, f @ w["W_dec"] + w["b_dec"])
    state = own | {"k": 4, "threshold": 1.25, "group_sizes": np.array([8.0, 20.0])}
    sae = dictionary_learning(tmp_path / "m", "MatryoshkaBatchTopKSAE", state, k=4)
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])


def test_dictionary_learning_topk_and_gated(tmp_path, w, x, rng):
    pre = (x - w["b_dec"]) @ w["W_enc"]
    f = largest(pre + w["b_enc"], 4)
    sae = dictionary_learning(tmp_path / "t", "AutoEncoderTopK", linear(w, b_dec=w["b_dec"], k=4, threshold=-1.0), k=4)
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])
    gate, r, mag = rng.normal(size=(3, M))
    state = linear(w, decoder_bias=w["b_dec"], gate_bias=gate, r_mag=r, mag_bias=mag)
    del state["encoder.bias"]
    f = np.maximum(np.exp(r) * pre + mag, 0) * (pre + gate > 0)
    agree(dictionary_learning(tmp_path / "g", "GatedAutoEncoder", state), x, f, f @ w["W_dec"] + w["b_dec"])


def test_qwen_scope_takes_k_from_the_repository(tmp_path, w, x):
    file = tmp_path / "SAE-Res-Qwen3-8B-Base-W64K-L0_5" / "layer3.sae.pt"
    state = {"W_enc": w["W_enc"].T, "b_enc": w["b_enc"], "W_dec": w["W_dec"].T, "b_dec": w["b_dec"]}
    write(file, torch_tensors=state)
    sae = SparseAutoencoder.from_pretrained(file)
    f = largest(x @ w["W_enc"] + w["b_enc"], 5)
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])
    assert (sae.config.site, sae.config.model) == (Site("resid_post", 3), "Qwen/Qwen3-8B-Base")
    with pytest.raises(AtlasError, match="keep the file"):
        SparseAutoencoder.from_pretrained(file.rename(tmp_path / file.name))


@pytest.mark.parametrize("suffix", ["_linear", ""])
def test_goodfire(tmp_path, w, x, suffix):
    state = {
        name.replace(".", f"{suffix}."): value for name, value in linear(w, **{"decoder.bias": w["b_dec"]}).items()
    }
    file = tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    write(file, torch_tensors=state)
    sae = SparseAutoencoder.from_pretrained(file)
    f = np.maximum(x @ w["W_enc"] + w["b_enc"], 0)
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])
    assert sae.config.site == Site("resid_post", 19)


def test_a_bare_state_dict_needs_its_meaning_from_the_caller(tmp_path, w, x):
    write(tmp_path / "sae.pt", torch_tensors=linear(w, **{"decoder.bias": w["b_dec"]}))
    with pytest.raises(AtlasError, match="from_state_dict"):
        SparseAutoencoder.from_pretrained(tmp_path / "sae.pt")
    sae = SparseAutoencoder.from_state_dict(tmp_path / "sae.pt", kind="topk", apply_b_dec_to_input=True, k=3)
    f = largest((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 3)
    agree(sae, x, f, f @ w["W_dec"] + w["b_dec"])


def test_code_hidden_in_a_torch_file_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    torch.save({"encoder.weight": Bomb()}, tmp_path / "x-SAE-l1.pt")
    with pytest.raises(AtlasError, match="plain torch weights"):
        SparseAutoencoder.from_pretrained(tmp_path / "x-SAE-l1.pt")
    assert not (tmp_path / "boom").exists()


def _saelens(path, w, drop=(), **change):
    tensors = {name: w[name] for name in CANONICAL if name not in drop}
    write(path / "sae_weights.safetensors", tensors, cfg=saelens_cfg("jumprelu") | change)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p, w: _saelens(p, w, drop=["threshold"]), "no threshold"),
        (lambda p, w: _saelens(p, w, architecture="temporal"), "architecture 'temporal'"),
        (lambda p, w: _saelens(p, w, d_sae=M + 1), "shape"),
        (lambda p, w: _saelens(p, w, normalize_activations="covariance_whitening"), "covariance_whitening"),
        (lambda p, w: (_saelens(p, w), (p / "cfg.json").write_text("{")), "cfg.json' is damaged"),
        (lambda p, w: (_saelens(p, w), (p / "sae_weights.safetensors").write_bytes(b"12345678garbage")), "cannot read"),
        (lambda p, w: (p / "params.npz").write_bytes(b"PK garbage"), "cannot read"),
        (lambda p, w: np.savez(p / "params.npz", W_enc=w["W_enc"]), "no tensor 'b_enc'"),
        (lambda p, w: (p / "notes.txt").write_text("hello"), "no known SAE layout"),
        (lambda p, w: dictionary_learning(p, "CrossCoder", {}), "class 'CrossCoder'"),
        (
            lambda p, w: dictionary_learning(p, "BatchTopKSAE", linear(w, b_dec=w["b_dec"], k=4, threshold=-1.0), k=4),
            "never set",
        ),
        (
            lambda p, w: dictionary_learning(p, "BatchTopKSAE", linear(w, b_dec=w["b_dec"], k=4, threshold=1.0), k=5),
            "k = 5",
        ),
    ],
)
def test_what_cannot_be_read_right_is_refused(tmp_path, w, spoil, says):
    with pytest.raises(AtlasError, match=says):  # noqa: PT012 - either the spoiled writer or the reader meets it
        spoil(tmp_path, w)
        SparseAutoencoder.from_pretrained(tmp_path)


def test_two_layouts_in_one_folder_are_not_chosen_between(tmp_path, w):
    _saelens(tmp_path, w)
    np.savez(tmp_path / "params.npz", **{name: 2 * w[name] for name in CANONICAL})
    with pytest.raises(AtlasError, match="layouts gemma_scope and saelens, which may differ; name the format"):
        SparseAutoencoder.from_pretrained(tmp_path)
    read = SparseAutoencoder.from_pretrained(tmp_path, format="saelens")
    np.testing.assert_allclose(read.W_dec, w["W_dec"])


def test_a_missing_path_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(AtlasError, match="there is no SAE at"):
        SparseAutoencoder.from_pretrained(tmp_path / "nothing")
    with pytest.raises(AtlasError, match="unknown SAE format 'x'"):
        SparseAutoencoder.from_pretrained(tmp_path, format="x")


def test_hook_names():
    assert site_of("blocks.5.hook_mlp_out") == Site("mlp_out_post", 5)
    assert site_of("blocks.5.mlp.hook_out") == Site("mlp_out", 5)
    assert site_of("model.layers.5.pre_feedforward_layernorm.output") == Site("mlp_in", 5)
    assert site_of("blocks.5.ln2.hook_normalized") is None


@pytest.fixture
def data():
    if "ATLAS_JAX_DATA" not in os.environ:
        pytest.skip("ATLAS_JAX_DATA is not set: it names the folder of real inputs")
    return Path(os.environ["ATLAS_JAX_DATA"]) / "sae"


def test_one_sae_in_three_layouts_is_one_sae(tmp_path, data, rng):
    folder = data / "stories260K-L2-512"
    (tmp_path / "cfg.json").write_text((folder / "cfg_pre6.json").read_text())
    (tmp_path / "sae_weights.safetensors").write_bytes((folder / "sae_weights.safetensors").read_bytes())
    npz = SparseAutoencoder.from_pretrained(folder / "params.npz")
    current = SparseAutoencoder.from_pretrained(folder, format="saelens")
    old = SparseAutoencoder.from_pretrained(tmp_path)
    x = jnp.asarray(rng.normal(size=(50, 64)), jnp.float32)
    np.testing.assert_array_equal(npz(x), current(x))
    np.testing.assert_array_equal(npz(x), old(x))
    assert current.config.site == old.config.site == Site("resid_post", 2)


def test_a_real_sae_explains_the_residuals_of_its_model(data):
    """Read as advertised, FVU 0.10 and L0 6.4; at the wrong block or with a wrong description, visibly worse."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(data.parent / "models" / "stories260K").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(data.parent / "models" / "stories260K")
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. " * 4
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
    acts = [jnp.asarray(h[0, 1:].numpy()) for h in hidden]
    sae = SparseAutoencoder.from_pretrained(data / "stories260K-L2-512", format="saelens")
    right, wrong = quality(sae, acts[3]), quality(sae, acts[2])
    assert float(right.fvu) < 0.2
    assert 4 < float(right.l0) < 10
    assert float(wrong.fvu) > 2 * float(right.fvu)


def test_a_strangers_relu_sae(data):
    sae = SparseAutoencoder.from_state_dict(
        data / "foreign-relu-toy" / "sae.pt", kind="relu", apply_b_dec_to_input=True, site=Site("resid_post", 1)
    )
    assert (sae.config.d_in, sae.config.d_sae) == (32, 64)
    np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1, atol=1e-5)
