"""Directions that an evaluation of steering compares: of translators, and of controls."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bridge import Bridge
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._concept_directions import HOWS, concept_directions, token_norm
from atlas_jax.experiments._steering import steering_direction
from atlas_jax.experiments._steering_plan import BRIDGED, LABELLED, NATIVE, SteeringSettings, concept_queries
from atlas_jax.models import LanguageModel
from atlas_jax.pipeline import Alignment, SentenceStream, load_subject, pooled_activations
from atlas_jax.progress import Progress
from atlas_jax.subject import Subject
from atlas_jax.types import FeatureSpace, Site, Tokens

SENTENCES = 4096  # that differences of means are over


class Directions(NamedTuple):
    """The addition of steering at strength 1, by method, site and concept: ``[d]``.

    Attributes:
      subject: of the translators and the controls in the subject.
      native: by concept, in the foundation model at the atlas's site.
    """

    subject: dict[tuple[str, Site, str], Float[np.ndarray, " _"]]
    native: dict[str, Float[np.ndarray, " _"]]


def directions(alignment: Alignment, settings: SteeringSettings, *, progress: Progress | None = None) -> Directions:
    """Find what is added at strength 1 by every method and control.

    Random directions, those of another concept (the next of the list) and differences of means have the length that the
    first method's direction has there. The foundation model is steered along its own SAE's decoder; the length there is
    the same share of its mean token norm as the first method's is at the last site.

    Raises:
      AtlasError: for a translation that the run lacks, or one that knows no token norm where ``unit`` needs it.

    Example:
      >>> from atlas_jax.experiments import directions
      >>> along = directions(alignment, settings)                                           # doctest: +SKIP
      >>> along.subject["procrustes", Site("resid_post", 2), "dogs"].shape                  # doctest: +SKIP
      (128,)
    """
    queries = concept_queries(alignment.atlas, settings.concepts)
    sites = list(dict.fromkeys(Site.parse(site) for group in settings.sites for site in group))
    rng, names = np.random.default_rng(settings.seed), list(queries)
    along: dict[tuple[str, Site, str], np.ndarray] = {}
    means: dict[str, dict[tuple[Site, str], np.ndarray]] = {}
    if settings.bridge:
        means[BRIDGED] = bridged_difference_of_means(alignment, settings.bridge, queries, sites, progress=progress)
    if "diffmean" in settings.controls:
        means["diffmean"] = difference_of_means(alignment, queries, sites, progress=progress)
    if settings.labelled:
        means[LABELLED] = labelled_difference_of_means(alignment, settings, sites)
    for method in settings.methods:
        along |= _of_method(alignment, settings, method, queries, sites, progress)
    for site in sites:
        for number, name in enumerate(names):
            own = along[settings.methods[0], site, name]
            size = float(np.linalg.norm(own))
            for i in range(settings.random):
                along[f"random {i}", site, name] = _of_length(rng.standard_normal(own.size), size)
            other = along[settings.methods[0], site, names[(number + 1) % len(names)]]
            along["other concept", site, name] = _of_length(other, size)
            for control, vectors in means.items():
                along[control, site, name] = _of_length(vectors[site, name], size)
    native = {}
    if NATIVE in settings.controls:
        native = _native(alignment, settings, sites[-1], queries, along)
    return Directions(along, native)


def _of_method(
    alignment: Alignment,
    settings: SteeringSettings,
    method: str,
    queries: Mapping[str, Float[Array | np.ndarray, " d_c"]],
    sites: Sequence[Site],
    progress: Progress | None,
) -> dict[tuple[str, Site, str], Float[np.ndarray, " _"]]:
    """The directions of a translator, or of a way of :func:`concept_directions`."""
    if method in HOWS:
        directions = concept_directions(alignment, queries, sites, method, seed=settings.seed, progress=progress)
    else:
        directions = {(site, name): alignment.translation(site, method) for site in sites for name in queries}
    add = lambda site, name: steering_direction(directions[site, name], queries[name], settings.unit)
    return {(method, site, name): np.asarray(add(site, name)) for site, name in directions}


def _of_length(x: Float[np.ndarray, " d"], size: float) -> Float[np.ndarray, " d"]:
    norm = np.linalg.norm(x)
    return (x * (size / norm if norm > 0 else 0.0)).astype(np.float32)


def _native(
    alignment: Alignment,
    settings: SteeringSettings,
    site: Site,
    queries: Mapping[str, Float[Array | np.ndarray, " d_c"]],
    along: Mapping[tuple[str, Site, str], Float[np.ndarray, " _"]],
) -> dict[str, Float[np.ndarray, " _"]]:
    """The decoder's direction of every concept in the foundation model."""
    atlas, method = alignment.atlas, settings.methods[0]
    own = token_norm(alignment, site)
    foundation = Subject.from_model(atlas.model, [atlas.site])
    texts = [alignment.corpus.fit[i] for i in range(min(256, len(alignment.corpus.fit)))]
    stream = SentenceStream.from_texts([foundation], texts, max_length=alignment.settings.max_length)
    total = count = 0.0
    for (tokens,) in stream.batches():
        _, norms = foundation.encode_norms(tokens)
        total += float(jnp.sum(jnp.where(tokens.index >= 0, norms[atlas.site], 0.0)))
        count += float(jnp.sum(tokens.mask & (tokens.index >= 0)[:, None]))
    share = total / count / own
    decoder = np.asarray(atlas.sae.W_dec)
    return {
        name: _of_length(query @ decoder, share * float(np.linalg.norm(along[method, site, name])))
        for name, query in queries.items()
    }


