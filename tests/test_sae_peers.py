"""SAEs made, saved or read by the libraries their layouts come from: equal features and reconstructions.

Needs sae-lens, eai-sparsify and dictionary-learning; what is not installed is skipped.
"""

import importlib
import json

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.sae import SAEConfig, SparseAutoencoder, train
from atlas_jax.types import Site

torch = pytest.importorskip("torch")
D, M, K = 16, 48, 4


@pytest.fixture
def x(rng):
    return (2 * rng.normal(size=(60, D)) + rng.normal(size=D)).astype(np.float32)


def randomize(module):
    """Every parameter at random, thresholds positive, so that nothing agrees by being zero or tied."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn.abs() if "threshold" in name else 0.5 * drawn)
    return module


def agree(sae, x, f, y):
    f, y = (np.asarray(v.detach().to_dense()) for v in (f, y))
    assert 0.01 < (f > 0).mean() < 0.9
    np.testing.assert_allclose(sae.encode(jnp.asarray(x)), f, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae(jnp.asarray(x)), y, rtol=1e-4, atol=2e-4)


LENS = {
    "standard": {},
    "standard, rows of norm sqrt(d)": {"normalize_activations": "constant_norm_rescale"},
    "standard, layer norm": {"normalize_activations": "layer_norm"},
    "standard, b_dec stays": {"apply_b_dec_to_input": False},
    "jumprelu": {},
    "gated": {},
    "topk": {"k": K, "rescale_acts_by_decoder_norm": False},
    "topk, rescaled": {"k": K, "rescale_acts_by_decoder_norm": True},
    "transcoder": {"d_out": D + 3, "apply_b_dec_to_input": False},
    "skip_transcoder": {"d_out": D + 3, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"d_out": D, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"d_out": D, "apply_b_dec_to_input": False},
}


@pytest.mark.parametrize("case", LENS)
def test_sae_lens_saves_what_we_load_and_loads_what_we_save(case, x, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    cfg = {"architecture": case.split(",")[0], "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu"}
    metadata = {"model_name": "m", "hook_name": "blocks.3.hook_resid_post", "sae_lens_version": sae_lens.__version__}
    theirs = randomize(sae_lens.SAE.from_dict(cfg | {"metadata": metadata} | LENS[case]))
    theirs.save_model(tmp_path / "theirs")
    ours = SparseAutoencoder.from_pretrained(tmp_path / "theirs")
    f, y = theirs.encode(torch.tensor(x)), theirs(torch.tensor(x))
    agree(ours, x, f, y)
    assert (ours.config.site, ours.config.model) == (Site("resid_post", 3), "m")
    ours.save_pretrained(tmp_path / "ours", format="saelens")
    again = sae_lens.SAE.load_from_disk(tmp_path / "ours")
    agree(ours, x, again.encode(torch.tensor(x)), again(torch.tensor(x)))


def test_sae_lens_trains_on_scaled_activations(x, tmp_path):
    """Saved without the scale, which the caller then has to give; sae-lens folds it itself."""
    sae_lens = pytest.importorskip("sae_lens")
    cfg = {"architecture": "jumprelu", "d_in": D, "d_sae": M, "normalize_activations": "expected_average_only_in"}
    theirs = randomize(sae_lens.SAE.from_dict(cfg))
    theirs.save_model(tmp_path)
    theirs.fold_activation_norm_scaling_factor(0.7)
    ours = SparseAutoencoder.from_pretrained(tmp_path, norm_scaling_factor=0.7)
    agree(ours, x, theirs.encode(torch.tensor(x)), theirs(torch.tensor(x)))


@pytest.fixture
def offline(monkeypatch):
    """sae-lens' own loaders of released SAEs, reading a folder in place of the hub."""
    pytest.importorskip("sae_lens")
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")

    def download(repo_id, filename, subfolder="", **_):
        return str(root[0] / repo_id / subfolder / filename)

    def shapes(repo_id, filename):
        with importlib.import_module("safetensors").safe_open(download(repo_id, filename), "np") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    root = []
    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    return loaders, root


