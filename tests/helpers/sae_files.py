"""One small SAE in every on-disk layout, under the names its release gives it."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from atlas_jax.sae import SAEConfig, SparseAutoencoder
from atlas_jax.types import Site

D, M = 6, 12
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (D, M), "b_enc": M, "W_dec": (M, D), "b_dec": D, "threshold": M}
    return {name: np.abs(rng.normal(size=shape)).astype(np.float32) + 0.1 for name, shape in shapes.items()}


def linear(w, encoder="encoder", decoder="decoder"):
    named = {f"{encoder}.weight": w["W_enc"].T, f"{encoder}.bias": w["b_enc"]}
    return named | {f"{decoder}.weight": w["W_dec"].T, f"{decoder}.bias": w["b_dec"]}


def write(file, tensors, **configs):
    """Tensors by the suffix of their file, and JSON files of other names beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.array(value, order="C") for name, value in tensors.items()}
    if file.suffix == ".npz":
        np.savez(file, **tensors)
    elif file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        import torch

        torch.save({name: torch.tensor(value) for name, value in tensors.items()}, file)
    for name, content in configs.items():
        (file.parent / f"{name}.json").write_text(json.dumps(content))


def gemma_scope(root):
    write(root / "gemma-scope-2b-pt-att/layer_20/width_16k/average_l0_71/params.npz", arrays())
    return root / "gemma-scope-2b-pt-att/layer_20/width_16k/average_l0_71"


def gemma_scope_embedding(root):
    write(root / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6/params.npz", arrays())
    return root / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"


def gemma_scope_2(root):
    folder = root / "gemma-scope-2-270m-pt" / "attn_out_all" / "layer_5_width_16k_l0_small"
    write(folder / "params.safetensors", {name.lower(): value for name, value in arrays().items()})
    return folder


def native(root):
    told = SAEConfig("jumprelu", D, M, site=Site("z", 3), model="m", advertised_l0=4.0)
    SparseAutoencoder.build(told, **arrays()).save_pretrained(root / "own" / "sae", format="native")
    return root / "own" / "sae"


def saelens(root):
    metadata = {"sae_lens_version": "6.1.0", "hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2-small"}
    cfg = {"architecture": "jumprelu", "d_in": D, "d_sae": M, "dtype": "float32", "device": "cpu"}
    cfg |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": metadata}
    write(root / "saes" / "blocks.3" / "sae_weights.safetensors", arrays(), cfg=cfg)
    return root / "saes" / "blocks.3"


def sparsify(root):
    w = arrays()
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    cfg = {"d_in": D, "num_latents": M, "expansion_factor": 2, "k": 3, "normalize_decoder": True}
    write(root / "sae-llama" / "layers.7.mlp" / "sae.safetensors", tensors, cfg=cfg)
    return root / "sae-llama" / "layers.7.mlp"


def dictionary_learning(root):
    w = arrays()
    state = linear(w) | {"b_dec": w["b_dec"], "k": np.array(3), "threshold": np.float32(0.5)}
    del state["decoder.bias"]
    trainer = {"dict_class": "BatchTopKSAE", "trainer_class": "BatchTopKTrainer", "activation_dim": D, "dict_size": M}
    trainer |= {"layer": 4, "lm_name": "google/gemma-2-2b", "submodule_name": "mlp_out_layer_4", "k": 3, "lr": 1e-4}
    write(root / "saes" / "trainer_0" / "ae.pt", state, config={"trainer": trainer, "buffer": {"ctx_len": 128}})
    return root / "saes" / "trainer_0"


def llama_scope_fields(**change):
    """Every field of the released ``hyperparams.json``."""
    told = {"device": "cuda:0", "seed": 42, "dtype": "torch.bfloat16", "hook_point_in": "blocks.15.hook_resid_post"}
    told |= {"hook_point_out": "blocks.15.hook_resid_post", "use_decoder_bias": True, "expansion_factor": 2}
    told |= {"apply_decoder_bias_to_pre_encoder": False, "d_model": D, "d_sae": M, "bias_init_method": "all_zero"}
    told |= {"act_fn": "jumprelu", "jump_relu_threshold": 0.5, "norm_activation": "dataset-wise"}
    told |= {"dataset_average_activation_norm": {"in": 2.0, "out": 2.0}, "decoder_exactly_fixed_norm": False}
    told |= {"sparsity_include_decoder_norm": True, "use_glu_encoder": False, "init_decoder_norm": 0.5, "lp": 1}
    told |= {"init_encoder_norm": None, "init_encoder_with_decoder_transpose": True, "l1_coefficient": 8e-05}
    told |= {"l1_coefficient_warmup_steps": 78125, "top_k": 50, "k_warmup_steps": 78125, "use_batch_norm_mse": True}
    return told | {"use_ghost_grads": False, "tp_size": 1, "ddp_size": 1} | change


def llama_scope(root):
    folder = root / "Llama3_1-8B-Base-LXR-8x" / "Llama3_1-8B-Base-L15R-8x"
    write(folder / "checkpoints" / "final.safetensors", linear(arrays()))
    (folder / "hyperparams.json").write_text(json.dumps(llama_scope_fields()))
    return folder


def llama_scope_r1(root):
    w = arrays()
    tensors = linear(w) | {"log_jumprelu_threshold": np.log(w["threshold"])}
    told = {
        "sae_type": "sae",
        "d_model": D,
        "expansion_factor": 2,
        "act_fn": "jumprelu",
        "norm_activation": "inference",
    }
    told |= {"hook_point_in": "blocks.5.hook_resid_post", "hook_point_out": "blocks.5.hook_resid_post"}
    write(root / "Llama-Scope-R1-Distill" / "L5R" / "sae_weights.safetensors", tensors, config=told)
    return root / "Llama-Scope-R1-Distill" / "L5R"


def qwen_scope(root):
    w = arrays()
    state = {"W_enc": w["W_enc"].T, "b_enc": w["b_enc"], "W_dec": w["W_dec"].T, "b_dec": w["b_dec"]}
    write(root / "SAE-Res-Qwen3-8B-Base-W64K-L0_5" / "layer3.sae.pt", state)
    return root / "SAE-Res-Qwen3-8B-Base-W64K-L0_5" / "layer3.sae.pt"


def goodfire(root):
    state = linear(arrays(), "encoder_linear", "decoder_linear")
    write(root / "Llama-3.1-8B-Instruct-SAE-l19" / "Llama-3.1-8B-Instruct-SAE-l19.pth", state)
    return root / "Llama-3.1-8B-Instruct-SAE-l19" / "Llama-3.1-8B-Instruct-SAE-l19.pth"


# What each says of itself: site, model, L0.
TOLD = {
    gemma_scope: ("z.20", "google/gemma-2-2b", 71),
    gemma_scope_embedding: ("resid_pre.0", "google/gemma-2-2b", 6),
    gemma_scope_2: ("z.5", "google/gemma-3-270m", None),
    native: ("z.3", "m", 4),
    saelens: ("resid_post.3", "gpt2-small", None),
    sparsify: ("mlp_out.7", None, None),
    dictionary_learning: ("mlp_out.4", "google/gemma-2-2b", None),
    llama_scope: ("resid_post.15", "meta-llama/Llama-3.1-8B", 50),
    llama_scope_r1: ("resid_post.5", None, None),
    qwen_scope: ("resid_post.3", "Qwen/Qwen3-8B-Base", 5),
    goodfire: ("resid_post.19", "Llama-3.1-8B-Instruct", None),
}


def weights_of(place: Path) -> Path:
    """The file of the tensors."""
    found = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file() and f.suffix != ".json"]
    (file,) = found
    return file