def difference_of_means(
    alignment: Alignment,
    queries: Mapping[str, Float[Array | np.ndarray, " d_c"]],
    sites: Sequence[Site],
    *,
    model: LanguageModel | None = None,
    sentences: int = SENTENCES,
    progress: Progress | None = None,
) -> dict[tuple[Site, str], Float[np.ndarray, " _"]]:
    """Subtract mean subject activations of fit sentences without a concept from those of sentences with it (DiffMean).

    A sentence has the concept where a feature of its query fires; no label is needed. Activations are means over the
    tokens of a sentence.

    Args:
      alignment: the run.
      queries: atlas queries by concept.
      sites: where.
      model: another one to read in the place of the subject.
      sentences: how many at most, evenly spread over the fit half.
      progress: called after every batch.

    Returns:
      ``mean(a | fires) - mean(a | does not)`` by site and concept, zero where every sentence is of one kind.

    Example:
      >>> from atlas_jax.experiments import difference_of_means
      >>> site = Site("resid_post", 2)                                                      # doctest: +SKIP
      >>> difference_of_means(alignment, {"dogs": query}, [site])[site, "dogs"].shape       # doctest: +SKIP
      (128,)
    """
    subject = Subject.from_model(model or alignment.subject.model, sites, "mean")
    atlas, options = alignment.atlas, alignment.settings
    fit = alignment.corpus.fit
    texts = [fit[i] for i in np.unique(np.linspace(0, len(fit) - 1, sentences).astype(int)).tolist()]
    stream = SentenceStream.from_texts(
        [subject, atlas], texts, max_length=options.max_length, token_budget=options.token_budget
    )
    weights = jnp.asarray(np.stack(list(queries.values())) != 0, jnp.float32)
    zero = lambda: {s: jnp.zeros((len(queries), d), jnp.float32) for s, d in subject.widths.items()}
    state = zero(), zero(), jnp.zeros(len(queries)), jnp.zeros(len(queries))
    for tokens_s, tokens_c in stream.batches(stage="difference of means", progress=progress):
        state = _add_means(state, subject, atlas, tokens_s, tokens_c, weights)
    with_it, without, present, absent = state
    mean = lambda total, count: np.asarray(total) / np.maximum(np.asarray(count), 1)[:, None]
    both = (np.asarray(present) > 0) & (np.asarray(absent) > 0)
    return {
        (site, name): (mean(with_it[site], present) - mean(without[site], absent))[i] * both[i]
        for site in sites
        for i, name in enumerate(queries)
    }


