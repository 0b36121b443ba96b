"""Translators: pure functions from statistics to a translation matrix, in one registry."""

from atlas_jax.translators._moments import (
    correlation as correlation,
    covariance as covariance,
    random as random,
    random_like as random_like,
    semantic_lens as semantic_lens,
)
from atlas_jax.translators._polar import polar as polar
from atlas_jax.translators._polar_express import certify_rows as certify_rows, polar_express as polar_express
from atlas_jax.translators._procrustes import procrustes as procrustes
from atlas_jax.translators._procrustes_exact import procrustes_exact as procrustes_exact
from atlas_jax.translators._registry import METHODS as METHODS, needs_of as needs_of
from atlas_jax.translators._regression import least_squares as least_squares, ridge as ridge
from atlas_jax.translators._ridge_path import (
    PENALTIES as PENALTIES,
    Path as Path,
    explained_variance as explained_variance,
    linear_cka as linear_cka,
    ridge_path as ridge_path,
    ridge_paths as ridge_paths,
)
from atlas_jax.translators._solution import Method as Method, Solution as Solution
from atlas_jax.translators._spectrum import Spectrum as Spectrum
from atlas_jax.translators._whitened import (
    Eigenbasis as Eigenbasis,
    Member as Member,
    Whitening as Whitening,
    whitened as whitened,
    whitened_family as whitened_family,
    whitened_lens as whitened_lens,
)
