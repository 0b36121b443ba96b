"""The decoder: one file for all families, which differ by their :class:`ModelConfig`.

Submodules carry the names of Llama's Hugging Face checkpoints; ``_weights.py`` knows the names of others. Linear
weights are stored ``[in, out]``. Axis letters: ``b`` rows, ``t`` queries, ``s`` keys, ``k`` key-value heads, ``g``
query heads per key-value head, ``h`` head dimension, ``d`` model width.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from atlas_jax.models._attention import EXACT, attention
from atlas_jax.models._cache import Block, LayerCache, extend
from atlas_jax.models._config import ModelConfig, Rope, frequencies
from atlas_jax.types import Site, Where

Pool = Callable[[Float[Array, "b t d"]], Any]
_INIT = jax.nn.initializers.normal(0.02)


class Taps:
    """Apply the edits of a site, then keep the activations that were asked for. Lives only while a pass is traced."""

    def __init__(self, where: Where, capture: Collection[Site], edits: Mapping[Site, Any], pool: Pool | None):
        self.where, self.capture, self.edits, self.pool = where, capture, edits, pool
        self.acts: dict[Site, Any] = {}

    def at_layer(self, layer: int) -> bool:
        """Whether anything is read or edited at a layer."""
        return any(site.layer == layer for site in (*self.capture, *self.edits))

    def __call__(self, point: str, layer: int, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        site = Site(point, layer)
        if site in self.edits:
            x = _apply(self.edits[site], site, x, self.where)
        if site in self.capture:
            self._keep(site, x)
        return x

    def heads(self, layer: int, z: Float[Array, "b t n h"]) -> Float[Array, "b t d"]:
        """The same for ``z``, concatenated: single heads are edited first, and all that is kept is kept as edited."""
        single = lambda sites: [s for s in sites if s.layer == layer and s.head is not None]
        for site in single(self.edits):
            z = z.at[:, :, site.head].set(_apply(self.edits[site], site, z[:, :, site.head], self.where))
        whole = self("z", layer, z.reshape(*z.shape[:2], -1))
        for site in single(self.capture):
            self._keep(site, whole.reshape(z.shape)[:, :, site.head])
        return whole

    def _keep(self, site: Site, x: Float[Array, "b t d"]) -> None:
        self.acts[site] = x if self.pool is None else self.pool(x)


def _apply(edit: Any, site: Site, x: Array, where: Where) -> Array:
    edits = (edit,) if callable(edit) else edit
    for one in edits:
        y = one(x, where)
        if y.shape != x.shape or y.dtype != x.dtype:
            raise ValueError(f"the edit at {site} turned {x.dtype}{x.shape} into {y.dtype}{y.shape}; it must keep both")
        x = y
    return x


class Context(NamedTuple):
    """Values that a layer shares with others of the pass.

    Attributes:
      position: positions of the tokens in their texts, -1 on padding.
      time: place of the first of them in the padded batch, when decoding.
      angles: cosines and sines of the rotary angles; None without rotary embedding.
    """

    position: Int[Array, "b t"]
    time: Int[Array, ""]
    angles: tuple[Float[Array, "b t 1 2 f"], Float[Array, "b t 1 2 f"]] | None


class Linear(nnx.Module):
    """``x @ weight + bias`` with weight ``[in, out]``."""

    def __init__(self, d_in: int, d_out: int, bias: bool, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(_INIT(rngs.params(), (d_in, d_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_out)) if bias else None

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = jnp.matmul(x, self.weight[...], **EXACT).astype(x.dtype)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)


class Norm(nnx.Module):
    """Norm over the last axis in float32; the table of families explains its ``kind`` (``_families.py``)."""

    def __init__(self, width: int, config: ModelConfig):
        self.weight = nnx.Param(jnp.zeros(width) if config.norm == "rms_one_plus" else jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if config.norm == "layer" else None
        self.kind, self.eps = config.norm, config.norm_eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        weight = jnp.broadcast_to(self.weight[...], y.shape)
        if self.kind == "rms_one_plus":
            return (y * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
        if self.kind == "rms_float32":
            return (y * weight.astype(jnp.float32)).astype(x.dtype)
        if self.bias is not None:
            bias = jnp.broadcast_to(self.bias[...], y.shape).astype(jnp.float32)
            return (y * weight.astype(jnp.float32) + bias).astype(x.dtype)
        return weight * y.astype(x.dtype)


def rope_angles(
    position: Int[Array, "b t"], rope: Rope, head_dim: int
) -> tuple[Float[Array, "b t 1 2 f"], Float[Array, "b t 1 2 f"]]:
    """Cosines, and sines with the sign of each half, computed in float32.

    They stand behind a barrier, or every layer would compute them anew.
    """
    f = jnp.asarray(np.array(frequencies(rope, head_dim), np.float32))
    angle = position[:, :, None, None, None].astype(jnp.float32) * f[None, None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    halves = jnp.concatenate([cos, cos], axis=-2), jnp.concatenate([-sin, sin], axis=-2)
    return jax.lax.optimization_barrier(halves)


def rotate(
    x: Float[Array, "b t n h"], cos: Float[Array, "b t 1 2 f"], sin: Float[Array, "b t 1 2 f"]
) -> Float[Array, "b t n h"]:
    """Rotary embedding in the half-split layout of transformers: ``(a, b)`` to ``(a cos - b sin, b cos + a sin)``.

    Dimensions past those that there are angles for stay.
    """
    rotated = 2 * cos.shape[-1]
    if rotated < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :rotated], cos, sin), x[..., rotated:]], axis=-1)
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    return (halves * cos + halves[..., ::-1, :] * sin).reshape(x.shape).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention; softmax in float32."""

    def __init__(self, config: ModelConfig, layer: int, *, rngs: nnx.Rngs):
        c, d = config, config.hidden_size
        self.q_proj = Linear(d, c.num_heads * c.head_dim, c.qkv_bias, rngs=rngs)
        self.k_proj = Linear(d, c.num_kv_heads * c.head_dim, c.qkv_bias, rngs=rngs)
        self.v_proj = Linear(d, c.num_kv_heads * c.head_dim, c.qkv_bias, rngs=rngs)
        self.o_proj = Linear(c.num_heads * c.head_dim, d, c.o_bias, rngs=rngs)
        full = c.qk_norm == "full"
        self.q_norm = Norm(c.head_dim * (c.num_heads if full else 1), c) if c.qk_norm else None
        self.k_norm = Norm(c.head_dim * (c.num_kv_heads if full else 1), c) if c.qk_norm else None
        self.config, self.layer = config, layer

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, taps: Taps, cache: LayerCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        c = self.config
        q, k, v = (p(x).reshape(*x.shape[:2], -1, c.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.normalised(q, self.q_norm), self.normalised(k, self.k_norm)
        if context.angles is not None:
            q, k = rotate(q, *context.angles), rotate(k, *context.angles)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        position = context.position
        here = (Block(k, v, position),) if cache is None else extend(cache, k, v, position, context.time)
        z = attention(c.attention, q, here, position, c.windows[self.layer], c.query_scale, c.attn_softcap)
        z = taps.heads(self.layer, z.astype(x.dtype))
        heads = z.astype(jnp.float32).reshape(*x.shape[:2], -1, c.head_dim)
        taps("head_norm", self.layer, jnp.linalg.norm(heads, axis=-1))
        return taps("attn_out", self.layer, self.o_proj(z)), None if cache is None else here

    def normalised(self, x: Float[Array, "b t n h"], norm: Callable[[Array], Array]) -> Array:
        """Normalise queries or keys, every head by itself or all together."""
        return norm(x) if self.config.qk_norm == "head" else norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


class MLP(nnx.Module):
    """``down(act(gate x) * up x)``, or ``down(act(up x))`` without a gate."""

    def __init__(self, config: ModelConfig, layer: int, *, rngs: nnx.Rngs):
        d, f, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(d, f, bias, rngs=rngs) if config.gated else None
        self.up_proj = Linear(d, f, bias, rngs=rngs)
        self.down_proj = Linear(f, d, bias, rngs=rngs)
        self.layer, self.activation = layer, config.activation

    def __call__(self, x: Float[Array, "b t d"], taps: Taps) -> Float[Array, "b t d"]:
        if self.gate_proj is None:
            hidden = self.act(self.up_proj(x).astype(jnp.float32))
        else:
            gate, up = (p(x).astype(jnp.float32) for p in (self.gate_proj, self.up_proj))
            gate = taps("mlp_gate_act", self.layer, self.act(gate).astype(x.dtype))
            hidden = gate.astype(jnp.float32) * up
        return taps("mlp_out", self.layer, self.down_proj(taps("mlp_act", self.layer, hidden.astype(x.dtype))))

    def act(self, x: Float[Array, "*b f"]) -> Float[Array, "*b f"]:
        """The activation function."""
        return jax.nn.silu(x) if self.activation == "silu" else jax.nn.gelu(x, approximate=self.activation != "gelu")


class DecoderLayer(nnx.Module):
    """One block, with its norms placed as ``placement`` says."""

    def __init__(self, config: ModelConfig, layer: int, *, rngs: nnx.Rngs):
        d, placement = config.hidden_size, config.placement
        self.self_attn = Attention(config, layer, rngs=rngs)
        self.mlp = MLP(config, layer, rngs=rngs)
        self.input_layernorm = Norm(d, config) if placement != "post" else None
        self.post_attention_layernorm = Norm(d, config)
        self.pre_feedforward_layernorm = Norm(d, config) if placement == "sandwich" else None
        self.post_feedforward_layernorm = Norm(d, config) if config.has_post_norms else None
        self.layer, self.config = layer, config

    def __call__(
        self, x: Float[Array, "b t d"], context: Context, taps: Taps, cache: LayerCache | None
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        i = self.layer
        x = taps("resid_pre", i, x)
        before_attention, after_attention, before_mlp, after_mlp = self.norms()
        y, cache = self.self_attn(taps("attn_in", i, before_attention(x)), context, taps, cache)
        before, x = x, x + taps("attn_out_post", i, after_attention(y))
        if self.config.placement != "parallel":
            before = x = taps("resid_mid", i, x)
        y = after_mlp(self.mlp(taps("mlp_in", i, before_mlp(before)), taps))
        return taps("resid_post", i, x + taps("mlp_out_post", i, y)), cache

    def norms(self) -> "tuple[Callable[[Array], Array], ...]":
        """The norms before and after attention, and before and after the MLP; the identity where there is none."""
        if self.config.has_post_norms:
            places = (self.post_attention_layernorm, self.pre_feedforward_layernorm, self.post_feedforward_layernorm)
        else:  # then the name of the norm before the MLP says that it stands after attention
            places = (None, self.post_attention_layernorm, None)
        return tuple(norm or (lambda x: x) for norm in (self.input_layernorm, *places))


class Embedding(nnx.Module):
    """Token embeddings, in some families multiplied by ``sqrt(d)`` rounded to the model's dtype."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(_INIT(rngs.params(), (config.vocab_size, config.hidden_size), jnp.float32))
        self.scale = config.embedding_scale

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        x = self.weight[...][ids]
        return x if self.scale is None else x * jnp.asarray(self.scale, x.dtype)


class Positions(nnx.Module):
    """Learned embeddings of positions; padding gets an arbitrary one, which no token sees."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(_INIT(rngs.params(), (config.max_positions, config.hidden_size), jnp.float32))

    def __call__(self, position: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        return self.weight[...][position]


class Decoder(nnx.Module):
    """A decoder-only transformer. Call it through :func:`atlas_jax.run` or :func:`atlas_jax.models.forward`.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel
      >>> decoder = LanguageModel.from_pretrained(SUBJECT).decoder
      >>> x = decoder.enter(decoder.embed_tokens(jnp.array([[0, 5]])), jnp.array([[0, 1]]))
      >>> decoder.logits(x).shape
      (1, 2, 3072)
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.embed_tokens = Embedding(config, rngs=rngs)
        self.embed_positions = Positions(config, rngs=rngs) if config.learned_positions else None
        self.layers = nnx.List([DecoderLayer(config, i, rngs=rngs) for i in range(config.num_layers)])
        self.norm = Norm(config.hidden_size, config)
        tied = config.tie_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size, False, rngs=rngs)
        self.config = config

    def enter(self, x: Float[Array, "b t d"], position: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Input of the first block: token embeddings, plus those of their positions where these are learned."""
        return x if self.embed_positions is None else x + self.embed_positions(position)

    def logits(self, x: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Float32 logits of final residuals."""
        x = self.norm(x)
        if self.lm_head is None:
            y = jnp.einsum("...d,vd->...v", x, self.embed_tokens.weight[...], **EXACT)
        else:
            y = jnp.matmul(x, self.lm_head.weight[...], **EXACT)
        cap = self.config.final_softcap
        return y if cap is None else jnp.tanh(y / cap) * cap


@functools.cache
def decoder_shapes(config: ModelConfig) -> Decoder:
    """Return a decoder of shapes without parameters: one for each config, not to be changed.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import decoder_shapes, load_config
      >>> decoder_shapes(load_config(SUBJECT)[0]).embed_tokens.weight.shape
      (3072, 128)
    """
    return nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
