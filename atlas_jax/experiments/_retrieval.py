"""Semantic retrieval, the protocol of Table 4: retrieval of a subject feature from the sentences that activate it."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.checks import as_count
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._concepts import Filtered
from atlas_jax.metrics import Interval, bootstrap_mean, predicted_probability, reciprocal_rank
from atlas_jax.pipeline import SentenceStream, encode_batch, run_stream
from atlas_jax.progress import Progress
from atlas_jax.sharding import to_host
from atlas_jax.statistics import (
    Lens,
    PassStatistics,
    Statistics,
    TopK,
    lens_init,
    lens_update,
    selected_samples,
    update_pass,
)
from atlas_jax.table import Column, Table
from atlas_jax.translation import Translation
from atlas_jax.types import Site, Tokens

SENTENCES = 20  # a feature, as many as the paper generates
CELLS = 2**26  # strongest activations that are kept, of all features of a site: a quarter of a gigabyte
QUERIES = 1024  # ranked at once


class Averaged(NamedTuple):
    """The averaged concept queries of one site: one a subject feature.

    Attributes:
      queries: mean pooled atlas activations over each feature's strongest sentences ``[d_s, d_c]``.
      valid: the features that their own sentences activate more than any other feature.
    """

    queries: Float[Array, "d_s d_c"]
    valid: Int[np.ndarray, " v"]


class RetrievalRow(NamedTuple):
    """MRR and MPP of one method at one site: 95% bootstrap intervals and standard deviations over the features.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import RetrievalRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.2, 0.4]))
      >>> row = RetrievalRow(Site("mlp_act", 1), "ridge", interval, interval)
      >>> round(row.mrr.mean, 2)
      0.3
    """

    site: Site
    method: str
    mrr: Interval
    mpp: Interval
    std: tuple[float, float] = (math.nan, math.nan)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        measured = {
            name: interval._asdict() | {"std": std}
            for name, interval, std in zip(("mrr", "mpp"), (self.mrr, self.mpp), self.std, strict=True)
        }
        return {"site": str(self.site), "method": self.method} | measured


class Retrieval(NamedTuple):
    """A table of semantic retrieval.

    Attributes:
      rows: one a site and method.
      candidates: by site, number of subject features ranked.
      centred: whether the mean atlas activations were subtracted from the queries.
      sentences: how many a query is averaged over.
      held_out: how many sentences these were taken from.
      filters: by site, how many features fell at which filter, where sequences were given.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import Site
      >>> from atlas_jax.experiments import Retrieval, RetrievalRow
      >>> from atlas_jax.metrics import bootstrap_mean
      >>> interval = bootstrap_mean(np.array([0.2, 0.4]))
      >>> row = RetrievalRow(Site("mlp_act", 1), "ridge", interval, interval)
      >>> retrieval = Retrieval([row], {row.site: 2}, centred=True, sentences=20, held_out=100)
      >>> retrieval.to_dict()["candidates"]
      {'mlp_act.1': {'candidates': 2, 'mrr': 0.75, 'mpp': 0.5}}
    """

    rows: list[RetrievalRow]
    candidates: dict[Site, int]
    centred: bool
    sentences: int
    held_out: int
    filters: dict[Site, Filtered] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; the MRR and MPP of chance included."""
        rows = [row.to_dict() for row in self.rows]
        filters = self.filters and {str(site): f._asdict() for site, f in self.filters.items()}
        chance = {str(s): {"candidates": n, "mrr": chance_mrr(n), "mpp": 1 / n} for s, n in self.candidates.items()}
        return self._asdict() | {"rows": rows, "candidates": chance, "filters": filters}

    as_json = to_dict

    def table(self) -> Table:
        """Tabulate MRR and MPP of every method at every site as in Table 4."""
        chance = ", ".join(
            f"{site} {n} features, chance MRR {chance_mrr(n):.3f} and MPP {1 / n:.4f}"
            for site, n in self.candidates.items()
        )
        centred = "minus" if self.centred else "without subtracting"
        of = f"the {self.sentences} strongest of {self.held_out} held-out sentences"
        caption = (
            f"queries averaged over {of if self.filters is None else f'{self.sentences} given sequences at most'}, "
            f"{centred} the mean atlas activations; 95% bootstrap interval over features; {chance}"
        )
        columns = Column("site"), Column("method"), Column("MRR", ".3f"), Column("MPP", ".3f")
        rows = [(str(r.site), r.method, r.mrr[:3], r.mpp[:3]) for r in self.rows]
        return Table("Semantic retrieval", columns, rows, caption)


