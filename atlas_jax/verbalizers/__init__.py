"""Activation verbalizers: language models that put a vector of a residual stream into words."""

from atlas_jax.verbalizers._contract import SIDECAR as SIDECAR, Contract as Contract
from atlas_jax.verbalizers._verbalize import (
    Verbalization as Verbalization,
    load_verbalizer as load_verbalizer,
    verbalize as verbalize,
    verbalize_texts as verbalize_texts,
)
