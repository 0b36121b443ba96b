"""What steering costs: how much less likely neutral text becomes, and how far the next-token distribution moves."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.experiments._steering_directions import Directions
from atlas_jax.experiments._steering_plan import SteeringSettings
from atlas_jax.experiments._steering_texts import appended, json_lines
from atlas_jax.models import LanguageModel, run
from atlas_jax.pipeline import Alignment
from atlas_jax.progress import Progress, unreported
from atlas_jax.steering import Steer
from atlas_jax.types import Site, Tokens

LOGITS = 2**26  # held at a time


class Cost(NamedTuple):
    """The cost of steering by a method at one strength on neutral text, a mean over concepts.

    Attributes:
      method: a translator or a control.
      sites: steered at once.
      strength: in the unit of the settings.
      perplexity: of the text under the steered model over that under the unsteered one (geometric mean).
      kl: mean divergence of the steered from the unsteered next-token distribution, in nats a token.

    Example:
      >>> from atlas_jax.experiments import Cost
      >>> Cost("procrustes", "resid_post.2", 0.5, perplexity=1.4, kl=0.2).kl
      0.2
    """

    method: str
    sites: str
    strength: float
    perplexity: float
    kl: float


def steering_cost(
    alignment: Alignment,
    settings: SteeringSettings,
    along: Callable[[], Directions],
    path: Path,
    *,
    sentences: int = 32,
    progress: Progress | None = None,
) -> list[Cost]:
    r"""Measure what steering costs on held-out sentences, read and not generated.

    Perplexity is ``exp`` of the mean negative log-likelihood; the divergence is
    :math:`\sum_v p(v) \log(p(v) / q(v))` of the unsteered p and the steered q at every token.

    Args:
      alignment: the run, whose held-out half is read.
      settings: methods, sites, concepts and strengths; of the controls random directions are measured.
      along: returns :func:`atlas_jax.experiments.directions`; called where something is missing.
      path: JSON lines, one a method, group of sites and concept, from which a stopped evaluation goes on.
      sentences: how many, evenly spread.
      progress: called after every concept.

    Example:
      >>> from atlas_jax.experiments import directions, steering_cost
      >>> along = lambda: directions(alignment, settings)                                   # doctest: +SKIP
      >>> steering_cost(alignment, settings, along, Path("costs.jsonl"))[0].perplexity      # doctest: +SKIP
    """
    methods = [*settings.methods, *(["random 0"] if "random" in settings.controls else [])]
    groups = ["+".join(group) for group in settings.sites]
    wanted = [(m, g, c.name) for m in methods for g in groups for c in settings.concepts]
    lines = [c for c in json_lines(path) if c]
    there = {tuple(c["of"]): c for c in lines}
    report = progress or unreported
    tokens = neutral_tokens(alignment.subject.model, alignment.corpus.eval, sentences, alignment.settings.max_length)
    report("cost", 0, len(wanted), 0)
    with appended(path, lines) as add:
        for done, of in enumerate(wanted, 1):
            if of not in there:
                vectors = {s: along().subject[of[0], s, of[2]] for s in map(Site.parse, of[1].split("+"))}
                there[of] = {"of": of} | cost_along(alignment.subject.model, tokens, settings.strengths, vectors)
                add([there[of]])
            report("cost", done, len(wanted), 0)
    costs = []
    for method, sites in dict.fromkeys((m, g) for m, g, _ in wanted):
        parts = [there[method, sites, c.name] for c in settings.concepts]
        nats, kl = (np.mean([p[k] for p in parts], axis=0) for k in ("nats", "kl"))
        costs += [
            Cost(method, sites, s, float(np.exp(n)), float(k))
            for s, n, k in zip(settings.strengths, nats, kl, strict=True)
        ]
    return costs


def neutral_tokens(model: LanguageModel, texts: Sequence[str], count: int, limit: int) -> Tokens:
    """Return so many of the texts, evenly spread, as one batch."""
    chosen = np.unique(np.linspace(0, len(texts) - 1, count).astype(int)).tolist()
    rows = model.tokenizer.encode([texts[i] for i in chosen], limit)
    return model.tokenizer.pad(rows, -(-max(map(len, rows)) // 8) * 8, chosen)


def cost_along(
    model: LanguageModel, tokens: Tokens, strengths: Sequence[float], vectors: dict[Site, Float[np.ndarray, " _"]]
) -> dict[str, list[float]]:
    """Additional nats a token and divergence at every strength, of every sentence against itself unsteered."""
    strengths = np.array([0.0, *strengths], np.float32)
    t, count = tokens.ids.shape[1], len(strengths)
    size = min(len(tokens.ids), max(1, LOGITS // (t * model.config.vocab_size * count)))
    total, places = np.zeros((2, count)), 0.0
    for at in range(0, len(tokens.ids), size):
        index = np.minimum(np.arange(at, at + size), len(tokens.ids) - 1)  # the last chunk has the shape of the others
        real = np.arange(at, at + size) < len(tokens.ids)
        part = jax.tree.map(lambda x: jnp.repeat(x[index], count, axis=0), tokens)  # noqa: B023 - used at once
        edits = {site: Steer(vector, jnp.asarray(np.tile(strengths, size))) for site, vector in vectors.items()}
        counted = part.attention_mask & np.repeat(real, count)[:, None]
        nats, kl, seen = _compare(run(model, part, edits=edits).logits, part.ids, counted, count)
        total += np.stack([nats, kl])
        places += float(seen)
    nats, kl = total / places
    return {"nats": (nats[1:] - nats[0]).tolist(), "kl": kl[1:].tolist()}


@partial(jax.jit, static_argnames="count")
def _compare(
    logits: Float[Array, "b t v"], ids: Int[Array, "b t"], real: Bool[Array, "b t"], count: int
) -> tuple[Float[Array, " s"], Float[Array, " s"], Float[Array, ""]]:
    """Sums over tokens of the negative log-likelihood and of the divergence, by strength, and how many tokens."""
    b, t, v = logits.shape
    log = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32)).reshape(b // count, count, t - 1, v)
    mask = (real[:, 1:] & real[:, :-1]).reshape(b // count, count, t - 1).astype(jnp.float32)
    after = ids[:, 1:].reshape(b // count, count, t - 1)
    nats = -jnp.take_along_axis(log, after[..., None], axis=-1)[..., 0]
    base = log[:, :1]
    kl = jnp.sum(jnp.exp(base) * (base - log), axis=-1)
    return jnp.sum(nats * mask, axis=(0, 2)), jnp.sum(kl * mask, axis=(0, 2)), jnp.sum(mask[:, 0])
