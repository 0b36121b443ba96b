"""Gradients of likelihoods with respect to an edit, for many concepts at once: a step from nothing, or many."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from atlas_jax.experiments._firing_tokens import Firing
from atlas_jax.models import LanguageModel, forward
from atlas_jax.steering import Add, Steer
from atlas_jax.types import Site, Tokens

LOGITS = 2**25  # held at a time


class Examples(NamedTuple):
    """Sentences of several concepts, a row each, in chunks ``[c, r, ...]`` that are read together.

    Attributes:
      tokens: of the subject.
      weight: of the log-likelihood of each token in the objective of the row's concept ``[c, r, t]``.
      concept: of each row ``[c, r]``.
    """

    tokens: Tokens
    weight: Float[Array, "c r t"]
    concept: Int[Array, "c r"]

    @property
    def read(self) -> int:
        """Tokens that are read."""
        return int(jnp.sum(self.tokens.attention_mask & jnp.any(self.weight != 0, axis=-1, keepdims=True)))


def examples(firing: Firing, chosen: Int[np.ndarray, "q 2 e"], others: float, vocabulary: int) -> Examples:
    """Make rows of the sentences chosen for each concept: in which it fires, and others.

    In the objective of a concept stands the mean log-likelihood of the tokens at which it fires, and ``others`` times
    that of all tokens of the other sentences; every sentence weighs the same.

    Args:
      firing: where concepts fire.
      chosen: numbers of the sentences of either kind, -1 for none.
      others: weight of the other sentences.
      vocabulary: of the subject, which decides how many rows are read together.
    """
    concepts, _, each = chosen.shape
    rows, concept = chosen.reshape(-1), np.repeat(np.arange(concepts, dtype=np.int32), 2 * each)
    fires = np.tile(np.repeat([True, False], each), concepts)
    counts = firing.tokens.mask[rows] & (np.arange(firing.tokens.mask.shape[1]) > 0)  # nothing foretells the first
    own = np.take_along_axis(firing.scores[rows], concept[:, None, None], axis=2)[..., 0] > 0
    weight = (counts & (own | ~fires[:, None]) & (rows >= 0)[:, None]).astype(np.float32)
    weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1)
    there = np.maximum((chosen >= 0).sum(axis=2), 1).astype(np.float32)
    weight *= np.repeat(np.array([1.0, others], np.float32) / there, each)[:, None]
    chunk = max(1, min(LOGITS // (counts.shape[1] * vocabulary), len(rows)))
    fill = lambda x: np.concatenate([x, np.zeros((-len(x) % chunk, *x.shape[1:]), x.dtype)])
    chunks = lambda x: jnp.asarray(fill(x).reshape(-1, chunk, *x.shape[1:]))
    return Examples(jax.tree.map(lambda x: chunks(x[rows]), firing.tokens), chunks(weight), chunks(concept))


def objective(
    model: LanguageModel, site: Site, vectors: Float[Array, "q d"], part: Examples, *, keep_norm: bool
) -> Float[Array, " q"]:
    """Sum the weighted log-likelihoods of a chunk by concept, each row edited along the vector of its own."""
    own = vectors[part.concept]
    edit = Steer(own, 1.0) if keep_norm else Add(own, 1.0)
    logits = forward(model.decoder, part.tokens, edits={site: edit}).logits[:, :-1]
    ahead = jnp.take_along_axis(logits, part.tokens.ids[:, 1:, None], axis=-1)[..., 0]
    nats = ahead - jax.nn.logsumexp(logits, axis=-1)
    return jax.ops.segment_sum(jnp.sum(nats * part.weight[:, 1:], axis=1), part.concept, len(vectors))


@partial(jax.jit, static_argnames=("site", "keep_norm"))
def gradients(
    model: LanguageModel, site: Site, vectors: Float[Array, "q d"], rows: Examples, *, keep_norm: bool = False
) -> tuple[Float[Array, " q"], Float[Array, "q d"]]:
    """Return the objective of every concept, and its gradient with respect to the edit."""

    def add(total, part):
        def value(v):
            each = objective(model, site, v, part, keep_norm=keep_norm)
            return jnp.sum(each), each

        slope, each = jax.grad(value, has_aux=True)(vectors)
        return (total[0] + each, total[1] + slope), None

    return jax.lax.scan(add, (jnp.zeros(len(vectors)), jnp.zeros_like(vectors)), rows)[0]


class Optimised(NamedTuple):
    """Directions after some steps.

    Attributes:
      vectors: of the step that is best on held-out sentences ``[q, d]``.
      held: the objective on held-out sentences before each step, and after the last ``[steps + 1, q]``.
    """

    vectors: Float[Array, "q d"]
    held: Float[Array, "s q"]


@partial(jax.jit, static_argnames=("site", "steps"))
def optimise(
    model: LanguageModel,
    site: Site,
    start: Float[Array, "q d"],
    fit: Examples,
    held: Examples,
    rate: Float[Array, ""],
    steps: int,
) -> Optimised:
    """Take steps of Adam up the objective on spheres through the starting vectors; all concepts at once.

    Steering keeps the norm of activations (Eq. 4), and each vector keeps the norm it starts with.
    """
    size = jnp.linalg.norm(start, axis=1, keepdims=True)
    onto = lambda u: u * (size / jnp.linalg.norm(u, axis=1, keepdims=True))
    adam = optax.adam(rate)

    def held_value(vectors):
        add = lambda total, part: (total + objective(model, site, vectors, part, keep_norm=True), None)
        return jax.lax.scan(add, jnp.zeros(len(vectors)), held)[0]

    def step(carry, _):
        u, state, best, highest = carry
        vectors, back = jax.vjp(onto, u)
        value = held_value(vectors)
        best = jnp.where((value > highest)[:, None], vectors, best)
        (slope,) = back(gradients(model, site, vectors, fit, keep_norm=True)[1])
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            updates, state = adam.update(-slope, state)
        return (u + updates, state, best, jnp.maximum(highest, value)), value

    unit = start / size
    carry = unit, adam.init(unit), start, jnp.full(len(start), -jnp.inf)
    (*_, best, _), values = jax.lax.scan(step, carry, length=steps + 1)
    return Optimised(best, values)
