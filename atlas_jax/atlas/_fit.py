"""Checks that a model, a site, an SAE and labels belong together, by their own files and names."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.labels import Labels, site_of_hook
from atlas_jax.models import LanguageModel, ModelConfig, check_site
from atlas_jax.sae import SAEConfig
from atlas_jax.types import Site

_FAMILIES = (
    "(?:code|pali|recurrent|shield|med|tx|translate)?gemma|(?:code|tiny|open)?llama|deepseek|(?:code)?qwen|qwq|pythia|"
    "gpt-neox|gpt-neo|gpt-oss|gpt-j|gpt2|mistral|mixtral|ministral|codestral|smollm|phi|olmo|opt|bloom|falcon|mamba|"
    "stablelm|internlm|yi|hermes|vicuna|alpaca|tulu|zephyr|dolphin|bitnet"
)
_FAMILY = re.compile(rf"(?<![a-z])({_FAMILIES})(?![a-z])")
_SIZE = re.compile(r"(?<![\w.])e?(\d+(?:\.\d+)?)(m|b|t)(?![a-z\d])")
_VERSION = r"[-_ ]?v?(\d+(?:[._-]\d)?n?)(?![.\d]*[mbk](?![a-z]))(?!\d)"
_LATER = re.compile(r"[-_]v(\d+(?:[._]\d+)?)(?![\w.])")
_MILLIONS = {"m": 1.0, "b": 1e3, "t": 1e6}
_GPT2 = {"small": 124, "medium": 355, "large": 774, "xl": 1558}
_INSTRUCT, _BASE = {"it", "instruct", "chat", "sft", "rlhf", "dpo"}, {"pt", "base", "pretrained"}
_KINDS = {"deduped", "coder", "code", "math", "vl", "vision", "distill", "r1", "guard", "embedding", "jpn", "reward"}
# First generations whose names bear no number, known from later ones by their sizes (in millions of parameters).
_FIRST = {"gemma": (2e3, 7e3), "llama": (7e3, 13e3, 30e3, 33e3, 65e3), "qwen": (1.8e3, 14e3, 72e3)}
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_DENSE = 0.95


class ModelName(NamedTuple):
    """The parts of a model's name; None or empty where it has none.

    Attributes:
      family: such as gemma; a distilled model has its teacher's and its own.
      version: such as 2 or 3.1.
      size: parameters in millions.
      kinds: variants of the plain model: deduped, coder, distill, ...
      tuned: true for an instruction-tuned model, false for one named base.
    """

    family: frozenset[str] = frozenset()
    version: str | None = None
    size: float | None = None
    kinds: frozenset[str] = frozenset()
    tuned: bool | None = None

    @classmethod
    def parse(cls, name: str) -> "ModelName":
        """Read a name of the Hugging Face hub, TransformerLens, Neuronpedia or a folder; its owner is left out.

        Example:
          >>> from atlas_jax.atlas._fit import ModelName
          >>> ModelName.parse("google/gemma-2-9b-it") == ModelName(frozenset({"gemma"}), "2", 9000.0, tuned=True)
          True
          >>> ModelName.parse("Llama3_1-8B-Base").version, ModelName.parse("gemma-2b").version
          ('3.1', '1')
          >>> ModelName.parse("ckpt-1200") == ModelName()
          True
        """
        name = short(name).lower().replace("gpt-2", "gpt2")
        families = list(_FAMILY.finditer(name))
        family = frozenset(match[1] for match in families)
        words = set(re.split(r"[^a-z0-9]+", name))
        size = _size(name, family, words)
        tuned = True if words & _INSTRUCT else False if words & _BASE else None
        return cls(family, _version(name, families, size), size, frozenset(words & _KINDS), tuned)

    def __str__(self) -> str:
        size = None if self.size is None else f"{self.size / 1e3:g}B" if self.size >= 1e3 else f"{self.size:g}M"
        tuned = {True: "instruction-tuned", False: "base", None: None}[self.tuned]
        return ", ".join(filter(None, (*sorted(self.family), self.version, size, *sorted(self.kinds), tuned)))


def difference(a: ModelName, b: ModelName) -> str | None:
    """Return the part in which two names contradict each other, None where they do not; a missing part fits everything.

    Base and instruction-tuned models of one size do not contradict each other: the SAEs of the one are used on the
    other.

    Example:
      >>> from atlas_jax.atlas._fit import ModelName, difference
      >>> parse = ModelName.parse
      >>> difference(parse("gemma-2-2b"), parse("google/gemma-2-9b-it")), difference(parse("gemma-2-2b"), parse("mine"))
      ('size', None)
    """
    if not a.family or not b.family:
        return None
    if a.family != b.family:
        return "family"
    if None not in (a.version, b.version) and a.version != b.version:
        return "version"
    if a.size is not None and b.size is not None and a.size != b.size:
        return "size"
    return "variant" if a.kinds != b.kinds else None


def short(name: str) -> str:
    """Return a name without owner or folders.

    Example:
      >>> from atlas_jax.atlas._fit import short
      >>> short("google/gemma-2-2b/")
      'gemma-2-2b'
    """
    return name.rstrip("/").rpartition("/")[2]


def _size(name: str, family: frozenset[str], words: set[str]) -> float | None:
    if "gpt2" in family:
        named = [size for word, size in _GPT2.items() if word in words]
        return float(named[0] if named else _GPT2["small"])
    sizes = [float(number) * _MILLIONS[unit] for number, unit in _SIZE.findall(name.replace("_", "-"))]
    return sizes[0] if sizes else None


def _version(name: str, families: list[re.Match[str]], size: float | None) -> str | None:
    if not families or families[-1][1] == "gpt2":
        return None
    match = re.match(_VERSION, name[families[-1].end() :]) or _LATER.search(name)
    if match is not None:
        return re.sub(r"[_-]", ".", match[1]).removesuffix(".0")
    first = len(families) == 1 and size in _FIRST.get(families[0][1], ())
    return "1" if first else None


def names_of(model: LanguageModel, given: str, stated: Collection[str] = ()) -> dict[str, bool]:
    """Return the names of a model: those the user states, or else those of its path and of its config.

    Returns:
      By name, true where the model was published under it, false for the name of a folder, which is arbitrary.

    Example:
      >>> from atlas_jax import LanguageModel
      >>> from atlas_jax.atlas._fit import names_of
      >>> from atlas_jax.bundled import SUBJECT
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> names_of(lm, "google/gemma-2-2b"), names_of(lm, str(SUBJECT)), names_of(lm, "m", ["Qwen/Qwen3-8B"])
      ({'gemma-2-2b': True}, {'subject': False}, {'Qwen3-8B': True})
    """
    if stated:
        return {short(name): True for name in stated}
    written = str(model.hf_config.get("_name_or_path") or "")
    folder = Path(given).expanduser().absolute()
    names = {folder.name: False} if folder.exists() else {short(given): True}
    names |= {short(written): bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", written))} if written else {}
    return names | dict.fromkeys(re.findall(r"models--[^/]+--([^/]+)/snapshots/", folder.as_posix()), True)


def check_model(source: str, expected: str | None, names: Mapping[str, bool]) -> None:
    """Refuse a model other than the one that the SAE or the labels name.

    Names are compared by family, version, size and variant, where both have them; base and instruction-tuned models
    count as one. A name without a family is compared as a whole, and a folder's such name is taken for any model.

    Raises:
      AtlasError: if they differ.
    """
    if not expected:
        return
    verdicts = {name: _verdict(expected, name, published) for name, published in names.items()}
    if "" in verdicts.values() or not (differing := {name: v for name, v in verdicts.items() if v}):
        return
    names_given = ", ".join(_described(name) for name in sorted(differing))
    raise AtlasError(
        f"{source} of the model {_described(expected)}, and this model goes by {names_given}, of another "
        f"{' and '.join(sorted(set(differing.values())))}; give the right model, or state its name with --model-name"
    )


def tuning_note(expected: str | None, names: Mapping[str, bool]) -> str | None:
    """Describe the use of an SAE of a base model on an instruction-tuned one, or the reverse; None where it is neither.

    Example:
      >>> from atlas_jax.atlas._fit import tuning_note
      >>> tuning_note("gemma-2-2b", {"gemma-2-2b-it": True})
      "the SAE is of the model 'gemma-2-2b' and is used on 'gemma-2-2b-it': only one of them is instruction-tuned"
    """
    for name in names:
        theirs, ours = ModelName.parse(expected or ""), ModelName.parse(name)
        if theirs.family and ours.family and (theirs.tuned or False) != (ours.tuned or False):
            return (
                f"the SAE is of the model '{expected}' and is used on '{name}': only one of them is instruction-tuned"
            )
    return None


def _verdict(expected: str, name: str, published: bool) -> str | None:
    """Return the part in which a name contradicts the one expected, "" where it agrees, None where that is unknown."""
    a, b = ModelName.parse(expected), ModelName.parse(name)
    if _bare(short(expected)) == _bare(name):
        return ""
    if a.family and b.family:
        return difference(a, b) or ""
    return "name" if published else None


def _described(name: str) -> str:
    parts = str(ModelName.parse(name))
    return f"'{name}' ({parts})" if parts else f"'{name}'"


def choose_site(config: ModelConfig, sae: SAEConfig, given: Site | str | None) -> Site:
    """Return the site the user names, or else the SAE's own; both must be the same place in the model.

    Raises:
      AtlasError: if neither names one, the model has no such site, or they differ.
    """
    if given is None and sae.site is None:
        raise AtlasError("the SAE's files do not say where it reads the model; name the site, such as resid_post.12")
    own = None if sae.site is None else check_site(config, sae.site)
    site = own if given is None else check_site(config, given)
    if own is not None and same_place(config, own) != same_place(config, site):
        raise AtlasError(f"by its own files the SAE reads {own}, not {site}; leave the site out or give the right SAE")
    return site


def check_labels(
    labels: Labels, config: ModelConfig, site: Site, width: int, names: Mapping[str, bool], *, partial: bool = False
) -> None:
    """Refuse labels of another model, layer, hook point or width, as far as their files or their indices show it.

    Raises:
      AtlasError: if they differ, or describe features 0 to n - 1 of a far wider SAE nearly without gap, which labels
        of an SAE with n features do, unless ``partial`` is true.
    """
    model, layer, hook, _ = labels.origin
    check_model("the labels are", model, names)
    read = site_of_hook(hook)
    if read is not None and same_place(config, read) != same_place(config, site):
        raise AtlasError(f"the labels are of the hook point '{hook}', and the SAE reads {site}")
    named = re.fullmatch(r"(\d+)(?:-.*?(?:-(\d+)([km]?))?)?", layer.lower())
    if named is not None and int(named[1]) != site.layer:
        raise AtlasError(f"the labels are of layer {named[1]} ('{layer}'), and the SAE reads {site}")
    stated = None if named is None or named[2] is None else int(named[2]) * _UNITS[named[3]]
    if stated is not None and not _same_width(stated, width):
        raise AtlasError(f"the labels are of an SAE with {stated} features ('{layer}'), and this one has {width}")
    highest = max(labels.entries, default=-1) + 1
    if stated is None and not partial and highest <= width / 2 and len(labels.entries) >= max(_DENSE * highest, 100):
        raise AtlasError(
            f"the labels describe features 0 to {highest - 1} nearly without gap and none of the {width - highest} "
            f"others, as labels of an SAE with {highest} features do; say --partial-labels if they are of this one"
        )


def same_place(config: ModelConfig, site: Site) -> Site:
    """Return one name for sites that hold the same tensor in every model, or in this one.

    Example:
      >>> from atlas_jax import LanguageModel, Site
      >>> from atlas_jax.atlas import same_place
      >>> from atlas_jax.bundled import SUBJECT
      >>> same_place(LanguageModel.from_pretrained(SUBJECT).config, Site("resid_pre", 2))
      Site('resid_post.1')
    """
    if site.point == "resid_pre" and site.layer > 0:
        return Site("resid_post", site.layer - 1)
    return site if config.has_post_norms else dataclasses.replace(site, point=site.point.replace("_out_post", "_out"))


def _same_width(stated: int, width: int) -> bool:
    """Return true if two widths agree roughly: releases write 16k for 16384 and for 16000."""
    return 0.9 < stated / width < 1.1


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
