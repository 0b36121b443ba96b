"""Reading of configurations that other libraries write, field by field, and of the hooks they name."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.types import Site

Type = Literal["a whole number", "a number", "text", "true or false", "an object", "a site"]
_HUGE = 1e300
_NOTHING = (False, 0, "", "none", "None", [], {})
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


class Read(NamedTuple):
    """A field that is used. A whole number may be written with a decimal point; null counts as absent."""

    type: Type


class Only(NamedTuple):
    """A field that may only have these values; null counts as absent."""

    values: tuple[Any, ...]


class Ignored(NamedTuple):
    """A field of training or bookkeeping, which changes nothing here."""


Table = Mapping[str, Read | Only | Ignored]
WHOLE, NUMBER, TEXT = Read("a whole number"), Read("a number"), Read("text")
FLAG, OBJECT, SITE = Read("true or false"), Read("an object"), Read("a site")
IGNORED = Ignored()


def ignored(names: str) -> Table:
    """Make a table of fields that change nothing from their names, separated by blanks."""
    return dict.fromkeys(names.split(), IGNORED)


def read_fields(
    cfg: Mapping[str, Any], table: Table, file: Path, *, needed: Iterable[str] = (), others: bool = False
) -> dict[str, Any]:
    """Return the fields that are used, checked, without nulls.

    Args:
      cfg: the configuration.
      table: treatment of each field of the library's configuration classes.
      file: the file of the configuration.
      needed: fields that must be there.
      others: fields that the table does not list may have any value: the file is a dump of a whole training
        configuration, of which the library itself reads no others. Without it they must be empty: false, 0, "none",
        or of no length.

    Raises:
      AtlasError: for a value of the wrong type, one that is not computed, an unlisted field, or a missing one.

    Example:
      >>> from pathlib import Path
      >>> from atlas_jax.sae._formats._fields import IGNORED, WHOLE, read_fields
      >>> read_fields({"k": 4.0, "lr": 0.1, "signed": False}, {"k": WHOLE, "lr": IGNORED}, Path("cfg.json"))
      {'k': 4}
    """
    read = {}
    for name, value in ((name, value) for name, value in cfg.items() if value is not None):
        how = table.get(name)
        if isinstance(how, Only) and value not in how.values:
            computed = " or ".join(f"{v!r}" for v in (*how.values, None))
            raise AtlasError(f"{file} has {name} = {value!r}, and only {computed} is supported")
        if how is None and not others and value not in _NOTHING:
            raise AtlasError(f"{file} has the unknown field {name} = {value!r}, which may change the features")
        if isinstance(how, Read | Only):
            read[name] = _typed(value, how.type, name, file) if isinstance(how, Read) else value
    if missing := sorted(set(needed) - read.keys()):
        raise AtlasError(f"{file} has no {', '.join(missing)}")
    return read


def _typed(value: Any, type: Type, name: str, file: Path) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HUGE
    made = {
        "a whole number": (number and value == int(value), int),
        "a number": (number, float),
        "text": (isinstance(value, str), str),
        "true or false": (isinstance(value, bool), bool),
        "an object": (isinstance(value, dict), dict),
        "a site": (isinstance(value, str), Site.parse),
    }
    fits, make = made[type]
    if not fits:
        raise AtlasError(f"{name} in {file} should be {type}, it is {value!r}")
    try:
        return make(value)
    except AtlasError as error:
        raise AtlasError(f"{name} in {file}: {error}") from None


def site_of(hook: str | None) -> Site | None:
    """Return the site of a TransformerLens hook or a transformers module name, None where it is no site of ours.

    Example:
      >>> from atlas_jax.sae._formats._fields import site_of
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
