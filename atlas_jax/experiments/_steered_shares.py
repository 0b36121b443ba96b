"""How far directions steer at equal perplexity: a small generation with the model itself, judged by the atlas."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.experiments._steering import concept_activation, perplexities
from atlas_jax.models import LanguageModel, generate
from atlas_jax.steering import Steer
from atlas_jax.types import Site

FACTOR = 2.0  # times the perplexity without steering at which directions are compared
ROWS = 2048  # that decode at once


def steered_shares(
    model: LanguageModel,
    atlas: ConceptAtlas,
    site: Site,
    directions: Float[Array | np.ndarray, "m d_s"],
    feature: int,
    prompts: Sequence[Sequence[int]],
    strengths: Sequence[float],
    *,
    max_new_tokens: int = 16,
    temperature: float = 0.5,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "m s"], Float[np.ndarray, "m s"]]:
    """Continue prompts along each direction at each strength, and without steering.

    Args:
      model: the subject.
      atlas: the Concept Atlas, which judges the continuations.
      site: where the subject is steered.
      directions: one a row, any norm but zero.
      feature: the atlas feature that they are to express.
      prompts: token ids, a row each.
      strengths: lengths of what is added.
      max_new_tokens: of a continuation.
      temperature: of sampling; a prompt has the same random numbers in every direction.
      seed: of sampling.

    Returns:
      The share of continuations in which the feature fires, and their mean log perplexity under the unsteered model;
      without steering first, then by strength.

    Example:
      >>> import numpy as np  # doctest: +SKIP
      >>> from atlas_jax import ConceptAtlas, LanguageModel, Site  # doctest: +SKIP
      >>> from atlas_jax.bundled import ATLAS, SUBJECT  # doctest: +SKIP
      >>> from atlas_jax.experiments import steered_shares  # doctest: +SKIP
      >>> lm, atlas = LanguageModel.from_pretrained(SUBJECT), ConceptAtlas.from_pretrained(ATLAS)  # doctest: +SKIP
      >>> site, prompts = Site("resid_post", 2), lm.tokenizer.encode(["This function"])  # doctest: +SKIP
      >>> steered_shares(lm, atlas, site, np.eye(3, 128), 17, prompts, (1.0, 2.0))[0].shape  # doctest: +SKIP
      (3, 3)
    """
    unit = np.asarray(directions, np.float32)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cells = [(0, 0.0), *((m, s) for m in range(len(unit)) for s in strengths)]
    query = np.zeros(atlas.width, np.float32)
    query[feature] = 1.0
    size, shares, nats = max(1, ROWS // len(prompts)), [], []
    for at in range(0, len(cells), size):
        part = [cells[min(i, len(cells) - 1)] for i in range(at, at + min(size, len(cells)))]  # of one shape
        rows = [ids for _ in part for ids in prompts]
        vectors, strength = (
            np.repeat(x, len(prompts), axis=0) for x in (unit[[m for m, _ in part]], [s for _, s in part])
        )
        edits = {site: Steer(jnp.asarray(vectors), jnp.asarray(strength, jnp.float32))}
        seeds = [seed + i for _ in part for i in range(len(prompts))]
        made = generate(model, rows, max_new_tokens=max_new_tokens, temperature=temperature, edits=edits, seed=seeds)
        fires = np.array(concept_activation(atlas, query, made.texts)) > 0
        log = np.array([math.nan if p is None else math.log(p) for p in perplexities(model, rows, made)])
        shares += fires.reshape(len(part), -1).mean(1).tolist()
        nats += np.nanmean(log.reshape(len(part), -1), axis=1).tolist()
    return tuple(_by_direction(np.array(x[: len(cells)]), len(unit)) for x in (shares, nats))


def _by_direction(x: Float[np.ndarray, " c"], count: int) -> Float[np.ndarray, "m s"]:
    return np.column_stack([np.full(count, x[0]), x[1:].reshape(count, -1)])


def gain_at_equal_perplexity(
    shares: Float[np.ndarray, "*m s"], nats: Float[np.ndarray, "*m s"], *, factor: float = FACTOR
) -> Float[np.ndarray, "*m"]:
    """Return the gain in the share where perplexity first is a factor of that without steering, interpolated.

    Where it stays below that, the gain at the largest strength.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.experiments import gain_at_equal_perplexity
      >>> float(gain_at_equal_perplexity(np.array([0.1, 0.3, 0.5]), np.log([10.0, 15.0, 30.0])).round(2))
      0.28
    """
    cost = np.maximum.accumulate(nats - nats[..., :1], axis=-1)
    rising = cost + 1e-9 * np.arange(cost.shape[-1])
    pairs = zip(rising.reshape(-1, cost.shape[-1]), shares.reshape(-1, cost.shape[-1]), strict=True)
    found = np.array([np.interp(math.log(factor), x, y) for x, y in pairs])
    return found.reshape(shares.shape[:-1]) - shares[..., 0]
