"""A run directory: what was asked for, and its files, checked as they are read."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file

from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError, DamagedError
from atlas_jax.files import RUN, differences, reading
from atlas_jax.models import KERNELS
from atlas_jax.pooling import POOLINGS
from atlas_jax.statistics import TopK
from atlas_jax.translation import RECORD, Translation
from atlas_jax.translators import METHODS, needs_of
from atlas_jax.types import Site

DTYPES = ("float32", "bfloat16")
_LEAST = {"max_length": 1, "token_budget": 1, "top_k": 1, "seed": 0}
LATER = {"steer_pooling": None, "steer_methods": ()}  # settings that older runs do not state, as they were made
FOR_STEERING = "whitened_steer"
AGAIN = "align again with --overwrite"


@dataclasses.dataclass(frozen=True)
class AlignSettings:
    """The settings of an alignment. Defaults are the paper's where it states one.

    Attributes:
      sites: subject sites, as names; each once, in the order given.
      methods: names in :data:`atlas_jax.translators.METHODS`, each once.
      pooling: over the tokens of a sentence.
      steer_pooling: over the tokens of a sentence, for the translations made for steering; None for none but those of
        ``pooling``. Max pooling suits detection and retrieval, and distorts directions to steer along.
      steer_methods: names of methods that are solved with it too, without a second pass; the first is the default.
      max_length: tokens at which sentences are cut.
      token_budget: tokens of a batch, for each model.
      top_k: activations per feature that SemanticLens averages.
      seed: of everything random.
      dtype: of both models' parameters and activations, "float32" or "bfloat16"; statistics are float32 either way.
      attention: the kernel of both models' attention: "xla", "tokamax", "cudnn" or "auto". Used in the pass alone: a
        run that is loaded computes by XLA.

    Raises:
      AtlasError: for a site, method, pooling, dtype or kernel that there is not, or a number out of its range.

    Example:
      >>> from atlas_jax import AlignSettings
      >>> AlignSettings(("mlp_act.1",), ("procrustes", "ridge")).pooling
      'max'
    """

    sites: tuple[str | Site, ...]
    methods: tuple[str, ...]
    pooling: str = "max"
    max_length: int = 128
    token_budget: int = 4096
    top_k: int = 50
    seed: int = 0
    dtype: str = "float32"
    steer_pooling: str | None = "mean"
    steer_methods: tuple[str, ...] = ("covariance",)
    attention: str = "xla"

    def __post_init__(self) -> None:
        sites = tuple(dict.fromkeys(str(Site.parse(site)) for site in self._several("sites")))
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self._several("methods"))))
        needs_of(self.methods)
        self._check_steering()
        for name, known in (("pooling", POOLINGS), ("dtype", DTYPES), ("attention", ("auto", "xla", *KERNELS))):
            if getattr(self, name) not in known:
                raise AtlasError(f"unknown {name} '{getattr(self, name)}'; known are {', '.join(known)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise AtlasError(f"{name} is {value!r}; give a whole number of at least {least}")

    def _check_steering(self) -> None:
        """Refuse a pooling that is unknown and methods that cannot be; without another pooling there are none."""
        methods = tuple(dict.fromkeys(self._several("steer_methods")))
        if self.steer_pooling in (None, "none", self.pooling) or not methods:
            object.__setattr__(self, "steer_pooling", None)
            methods = ()
        elif self.steer_pooling not in POOLINGS:
            raise AtlasError(f"unknown steer_pooling '{self.steer_pooling}'; known are none, {', '.join(POOLINGS)}")
        needs_of(methods)
        if second := [m for m in methods if METHODS[m].second_pass]:
            raise AtlasError(f"{second[0]} needs a second pass, which is not made for steering; name other methods")
        object.__setattr__(self, "steer_methods", methods)

    def steer_chosen(self, chosen: Sequence[str]) -> tuple[str, ...]:
        """Return those of the chosen translations that are made for steering, with its own pooling."""
        return tuple(name for name in chosen if name == FOR_STEERING and self.steer_pooling)

    def _several(self, name: str) -> tuple:
        value = getattr(self, name)
        if isinstance(value, str | Site):
            raise AtlasError(f"{name} is '{value}', which is one; give a tuple of them, such as ('{value}',)")
        return tuple(value)


class Record(NamedTuple):
    """The content of ``run.json``.

    Attributes:
      settings: of the fit.
      sources: names and hashes of subject, atlas and corpus.
      left_out: sentences in no statistic.
      chosen: names of the translations chosen from the whitened family.
      top: true if the maximally activating sentences were computed.
      dtype: of the stored translations, None in runs without it.
      fingerprints: of the forward passes of subject and atlas, empty in runs that have none.
      strengths: to steer with, by site; empty in runs that have none.
      unstated: settings that were not there yet when the run was made.
    """

    settings: AlignSettings
    sources: Mapping[str, Any]
    left_out: tuple[int, ...]
    chosen: tuple[str, ...]
    top: bool
    dtype: str | None
    fingerprints: Mapping[str, Any]
    strengths: Mapping[Site, float] = {}
    unstated: frozenset[str] = frozenset()

    @classmethod
    def read(cls, directory: Path) -> "Record":
        """Read the record of a run.

        Raises:
          AtlasError: if the directory is no run, or the record is damaged.
        """
        if not (directory / RUN).is_file():
            raise AtlasError(f"'{directory}' is not a run (no {RUN}); make one with atlas-jax align")
        with reading(directory / RUN, AGAIN):
            raw = json.loads((directory / RUN).read_text(encoding="utf-8"))
            settings = {k: tuple(v) if isinstance(v, list) else v for k, v in raw["settings"].items()}
            unstated = frozenset(LATER.keys() - settings.keys())
            strengths = {Site.parse(site): float(x) for site, x in raw.get("strengths", {}).items()}
            sources = raw["sources"]
            for name, key in [(name, key) for name in ("subject", "atlas") for key in ("path", "sha256")]:
                if not isinstance(sources[name][key], str):
                    raise TypeError(f"the {key} of the {name} is {sources[name][key]!r}")
            left_out, chosen = (raw.get(name, []) for name in ("left_out", "chosen"))
            top = bool(raw.get("top", (directory / "top").is_dir()))
            return cls(
                AlignSettings(**LATER | settings), sources, tuple(map(int, left_out)), tuple(map(str, chosen)), top,
                raw.get("dtype"), dict(raw.get("fingerprints", {})), strengths, unstated,
            )  # fmt: skip

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the translations at every site, with the pooling of the run."""
        return self.settings.methods + tuple(m for m in self.chosen if m not in self.steering)

    @property
    def steering(self) -> tuple[str, ...]:
        """Names of those with the pooling for steering."""
        return self.settings.steer_methods + self.settings.steer_chosen(self.chosen)

    def asked(self) -> dict[str, Any]:
        """Describe the run in the values of :func:`asked_for`, without those it does not state."""
        sources = {name: self.sources[name]["sha256"] for name in ("subject", "atlas")}
        asked = asked_for(self.settings, sources, self.sources["corpus"]["hash"], self.chosen, self.dtype)
        unstated = self.unstated | ({"save dtype"} if self.dtype is None else set())
        return {name: value for name, value in asked.items() if name not in unstated}


