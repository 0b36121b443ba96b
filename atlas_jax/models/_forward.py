"""The forward pass: read any site, edit any site, and stop after the last layer that is needed."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxtyping import Array, Float, Int

from atlas_jax.checks import known
from atlas_jax.errors import AtlasError
from atlas_jax.models._cache import LayerCache
from atlas_jax.models._config import ModelConfig
from atlas_jax.models._decoder import Context, Decoder, DecoderLayer, Pool, Taps, rope_angles
from atlas_jax.models._language_model import LanguageModel
from atlas_jax.models._tokenizer import check_ids
from atlas_jax.types import Run, Site, Tokens, Where, edits_by_site, sites_of


def run(
    model: LanguageModel,
    tokens: Any,
    *,
    capture: Collection[Site | str] | Site = (),
    edits: Any = None,
    logits: bool = True,
    pool: Pool | None = None,
) -> Run:
    """Run one jitted forward pass with activations read and edited at named sites.

    Args:
      model: the language model.
      tokens: a batch of :class:`Tokens`, padded on either side or not at all.
      capture: sites to return, after their edits; one, or several. Nothing else is kept.
      edits: a mapping of each site to its edit (``Steer``, ``Add``, ... or any callable pytree
        ``edit(x, where) -> x``), or to a sequence of them applied in order. Changing the values inside an edit does
        not retrace.
      logits: compute logits; without, the pass stops after the last captured layer.
      pool: a function ``[b, t, d] -> anything`` applied to each captured array inside the pass. It is static: pass the
        same function object each time, or the pass is traced again.

    Returns:
      :class:`Run` with float32 ``logits[b, t, v]`` (None without ``logits``) and ``acts[site][b, t, d]``.

    Raises:
      AtlasError: for a site past the last layer, an edit of the wrong width or for another number of rows, a site
        edited twice, a token id the model does not have, or a text longer than the model's context.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel, run
      >>> from atlas_jax.types import Site
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> run(lm, lm.tokenize(["some text"]), capture=["mlp_act.1"]).acts[Site("mlp_act", 1)].ndim
      3
    """
    config = model.config
    if not isinstance(tokens, Tokens):
        raise AtlasError(f"run needs Tokens, not {type(tokens).__name__}; make them with tokenize(texts)")
    if known(tokens.ids):
        check_ids(np.asarray(tokens.ids), config.vocab_size)
    sites = tuple(check_site(config, site) for site in sites_of(capture))
    edits = check_edits(config, edits, tokens.ids.shape[0])
    if tokens.ids.shape[1] > config.max_positions:
        raise AtlasError(
            f"texts of {tokens.ids.shape[1]} tokens exceed the model's context of {config.max_positions}; shorten them"
        )
    if not sites and not logits:
        raise ValueError("nothing was asked for: capture at least one site, or leave logits on")
    return _run(model.decoder, shard_rows(tokens, model.decoder), edits, sites, logits, pool)


@partial(jax.jit, static_argnames=("capture", "logits", "pool"))
def _run(
    decoder: Decoder,
    tokens: Tokens,
    edits: dict[Site, Any],
    capture: tuple[Site, ...],
    logits: bool,
    pool: Pool | None,
) -> Run:
    return forward(decoder, tokens, capture=capture, edits=edits, logits=logits, pool=pool)


def forward(
    decoder: Any,
    tokens: Tokens,
    *,
    capture: Collection[Site] = (),
    edits: Mapping[Site, Any] | None = None,
    logits: bool = True,
    pool: Pool | None = None,
) -> Run:
    """Run the forward pass of :func:`run` without its checks and its jit, inside a jitted function of your own.

    Tokens that bring activations are not run: the decoder is not asked.

    Example:
      >>> import jax
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel, forward
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> last_logits = jax.jit(lambda decoder, tokens: forward(decoder, tokens).logits[:, -1])
      >>> last_logits(lm.decoder, lm.tokenize(["some text"])).shape
      (1, 3072)
    """
    if tokens.acts is not None and not edits and not logits:
        return Run(None, {site: pool(tokens.acts[site]) if pool else tokens.acts[site] for site in capture})
    position = positions(tokens)
    where = Where(position, jnp.max(position, axis=1) + 1)
    taps = Taps(where, capture, edits or {}, pool)
    last = decoder.config.num_layers if logits else 1 + max(s.layer for s in capture)
    x = decoder.enter(decoder.embed_tokens(tokens.ids), position)
    x, _ = blocks(decoder, x, position, jnp.zeros((), jnp.int32), taps, range(last))
    return Run(decoder.logits(x) if logits else None, taps.acts)


def blocks(
    decoder: Decoder,
    x: Float[Array, "b t d"],
    position: Int[Array, "b t"],
    time: Int[Array, ""],
    taps: Taps,
    layers: range,
    caches: tuple[LayerCache, ...] | None = None,
) -> tuple[Float[Array, "b t d"], tuple[LayerCache | None, ...]]:
    """Run the blocks ``layers``; return the residual stream after them, and their caches in the same order."""
    config = decoder.config
    angles = {rope: rope_angles(position, rope, config.head_dim) for rope in dict.fromkeys(config.ropes) if rope}
    after = []
    for i, cache in zip(layers, caches or (None,) * len(layers), strict=True):
        context = Context(position, time, angles.get(config.ropes[i]))
        with jax.named_scope(f"layer_{i}"):
            if taps.at_layer(i):
                x, cache = decoder.layers[i](x, context, taps, cache)
            else:
                x, cache = _plain_layer(_as_first_of_its_kind(decoder, i), x, context, cache)
        after.append(cache)
    return x, tuple(after)


@jax.jit
def _plain_layer(
    layer: DecoderLayer, x: Float[Array, "b t d"], context: Context, cache: LayerCache | None
) -> tuple[Float[Array, "b t d"], LayerCache | None]:
    """Run a layer that nothing is read from or changed at: layers alike are traced and lowered once."""
    return layer(x, context, Taps(Where(context.position, context.position[:, 0]), (), {}, None), cache)


def _as_first_of_its_kind(decoder: Decoder, i: int) -> DecoderLayer:
    """The layer with the structure of the first layer that computes the same from other weights."""
    config = decoder.config
    kind = lambda n: (config.ropes[n], config.windows[n])
    first = next(n for n in range(config.num_layers) if kind(n) == kind(i))
    return jax.tree.unflatten(jax.tree.structure(decoder.layers[first]), jax.tree.leaves(decoder.layers[i]))


def positions(tokens: Tokens) -> Int[Array, "b t"]:
    """0-based positions counted over real tokens alone, so padding on either side changes nothing; -1 on padding.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.models import positions
      >>> from atlas_jax.types import Tokens
      >>> real = jnp.array([[False, True, True]])
      >>> positions(Tokens(jnp.array([[0, 7, 8]]), real, jnp.array([0]), attention_mask=real)).tolist()
      [[-1, 0, 1]]
    """
    if tokens.attention_mask is None:
        return jnp.broadcast_to(jnp.arange(tokens.ids.shape[1])[None, :], tokens.ids.shape)
    real = tokens.attention_mask.astype(jnp.int32)
    return jnp.where(tokens.attention_mask, jnp.cumsum(real, axis=1) - 1, -1)


def check_site(config: Any, site: Site | str) -> Site:
    """Parse a site and check that the model has its layer.

    Raises:
      AtlasError: for an unknown point, one that the model does not have, or a layer past the last.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel, check_site
      >>> check_site(LanguageModel.from_pretrained(SUBJECT).config, "mlp_act.9")
      Traceback (most recent call last):
      atlas_jax.errors.AtlasError: site mlp_act.9 is past the last layer: the model has 4, so 0 to 3
    """
    site = Site.parse(site)
    if not isinstance(config, ModelConfig):  # of stored activations
        return config.check_site(site)
    if reason := config.absent(site.point):
        raise AtlasError(f"there is no site {site} in this model: {reason}")
    if site.layer >= config.num_layers:
        raise AtlasError(
            f"site {site} is past the last layer: the model has {config.num_layers}, so 0 to {config.num_layers - 1}"
        )
    if site.head is not None and site.head >= config.num_heads:
        raise AtlasError(
            f"site {site} is past the last head: the model has {config.num_heads}, so 0 to {config.num_heads - 1}"
        )
    return site


def check_edits(config: ModelConfig, edits: Any, rows: int) -> dict[Site, Any]:
    """Parse the sites of the edits and check the widths and rows of those that state them.

    Raises:
      AtlasError: as :func:`check_site`, if edits are no mapping, for a site under two names, for an edit of another
        width than its site, for other rows than the batch, or at a point that can only be read.
    """
    checked = {}
    for site, edit in edits_by_site(edits).items():
        check_site(config, site)
        if site.point == "head_norm":
            raise AtlasError(
                f"{site} can only be read; edit z.{site.layer}, where a head has {config.head_dim} features"
            )
        edits_here = _sequence(site, edit)
        for one in edits_here:
            if check := getattr(one, "check", None):
                check()
            width, there = getattr(one, "width", None), config.width(site)
            if width not in (None, there):
                raise AtlasError(f"an edit of width {width} cannot go to {site}, which is {there} wide")
            if (wanted := getattr(one, "rows", 1)) not in (1, rows):
                raise AtlasError(f"an edit with arrays for {wanted} rows cannot go to {site} of a batch of {rows}")
        checked[site] = jax.tree.map(_strong, edit if callable(edit) else edits_here)
    return checked


def _sequence(site: Site, edit: Any) -> tuple:
    several = isinstance(edit, Sequence) and not callable(edit) and not isinstance(edit, str)
    edits = tuple(edit) if several else (edit,)
    if wrong := [e for e in edits if not callable(e)]:
        raise AtlasError(f"the edit at {site} must be Steer, Add, ... or a callable pytree, not {wrong[0]!r}")
    return edits


def _strong(leaf: Any) -> Array:
    """Make an array of a definite dtype: a Python number would be traced apart from an array of the same value."""
    return jnp.asarray(leaf, jnp.asarray(leaf).dtype)


def split_heads(z: Float[Array, "*b d"], config: ModelConfig) -> Float[Array, "*b n h"]:
    """Split activations of a site ``z`` into the outputs of the attention heads, ``[..., heads, head_dim]``.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel, run, split_heads
      >>> from atlas_jax.types import Site
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> z = run(lm, lm.tokenize(["some text"]), capture=["z.0"]).acts[Site("z", 0)]
      >>> split_heads(z, lm.config).shape[2:] == (lm.config.num_heads, lm.config.head_dim)
      True
    """
    return z.reshape(*z.shape[:-1], config.num_heads, config.head_dim)


def shard_rows(batch: Any, parameters: Any) -> Any:
    """Spread the leading axis of a batch over "data" of the mesh that the parameters live on.

    Arrays that are already on a mesh, that are traced, or whose rows do not divide evenly are left as they are.
    """
    first = jax.tree.leaves(nnx.state(parameters))[0]
    if isinstance(first, jax.core.Tracer) or not isinstance(first.sharding, NamedSharding):
        return batch
    mesh = first.sharding.mesh
    size = mesh.shape.get("data", 1)

    def place(x: Any) -> Any:
        settled = isinstance(x, jax.core.Tracer) or isinstance(getattr(x, "sharding", None), NamedSharding)
        if settled or size == 1 or x.ndim == 0 or x.shape[0] % size:
            return x
        return jax.device_put(x, NamedSharding(mesh, P("data")))

    return jax.tree.map(place, batch)
