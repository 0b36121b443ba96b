"""Features of one model in the words of another: decoder directions over a bridge into a verbalizer, with controls."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.bridge import Bridge
from atlas_jax.checks import as_number, finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._explain_features import ExplainedFeature
from atlas_jax.experiments._steering_texts import appended, json_lines
from atlas_jax.files import differences, read_object, write_json
from atlas_jax.labels import Embedder, StaticEmbedding
from atlas_jax.metrics import Interval, bootstrap_mean, reciprocal_rank
from atlas_jax.models import LanguageModel
from atlas_jax.progress import Progress, unreported
from atlas_jax.rows import unit
from atlas_jax.table import Column, Table
from atlas_jax.verbalizers import Contract, verbalize, verbalize_texts

OWN, RANDOM, SHUFFLED, NOTHING, TEXT = "bridge", "random direction", "shuffled map", "no injection", "text only"
WRONG = "wrong feature"
BLOCK = 1024  # explanations that are kept at a time, and queries that are ranked at a time


class Arm(NamedTuple):
    """Explanations of one kind.

    Attributes:
      name: of the arm; washout adds ``alpha`` to that of the bridge.
      cosine: of the explanations with the references.
      lift: the arm of the bridge less this one, a feature at a time; None for itself.
      mrr: how early an explanation ranks its own feature's top texts among those of all.

    Example:
      >>> from atlas_jax.experiments import Arm
      >>> from atlas_jax.metrics import Interval
      >>> Arm("bridge", Interval(0.3, 0.2, 0.4, 45, 0), None, Interval(0.5, 0.4, 0.6, 45, 0)).cosine.mean
      0.3
    """

    name: str
    cosine: Interval
    lift: Interval | None
    mrr: Interval | None


@dataclasses.dataclass(frozen=True)
class Explained:
    """Result of :func:`explain_features`.

    Attributes:
      features: what was explained.
      explanations: by arm, those of the features in their order.
      arms: how close they come.
      chance: MRR of a random order.

    Example:
      >>> from atlas_jax.experiments import Explained
      >>> Explained([], {}, [], 0.1).chance
      0.1
    """

    features: list[ExplainedFeature]
    explanations: dict[str, list[str]]
    arms: list[Arm]
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        rows = [
            f._asdict() | {"explanation": self.explanations[OWN][i]} for i, f in enumerate(self.features)
        ]  # fmt: skip
        arms = [{k: v._asdict() if isinstance(v, Interval) else v for k, v in a._asdict().items()} for a in self.arms]
        return {"features": rows, "arms": arms, "chance MRR": self.chance, "explanations": self.explanations}

    def tables(self, shown: int = 10) -> list[Table]:
        """Return the arms, and some explanations beside their references."""
        three = lambda x: None if x is None else (x.mean, x.low, x.high)
        rows = [(a.name, three(a.cosine), three(a.lift), three(a.mrr)) for a in self.arms]
        columns = Column("explained from"), Column("cosine", ".3f"), Column("lift", "+.3f"), Column("MRR", ".3f")
        caption = (
            f"{len(self.features)} features; cosine of explanation and reference; lift of the bridge over the row, "
            f"with 95% intervals over features; MRR of a feature's own top texts, by chance {self.chance:.3f}. Rows "
            "with α add α of the background (washout, experimental)."
        )
        some = [
            (f.feature, f.reference, self.explanations[OWN][i], " ".join(f.tokens[:4]))
            for i, f in enumerate(self.features[:shown])
        ]
        heads = Column("feature", "d"), Column("reference"), Column("explanation"), Column("top tokens", optional=True)
        return [Table("Explanations", columns, rows, caption), Table("Examples", heads, some)]


def explain_features(
    features: Sequence[ExplainedFeature],
    directions: Float[Array | np.ndarray, "n d"],
    model: LanguageModel,
    contract: Contract,
    embedder: Embedder | StaticEmbedding,
    *,
    bridge: Bridge | None = None,
    background: Float[Array | np.ndarray, " e"] | None = None,
    alphas: Sequence[float] = (),
    max_new_tokens: int = 60,
    temperature: float = 0.0,
    seed: int = 0,
    directory: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Explained:
    """Explain directions of one model by the verbalizer of another, beside all controls.

    Controls: the explanation of another feature (the mean over all), of a random direction over the same map, of the
    direction over a map with shuffled columns, of the prompt without injection, and of the same prompt with the
    feature's top tokens as text. Where the last is as good, the verbalizer adds nothing to reading the tokens.

    Args:
      features: what is explained, with references and top texts.
      directions: their directions in the source, such as decoder rows of its SAE.
      model: the verbalizer of the target.
      contract: how it takes vectors.
      embedder: turns explanations and references into vectors.
      bridge: from the source to the target; None where both are one stream. Directions pass its linear part alone.
      background: mean of unit activations of the target, for ``alphas``.
      alphas: washout, experimental: ``unit(d + α b)`` for each, positive or negative.
      max_new_tokens: tokens of an explanation.
      temperature: 0 is greedy.
      seed: of the random directions, the shuffle, the sampling and the intervals.
      directory: keeps the explanations, so that a stopped run goes on.
      settings: what else determines them; a directory of other settings is refused.
      progress: called with the explanations that are done.

    Raises:
      AtlasError: for other numbers of features and directions, fewer than two, a bridge that leads elsewhere than to
        the verbalizer, washout without background, or a directory of another experiment.

    Example:
      >>> from atlas_jax.experiments import explain_features  # doctest: +SKIP
      >>> explain_features(features, sae.W_dec[:45], model, contract, embedder, bridge=bridge)  # doctest: +SKIP
    """
    _check(features, directions, contract, bridge, background, alphas)
    rng = np.random.default_rng(seed)
    along, carry = unit(np.asarray(directions, np.float32)), (lambda v: v) if bridge is None else bridge.direction
    shuffle = rng.permutation(along.shape[1])
    vectors = {
        OWN: carry(along),
        RANDOM: carry(unit(rng.normal(size=along.shape).astype(np.float32))),
        SHUFFLED: carry(along[:, shuffle]),
    }
    own = unit(np.asarray(vectors[OWN]))
    vectors |= {_washed(a): own + np.float32(a) * unit(np.asarray(background)[None]) for a in alphas}
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    tokens = [", ".join(dict.fromkeys(t.strip() for t in f.tokens if t.strip())) or f.reference for f in features]
    speak: dict[str, Callable[[slice], list[str]]] = {
        name: lambda s, v=v: verbalize(model, v[s], contract, seed=seed + s.start, **options).explanations
        for name, v in vectors.items()
    }
    speak[TEXT] = lambda s: verbalize_texts(model, tokens[s], contract, seed=seed + s.start, **options).explanations
    about = dict(settings or {}) | options | {"seed": seed, "features": _digest(f.feature for f in features)}
    said = _all_said(speak, len(features), directory, about, progress or unreported)
    none = verbalize_texts(model, [contract.placeholder], contract, seed=seed, **options).explanations
    said[NOTHING] = none * len(features)
    return _compared(list(features), said, embedder, seed)


def _check(
    features: Sequence[ExplainedFeature], directions: Any, contract: Contract, bridge: Bridge | None, background: Any,
    alphas: Sequence[float],
) -> None:  # fmt: skip
    if len(features) < 2 or np.shape(directions)[:1] != (len(features),):
        raise AtlasError(
            f"{len(features)} features and directions of shape {np.shape(directions)}; give a direction a feature, and "
            "two or more, since each is compared with the others"
        )
    finite_numbers(directions, "the direction")
    width = np.shape(directions)[1] if bridge is None else bridge.translation.d_s
    if width != contract.d_model:
        whence = "the directions" if bridge is None else f"the bridge to {bridge.target}"
        raise AtlasError(
            f"the verbalizer explains vectors of width {contract.d_model}, and {whence} gives {width}; fit a bridge to "
            "the stream it was trained on"
        )
    if len(alphas) and background is None:
        raise AtlasError("washout needs the background, the mean of unit activations of the target")
    for alpha in alphas:
        as_number(alpha, "α of washout")


def _digest(ids: Iterable[int]) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:8]


def _washed(alpha: float) -> str:
    return f"{OWN}, α {alpha:+g}"


def _all_said(
    speak: Mapping[str, Callable[[slice], list[str]]], n: int, directory: Path | None, about: Mapping[str, Any],
    report: Progress,
) -> dict[str, list[str]]:  # fmt: skip
    """The explanations of every arm, those that a directory has read from there."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        before = read_object(directory / "settings.json", missing={})
        if before and (changed := differences(before, about)):
            raise AtlasError(f"'{directory}' holds explanations of another kind ({changed}); choose another directory")
        write_json(directory / "settings.json", about)
    said: dict[str, list[str]] = {}
    for i, (name, say) in enumerate(speak.items()):
        done = lambda k, i=i: report("explain", i * n + k, len(speak) * n, 0)
        said[name] = _said(say, n, None if directory is None else directory / f"{name}.jsonl", done)
    return said


