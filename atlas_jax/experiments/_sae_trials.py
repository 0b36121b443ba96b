"""The usual ways to read an SAE wrong, each undone on real activations."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from atlas_jax.atlas import ConceptAtlas, same_place
from atlas_jax.models import LanguageModel, Tokenizer, positions, run
from atlas_jax.sae import SparseAutoencoder, finish_quality, init_quality, update_quality
from atlas_jax.types import Site

TOKENS = 4096
MAX_LENGTH = 128
CELLS = 1 << 26
SAME_NORM = 0.01
_KIN = (
    ("resid_pre", "resid_mid", "resid_post"),
    ("mlp_in", "mlp_out", "mlp_out_post"),
    ("attn_in", "z", "attn_out", "attn_out_post"),
    ("mlp_gate_act", "mlp_act"),
)


class Trial(NamedTuple):
    """One usual mistake undone.

    Attributes:
      name: what was done differently.
      l0: mean number of active features then.
      fvu: fraction of variance unexplained then, nan for a transcoder whose output site is not known.
      dead: share of features that never fired.
      agrees: whether that is what the release states.
    """

    name: str
    l0: float
    fvu: float
    dead: float
    agrees: bool = False


class _Rows(NamedTuple):
    """The real tokens of some texts.

    Attributes:
      acts: activations by site.
      counts: false for BOS and special tokens.
      first: true for the first token of a text.
    """

    acts: dict[Site, Float[np.ndarray, "n d"]]
    counts: Bool[np.ndarray, " n"]
    first: Bool[np.ndarray, " n"]


def trials(atlas: ConceptAtlas, texts: Sequence[str], l0: float | None) -> list[Trial]:
    """Measure an SAE with each usual mistake undone, on about 4096 tokens.

    Sites near the atlas's, other tokens counted, BOS added, activations or thresholds multiplied by
    ``sqrt(d) / mean norm`` or divided by it, thresholds divided by the norms of the decoder's rows, rows normalised,
    ``b_dec`` subtracted or not, top-k for ReLU.

    Args:
      atlas: the atlas.
      texts: some sentences.
      l0: the stated number of active features, for the trial of a top-k SAE read as ReLU.
    """
    near, out = _near_sites(atlas), atlas.sae.config.site_out
    sites = tuple(dict.fromkeys([atlas.site, *near, *([] if out is None else [out])]))
    rows = _rows(atlas.model, texts, sites)
    kept = rows.counts
    tried = [_measure(f"the SAE reads {site}", atlas.sae, rows, site, out, kept) for site in near]
    for name, chosen in (("every token counts, BOS too", np.ones_like(kept)), ("no first token", kept & ~rows.first)):
        if chosen.any() and not np.array_equal(chosen, kept):
            tried.append(_measure(name, atlas.sae, rows, atlas.site, out, chosen))
    for name, sae, scale in _readings(atlas.sae, rows.acts[atlas.site][kept], l0):
        tried.append(_measure(name, sae, rows, atlas.site, out, kept, scale))
    if (model := _with_bos(atlas.model)) is not None:
        again = _rows(model, texts, sites)
        tried.append(_measure("BOS stands before every text", atlas.sae, again, atlas.site, out, again.counts))
    return tried


def _near_sites(atlas: ConceptAtlas) -> list[Site]:
    """Other sites of the same width and kind in this block and its neighbours, each tensor once."""
    config, site = atlas.model.config, atlas.site
    points = next((kin for kin in _KIN if site.point in kin), (site.point,))
    layers = range(max(0, site.layer - 1), min(config.num_layers, site.layer + 2))
    points = [p for p in points if config.width(p) == config.width(site.point) and config.absent(p) is None]
    fitting = [Site(p, i) for i in layers for p in points]
    tensors = {same_place(config, s): s for s in reversed(fitting)}
    tensors.pop(same_place(config, site))
    return list(tensors.values())[::-1]


def _readings(
    sae: SparseAutoencoder, x: Float[np.ndarray, "n d"], l0: float | None
) -> Iterator[tuple[str, SparseAutoencoder, float]]:
    """The SAE described otherwise, and what its input is multiplied by."""
    c = sae.config
    scale = math.sqrt(c.d_in) / float(np.linalg.norm(x, axis=1).mean())
    for name, factor in ((f"times {scale:.3g} (sqrt(d) / mean norm)", scale), (f"divided by {scale:.3g}", 1 / scale)):
        yield f"activations {name}", sae, factor
        if sae.threshold is not None:
            yield f"thresholds {name}", dataclasses.replace(sae, threshold=sae.threshold * factor), 1.0
    for name, threshold in _thresholds(sae, scale):
        yield name, dataclasses.replace(sae, threshold=threshold), 1.0
    described = lambda **change: dataclasses.replace(sae, config=dataclasses.replace(c, **change))
    if c.transcoder:
        return
    for how in ("none", "constant_norm_rescale", "layer_norm"):
        if how != c.normalization:
            yield f"rows normalised by '{how}'", described(normalization=how), 1.0
    verb = "not subtracted from" if c.apply_b_dec_to_input else "subtracted from"
    yield f"b_dec {verb} the input", described(apply_b_dec_to_input=not c.apply_b_dec_to_input), 1.0
    if c.kind == "relu" and l0 is not None:
        yield f"the {round(l0)} largest features kept", described(kind="topk", k=max(1, round(l0))), 1.0


def _thresholds(sae: SparseAutoencoder, scale: float) -> Iterator[tuple[str, Float[Array, " m"]]]:
    """Thresholds in units of the pre-activation times the norm of the feature's row of the decoder, or no longer so.

    Where training activations were scaled, the norm was that of the row as it was for them, ``scale`` times today's,
    and the threshold itself may have been scaled or not. What is left out is as good as another trial.
    """
    if sae.threshold is None:
        return
    norms = jnp.maximum(jnp.linalg.norm(sae.W_dec, axis=1), 1e-12)
    for power, also in ((0, ""), (1, f" times {scale:.3g}"), (2, f" times {scale:.3g} squared")):
        rows = norms * scale**power
        if float(jnp.max(jnp.abs(jnp.log(rows)))) > SAME_NORM:
            yield f"thresholds divided by the decoder norms{also}", sae.threshold / rows
            yield f"thresholds times the decoder norms{also}", sae.threshold * rows


def _with_bos(model: LanguageModel) -> LanguageModel | None:
    """The model with BOS before every text, None where it has that already or knows none."""
    bos, tokenizer = model.hf_config.get("bos_token_id"), model.tokenizer
    if tokenizer.bos_id is not None or not isinstance(bos, int) or tokenizer.encode(["a"])[0][:1] == [bos]:
        return None
    added = Tokenizer.of(tokenizer.backend, tokenizer.backend.id_to_token(bos))
    return LanguageModel(model.config, added, model.decoder, model.hf_config)


def _rows(model: LanguageModel, texts: Sequence[str], sites: tuple[Site, ...]) -> _Rows:
    """As many texts as fit :data:`TOKENS`, in one batch, so that one program is compiled."""
    length = min(MAX_LENGTH, model.config.max_positions)
    total = np.cumsum([min(len(ids), length) for ids in model.tokenizer.encode(texts[:TOKENS])])
    tokens = model.tokenize(texts[: max(1, int(np.searchsorted(total, TOKENS)))], max_length=length)
    acts = run(model, tokens, capture=sites, logits=False).acts
    position = np.asarray(positions(tokens))
    real = position >= 0
    held = {site: np.asarray(x.astype(jnp.float32))[real] for site, x in acts.items()}
    return _Rows(held, np.asarray(tokens.mask)[real], position[real] == 0)


def _measure(
    name: str,
    sae: SparseAutoencoder,
    rows: _Rows,
    site: Site,
    out: Site | None,
    chosen: Bool[np.ndarray, " n"],
    scale: float = 1.0,
) -> Trial:
    x = rows.acts[site][chosen] * np.float32(scale)
    target = x if not sae.config.transcoder else None if out is None else rows.acts[out][chosen]
    state, height = init_quality(sae), max(1, CELLS // sae.config.d_sae)
    for i in range(0, len(x), height):
        part: Array = jnp.asarray(x[i : i + height])
        nothing = jnp.zeros((len(part), sae.config.width_out))
        wanted = nothing if target is None else jnp.asarray(target[i : i + height])
        state = update_quality(state, sae, part, None, wanted)
    found = jax.device_get(finish_quality(state))
    return Trial(name, float(found.l0), float(found.fvu), float(found.dead))