def read_by_sae_lens(found, scale=None, **change):
    """An SAE from what one of sae-lens' loaders returns."""
    import sae_lens

    cfg, state, _ = found
    cfg = {k: v for k, v in (cfg | change).items() if v is not None}
    cfg["dtype"] = "float32"
    sae = sae_lens.SAE.from_dict(cfg)
    sae.load_state_dict({k: v.float() for k, v in state.items()})
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    return sae


@pytest.fixture
def jumprelu(rng):
    arrays = {"W_enc": (D, M), "b_enc": (M,), "W_dec": (M, D), "b_dec": (D,), "threshold": (M,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    arrays["threshold"] = np.abs(arrays["threshold"])
    return SparseAutoencoder.build(SAEConfig("jumprelu", D, M, site=Site("resid_post", 2), model="m"), **arrays)


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu"])
def test_sae_lens_reads_a_trained_sae_in_both_layouts(architecture, x, rng, offline, tmp_path):
    loaders, root = offline
    directions = rng.normal(size=(32, D))
    draw = lambda: ((rng.random((128, 32)) < 0.1) * rng.exponential(size=(128, 32)) @ directions + 1).astype(np.float32)
    told = SAEConfig("jumprelu", D, M, site=Site("resid_post", 2), model="m")
    ours, _ = train((draw() for _ in range(60)), d_sae=M, k=K, steps=60, architecture=architecture, describe=told)
    x = draw()
    ours.save_pretrained(tmp_path / "lens", format="saelens")
    import sae_lens

    theirs = sae_lens.SAE.load_from_disk(tmp_path / "lens")
    agree(ours, x, theirs.encode(torch.tensor(x)), theirs(torch.tensor(x)))
    folder = "layer_2/width_16k/average_l0_4"
    ours.save_pretrained(tmp_path / "google/gemma-scope-2b-pt-res" / folder, format="gemma_scope")
    root.append(tmp_path)
    found = loaders.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", folder)
    theirs = read_by_sae_lens(found, d_in=D, d_sae=M)
    agree(ours, x, theirs.encode(torch.tensor(x)), theirs(torch.tensor(x)))


@pytest.mark.parametrize("place", ["layer_7/width_16k/average_l0_4", "embedding/width_4k/average_l0_6"])
def test_gemma_scope_as_sae_lens_reads_it(place, x, offline, jumprelu, tmp_path):
    """sae-lens leaves ``b_dec`` of the embedding's SAEs as trained; the rest it scales to the residual as we do."""
    loaders, root = offline
    root.append(tmp_path)
    repo = "google/gemma-scope-2b-pt-res"
    (tmp_path / repo / place).mkdir(parents=True)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    np.savez(tmp_path / repo / place / "params.npz", **{n: np.asarray(getattr(jumprelu, n)) for n in names})
    found = loaders.gemma_2_sae_huggingface_loader(repo, place, cfg_overrides={"d_in": D, "d_sae": M})
    theirs = read_by_sae_lens(found)
    ours = SparseAutoencoder.from_pretrained(tmp_path / repo / place)
    unscaled = (D**0.5 - 1) * theirs.b_dec if "embedding" in place else 0.0
    agree(ours, x, theirs.encode(torch.tensor(x)), theirs(torch.tensor(x)) + unscaled)


@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2_as_sae_lens_reads_it(affine, x, rng, offline, jumprelu, tmp_path):
    from safetensors.numpy import save_file

    loaders, root = offline
    root.append(tmp_path)
    repo = "google/gemma-scope-2-4b-it"
    place = "transcoder/layer_9_width_16k_l0_big_affine" if affine else "resid_post/layer_9_width_16k_l0_big"
    folder = tmp_path / repo / place
    folder.mkdir(parents=True)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    tensors = {name.lower(): np.asarray(getattr(jumprelu, name)) for name in names}
    tensors |= {"affine_skip_connection": rng.normal(size=(D, D)).astype(np.float32)} if affine else {}
    save_file(tensors, folder / "params.safetensors")
    cfg = {"architecture": "jump_relu", "model_name": "gemma-v3-4b-it", "affine_connection": affine}
    hooks = {"hf_hook_point_in": "model.layers.9.pre_feedforward_layernorm.output"} if affine else {}
    (folder / "config.json").write_text(json.dumps(cfg | hooks))
    theirs = read_by_sae_lens(loaders.gemma_3_sae_huggingface_loader(repo, place))
    ours = SparseAutoencoder.from_pretrained(folder)
    agree(ours, x, theirs.encode(torch.tensor(x)), theirs(torch.tensor(x)))
    assert ours.config.site == Site("mlp_in" if affine else "resid_post", 9)


def test_llama_scope_as_sae_lens_reads_it(x, offline, jumprelu, tmp_path):
    from safetensors.numpy import save_file

    loaders, root = offline
    root.append(tmp_path)
    place = "Llama3_1-8B-Base-L15R-8x"
    folder = tmp_path / "fnlp" / place
    (folder / "checkpoints").mkdir(parents=True)
    half = lambda a: np.asarray(a, np.float32).astype(jnp.bfloat16)
    tensors = {"encoder.weight": half(jumprelu.W_enc.T), "encoder.bias": half(jumprelu.b_enc)}
    tensors |= {"decoder.weight": half(jumprelu.W_dec.T), "decoder.bias": half(jumprelu.b_dec)}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "checkpoints" / "final.safetensors")
    norms = {"in": 2.0, "out": 2.0}
    cfg = {"d_model": D, "d_sae": M, "hook_point_in": "blocks.15.hook_resid_post", "jump_relu_threshold": 0.5}
    (folder / "hyperparams.json").write_text(json.dumps(cfg | {"dataset_average_activation_norm": norms}))
    found = loaders.llama_scope_sae_huggingface_loader("fnlp", place)
    theirs = read_by_sae_lens(found, D**0.5 / norms["in"])
    agree(SparseAutoencoder.from_pretrained(folder), x, theirs.encode(torch.tensor(x)), theirs(torch.tensor(x)))


@pytest.mark.parametrize(
    "options",
    [{"activation": "topk"}, {"activation": "groupmax"}, {"transcode": True, "skip_connection": True}],
    ids=["topk", "groupmax", "skip transcoder"],
)
def test_sparsify(options, x, tmp_path, monkeypatch):
    sparsify = pytest.importorskip("sparsify")
    coder, utils = (importlib.import_module(f"sparsify.{name}") for name in ("sparse_coder", "utils"))
    monkeypatch.setattr(coder, "decoder_impl", utils.eager_decode)  # the other needs a GPU
    theirs = randomize(sparsify.SparseCoder(D, coder.SparseCoderConfig(num_latents=M, k=K, **options)))
    theirs.save_to_disk(tmp_path / "layers.3.mlp")
    ours = SparseAutoencoder.from_pretrained(tmp_path / "layers.3.mlp")
    values, index, _ = theirs.encode(torch.tensor(x))
    f = torch.zeros(len(x), M).scatter(1, index, values)
    y = theirs.decode(values, index)
    y = y if theirs.W_skip is None else y + torch.tensor(x) @ theirs.W_skip.mT
    agree(ours, x, f, y)
    assert ours.config.site == Site("mlp_in" if "transcode" in options else "mlp_out", 3)


DICTIONARIES = {
    "AutoEncoder": "dictionary",
    "AutoEncoderNew": "dictionary",
    "GatedAutoEncoder": "dictionary",
    "JumpReluAutoEncoder": "dictionary",
    "AutoEncoderTopK": "trainers.top_k",
    "BatchTopKSAE": "trainers.batch_top_k",
    "MatryoshkaBatchTopKSAE": "trainers.matryoshka_batch_top_k",
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary_learning(name, x, tmp_path):
    pytest.importorskip("dictionary_learning")
    made = getattr(importlib.import_module(f"dictionary_learning.{DICTIONARIES[name]}"), name)
    sizes = {"MatryoshkaBatchTopKSAE": {"k": K, "group_sizes": [M // 4, M - M // 4]}}
    k = {"k": K} if "TopK" in name else {}
    theirs = randomize(made(D, M, **sizes.get(name, k)))
    if "threshold" in dict(theirs.named_buffers()):
        theirs.threshold.fill_(1.5)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": M, "layer": 3, "lm_name": "m"} | k
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    theirs = made.from_pretrained(tmp_path / "ae.pt")
    ours = SparseAutoencoder.from_pretrained(tmp_path)
    agree(ours, x, theirs.encode(torch.tensor(x)), theirs(torch.tensor(x)))
    assert ours.config.site == Site("resid_post", 3)
