"""The strength to steer with where none is asked for: the largest that leaves neutral text its sense."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._quality import BAND, choose_features, one_hot
from atlas_jax.experiments._steering_cost import cost_along, neutral_tokens
from atlas_jax.pipeline import Alignment
from atlas_jax.types import Site

FACTOR = 2.0  # times the perplexity of neutral text without steering
DIRECTIONS, SENTENCES, LENGTH = 6, 12, 48
SHARES, UNKNOWN = (0.5, 1.0), (0.25, 0.5)  # of the suggested strength; strengths where there is none
GRID = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # mean token norms


def suggested_strength(
    alignment: Alignment,
    sites: Sequence[Site],
    *,
    along: Mapping[Site, Float[np.ndarray, "k _"]] | None = None,
    factor: float = FACTOR,
) -> float:
    """Find the largest strength at which the perplexity of neutral text stays within a factor; no label is read.

    Neutral text are sentences of the fit half, read under steering (not generated) along the directions that the
    recommended translation gives for a few atlas features, drawn among those that fire now and then. Perplexities are
    geometric means over tokens and directions; their logarithm is taken for a power of the strength between the
    strengths of a grid.

    Args:
      alignment: the run.
      sites: steered at once.
      along: by site, other directions than these, each one mean token norm long.
      factor: how many times the perplexity without steering is too much.

    Returns:
      The strength in mean token norms of a site, rounded down to two digits; at most 4, where it is looked for.

    Raises:
      AtlasError: if no atlas feature fires often enough, or the token norm of a site is not known.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import suggested_strength  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> suggested_strength(run, run.subject.sites[-1:])  # doctest: +SKIP
      0.63
    """
    if along is None:
        features = choose_features(alignment.rate, count=DIRECTIONS, band=BAND, seed=alignment.settings.seed)
        queries = one_hot(features, alignment.atlas.width)
        along = {s: alignment.translation(s, *alignment.recommended("steer")).direction(queries) for s in sites}
    model = alignment.subject.model
    tokens = neutral_tokens(model, alignment.corpus.fit, SENTENCES, min(LENGTH, alignment.settings.max_length))
    nats = [
        cost_along(model, tokens, GRID, {s: np.asarray(vectors[i]) for s, vectors in along.items()})["nats"]
        for i in range(len(along[sites[0]]))
    ]
    return _crossing(np.mean(nats, axis=0), math.log(factor))


def _crossing(nats: Float[np.ndarray, " s"], limit: float) -> float:
    """The strength, between those of the grid, at which a cost first reaches a limit; the last where it does not."""
    over = np.flatnonzero(~(nats <= limit))
    if not len(over):
        return GRID[-1]
    high = over[0]
    known = high > 0 and nats[high - 1] > 0 and np.isfinite(nats[high])
    low = (GRID[high - 1], nats[high - 1]) if known else (GRID[high] / 2, nats[high] / 4)  # a cost grows as the square
    strength = GRID[high - 1] if high else GRID[0] / 2
    if np.isfinite(nats[high]) and low[1] > 0:
        power = math.log(GRID[high] / low[0]) / math.log(nats[high] / low[1])
        strength = low[0] * (limit / low[1]) ** power
    digits = 10.0 ** (1 - math.floor(math.log10(strength)))
    return math.floor(strength * digits + 1e-6) / digits


def with_strengths(alignment: Alignment) -> Alignment:
    """Return an alignment with a strength to steer with at each of its sites where one can be found.

    A run of several processes has none, and steering finds it when it is needed.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import with_strengths  # doctest: +SKIP
      >>> with_strengths(Alignment.load("runs/quickstart")).strengths  # doctest: +SKIP
      {Site('resid_post.2'): 0.63}
    """
    suggested: dict[Site, float] = {}
    for site in alignment.subject.sites if jax.process_count() == 1 else ():
        with contextlib.suppress(AtlasError):  # a site for reading alone, no norm, or no feature that fires
            suggested[site] = suggested_strength(alignment, [site])
    return dataclasses.replace(alignment, strengths=suggested)


def default_strengths(
    alignment: Alignment, sites: Sequence[Site], along: Mapping[Site, Float[np.ndarray, "k _"]] | None = None
) -> tuple[list[float], str]:
    """Return strengths to steer with at some sites together, in mean token norms, and a sentence that says why these.

    They are those of the run, or are found along other directions, as in :func:`suggested_strength`.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import default_strengths  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> default_strengths(run, run.subject.sites[-1:])[0]  # doctest: +SKIP
      [0.315, 0.63]
    """
    try:
        most = alignment.strengths.get(sites[0]) if len(sites) == 1 and along is None else None
        most = most or suggested_strength(alignment, sites, along=along)
    except AtlasError as e:
        return list(UNKNOWN), f"strengths {_listed(UNKNOWN)}, for none could be found for this run: {e}"
    strengths = [most * share for share in SHARES]
    return strengths, (
        f"strengths {_listed(strengths)}: up to {most:g} token norms at {', '.join(map(str, sites))} the perplexity of "
        f"neutral text stays within {FACTOR:g} times that without steering"
    )


def _listed(strengths: Sequence[float]) -> str:
    return " and ".join(f"{s:g}" for s in strengths)
