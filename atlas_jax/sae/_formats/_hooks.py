"""From the hook names that releases use to sites."""

import re

from atlas_jax.errors import AtlasError
from atlas_jax.types import Site

# Modules as transformers names them, within ``model.layers.N``; ``ln2.hook_normalized`` of TransformerLens is left
# out on purpose: it lies before the norm's gain, where no projection of the model reads.
_MODULES = {
    "output": "resid_post",
    "input": "resid_pre",
    "self_attn.o_proj.input": "z",
    "self_attn.o_proj.output": "attn_out",
    "post_attention_layernorm.output": "attn_out_post",
    "pre_feedforward_layernorm.output": "mlp_in",
    "mlp.output": "mlp_out",
    "mlp.down_proj.input": "mlp_act",
    "post_feedforward_layernorm.output": "mlp_out_post",
}


def site_of(hook: str | None) -> Site | None:
    """The site a TransformerLens hook or a transformers module name means, None where it is no site of ours.

    Example:
      >>> site_of("blocks.5.hook_resid_post"), site_of("model.layers.5.self_attn.o_proj.input"), site_of("hook_embed")
      (Site('resid_post.5'), Site('z.5'), None)
    """
    if hook is None:
        return None
    if match := re.fullmatch(r"(?:language_model\.)?model\.layers\.(\d+)\.(.+)", hook):
        point = _MODULES.get(match[2])
        return None if point is None else Site(point, int(match[1]))
    try:
        return Site.parse(hook)
    except AtlasError:
        return None