def chance_mrr(n: int) -> float:
    """Return the mean reciprocal rank of a random order of ``n`` features.

    Example:
      >>> from atlas_jax.experiments._retrieval import chance_mrr
      >>> f"{chance_mrr(454):.4f}"
      '0.0147'
    """
    return float(np.mean(1 / np.arange(1, n + 1)))


def semantic_retrieval(
    stream: SentenceStream,
    translations: Mapping[tuple[Site, str], Translation],
    *,
    sentences: int = SENTENCES,
    centre: bool = True,
    progress: Progress | None = None,
) -> Retrieval:
    """Compute Table 4 for every site and method, on the held-out sentences of a pass.

    Each subject feature's query is averaged over the sentences that activate it most, where the paper has twenty
    written for it. As in the paper, features that their own sentences do not activate most are left out (activations
    are compared in standard deviations from their means), and the others are ranked among themselves. Of sentences that
    activate a feature alike those with the lowest ids count, of features that stand out alike the lowest.

    Args:
      stream: the evaluation half.
      translations: by site and method.
      sentences: how many a query is averaged over; at most half of those there are, for queries over all of them are
        all the same, and fewer where memory for the strongest of every feature would not do (:data:`CELLS`). The
        result holds the number used.
      centre: subtract the mean atlas activations of the fitting corpus from the queries, which the paper does not.
      progress: called after every batch of each pass.

    Raises:
      AtlasError: if no feature of a site is activated most by its own sentences, or ``sentences`` is no whole number
        from 1 up.

    Example:
      >>> from atlas_jax import Alignment  # doctest: +SKIP
      >>> from atlas_jax.experiments import semantic_retrieval  # doctest: +SKIP
      >>> run = Alignment.load("runs/quickstart")  # doctest: +SKIP
      >>> semantic_retrieval(run.stream("eval"), run.translations, sentences=5).sentences  # doctest: +SKIP
      5
    """
    most = min(stream.size // 2, CELLS // max(stream.spaces[0].widths.values()))
    sentences = min(as_count(sentences, "sentences of a query"), max(1, most))
    averaged = averaged_queries(stream, _strongest(stream, sentences, progress), sentences, progress=progress)
    rows = []
    for (site, method), t in translations.items():
        queries, valid = averaged[site]
        rows.append(retrieval_row(site, method, t, queries, valid, valid, centre=centre))
    candidates = {site: len(a.valid) for site, a in averaged.items()}
    return Retrieval(rows, candidates, centre, sentences, stream.size)


def retrieval_row(
    site: Site,
    method: str,
    translation: Translation,
    queries: Float[Array | np.ndarray, "q d_c"],
    own: Int[np.ndarray, " v"],
    features: Int[np.ndarray, " v"],
    *,
    centre: bool,
) -> RetrievalRow:
    """Compute MRR and MPP (Eqs. 10 and 11) of features ranked among themselves, some at a time.

    Args:
      site: of the translation.
      method: of the translation.
      translation: what is measured.
      queries: averaged atlas activations.
      own: the row of each feature's query.
      features: what is ranked.
      centre: subtract the mean atlas activations of the fitting corpus.
    """
    mean, scores = translation.mean_atlas if centre else jnp.zeros(translation.d_c), []
    for start in range(0, len(features), QUERIES):
        some = jnp.asarray(queries)[jnp.asarray(own[start : start + QUERIES])]
        among = translation.similarity(some - mean[None, :])[:, jnp.asarray(features)]
        target = jnp.arange(start, start + len(some))
        scores.append([np.asarray(f(among, target)) for f in (reciprocal_rank, predicted_probability)])
    of_queries = [np.concatenate(parts) for parts in zip(*scores, strict=True)]
    return RetrievalRow(site, method, *map(bootstrap_mean, of_queries), tuple(float(np.std(x)) for x in of_queries))


def ranked(
    similarity: Float[Array, "d_s d_s"], valid: Int[np.ndarray, " v"]
) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
    """Return reciprocal rank and predicted probability (Eqs. 10 and 11) of each valid feature's own query."""
    among, target = similarity[jnp.asarray(valid)][:, jnp.asarray(valid)], jnp.arange(len(valid))
    return np.asarray(reciprocal_rank(among, target)), np.asarray(predicted_probability(among, target))


def averaged_queries(
    stream: SentenceStream, statistics: PassStatistics, sentences: int, *, progress: Progress | None = None
) -> dict[Site, Averaged]:
    """Compute the averaged queries of every subject feature, and the features they are valid for.

    Args:
      stream: a pass over subject and atlas.
      statistics: of its sentences, with the need ``"top_k"``.
      sentences: how many a query is averaged over, at most.
      progress: called after every batch of each pass.

    Raises:
      AtlasError: as :func:`semantic_retrieval`.
    """
    subject, atlas = stream.spaces
    tops = {s: TopK(*(x if x is None else x[:, :sentences] for x in top)) for s, top in statistics.top.items()}
    lenses = {site: (lens_init(top, subject.widths[site]), lens_init(top, atlas.width)) for site, top in tops.items()}

    def step(lenses: dict[Site, tuple[Lens, Lens]], *tokens: Tokens) -> dict[Site, tuple[Lens, Lens]]:
        a_s, a_c = map(encode_batch, (subject, atlas), tokens)
        return _lens_step(lenses, a_s, a_c[atlas.site], tokens[0].index)

    selected = stream.only(selected_samples(*tops.values()))
    lenses = run_stream(selected, step, lenses, name="queries", progress=progress)
    return {site: _averaged(site, statistics.statistics(site), *pair) for site, pair in lenses.items()}


def _strongest(stream: SentenceStream, sentences: int, progress: Progress | None) -> PassStatistics:
    """Compute statistics of the subject's features alone, with the sentences that activate each most."""
    subject = stream.spaces[0]
    state = PassStatistics.init(["top_k"], subject.widths, 1, top_k=sentences)
    step = lambda state, tokens: _strongest_step(state, encode_batch(subject, tokens), tokens.index)
    return run_stream(stream._replace(spaces=(subject,)), step, state, name="strongest", progress=progress)


@partial(jax.jit, donate_argnames="state")
def _strongest_step(
    state: PassStatistics, a_s: dict[Site, Float[Array, "b _"]], index: Int[Array, " b"]
) -> PassStatistics:
    weight = (index >= 0).astype(jnp.float32)
    return update_pass(state, a_s, weight[:, None], weight, index)


@partial(jax.jit, donate_argnames="lenses")
def _lens_step(
    lenses: dict[Site, tuple[Lens, Lens]],
    a_s: dict[Site, Float[Array, "b _"]],
    a_c: Float[Array, "b d_c"],
    index: Int[Array, " b"],
) -> dict[Site, tuple[Lens, Lens]]:
    return {
        site: (lens_update(own, index, a_s[site]), lens_update(other, index, a_c))
        for site, (own, other) in lenses.items()
    }


def _averaged(site: Site, statistics: Statistics, subject: Lens, atlas: Lens) -> Averaged:
    count = jnp.maximum(atlas.found, 1).astype(jnp.float32)[:, None]
    mean, scatter = (to_host(x).astype(np.float64) for x in statistics.subject.raw[:2])
    deviation = np.sqrt(scatter / float(statistics.weight))
    means = to_host(subject.total / count)
    valid = np.flatnonzero(activates_most(means, np.arange(len(means)), mean, deviation))
    if not len(valid):
        raise AtlasError(f"no feature at {site} is the one that its own sentences activate most; give more text")
    return Averaged(atlas.total / count, valid)


def activates_most(
    means: Float[np.ndarray, "q d_s"],
    own: Int[np.ndarray, " q"],
    mean: Float[np.ndarray, " d_s"],
    deviation: Float[np.ndarray, " d_s"],
) -> Bool[np.ndarray, " q"]:
    """Find the features that stand out most on their own sentences, in standard deviations from their means.

    Args:
      means: mean activations of all features on the sentences of each of ``q``.
      own: these features.
      mean: of every feature on all sentences.
      deviation: of every feature on all sentences; a feature that does not vary stands out nowhere.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.experiments._retrieval import activates_most
      >>> activates_most(np.array([[3.0, 1.0], [3.0, 2.0]]), np.array([0, 1]), np.zeros(2), np.array([2.0, 1.0]))
      array([ True,  True])
    """
    scale, most = np.where(deviation > 0, deviation, np.inf), np.empty(len(means), bool)
    for start in range(0, len(means), QUERIES):
        score = (means[start : start + QUERIES] - mean) / scale
        of = own[start : start + QUERIES]
        most[start : start + QUERIES] = (score.argmax(axis=1) == of) & (score.max(axis=1) > 0)
    return most
