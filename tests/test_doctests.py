"""Every example in a docstring can be pasted, runs and prints what it says; every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import tempfile

import jax
import pytest

import atlas_jax

MODULES = [m.name for m in pkgutil.walk_packages(atlas_jax.__path__, "atlas_jax.") if not m.name.endswith("make")]
FACES = [f"atlas_jax.{m.name}" for m in pkgutil.iter_modules(atlas_jax.__path__) if not m.name.startswith("_")]

# The docstring of a pydantic model is part of the JSON schema that a chat server is given.
EXCEPTIONS = {"atlas_jax.labels._explain.Description", "atlas_jax.labels._explain.Detection"}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        for example in doctest.DocTestFinder().find(importlib.import_module(name), globs={}):
            runner.run(example)
        assert runner.failures == 0


def _public(face):
    """Classes and functions of a package, or defined in a module, under the name of where they are defined."""
    module = importlib.import_module(face)
    for name, x in vars(module).items():
        home = getattr(x, "__module__", None) or ""
        here = home.startswith("atlas_jax.") if hasattr(module, "__path__") else home == face
        if here and not name.startswith("_") and (inspect.isclass(x) or inspect.isfunction(inspect.unwrap(x))):
            yield f"{home}.{x.__qualname__}", x


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_has_an_example(face):
    parse = doctest.DocTestParser().get_examples
    lacking = {name for name, x in _public(face) if not parse(x.__doc__ or "")} - EXCEPTIONS
    assert not lacking, f"no example in the docstring of {', '.join(sorted(lacking))}"
