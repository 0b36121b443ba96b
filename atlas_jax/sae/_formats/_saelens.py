"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``, of version 6 and before.

A row is normalised (``none``, ``constant_norm_rescale``, ``layer_norm``), loses ``b_dec`` where
``apply_b_dec_to_input`` says so, and meets ``W_enc[d, m]``. standard ``relu(pre)``; jumprelu ``relu(pre) * (pre >
threshold)``; topk the k largest; gated ``relu(x @ (W_enc * exp(r_mag)) + b_mag) * (x @ W_enc + b_gate > 0)``.
``expected_average_only_in`` means training activations were multiplied by a factor that the files do not hold:
without it the SAE is refused.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._fields import FLAG, NUMBER, OBJECT, TEXT, WHOLE, Only, Table, ignored, read_fields, site_of
from atlas_jax.sae._formats._parameters import fold_decoder_norm, fold_input_scale
from atlas_jax.sae._formats._read import Arrays, pick, read_safetensors

NAME = "saelens"
_KINDS = {
    "standard": "relu",
    "gated": "gated",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
# Of the configuration classes of version 6, those for training included.
_FIELDS: Table = {"architecture": TEXT, "d_in": WHOLE, "d_sae": WHOLE, "d_out": WHOLE, "k": NUMBER, "metadata": OBJECT}
_FIELDS |= {"apply_b_dec_to_input": FLAG, "rescale_acts_by_decoder_norm": FLAG, "normalize_activations": TEXT}
# z is stored with its heads one after another, which is what "hook_z" makes of it.
_FIELDS |= {"reshape_activations": Only(("none", "hook_z"))}
_FIELDS |= ignored(
    "dtype device sae_lens_version sae_lens_training_version l1_coefficient lp_norm l1_warm_up_steps decoder_init_norm "
    "use_sparse_activations aux_loss_coefficient topk_threshold_lr matryoshka_widths use_matryoshka_aux_loss "
    "jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode jumprelu_tanh_scale jumprelu_ste_to_input "
    "l0_coefficient l0_warm_up_steps pre_act_loss_coefficient target_l0"
)
# Of the model and the data; open-ended in version 6. Before it everything stood side by side, settings of the training
# run among it, whose names SAELens itself no longer knows.
_METADATA: Table = {"model_name": TEXT, "hook_name": TEXT, "hook_name_out": TEXT}
_METADATA |= {"hook_head_index": Only(()), "hook_head_index_out": Only(())}
_METADATA |= ignored(
    "model_class_name model_from_pretrained_kwargs prepend_bos exclude_special_tokens neuronpedia_id context_size "
    "seqpos_slice dataset_path sae_lens_version sae_lens_training_version hf_hook_name hf_hook_name_out"
)
_BEFORE_6: Table = {"activation_fn": Only(("relu", "topk")), "activation_fn_kwargs": OBJECT}
_NORMALIZATIONS = ("none", "constant_norm_rescale", "layer_norm")
_POINTS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out_post": "hook_attn_out",
    "mlp_out_post": "hook_mlp_out",
    "z": "attn.hook_z",
    "attn_out": "attn.hook_out",
    "mlp_out": "mlp.hook_out",
    "mlp_act": "mlp.hook_post",
}


