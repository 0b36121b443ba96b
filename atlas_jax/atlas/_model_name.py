"""What the name of a model tells: family, version, size and variant, whoever wrote it."""

import re
from typing import NamedTuple

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
# First generations whose names bear no number, told from later ones by their sizes (in millions of parameters).
_FIRST = {"gemma": (2e3, 7e3), "llama": (7e3, 13e3, 30e3, 33e3, 65e3), "qwen": (1.8e3, 14e3, 72e3)}


class ModelName(NamedTuple):
    """The parts of a model's name; None or empty where it does not tell.

    Attributes:
      family: such as gemma; a distilled model has its teacher's and its own.
      version: such as 2 or 3.1.
      size: parameters in millions.
      kinds: what sets its weights apart from those of the plain model: deduped, coder, distill, ...
      tuned: true for an instruction-tuned model, false for one that says base.
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
          >>> ModelName.parse("google/gemma-2-9b-it") == ModelName(frozenset({"gemma"}), "2", 9000.0, tuned=True)
          True
          >>> ModelName.parse("Llama3_1-8B-Base").version, ModelName.parse("gemma-2b").version
          ('3.1', '1')
          >>> ModelName.parse("ckpt-1200") == ModelName()
          True
        """
        name = short(name).lower().replace("gpt-2", "gpt2")
        found = list(_FAMILY.finditer(name))
        family = frozenset(match[1] for match in found)
        words = set(re.split(r"[^a-z0-9]+", name))
        size = _size(name, family, words)
        tuned = True if words & _INSTRUCT else False if words & _BASE else None
        return cls(family, _version(name, found, size), size, frozenset(words & _KINDS), tuned)

    def __str__(self) -> str:
        size = None if self.size is None else f"{self.size / 1e3:g}B" if self.size >= 1e3 else f"{self.size:g}M"
        tuned = {True: "instruction-tuned", False: "base", None: None}[self.tuned]
        return ", ".join(filter(None, (*sorted(self.family), self.version, size, *sorted(self.kinds), tuned)))


def difference(a: ModelName, b: ModelName) -> str | None:
    """In which part two names contradict each other, None where they do not; what one does not tell fits everything.

    Base and instruction-tuned models of one size do not contradict each other: the SAEs of the one are used on the
    other.

    Example:
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
    """A name without owner or folders.

    Example:
      >>> short("google/gemma-2-2b/")
      'gemma-2-2b'
    """
    return name.rstrip("/").rpartition("/")[2]


def _size(name: str, family: frozenset[str], words: set[str]) -> float | None:
    if "gpt2" in family:
        told = [size for word, size in _GPT2.items() if word in words]
        return float(told[0] if told else _GPT2["small"])
    sizes = [float(number) * _MILLIONS[unit] for number, unit in _SIZE.findall(name.replace("_", "-"))]
    return sizes[0] if sizes else None


def _version(name: str, found: list[re.Match[str]], size: float | None) -> str | None:
    if not found or found[-1][1] == "gpt2":
        return None
    match = re.match(_VERSION, name[found[-1].end() :]) or _LATER.search(name)
    if match is not None:
        return re.sub(r"[_-]", ".", match[1]).removesuffix(".0")
    first = len(found) == 1 and size in _FIRST.get(found[0][1], ())
    return "1" if first else None
