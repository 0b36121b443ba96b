"""Table 4 as the paper has it: subject features are searched for with sequences that express their concepts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from atlas_jax.checks import as_number
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._concepts import ConceptSet, Filtered, reliability
from atlas_jax.experiments._retrieval import Retrieval, activates_most, retrieval_row
from atlas_jax.metrics import auroc
from atlas_jax.pipeline import SentenceStream, encode_batch, pooled_activations
from atlas_jax.progress import Progress
from atlas_jax.translation import Translation
from atlas_jax.types import Site

NATURAL = 2048  # held-out sentences that concept sequences are compared with
RELIABLE = 0.75


class Expressed(NamedTuple):
    """Activations of both models on the sequences of ``q`` concepts.

    Attributes:
      subject: mean pooled activations of the subject's site on the sequences of each concept ``[q, d_s]``.
      atlas: the same of the atlas, the concept queries ``[q, d_c]``.
      own: activation of the concept's own feature on each of its sequences.
    """

    subject: Float[np.ndarray, "q d_s"]
    atlas: Float[np.ndarray, "q d_c"]
    own: list[Float[np.ndarray, " k"]]


def concept_retrieval(
    stream: SentenceStream,
    translations: Mapping[tuple[Site, str], Translation],
    concepts: Sequence[ConceptSet],
    *,
    reliable: float = RELIABLE,
    centre: bool = False,
    progress: Progress | None = None,
) -> Retrieval:
    """Compute Table 4 with given sequences: each feature's query is their mean pooled atlas activation.

    The features that pass two filters are ranked among themselves. (i) The concept is reliable: the harmonic mean of
    its FADE scores is above ``reliable``. Scores that the concept does not bring are not known, but clarity, which is
    measured: 2 AUROC - 1 with which the feature tells its sequences from held-out sentences. (ii) Its sequences
    activate it most: of all features of the site it stands out most in their mean activation, in standard deviations
    over held-out sentences and sequences together.

    Args:
      stream: the evaluation half, of which at most 2048 sentences are read.
      translations: by site and method.
      concepts: with sequences, see :func:`read_concepts`; those without any are counted.
      reliable: threshold of the first filter.
      centre: subtract the mean atlas activations of the fitting corpus from the queries, which the paper does not.
      progress: called after every batch of each pass.

    Raises:
      AtlasError: for a site without a translation, a threshold outside of 0 to 1, activations that are not finite, or
        a site of which no feature passes.

    Example:
      >>> from atlas_jax.experiments import concept_retrieval, read_concepts
      >>> from atlas_jax.pipeline import Alignment
      >>> run = Alignment.load("runs/quickstart")                                      # doctest: +SKIP
      >>> concepts = read_concepts("concepts.jsonl", run.subject.widths)               # doctest: +SKIP
      >>> concept_retrieval(run.stream("eval"), run.translations, concepts).rows[0]    # doctest: +SKIP
    """
    as_number(reliable, "the threshold of reliability", least=0, most=1)
    rows, filters = [], {}
    for site in dict.fromkeys(c.site for c in concepts):
        at_site = {method: t for (at, method), t in translations.items() if at == site}
        if not at_site:
            raise AtlasError(f"there is no translation of {site}, which the concepts are of")
        given = [c for c in concepts if c.site == site]
        kept, queries, filters[site] = _filtered(stream, site, given, reliable, progress)
        own = np.arange(len(kept))
        rows += [retrieval_row(site, method, t, queries, own, kept, centre=centre) for method, t in at_site.items()]
    most = max(len(c.sequences) for c in concepts)
    candidates = {site: f.kept for site, f in filters.items()}
    return Retrieval(rows, candidates, centre, most, stream.size, filters)


def _filtered(
    stream: SentenceStream, site: Site, given: Sequence[ConceptSet], reliable: float, progress: Progress | None
) -> tuple[Int[np.ndarray, " v"], Float[np.ndarray, "v d_c"], Filtered]:
    """The features that pass both filters, their queries, and how many fell where."""
    concepts = [c for c in given if c.sequences]
    count = Filtered(len(given), len(given) - len(concepts), 0, 0, 0, reliable)
    if not concepts:
        raise AtlasError(count.sentence(site))
    subject = dataclasses.replace(stream.spaces[0], sites=(site,))
    natural = _natural(stream._replace(spaces=(subject,)), site)
    expressed, moments = _express(
        stream._replace(spaces=(subject, stream.spaces[1])), site, concepts, natural, progress
    )
    features = np.array([c.feature for c in concepts])
    scores = [_reliability(c, own, natural) for c, own in zip(concepts, expressed.own, strict=True)]
    passed = np.array(scores) > reliable
    most = activates_most(expressed.subject, features, *moments)
    kept = passed & most
    count = count._replace(unreliable=int((~passed).sum()), elsewhere=int((passed & ~most).sum()), kept=int(kept.sum()))
    if not count.kept:
        raise AtlasError(f"{count.sentence(site)}; give sequences that activate their features")
    return features[kept], expressed.atlas[kept], count


def _natural(stream: SentenceStream, site: Site) -> Float[np.ndarray, "n d_s"]:
    """Pooled activations of held-out sentences, spread over the half, that are finite."""
    spread = np.unique(np.linspace(0, len(stream.texts) - 1, NATURAL).astype(np.int64))
    activations = pooled_activations(stream.only(spread + stream.first))[site]
    finite = activations[np.isfinite(activations).all(axis=1)]
    if not len(finite):
        raise AtlasError(f"activations of the held-out sentences at {site} are not finite; align in float32")
    return finite


def _reliability(concept: ConceptSet, own: Float[np.ndarray, " k"], natural: Float[np.ndarray, "n d_s"]) -> float:
    """Reliability of a concept, with the clarity of its feature."""
    values = np.concatenate([own, natural[:, concept.feature]])
    clarity = 2 * float(auroc(values, np.arange(len(values)) < len(own))) - 1
    return reliability(clarity, concept.fade)


def _express(
    stream: SentenceStream,
    site: Site,
    concepts: Sequence[ConceptSet],
    natural: Float[np.ndarray, "n d_s"],
    progress: Progress | None,
) -> tuple[Expressed, tuple[Float[np.ndarray, " d_s"], Float[np.ndarray, " d_s"]]]:
    """The sequences through both models; with the mean and the deviation of the subject's features, theirs included."""
    texts = [text for c in concepts for text in c.sequences]
    sizes = np.array([len(c.sequences) for c in concepts])
    owner, features = np.repeat(np.arange(len(concepts)), sizes), np.array([c.feature for c in concepts])
    subject, atlas = stream.spaces
    total_s, total_c = (np.zeros((len(concepts), width), np.float32) for width in (subject.widths[site], atlas.width))
    own, base = np.zeros(len(texts)), natural[0].astype(np.float64)  # moments about a sentence: constants have none
    sums = _powers(natural, base)
    sequences = SentenceStream.from_texts(stream.spaces, texts, max_length=stream.max_length)
    for tokens_s, tokens_c in sequences.batches(stage="concepts", progress=progress):
        index = np.asarray(tokens_s.index)
        real = index >= 0
        a_s, a_c = (
            np.asarray(encode_batch(space, tokens)[at])[real]
            for space, tokens, at in ((subject, tokens_s, site), (atlas, tokens_c, atlas.site))
        )
        of = owner[index[real]]
        np.add.at(total_s, of, a_s)
        np.add.at(total_c, of, a_c)
        own[index[real]] = a_s[np.arange(len(a_s)), features[of]]
        sums += _powers(a_s, base)
    if not (np.isfinite(total_s).all() and np.isfinite(total_c).all()):
        raise AtlasError(f"activations of the sequences of {site} are not finite; align in float32")
    mean, square = sums / (len(natural) + len(texts))
    moments = base + mean, np.sqrt(np.maximum(square - mean**2, 0))
    parts = np.split(own, np.cumsum(sizes)[:-1])
    return Expressed(total_s / sizes[:, None], total_c / sizes[:, None], parts), moments


def _powers(x: Float[np.ndarray, "n d_s"], base: Float[np.ndarray, " d_s"]) -> Float[np.ndarray, "2 d_s"]:
    """Sums of first and second powers about ``base``."""
    away = x - base
    return np.stack([away.sum(axis=0), np.square(away).sum(axis=0)])