def asked_for(
    settings: AlignSettings, sources: Mapping[str, str], corpus: str, chosen: tuple[str, ...], dtype: str | None
) -> dict[str, Any]:
    """Describe a run in plain values: settings, hashes, names of chosen translations, and their stored dtype."""
    return dataclasses.asdict(settings) | dict(sources) | {"corpus": corpus, "chosen": chosen, "save dtype": dtype}


def check_same(directory: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a finished run at ``directory`` that is not the one asked for.

    Raises:
      AtlasError: naming every difference, or if the run is damaged.
    """
    try:
        with reading(directory / RUN, AGAIN):
            there = Record.read(directory).asked()
    except DamagedError as e:
        raise AtlasError(f"'{directory}' holds a run already, which is damaged: {e}") from e
    if changed := differences(there, {name: value for name, value in asked.items() if name in there}):
        raise AtlasError(
            f"'{directory}' holds a finished run of something else: {changed}; "
            "choose another place with --out, or replace it with --overwrite"
        )


def folder_of(directory: Path, site: Site | str, method: str, pooling: str | None = None) -> Path:
    """Return where a run keeps a translation; ``pooling`` where it is not that of the run."""
    return directory / "translations" / str(site) / (method if pooling is None else f"{method}-{pooling}")


def read_translation(
    directory: Path, site: Site, method: str, shape: tuple[int, int], pooling: str | None = None
) -> Translation:
    """Read one translation of a run; ``pooling`` where it is not that of the run.

    Raises:
      AtlasError: if it is damaged, or of another site, method or pooling than its directory.
    """
    folder = folder_of(directory, site, method, pooling)
    with reading(folder / RECORD, AGAIN):
        t = Translation.from_pretrained(folder)
        if (t.site, t.method, t.matrix.shape, t.pooling) != (site, method, shape, pooling or t.pooling):
            raise ValueError(f"it is of {t.site} by {t.described}, of shape {t.matrix.shape}, not {shape}")
    return t


def read_top(directory: Path, site: Site, d_s: int, corpus: Corpus) -> TopK:
    """Read the maximally activating sentences of one site.

    Raises:
      AtlasError: if the file is damaged.
    """
    path = directory / "top" / f"{site}.safetensors"
    with reading(path, AGAIN):
        top = TopK(**load_file(path))
        if top.index.ndim != 2 or len(top.index) != d_s or {x.shape for x in top} != {top.index.shape}:
            raise ValueError(f"its arrays have the shapes {', '.join(str(x.shape) for x in top)}, for {d_s} features")
        if top.index.dtype != np.int32 or top.index.min(initial=-1) < -1 or top.index.max(initial=-1) >= len(corpus):
            raise ValueError("its sentences are not those of the corpus")
    return top


def read_rate(directory: Path, width: int) -> Float[np.ndarray, " d_c"]:
    """Read the share of sentences in which each atlas feature fires.

    Raises:
      AtlasError: if the file is damaged.
    """
    path = directory / "rate.npy"
    with reading(path, AGAIN):
        rate = np.load(path)
        if rate.shape != (width,) or rate.dtype.kind != "f" or not np.all((rate >= 0) & (rate <= 1)):
            raise ValueError(f"it does not hold a share for each of {width} features")
    return rate
