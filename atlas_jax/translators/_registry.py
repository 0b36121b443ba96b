"""Every translator by name, with the statistics it needs."""

from collections.abc import Iterable

from atlas_jax.errors import AtlasError
from atlas_jax.translators._moments import correlation, covariance, random_like, semantic_lens
from atlas_jax.translators._procrustes import procrustes
from atlas_jax.translators._procrustes_exact import procrustes_exact
from atlas_jax.translators._regression import least_squares, ridge
from atlas_jax.translators._solution import Method
from atlas_jax.translators._whitened import whitened, whitened_lens

METHODS: dict[str, Method] = {
    "covariance": Method(covariance, frozenset({"cross"})),
    "correlation": Method(correlation, frozenset({"cross"})),
    "least_squares": Method(least_squares, frozenset({"cross", "atlas_gram"})),
    "ridge": Method(ridge, frozenset({"cross", "atlas_gram"})),
    "procrustes": Method(procrustes, frozenset({"unit_cross"})),
    "procrustes_exact": Method(procrustes_exact, frozenset({"unit_cross", "unit_atlas_gram"})),
    "semantic_lens": Method(semantic_lens, frozenset({"top_k"}), second_pass=True),
    "whitened": Method(whitened, frozenset({"unit_cross", "unit_subject_gram"})),
    "whitened_lens": Method(whitened_lens, frozenset({"top_k", "atlas_gram"}), second_pass=True),
    "random": Method(random_like, frozenset()),
}


def needs_of(methods: Iterable[str] | str) -> frozenset[str]:
    """Return the statistics that these methods need together.

    Raises:
      AtlasError: for an unknown method, naming the known ones.

    Example:
      >>> from atlas_jax.translators import needs_of
      >>> sorted(needs_of(["covariance", "procrustes"]))
      ['cross', 'unit_cross']
    """
    methods = [methods] if isinstance(methods, str) else list(methods)
    if unknown := [name for name in methods if name not in METHODS]:
        raise AtlasError(f"unknown method '{unknown[0]}'; known are {', '.join(METHODS)}")
    return frozenset().union(*(METHODS[name].needs for name in methods))
