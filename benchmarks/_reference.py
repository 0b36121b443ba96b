"""The forward pass of a decoder in float64 on the host, at every site, written from the definitions alone."""

from typing import Any

import jax
import numpy as np

from atlas_jax.models import ModelConfig
from atlas_jax.models._config import frequencies
from atlas_jax.types import Site


def activations(config: ModelConfig, decoder: Any, ids: np.ndarray) -> dict[Any, np.ndarray]:
    """Activations ``[b, t, d]`` by site, and "logits", of texts without padding."""
    wide = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
    embedding = np.asarray(decoder.embed_tokens.weight[...], np.float64)
    x = embedding[ids] * (config.embedding_scale or 1.0)
    found: dict[Any, np.ndarray] = {}
    for i in range(config.num_layers):
        x = _layer(config, i, wide(_arrays(decoder.layers[i])), x, found)
    head = embedding.T if config.tie_embeddings else np.asarray(decoder.lm_head.weight[...], np.float64)
    logits = _norm(config, np.asarray(decoder.norm.weight[...], np.float64), x) @ head
    cap = config.final_softcap
    return found | {"logits": logits if cap is None else np.tanh(logits / cap) * cap}


def _arrays(layer: Any) -> dict[str, Any]:
    """Parameters of a layer by their names in a checkpoint, without "weight"."""
    parts = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
    found = {name: getattr(getattr(layer, part), name).weight[...] for part, names in parts.items() for name in names}
    norms = [name for name in vars(layer) if name.endswith("layernorm") and getattr(layer, name) is not None]
    return found | {name: getattr(layer, name).weight[...] for name in norms}


def _layer(config: ModelConfig, i: int, w: dict[str, np.ndarray], x: np.ndarray, found: dict) -> np.ndarray:
    def keep(point: str, x: np.ndarray) -> np.ndarray:
        found[Site(point, i)] = x
        return x

    norm = lambda name, x: _norm(config, w[name], x)
    h = keep("attn_in", norm("input_layernorm", keep("resid_pre", x)))
    z = keep("z", _attention(config, i, w, h))
    keep("head_norm", np.linalg.norm(z.reshape(*z.shape[:2], -1, config.head_dim), axis=-1))
    y = keep("attn_out", z @ w["o_proj"])
    y = norm("post_attention_layernorm", y) if config.has_post_norms else y
    x = keep("resid_mid", x + keep("attn_out_post", y))
    h = keep("mlp_in", norm("pre_feedforward_layernorm" if config.has_post_norms else "post_attention_layernorm", x))
    gate = keep("mlp_gate_act", _activation(config, h @ w["gate_proj"]))
    y = keep("mlp_out", keep("mlp_act", gate * (h @ w["up_proj"])) @ w["down_proj"])
    y = norm("post_feedforward_layernorm", y) if config.has_post_norms else y
    return keep("resid_post", x + keep("mlp_out_post", y))


def _norm(config: ModelConfig, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    scale = 1.0 + weight if config.norm == "rms_one_plus" else weight
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + config.norm_eps) * scale


def _activation(config: ModelConfig, x: np.ndarray) -> np.ndarray:
    if config.activation == "silu":
        return x / (1.0 + np.exp(-x))
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def _attention(config: ModelConfig, i: int, w: dict[str, np.ndarray], h: np.ndarray) -> np.ndarray:
    b, t, _ = h.shape
    q, k, v = ((h @ w[name]).reshape(b, t, -1, config.head_dim) for name in ("q_proj", "k_proj", "v_proj"))
    q, k = (_rotated(x, np.array(frequencies(config.ropes[i], config.head_dim))) for x in (q, k))
    k, v = (np.repeat(x, config.num_heads // config.num_kv_heads, axis=2) for x in (k, v))
    scores = np.einsum("bqnh,bknh->bnqk", q, k) * config.query_scale
    if config.attn_softcap is not None:
        scores = np.tanh(scores / config.attn_softcap) * config.attn_softcap
    past = np.arange(t)[:, None] - np.arange(t)[None, :]
    window = config.windows[i]
    seen = (past >= 0) & (past < (t if window is None else window))
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bnqk,bknh->bqnh", weights, v).reshape(b, t, -1)


def _rotated(x: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    angle = np.arange(x.shape[1])[None, :, None, None] * frequency
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)
