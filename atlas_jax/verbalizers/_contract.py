"""The contract of a verbalizer: where and how it was trained to receive a vector, as its sidecar states it."""

import dataclasses
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas_jax.checks import as_count, as_number
from atlas_jax.errors import AtlasError
from atlas_jax.files import new_file, reading
from atlas_jax.models import LanguageModel

SIDECAR = "nla_meta.yaml"
HOW = ("replace", "add", "norm_matched_add")
SQRT, RAW = "sqrt_d_model", "raw"
CHAR, LAYER = "injection_char", "layer"  # the fields of a template


@dataclasses.dataclass(frozen=True)
class Contract:
    """Where and how a vector goes into a verbalizer's prompt.

    Attributes:
      template: the user's message, with ``{injection_char}`` once, where the vector goes, and perhaps ``{layer}``.
      placeholder: the character that stands there, one token.
      placeholder_id: its token.
      neighbours: the tokens before and after it, None where they are not checked.
      scale: the norm that vectors are brought to: a number, "sqrt_d_model", or "raw" for none. With
        "norm_matched_add" it is the factor of the activation's own norm.
      d_model: width of the vectors.
      how: "replace" the activation, "add" to it, or "norm_matched_add": ``h + scale ‖h‖ v/‖v‖``.
      where: "embedding" (the input of block 0), or k for the output of block k.
      layer: the block whose outputs it explains, which ``{layer}`` in the template states.

    Raises:
      AtlasError: for a template without its placeholder or with two, or a field of another kind.

    Example:
      >>> from atlas_jax.verbalizers import Contract
      >>> Contract("The vector <v>{injection_char}</v> is about", "?", 30, None, 150.0, 64).message()
      'The vector <v>?</v> is about'
    """

    template: str
    placeholder: str
    placeholder_id: int
    neighbours: tuple[int, int] | None
    scale: float | int | str
    d_model: int
    how: str = "replace"
    where: str | int = "embedding"
    layer: int | None = None

    def __post_init__(self) -> None:
        _check_template(self.template, self.layer)
        if self.how not in HOW:
            raise AtlasError(f"unknown injection '{self.how}'; known are {', '.join(HOW)}")
        if self.where != "embedding":
            as_count(self.where, "the block whose output a verbalizer's vector goes to", least=0)
        if self.scale not in (SQRT, RAW):
            as_number(self.scale, f"the scale of an injected vector, where it is neither {SQRT} nor {RAW},")
        if self.how == "norm_matched_add" and self.scale in (SQRT, RAW):
            raise AtlasError(f"norm_matched_add needs a number as its scale, not '{self.scale}'")

    def message(self, text: str | None = None) -> str:
        """Return the user's message, with a text in the vector's place where one is given."""
        fields = {CHAR: self.placeholder if text is None else text, LAYER: self.layer}
        return self.template.format(**fields)

    def prompt(self, model: LanguageModel) -> tuple[list[int], int]:
        """Return the token ids of the prompt by the model's chat template, and the placeholder's position.

        Raises:
          AtlasError: if the model has another width, its tokenizer another token for the placeholder, or the
            placeholder is not once in the prompt between its neighbours.
        """
        if model.config.hidden_size != self.d_model:
            raise AtlasError(
                f"the contract is for vectors of width {self.d_model}, and the verbalizer has "
                f"{model.config.hidden_size}; take the sidecar of this checkpoint"
            )
        tokenizer = model.tokenizer
        alone = tokenizer.backend.encode(self.placeholder, add_special_tokens=False).ids
        if alone != [self.placeholder_id]:
            raise AtlasError(
                f"the placeholder {self.placeholder!r} is token {self.placeholder_id} in the contract, and {alone} in "
                "this tokenizer; take the tokenizer of the checkpoint"
            )
        ids = model.chat([{"role": "user", "content": self.message()}])
        places = [i for i, token in enumerate(ids) if token == self.placeholder_id]
        if len(places) != 1 or not 0 < places[0] < len(ids) - 1:
            raise AtlasError(
                f"the placeholder {self.placeholder!r} should be once within the prompt, and is there {len(places)} "
                "times; take the template and chat template of the checkpoint"
            )
        p = places[0]
        if self.neighbours is not None and (ids[p - 1], ids[p + 1]) != tuple(self.neighbours):
            raise AtlasError(
                f"the placeholder stands between tokens {ids[p - 1]} and {ids[p + 1]}, and should between "
                f"{self.neighbours[0]} and {self.neighbours[1]}; take the template and chat template of the checkpoint"
            )
        return ids, p

    @classmethod
    def load(cls, path: str | Path) -> "Contract":
        """Read ``nla_meta.yaml`` of a verbalizer's directory, or the file itself.

        A sidecar without a block ``injection`` (keys ``where``: "embedding" or a block, and ``how``) is of the released
        kind, which replaces at the embedding.

        Raises:
          AtlasError: if it is missing or damaged, is none of a verbalizer, or leaves out a field, the scale included.
        """
        path = Path(path)
        path = path / SIDECAR if path.is_dir() else path
        remedy = "download the verbalizer with its sidecar again"
        with reading(path, remedy):
            import yaml

            try:
                content = yaml.safe_load(path.read_text("utf-8"))
            except yaml.YAMLError as e:
                raise ValueError(str(e)) from e
        if not isinstance(content, Mapping) or content.get("kind") != "nla_model" or content.get("role", "av") != "av":
            raise AtlasError(f"{path} is no sidecar of a verbalizer (kind: nla_model, role: av); {remedy}")
        with reading(path, remedy):
            return _contract(content, path)

    def save(self, directory: str | Path) -> Path:
        """Write the contract as ``nla_meta.yaml`` of a directory and return the file."""
        import yaml

        left, right = self.neighbours or (None, None)
        content = {
            "schema_version": 2, "kind": "nla_model", "role": "av", "d_model": self.d_model,
            "extraction_layer_index": self.layer, "extraction": {"injection_scale": self.scale},
            "injection": {"where": self.where, "how": self.how},
            "tokens": {
                "injection_char": self.placeholder, "injection_token_id": self.placeholder_id,
                "injection_left_neighbor_id": left, "injection_right_neighbor_id": right,
            },
            "prompt_templates": {"av": self.template},
        }  # fmt: skip
        path = Path(directory) / SIDECAR
        with new_file(path) as file:
            file.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), "utf-8")
        return path


