"""Directions that steer towards concepts, found in several ways, without labels and on the fit half alone."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Int

from atlas_jax.checks import as_count, as_number
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._direction import Direction
from atlas_jax.experiments._firing_tokens import Firing, ahead, evenly, firing
from atlas_jax.experiments._gradient_directions import examples, gradients, optimise
from atlas_jax.experiments._identify import check_query
from atlas_jax.lens import JacobianLens
from atlas_jax.pipeline import Alignment
from atlas_jax.progress import Progress
from atlas_jax.translation import Translation
from atlas_jax.types import Site, sites_of

How = Literal["translate", "ahead", "gradient", "optimise"]
HOWS: tuple[How, ...] = get_args(How)
FEWEST = 4  # sentences in which a concept has to fire: some decide, some are held out
HELD_OUT = 4  # every so manieth sentence is held out where directions are optimised
_log = logging.getLogger(__name__)


class Recipe(NamedTuple):
    """Numbers behind directions by gradients.

    Attributes:
      sentences: of the fit half in which firing tokens are looked for, evenly spread.
      each: sentences of a concept, and as many others.
      contrast: weight of the others' log-likelihood, taken off, in "gradient".
      neutral: weight of the same, added, in "optimise".
      dose: norm of the edit that is optimised, in mean token norms of the site.
      steps: of Adam.
      rate: size of a step, as a share of the direction's length.

    Example:
      >>> from atlas_jax.experiments import Recipe
      >>> Recipe(steps=10).steps
      10
    """

    sentences: int = 4096
    each: int = 24
    contrast: float = 1.0
    neutral: float = 1.0
    dose: float = 0.5
    steps: int = 16
    rate: float = 0.3


def concept_direction(
    alignment: Alignment,
    query: Any,
    site: Site | str,
    how: How = "gradient",
    *,
    recipe: Recipe = Recipe(),  # noqa: B008 - immutable
    seed: int = 0,
    progress: Progress | None = None,
) -> Direction:
    """Find the direction of one site that steers towards a concept; see :func:`concept_directions`.

    Example:
      >>> import atlas_jax as aj
      >>> run = aj.Alignment.load("runs/quickstart")                                        # doctest: +SKIP
      >>> query = run.atlas.query_text("plots")                                             # doctest: +SKIP
      >>> along = aj.concept_direction(run, query, "resid_post.2", how="gradient")          # doctest: +SKIP
      >>> edits = {along.site: aj.Steer(along.vector, 0.5)}                                        # doctest: +SKIP
      >>> aj.generate(run.subject.model, ["This"], max_new_tokens=20, edits=edits).texts    # doctest: +SKIP
    """
    options = {"recipe": recipe, "seed": seed, "progress": progress}
    (direction,) = concept_directions(alignment, {"the concept": query}, [site], how, **options).values()
    return direction


def concept_directions(
    alignment: Alignment,
    queries: Mapping[str, Any],
    sites: Sequence[Site | str] | Site | str,
    how: How = "gradient",
    *,
    recipe: Recipe = Recipe(),  # noqa: B008 - immutable
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[tuple[Site, str], Direction]:
    """Find directions that steer towards concepts, all of them together.

    No label is read, and no sentence of the eval half: where a concept is in the text of the fit half, the atlas says.

    * "translate": the similarity vector of Eq. 3, by the run's translation for steering.
    * "ahead": the covariance of the subject's activations with the concept's at the *next* token, times the power -1/2
      of the covariance of the former: what the subject holds before the concept is in the text.
    * "gradient": the gradient, with respect to an addition at every token, of the mean log-likelihood of the tokens at
      which the concept fires, less that of other sentences. One step of backpropagation for all concepts.
    * "optimise": steps of Adam up that likelihood from the translation, at a fixed norm, plus the likelihood of other
      sentences, so that ordinary text stays likely. The step that is best on held-out sentences counts.

    Args:
      alignment: the run.
      queries: concept queries ``[d_c]`` by name.
      sites: of the run.
      how: one of the ways above.
      recipe: the numbers behind them.
      seed: of the choice of sentences.
      progress: called after every batch.

    Returns:
      By site and concept; every vector is one mean token norm of its site long, as :meth:`Translation.direction`.

    Raises:
      AtlasError: for an unknown way, a number of the recipe out of range, a site that the run lacks, a query that is
        zero, not finite or of another atlas, or a concept that fires in too few sentences.

    Example:
      >>> import atlas_jax as aj
      >>> from atlas_jax.experiments import single_features
      >>> run = aj.Alignment.load("runs/quickstart")                                        # doctest: +SKIP
      >>> found = aj.concept_directions(run, single_features(run, 5), "resid_post.2", "ahead")     # doctest: +SKIP
      >>> [along.vector.shape for along in found.values()]                                         # doctest: +SKIP
      [(128,), (128,), (128,), (128,), (128,)]
    """
    if how not in HOWS:
        raise AtlasError(f"unknown way '{how}' to find a direction; known are {', '.join(HOWS)}")
    _check(recipe)
    sites, names, start = sites_of(sites), list(queries), time.perf_counter()
    norms = {site: token_norm(alignment, site) for site in sites}
    stacked = np.stack([_checked(alignment, name, query) for name, query in queries.items()])
    at_sites, tokens, facts = _FINDERS[how](_Task(alignment, names, stacked, sites, recipe, seed, progress))
    share = 1 / (len(names) * len(sites))
    cost = {"seconds": (time.perf_counter() - start) * share, "tokens": round(tokens * share)}
    _log.info(f"directions by {how} took {cost['seconds']:.2g} s and {cost['tokens']:,} tokens a concept and site")
    directions = {}
    for site, vectors in at_sites.items():
        for i, (name, vector) in enumerate(zip(names, vectors, strict=True)):
            length = float(np.linalg.norm(vector))
            if not length > 0:
                raise AtlasError(f"{name} has no direction at {site}: nothing there has to do with it")
            unit = (np.asarray(vector, np.float64) * (norms[site] / length)).astype(np.float32)
            own = {key: value[site][i] for key, value in facts.items()}
            directions[site, name] = Direction(unit, stacked[i], site, how, cost | own)
    return directions


def token_direction(
    alignment: Alignment, lens: JacobianLens, token: str | int, query: Any, site: Site | str
) -> Direction:
    """Return the pull-back of a token by a lens, as a direction one mean token norm of its site long.

    Args:
      alignment: the run.
      lens: of the run's subject, see :meth:`JacobianLens.direction`.
      token: that the direction makes more likely.
      query: the concept ``[d_c]`` that the atlas is to find in steered text.
      site: of the run and of the lens.

    Raises:
      AtlasError: as :meth:`JacobianLens.direction`, for a site that the run lacks, or a query as in
        :func:`concept_directions`.

    Example:
      >>> import atlas_jax as aj
      >>> from atlas_jax.experiments import token_direction
      >>> run = aj.Alignment.load("runs/quickstart")                                        # doctest: +SKIP
      >>> lens = aj.JacobianLens.from_pretrained("my-lens", run.subject.model)              # doctest: +SKIP
      >>> query = run.atlas.query_text("file")                                              # doctest: +SKIP
      >>> token_direction(run, lens, " file", query, "resid_post.2").how                    # doctest: +SKIP
      'lens'
    """
    site, start = Site.parse(site), time.perf_counter()
    norm, query = token_norm(alignment, site), _checked(alignment, repr(token), query)
    vector = lens.direction(token, site)
    vector = (vector * (norm / np.linalg.norm(vector))).astype(np.float32)
    return Direction(vector, query, site, "lens", {"seconds": time.perf_counter() - start, "tokens": 0, "token": token})


def steering_translation(alignment: Alignment, site: Site | str) -> Translation:
    """Return the translation of a site that is recommended for steering.

    Raises:
      AtlasError: for a site that was not aligned.
    """
    return alignment.translation(site, *alignment.recommended("steer"))


def token_norm(alignment: Alignment, site: Site | str) -> float:
    """Return the mean token norm of a site, the unit of strengths.

    Raises:
      AtlasError: for a site that was not aligned, or by a version that did not measure it.
    """
    if (norm := steering_translation(alignment, site).token_norm) is None:
        raise AtlasError(f"the run does not know the token norm of {site}, the unit of strengths; align again")
    return norm


class _Task(NamedTuple):
    """What is asked of a way to find directions."""

    alignment: Alignment
    names: list[str]
    queries: Float[np.ndarray, "q d_c"]
    sites: tuple[Site, ...]
    recipe: Recipe
    seed: int
    progress: Progress | None


# Vectors by site, tokens that were read, and facts by name, site and concept.
_Found = tuple[dict[Site, Float[np.ndarray, "q d"]], int, dict[str, dict[Site, list[Any]]]]


def _translated(task: _Task) -> _Found:
    queries, along = task.queries, {}
    for site in task.sites:
        along[site] = np.asarray(steering_translation(task.alignment, site).direction(queries))
    return along, 0, {}


def _ahead(task: _Task) -> _Found:
    texts = evenly(task.alignment, task.recipe.sentences)
    vectors, tokens = ahead(task.alignment, task.queries, texts, task.sites, task.progress)
    return vectors, tokens, {}


def _gradient(task: _Task) -> _Found:
    recipe, model, where = task.recipe, task.alignment.subject.model, _firing(task)
    rows = examples(where, _chosen(task, where), -recipe.contrast, model.config.vocab_size)
    along = {}
    for site in task.sites:
        nothing = np.zeros((len(task.names), model.config.width(site)), np.float32)
        along[site] = np.asarray(gradients(model, site, nothing, rows)[1])
    return along, where.read + rows.read * len(task.sites), {}


def _optimised(task: _Task) -> _Found:
    recipe, model, where = task.recipe, task.alignment.subject.model, _firing(task)
    chosen = _chosen(task, where)
    held = np.arange(chosen.shape[2]) % HELD_OUT == 0
    fit, rest = (examples(where, chosen[:, :, at], recipe.neutral, model.config.vocab_size) for at in (~held, held))
    start, _, _ = _translated(task)
    along, best = {}, {}
    for site in task.sites:
        rate = np.float32(recipe.rate / np.sqrt(start[site].shape[1]))
        done = optimise(model, site, recipe.dose * start[site], fit, rest, rate, recipe.steps)
        along[site], best[site] = np.asarray(done.vectors), np.argmax(done.held, axis=0).tolist()
    read = fit.read * recipe.steps + rest.read * (recipe.steps + 1)
    return along, where.read + read * len(task.sites), {"step": best}


_FINDERS = {"translate": _translated, "ahead": _ahead, "gradient": _gradient, "optimise": _optimised}


def _firing(task: _Task) -> Firing:
    return firing(task.alignment, task.queries, evenly(task.alignment, task.recipe.sentences), task.progress)


def _chosen(task: _Task, where: Firing) -> Int[np.ndarray, "q 2 e"]:
    """Sentences in which each concept fires, and others, drawn without replacement; -1 where there are fewer."""
    each = task.recipe.each
    chosen = np.full((len(task.names), 2, each), -1)
    fires = ((where.scores > 0) & where.tokens.mask[:, :, None])[:, 1:].any(axis=1)
    for i, name in enumerate(task.names):
        kinds = np.flatnonzero(fires[:, i]), np.flatnonzero(~fires[:, i])
        if min(map(len, kinds)) < FEWEST:
            raise AtlasError(
                f"{name} fires in {len(kinds[0])} of {len(fires)} sentences of the fit half, and directions by "
                f"gradients need {FEWEST} that have it and {FEWEST} that have not; take the translation, or more text"
            )
        draw = np.random.default_rng(task.seed)  # anew, so that a concept's sentences do not depend on the others
        for kind, numbers in enumerate(kinds):
            drawn = draw.permutation(numbers)[:each]
            chosen[i, kind, : len(drawn)] = drawn
    return chosen


def _check(recipe: Recipe) -> None:
    for name, least in {"sentences": 2 * FEWEST, "each": FEWEST, "steps": 1}.items():
        as_count(getattr(recipe, name), f"{name} of a recipe", least=least)
    for name, least in {"contrast": 0, "neutral": 0, "dose": 1e-6, "rate": 1e-6}.items():
        as_number(getattr(recipe, name), f"{name} of a recipe", least=least)


def _checked(alignment: Alignment, name: str, query: Any) -> Float[np.ndarray, " d_c"]:
    check_query(query)
    if np.shape(query) != (alignment.atlas.width,):
        raise AtlasError(f"the query of {name} should be {alignment.atlas.width} numbers, one an atlas feature")
    return np.asarray(query, np.float32)
