"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import atlas_jax
from atlas_jax.bundled import ATLAS, SUBJECT
from atlas_jax.models import LanguageModel
from atlas_jax.types import Site, Where

MODULES = [m.name for m in pkgutil.walk_packages(atlas_jax.__path__, "atlas_jax.") if not m.name.endswith("make")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        module = importlib.import_module(name)
        names = {"jnp": jnp, "np": np, "jax": jax, "SUBJECT": SUBJECT, "ATLAS": ATLAS, "tmp": tmp_path, "Site": Site}
        names |= {"Where": Where, "LanguageModel": LanguageModel}
        finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        for example in finder.find(module, extraglobs=names):
            runner.run(example)
        assert runner.failures == 0