def detect(path: Path) -> bool:
    """Test for a folder with ``cfg.json`` and ``sae_weights.safetensors``."""
    return (path / "cfg.json").is_file() and (path / "sae_weights.safetensors").is_file()


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Read parameters and description, either generation of ``cfg.json``."""
    cfg = _fields(path / "cfg.json")
    tensors = read_safetensors(path / "sae_weights.safetensors")
    config = _config(cfg, path)
    parameters = _parameters(config, tensors, path)
    if cfg.get("normalize_activations") == "expected_average_only_in":
        if norm_scaling_factor is None:
            raise AtlasError(
                f"{path} was trained on scaled activations and does not say by how much: give norm_scaling_factor"
            )
        parameters = fold_input_scale(parameters, norm_scaling_factor)
    if cfg.get("rescale_acts_by_decoder_norm"):
        parameters = fold_decoder_norm(parameters)
    return config, parameters


def save(config: SAEConfig, parameters: Arrays, directory: Path) -> None:
    """Write the layout of version 6, which SAELens itself loads."""
    architecture = _architecture(config, "W_skip" in parameters)
    tensors = {name: np.ascontiguousarray(value) for name, value in parameters.items()}
    if config.kind == "gated":
        tensors["b_mag"] = tensors.pop("b_enc")
    if "W_skip" in tensors:
        tensors["W_skip"] = np.ascontiguousarray(tensors["W_skip"].T)
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": config.normalization,
        "reshape_activations": "none",
        "metadata": _metadata(config),
    }
    cfg |= {"k": config.k} if config.kind == "topk" else {}
    cfg |= {"d_out": config.width_out} if config.transcoder else {}
    (directory / "cfg.json").write_text(json.dumps(cfg, indent=1) + "\n")
    save_file(tensors, directory / "sae_weights.safetensors")


def _fields(file: Path) -> dict[str, Any]:
    """Return the used fields of a ``cfg.json`` of either generation, by the names of version 6."""
    cfg = read_object(file)
    metadata = cfg.get("metadata")
    version = cfg.get("sae_lens_version") or (isinstance(metadata, dict) and metadata.get("sae_lens_version"))
    current = int(match[0]) >= 6 if (match := re.match(r"\d+", str(version or 0))) else False
    cfg = cfg if current else _renamed(cfg, file)
    fields = read_fields(cfg, _FIELDS, file, needed=("architecture", "d_in", "d_sae"), others=not current)
    metadata = fields.get("metadata", {}) if current else cfg
    return fields | {"metadata": read_fields(metadata, _METADATA, file, others=True)}


def _renamed(cfg: dict[str, Any], file: Path) -> dict[str, Any]:
    """Give a ``cfg.json`` from before version 6 the keys and defaults of version 6."""
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
    renamed |= {"activation_fn_str": "activation_fn"}
    cfg = {"architecture": "standard", "apply_b_dec_to_input": True} | {renamed.get(k, k): v for k, v in cfg.items()}
    activation = read_fields(cfg, _BEFORE_6, file, others=True)
    if activation.get("activation_fn") == "topk":
        cfg |= {"architecture": "topk", "k": activation.get("activation_fn_kwargs", {}).get("k")}
    if isinstance(cfg.get("normalize_activations"), bool):
        cfg["normalize_activations"] = "expected_average_only_in" if cfg["normalize_activations"] else "none"
    return cfg


def _config(cfg: dict[str, Any], path: Path) -> SAEConfig:
    architecture, metadata = cfg["architecture"], cfg["metadata"]
    if architecture not in _KINDS:
        raise AtlasError(f"{path} has the architecture '{architecture}'; supported are {', '.join(_KINDS)}")
    normalization = cfg.get("normalize_activations", "none")
    if normalization not in (*_NORMALIZATIONS, "expected_average_only_in"):
        raise AtlasError(f"{path} normalises activations by '{normalization}', which is not supported")
    transcoder, d_out, k = "transcoder" in architecture, cfg.get("d_out"), cfg.get("k")
    if architecture == "topk" and k != int(k or 0):
        raise AtlasError(f"k in {path / 'cfg.json'} should be a whole number, it is {k}")
    return SAEConfig(
        _KINDS[architecture],
        cfg["d_in"],
        cfg["d_sae"],
        d_out=None if d_out == cfg["d_in"] else d_out,
        k=int(k) if architecture == "topk" else None,
        transcoder=transcoder,
        apply_b_dec_to_input=cfg.get("apply_b_dec_to_input", not transcoder),
        normalization=normalization if normalization in _NORMALIZATIONS else "none",
        site=site_of(metadata.get("hook_name")),
        site_out=site_of(metadata.get("hook_name_out")),
        model=metadata.get("model_name"),
        format=NAME,
    )


def _parameters(config: SAEConfig, tensors: Arrays, path: Path) -> Arrays:
    tensors = dict(tensors)
    scale = tensors.pop("scaling_factor", None)
    if scale is not None and not np.allclose(scale, 1.0):
        raise AtlasError(f"{path} has a fine-tuned scaling_factor, which is not supported")
    if config.kind == "gated":
        tensors["b_enc"] = pick(tensors, "b_mag", path, 1)
        del tensors["b_mag"]
    if "W_skip" in tensors:
        tensors["W_skip"] = pick(tensors, "W_skip", path, 2).T
    return tensors


def _architecture(config: SAEConfig, skip: bool) -> str:
    kind = {"relu": "standard", "batchtopk": "jumprelu"}.get(config.kind, config.kind)
    if config.transcoder:
        kind = {"standard": "", "jumprelu": "jumprelu_"}.get(kind, "?") + ("skip_" if skip else "") + "transcoder"
    if kind not in _KINDS:
        raise AtlasError(f"SAELens' layout has no {config.kind} {'transcoder' if config.transcoder else 'SAE'}")
    return kind


def _metadata(config: SAEConfig) -> dict[str, Any]:
    hooks = {name: site for name, site in (("hook_name", config.site), ("hook_name_out", config.site_out)) if site}
    for site in hooks.values():
        if site.point not in _POINTS or site.head is not None:
            raise AtlasError(f"SAELens' layout has no name for the site {site}")
    named = {name: f"blocks.{site.layer}.{_POINTS[site.point]}" for name, site in hooks.items()}
    return {"sae_lens_version": "6.0.0", "model_name": config.model, **named}