def _said(say: Callable[[slice], list[str]], n: int, path: Path | None, report: Callable[[int], None]) -> list[str]:
    texts = [] if path is None else list(takewhile(lambda text: isinstance(text, str), json_lines(path)))[:n]

    def rest(add: Callable[[Sequence[str]], None]) -> list[str]:
        while len(texts) < n:
            new = say(slice(len(texts), min(n, len(texts) + BLOCK)))
            add(new)
            texts.extend(new)
            report(len(texts))
        return texts

    if path is None:
        return rest(lambda new: None)
    with appended(path, list(texts)) as add:
        return rest(add)


def _compared(
    features: list[ExplainedFeature], said: dict[str, list[str]], embedder: Embedder | StaticEmbedding, seed: int
) -> Explained:
    """Measure every arm against the references and the top texts."""
    reference = _embedded(embedder, [f.reference for f in features])
    texts = np.stack([unit(_embedded(embedder, list(f.texts)).mean(0, keepdims=True))[0] for f in features])
    vectors = {name: _embedded(embedder, words) for name, words in said.items()}
    cosine = {name: np.sum(reference * v, axis=1) for name, v in vectors.items()}
    n, own = len(features), cosine[OWN]
    cosine[WRONG] = (reference @ vectors[OWN].sum(0) - own) / (n - 1)
    arms = []
    for name in [OWN, WRONG, *(x for x in said if x != OWN)]:
        mean = lambda values: bootstrap_mean(values, seed=seed)
        lift = None if name == OWN else mean(own - cosine[name])
        mrr = None if name == WRONG else mean(_ranks(vectors[name], texts))
        arms.append(Arm(name, mean(cosine[name]), lift, mrr))
    chance = float(np.mean(1 / np.arange(1, n + 1)))
    return Explained(features, {name: list(words) for name, words in said.items()}, arms, chance)


def _ranks(queries: Float[np.ndarray, "n w"], texts: Float[np.ndarray, "n w"]) -> Float[np.ndarray, " n"]:
    blocks = [np.arange(i, min(i + BLOCK, len(queries))) for i in range(0, len(queries), BLOCK)]
    ranks = [reciprocal_rank(jnp.asarray(queries[b] @ texts.T), jnp.asarray(b), ties="mid") for b in blocks]
    return np.concatenate([np.asarray(r) for r in ranks])


def _embedded(embedder: Embedder | StaticEmbedding, texts: Sequence[str]) -> Float[np.ndarray, "n w"]:
    return unit(np.asarray(embedder.encode(list(texts)), np.float32))
