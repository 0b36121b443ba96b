"""Llama Scope and the other SAEs that Language-Model-SAEs (lm-saes, Llamascopium) writes.

``hyperparams.json`` and ``checkpoints/final.safetensors``, or ``config.json`` and ``sae_weights.safetensors`` in the
R1-Distill release. Training activations were multiplied by ``s = sqrt(d) / average norm``, which is folded into the
weights, so that the SAE reads raw activations.

Public sources read the threshold of ``hyperparams.json`` differently. With ``n`` the norms of the decoder's rows as
stored, features of scaled activations are active where

- ``pre > jump_relu_threshold * s``: SAELens, corrected by the releasing authors, and what is done here;
- ``pre > jump_relu_threshold * s / n``: the authors' code of the time in its inference mode, which folds ``s`` and then
  ``n`` into the encoder, the same where the stored rows have norm one;
- ``pre > jump_relu_threshold / n``: the authors' code of today, where ``sparsity_include_decoder_norm`` is true;
- ``pre > jump_relu_threshold``: loaders that copy the formula of the paper.

``atlas-jax atlas info`` tries them all and names the ones with which the measured L0 is the release's. The thresholds
of the R1-Distill release, ``exp(log_jumprelu_threshold)`` for each feature, belong to the authors' code of today and
are read as it does: in units of ``pre * n`` where ``sparsity_include_decoder_norm`` is true.
"""

from pathlib import Path
from typing import Any

import numpy as np

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._fields import FLAG, NUMBER, OBJECT, TEXT, WHOLE, Only, ignored, read_fields, site_of
from atlas_jax.sae._formats._parameters import fold_input_scale
from atlas_jax.sae._formats._read import Arrays, last_match, pick, read_safetensors

NAME = "llama_scope"

# SAEConfig of lm-saes before and after pydantic. ``act_fn`` may say topk where there is a threshold to replace it, as
# the authors' own loader does; ``norm_activation`` must be a factor for all tokens, or none.
_FIELDS = {"act_fn": Only(("jumprelu", "topk")), "norm_activation": Only(("dataset-wise", "inference"))}
_FIELDS |= {"sae_type": Only(("sae",)), "use_glu_encoder": Only((False,)), "dataset_average_activation_norm": OBJECT}
_FIELDS |= {"jump_relu_threshold": NUMBER, "hook_point_in": TEXT, "hook_point_out": TEXT, "expansion_factor": NUMBER}
_FIELDS |= {"d_model": WHOLE, "d_sae": WHOLE, "use_decoder_bias": FLAG, "apply_decoder_bias_to_pre_encoder": FLAG}
_FIELDS |= {"sparsity_include_decoder_norm": FLAG}
_FIELDS |= ignored(
    "device seed dtype bias_init_method decoder_exactly_fixed_norm force_unit_decoder_norm init_decoder_norm "
    "init_encoder_norm init_encoder_with_decoder_transpose lp l1_coefficient l1_coefficient_warmup_steps top_k "
    "initial_k k_warmup_steps use_batch_norm_mse use_ghost_grads tp_size ddp_size "
    "sae_pretrained_name_or_path strict_loading remove_gradient_parallel_to_decoder_directions use_triton_kernel "
    "sparsity_threshold_for_triton_spmm_kernel jumprelu_threshold_window promote_act_fn_dtype"
)
_NORMS = {"in": NUMBER, "out": NUMBER}


def detect(path: Path) -> bool:
    """Test for a folder with ``hyperparams.json``, or with an R1-Distill pair."""
    distilled = (path / "config.json").is_file() and (path / "sae_weights.safetensors").is_file()
    return (path / "hyperparams.json").is_file() or (distilled and not (path / "cfg.json").is_file())


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Read parameters for raw activations, and the description."""
    first = (path / "hyperparams.json").is_file()
    described = path / ("hyperparams.json" if first else "config.json")
    cfg = read_fields(read_object(described), _FIELDS, described)
    file = path / ("checkpoints/final.safetensors" if first else "sae_weights.safetensors")
    parameters = _parameters(cfg, read_safetensors(file), file)
    d, m = parameters["W_enc"].shape
    if (cfg.get("d_model", d), cfg.get("d_sae", m)) != (d, m):
        raise AtlasError(
            f"{path} describes an SAE of {cfg.get('d_model')} x {cfg.get('d_sae')}, its tensors are {d} x {m}"
        )
    hook_in, hook_out = cfg.get("hook_point_in"), cfg.get("hook_point_out")
    if hook_out not in (None, hook_in):
        raise AtlasError(f"{path} is a Llama Scope transcoder, which is not supported")
    scale = _scale(cfg, described, norm_scaling_factor)
    if "threshold" not in parameters:
        parameters["threshold"] = _threshold(cfg, described, scale, m)
    return SAEConfig(
        "jumprelu",
        d,
        m,
        apply_b_dec_to_input=cfg.get("apply_decoder_bias_to_pre_encoder", False),
        site=site_of(hook_in),
        model="meta-llama/Llama-3.1-8B" if last_match("/Llama3_1-8B-Base", file) else None,
        format=NAME,
        advertised_l0=50.0 if first else None,
    ), fold_input_scale(parameters, scale)


def _parameters(cfg: dict[str, Any], tensors: Arrays, file: Path) -> Arrays:
    """Read the parameters as trained, on scaled activations; with thresholds where there is one for each feature."""
    parameters = {
        "W_enc": pick(tensors, "encoder.weight", file, 2).T,
        "b_enc": pick(tensors, "encoder.bias", file, 1),
        "W_dec": pick(tensors, "decoder.weight", file, 2).T,
    }
    biased = cfg.get("use_decoder_bias", True)
    zero = np.zeros(parameters["W_enc"].shape[0], np.float32)
    parameters["b_dec"] = pick(tensors, "decoder.bias", file, 1) if biased else zero
    if "log_jumprelu_threshold" in tensors:
        threshold = np.exp(pick(tensors, "log_jumprelu_threshold", file, 1))
        if cfg.get("sparsity_include_decoder_norm", False):
            threshold = threshold / np.maximum(np.linalg.norm(parameters["W_dec"], axis=1), 1e-12)
        parameters["threshold"] = threshold
    return parameters


def _scale(cfg: dict[str, Any], file: Path, given: float | None) -> float:
    if given is not None:
        return given
    if cfg.get("norm_activation") == "inference":
        return 1.0
    norms = read_fields(cfg.get("dataset_average_activation_norm", {}), _NORMS, file, others=True)
    if not norms.get("in") or "d_model" not in cfg:
        raise AtlasError(f"{file} does not say what training activations were scaled by: give norm_scaling_factor")
    if norms.get("out", norms["in"]) != norms["in"]:
        raise AtlasError(f"{file} has different average norms of the same activations, {norms}")
    return cfg["d_model"] ** 0.5 / norms["in"]


def _threshold(cfg: dict[str, Any], file: Path, scale: float, m: int) -> np.ndarray:
    if not cfg.get("jump_relu_threshold") and (cfg.get("act_fn") == "topk" or "jump_relu_threshold" not in cfg):
        raise AtlasError(f"{file} has no jump_relu_threshold")
    return np.full(m, cfg["jump_relu_threshold"] * scale, np.float32)
