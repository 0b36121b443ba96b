"""Numerical fingerprint of a forward pass, kept with the artifacts made by it, because artifacts outlive code."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from atlas_jax.models._forward import forward
from atlas_jax.sharding import to_host
from atlas_jax.types import FeatureSpace, Tokens

TEXT = "The quick brown fox jumps over the lazy dog; 7 of the 12 sorted lists (a, b, ...) were empty."
PROJECTIONS = 16
SMALL = 10**9  # parameters
# Relative differences that rounding explains: other devices, other fusions, a token more or less at an SAE's threshold.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


def numerical_fingerprint(space: FeatureSpace) -> dict[str, Any]:
    """Checksums of the last logits and of the pooled features of a space on a fixed text.

    Every quantity x is projected on fixed directions, ``x · cos(j i)`` for element i and j = 1 ... 16, so that two
    passes can be compared up to rounding (:func:`fingerprint_difference`), which a hash cannot.

    Args:
      space: a subject or a Concept Atlas.

    Returns:
      Plain values: the dtype of the parameters, and the projections of the logits and of each site's features.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel, numerical_fingerprint
      >>> from atlas_jax.subject import Subject
      >>> space = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> list(numerical_fingerprint(space)["values"])
      ['logits', 'mlp_act.1']
    """
    tokens = space.tokenize([TEXT], max_length=space.model.config.max_positions)
    tokens = jax.tree.map(np.asarray, tokens)  # the same on every process, whatever mesh the parameters are on
    values = {name: to_host(x).tolist() for name, x in _checksums(space, tokens).items()}
    return {"dtype": str(jax.tree.leaves(nnx.state(space.model.decoder))[0].dtype), "values": values}


def is_small(model: Any) -> bool:
    """True if the model is small enough for its fingerprint to be checked whenever artifacts made by it are loaded.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel, is_small
      >>> is_small(LanguageModel.from_pretrained(SUBJECT))
      True
    """
    return 0 < sum(x.size for x in jax.tree.leaves(model)) <= SMALL


def fingerprint_difference(recorded: Mapping[str, Any], space: FeatureSpace) -> str | None:
    """Describe the first difference of a space's forward pass from a recorded one; None where all is within rounding.

    Args:
      recorded: result of :func:`numerical_fingerprint` when an artifact was made.
      space: the same space, loaded now.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel, fingerprint_difference, numerical_fingerprint
      >>> from atlas_jax.subject import Subject
      >>> space = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> fingerprint_difference(numerical_fingerprint(space), space) is None
      True
    """
    now = numerical_fingerprint(space)
    tolerance = max(TOLERANCE[recorded["dtype"]], TOLERANCE[now["dtype"]])
    for name, values in recorded["values"].items():
        before, after = (np.asarray(x, np.float64) for x in (values, now["values"].get(name, values)))
        size = float(np.linalg.norm(after - before) / max(np.linalg.norm(before), 1e-30))
        if not size <= tolerance:
            return f"{name} differ by {size:.1e} in relative norm, where rounding explains {tolerance:.0e}"
    return None


@jax.jit
def _checksums(space: FeatureSpace, tokens: Tokens) -> dict[str, Float[Array, " j"]]:
    logits = forward(space.model.decoder, tokens).logits[:, -1]
    features = {str(site): x for site, x in space.encode(tokens).items()}
    return {name: _projections(x) for name, x in ({"logits": logits} | features).items()}


def _projections(x: Float[Array, "*shape"]) -> Float[Array, " j"]:
    x = x.astype(jnp.float32).reshape(-1)
    place = jnp.arange(1, x.size + 1, dtype=jnp.float32)
    directions = jnp.cos(place[None, :] % (2 * jnp.pi) * jnp.arange(1, PROJECTIONS + 1, dtype=jnp.float32)[:, None])
    return jnp.matmul(directions, x, precision=jax.lax.Precision.HIGHEST)