def _contract(content: Mapping[str, Any], path: Path) -> Contract:
    extraction, tokens = content.get("extraction") or {}, content["tokens"]
    templates, injection = content["prompt_templates"], content.get("injection") or {}
    scale = extraction.get("injection_scale")
    if scale is None:
        raise AtlasError(
            f"{path} has no extraction.injection_scale, and a vector of another norm than in training is not "
            "understood; ask for the sidecar of the verbalizer (that of a reconstructor or data set has none)"
        )
    layer = content.get("extraction_layer_index", extraction.get("layer_index"))
    neighbours = tokens["injection_left_neighbor_id"], tokens["injection_right_neighbor_id"]
    return Contract(
        template=templates["av"] if "av" in templates else templates["actor"],
        placeholder=tokens["injection_char"],
        placeholder_id=as_count(tokens["injection_token_id"], f"injection_token_id of {path}", least=0),
        neighbours=None if None in neighbours else neighbours,
        scale=scale if scale in (SQRT, RAW) else float(scale),
        d_model=as_count(content["d_model"], f"d_model of {path}"),
        how=injection.get("how", "replace"),
        where=injection.get("where", "embedding"),
        layer=layer,
    )


def _check_template(template: str, layer: int | None) -> None:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as e:
        raise AtlasError(f"the template {template[:60]!r} cannot be filled in: {e}; write plain braces twice") from e
    if (count := fields.count(CHAR)) != 1:
        raise AtlasError(
            f"a template has {{{CHAR}}} once, where the vector goes, and {template[:60]!r} has it "
            f"{('not at all', '', 'twice')[count] if count < 3 else f'{count} times'}"
        )
    if unknown := set(fields) - {CHAR, LAYER}:
        raise AtlasError(f"unknown field {{{min(unknown)}}} in the template {template[:60]!r}; known is {{{LAYER}}}")
    if LAYER in fields and layer is None:
        raise AtlasError(f"the template states {{{LAYER}}}, and the contract has no extraction_layer_index")
