"""What an alignment is asked for."""

import dataclasses
from numbers import Integral

from atlas_jax.errors import AtlasError
from atlas_jax.pooling import POOLINGS
from atlas_jax.translators import needs_of
from atlas_jax.types import Site

DTYPES = ("float32", "bfloat16")
_LEAST = {"max_length": 1, "token_budget": 1, "top_k": 1, "seed": 0}


@dataclasses.dataclass(frozen=True)
class AlignSettings:
    """How an alignment is fitted. Defaults are the paper's where it states one.

    Attributes:
      sites: subject sites, as names; each once, in the order given.
      methods: names in :data:`atlas_jax.translators.METHODS`, each once.
      pooling: over the tokens of a sentence.
      max_length: tokens at which sentences are cut.
      token_budget: tokens of a batch, for each model.
      top_k: activations per feature that SemanticLens averages.
      seed: of everything random.
      dtype: of both models' parameters and activations, "float32" or "bfloat16"; statistics are float32 either way.

    Raises:
      AtlasError: for a site, method, pooling or dtype that there is not, or a number out of its range.

    Example:
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

    def __post_init__(self) -> None:
        sites = tuple(dict.fromkeys(str(Site.parse(site)) for site in self._several("sites")))
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self._several("methods"))))
        needs_of(self.methods)
        for name, known in (("pooling", POOLINGS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise AtlasError(f"unknown {name} '{getattr(self, name)}'; known are {', '.join(known)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise AtlasError(f"{name} is {value!r}; give a whole number of at least {least}")

    def _several(self, name: str) -> tuple:
        value = getattr(self, name)
        if isinstance(value, str | Site):
            raise AtlasError(f"{name} is '{value}', which is one; give a tuple of them, such as ('{value}',)")
        return tuple(value)
