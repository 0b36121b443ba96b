"""Where a checkpoint stores the parameters of a decoder: their names, what they are fused with, and which way round."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from atlas_jax.models._config import ModelConfig
from atlas_jax.models._families import FAMILIES, Fused

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
_PARTS = ("layers", "embed_tokens", "norm", "lm_head")


class Place(NamedTuple):
    """Where a parameter is stored.

    Attributes:
      tensor: its name, without the prefix that a whole checkpoint has.
      shape: of the tensor, in the parameter's layout.
      transposed: whether it is stored ``[out, in]``.
      columns: the tensor's columns that are this parameter; all where it is None.
    """

    tensor: str
    shape: tuple[int, ...]
    transposed: bool
    columns: Int[np.ndarray, " o"] | None


def layout(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """The places of all parameters of a decoder, given their shapes."""
    return {name: _place(config, name, shapes) for name in shapes}


def stored_name(family: str, name: str) -> str:
    """What a family's checkpoints call a parameter or module.

    Example:
      >>> stored_name("llama", "layers.0.mlp.up_proj.weight")
      'layers.0.mlp.up_proj.weight'
    """
    names = FAMILIES[family].names
    return ".".join(names.get(part, part) for part in name.split("."))


def is_decoders(family: str, tensor: str) -> bool:
    """Whether a tensor's name says that it is a part of the decoder, used or not."""
    parts = (*_PARTS, *FAMILIES[family].names)
    return tensor.split(".")[0] in {stored_name(family, part) for part in parts}


def _place(config: ModelConfig, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Place:
    *parents, module, kind = name.split(".")
    family, row = config.family, FAMILIES[config.family]
    transposed = name == HEAD or (name.endswith("proj.weight") and not row.conv1d)
    fused = next((f for f in row.fused if module in f.parts), None)
    if fused is None:
        return Place(stored_name(family, name), shapes[name], transposed, None)
    together = [shapes[".".join([*parents, part, kind])] for part in fused.parts]
    shape = (*shapes[name][:-1], sum(s[-1] for s in together))
    columns = _columns(fused, module, [s[-1] for s in together], config.head_dim)
    return Place(stored_name(family, ".".join([*parents, fused.name, kind])), shape, transposed, columns)


def _columns(fused: Fused, part: str, widths: list[int], head_dim: int) -> Int[np.ndarray, " o"]:
    """The columns of a fused tensor that are one of its parts."""
    i = fused.parts.index(part)
    if fused.by_head:
        return np.arange(sum(widths)).reshape(-1, len(widths), head_dim)[:, i].reshape(-1)
    return np.arange(sum(widths[:i]), sum(widths[: i + 1]))