def bridged_difference_of_means(
    alignment: Alignment,
    bridge: str | Path,
    queries: Mapping[str, Float[Array | np.ndarray, " d_c"]],
    sites: Sequence[Site],
    *,
    progress: Progress | None = None,
) -> dict[tuple[Site, str], Float[np.ndarray, " _"]]:
    """Make a difference of means in the source of a bridge, and carry it over the bridge into the subject.

    Args:
      alignment: the run.
      bridge: the directory of a bridge that ends in the run's subject.
      queries: atlas queries by concept, as in :func:`difference_of_means`.
      sites: where; that where the bridge ends.
      progress: called after every batch.

    Raises:
      AtlasError: if the bridge ends in another model or at another site, or its source is not where it was.

    Example:
      >>> from atlas_jax.experiments import bridged_difference_of_means
      >>> site = Site("resid_post", 2)                                                      # doctest: +SKIP
      >>> bridged_difference_of_means(alignment, "bridge", {"dogs": query}, [site])         # doctest: +SKIP
    """
    across = Bridge.from_pretrained(bridge)
    models = {side: across.translation.metadata.get(side, {}) for side in ("source", "target")}
    if models["target"].get("sha256") != alignment.sources["subject"]["sha256"]:
        there = models["target"].get("path", "a model it does not name")
        raise AtlasError(f"the bridge in '{bridge}' ends in {there}, which is not the subject of this run")
    if others := [str(site) for site in sites if site != across.target]:
        raise AtlasError(
            f"the bridge in '{bridge}' ends at {across.target}, and {others[0]} is to be steered at; "
            f"give --site {across.target} alone"
        )
    source, about = load_subject(models["source"].get("path", ""), across.source)
    if about["sha256"] != models["source"]["sha256"]:
        raise AtlasError(
            f"the bridge in '{bridge}' was fitted with another model than is at {about['path']}; fit again"
        )
    made = difference_of_means(alignment, queries, [across.source], model=source.model, progress=progress)
    return {(across.target, name): np.asarray(across.direction(vector)) for (_, name), vector in made.items()}


def labelled_difference_of_means(
    alignment: Alignment, settings: SteeringSettings, sites: Sequence[Site]
) -> dict[tuple[Site, str], Float[np.ndarray, " _"]]:
    """Subtract mean subject activations of texts labelled as without a concept from those of texts with it.

    Activations are means over the tokens of a text, as in :func:`difference_of_means`.

    Returns:
      ``mean(a | present) - mean(a | absent)`` by site and concept.

    Example:
      >>> from atlas_jax.experiments import labelled_difference_of_means
      >>> site = Site("resid_post", 2)                                                      # doctest: +SKIP
      >>> labelled_difference_of_means(alignment, settings, [site])[site, "dogs"].shape     # doctest: +SKIP
      (128,)
    """
    subject = Subject.from_model(alignment.subject.model, sites, "mean")
    texts = list(dict.fromkeys(t.text for t in settings.labelled))
    acts = pooled_activations(SentenceStream.from_texts([subject], texts, max_length=alignment.settings.max_length))
    number = {text: i for i, text in enumerate(texts)}
    rows = lambda name, present: [number[t.text] for t in settings.labelled if t[::2] == (name, present)]
    return {
        (site, c.name): acts[site][rows(c.name, True)].mean(0) - acts[site][rows(c.name, False)].mean(0)
        for site in sites
        for c in settings.concepts
    }


@partial(jax.jit, donate_argnums=0)
def _add_means(
    state: Any, subject: FeatureSpace, atlas: ConceptAtlas, tokens_s: Tokens, tokens_c: Tokens, weights: Array
) -> Any:
    acts, a_c = subject.encode(tokens_s), atlas.encode(tokens_c)[atlas.site]
    real = (tokens_s.index >= 0).astype(jnp.float32)
    fires = (jnp.dot((a_c > 0).astype(jnp.float32), weights.T) > 0).astype(jnp.float32) * real[:, None]
    rest = (1.0 - fires) * real[:, None]
    with_it, without, present, absent = state
    times = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    add = lambda total, chosen: {
        s: x + times(chosen.T, jnp.where(real[:, None] > 0, acts[s], 0.0)) for s, x in total.items()
    }
    return add(with_it, fires), add(without, rest), present + fires.sum(0), absent + rest.sum(0)
