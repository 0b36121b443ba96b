"""Training an SAE on the activations of a model: streamed, measured on held-out text, and resumable to the bit."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from math import inf, isfinite
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.interrupts import postponed_interrupts
from atlas_jax.models import LanguageModel, check_site
from atlas_jax.pipeline import Checkpoints, Cursor as PassCursor, SentenceStream, token_activations
from atlas_jax.progress import Progress, unreported
from atlas_jax.sae import (
    ARCHITECTURES,
    Cursor,
    Metrics,
    SAEConfig,
    SparseAutoencoder,
    TrainConfig,
    TrainState,
    init_state,
    mixed_batches,
    to_sae,
    train_step,
)
from atlas_jax.sae_lab._evaluate import HeldOut, held_out
from atlas_jax.subject import Subject
from atlas_jax.types import Site

_LIMITS = {
    "learning_rate": (1e-12, inf),
    "sparsity_warmup": (0, 1),
    "dead_after": (1, inf),
    "norm_limit": (0, inf),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SAESettings:
    """The settings of a training run: all that determines it besides the model and the text.

    Attributes:
      site: site of the activations.
      features: number of features of the SAE.
      k: target mean number of active features a token (L0).
      architecture: "batchtopk" or "jumprelu".
      tokens: activations to train on; text is read again when there are fewer.
      batch: activations of a step.
      buffer: activations held for shuffling.
      learning_rate: peak of Adam's learning rate; ``0.1 / sqrt(width)`` by default.
      sparsity_warmup: share of the steps over which L0 falls to ``k``.
      dead_after: number of activations in a row after which a silent feature counts as dead.
      norm_limit: activations longer than this many times the median are left out.
      max_length: tokens at which sentences are cut.
      held_out: number of held-out sentences to measure on.
      seed: seed of everything random.

    Example:
      >>> from atlas_jax.sae_lab import SAESettings
      >>> settings = SAESettings("resid_post.3", features=1536, k=10, tokens=1_000_000)
      >>> settings.config().steps, settings.to_dict()["architecture"]
      (976, 'batchtopk')
    """

    site: str
    features: int
    k: float | int
    architecture: str = "batchtopk"
    tokens: int = 4_000_000
    batch: int = 1024
    buffer: int = 1 << 17
    learning_rate: float | None = None
    sparsity_warmup: float = 0.2
    dead_after: int = 50_000
    norm_limit: float = 10.0
    max_length: int = 128
    held_out: int = 1000
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self)

    as_json = to_dict

    def config(self) -> TrainConfig:
        """Return the settings of the optimiser.

        Raises:
          AtlasError: for a value out of range.
        """
        if self.architecture not in ARCHITECTURES:
            raise AtlasError(f"unknown architecture '{self.architecture}'; known are {', '.join(ARCHITECTURES)}")
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and least <= value <= most):
                raise AtlasError(f"{name} is {value}; it must be a number from {least} to {most}")
        if not 0 < self.k < self.features:
            raise AtlasError(f"k is {self.k:g}; it must be above 0 and below the number of features, {self.features}")
        if self.buffer < 4 * self.batch:
            raise AtlasError(f"a buffer of {self.buffer} cannot mix batches of {self.batch}; use {4 * self.batch}")
        if self.tokens < 10 * self.batch:
            raise AtlasError(f"{self.tokens} tokens are too few for batches of {self.batch}; use {10 * self.batch}")
        return TrainConfig(
            self.features, self.k, self.tokens // self.batch, self.architecture, self.learning_rate, self.seed,
            sparsity_warmup=self.sparsity_warmup, dead_after=max(1, self.dead_after // self.batch),
        )  # fmt: skip


GROUP = 2048  # sentences of a chunk; a cursor is meaningless under another value


class ActivationStream(NamedTuple):
    """The activations of the tokens of a pass that count, chunk by chunk, in another order in every round.

    Attributes:
      stream: a pass over one space, its sentences numbered from 0.
      sentences: number of sentences.
      site: site of the activations.
      norm_limit: longer activations are left out.
      seed: seed of the order.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import LanguageModel, Site, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream
      >>> from atlas_jax.sae_lab._train import ActivationStream
      >>> texts, site = ["Return the value.", "Raise an error."], Site("resid_post", 3)
      >>> space = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), [site])
      >>> rows = ActivationStream(SentenceStream.from_texts([space], texts), 2, site, np.inf, 0)
      >>> rows.chunks, next(rows(0)).shape[1]
      (1, 128)
    """

    stream: SentenceStream
    sentences: int
    site: Site
    norm_limit: float
    seed: int

    @property
    def chunks(self) -> int:
        """Number of chunks in which every sentence occurs once."""
        return -(-self.sentences // GROUP)

    def __call__(self, number: int) -> Iterator[Float[np.ndarray, "n d"]]:
        """Yield the rows of a chunk, a batch of sentences at a time.

        Raises:
          AtlasError: if an activation is not finite.
        """
        around, part = divmod(number, self.chunks)
        order = np.random.default_rng([self.seed, around]).permutation(self.sentences)
        ids = order[part * GROUP : (part + 1) * GROUP].astype(np.int32)
        for acts, mask in token_activations(self.stream.only(ids), self.site):
            acts, mask = jax.device_get((acts, mask))
            rows = acts[mask]
            lengths = norms(rows)
            if not np.isfinite(lengths).all():
                raise AtlasError(f"the model gave an activation at {self.site} that is not finite; use float32")
            yield rows[lengths <= self.norm_limit]


def typical_norm(stream: SentenceStream, site: Site) -> float:
    """Measure the median norm of the activations of a few sentences."""
    taken = stream.only(np.arange(GROUP, dtype=np.int32))
    lengths = [norms(np.asarray(acts)[np.asarray(mask)]) for acts, mask in token_activations(taken, site)]
    return float(np.median(np.concatenate(lengths)))


def norms(rows: Float[Array | np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Compute the Euclidean norms of rows of any float dtype."""
    return np.linalg.norm(rows.astype(np.float32), axis=1)


STAGE = "train"
LOOKS, MEASUREMENTS = 200, 10  # rows of the two curves, approximately
HELD_OUT_BUDGET = 1024  # tokens of a batch whose logits are held thrice
_log = logging.getLogger(__name__)


class Curves(NamedTuple):
    """The course of a training run, a row of numbers for each step that was recorded.

    Attributes:
      training: ``step, fvu, l0, dead, learning_rate`` of single batches.
      held_out: ``step`` and the fields of :class:`HeldOut`.

    Example:
      >>> from atlas_jax.sae_lab import Curves
      >>> Curves([{"step": 1, "fvu": 0.9}], []).training[-1]["fvu"]
      0.9
    """

    training: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


class _Run(NamedTuple):
    """A run at some step: the content of a checkpoint.

    Attributes:
      state: state of the training; its numbers mean nothing before the first step.
      cursor: position in the activations, the fields of :class:`Cursor`.
      norm_limit: longer activations are left out.
      training: a row for each recorded batch: step and ``Metrics``; nan where it is still to come.
      held_out: a row for each measurement: step and ``HeldOut``; nan where it is still to come.
    """

    state: TrainState
    cursor: Int[np.ndarray, "4"]
    norm_limit: Float[np.ndarray, "1"]
    training: Float[np.ndarray, "rows columns"]
    held_out: Float[np.ndarray, "rows columns"]

    @property
    def curves(self) -> Curves:
        """The rows so far, with names."""
        return Curves(_rows(self.training, Metrics._fields), _rows(self.held_out, HeldOut._fields))


class Trained(NamedTuple):
    """The result of a training run.

    Attributes:
      sae: the SAE, for raw activations; its ``advertised_l0`` is the measured L0.
      curves: the course of the run.
      measured: measurements of the SAE on held-out text.
      passes: number of times the text was read, if its sentences are as long as those measured.

    Example:
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.sae import SparseAutoencoder
      >>> from atlas_jax.sae_lab import Curves, HeldOut, Trained
      >>> measured = HeldOut(0.1, 10.0, 0.0, 3.0, 3.1, 8.0, 0.98, tokens=4096)
      >>> sae = SparseAutoencoder.from_pretrained(ATLAS / "sae")
      >>> Trained(sae, Curves([], []), measured, passes=1.5).measured.l0
      10.0
    """

    sae: SparseAutoencoder
    curves: Curves
    measured: HeldOut
    passes: float


def train_sae(
    model: LanguageModel,
    corpus: Corpus,
    settings: SAESettings,
    *,
    name: str,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train an SAE, or resume a run that was stopped.

    Activations are computed as they are needed and held only in a shuffled buffer. The result does not depend on
    where the run was stopped: on one machine it is the same to the bit. Each measurement on held-out text is logged.

    Args:
      model: the model whose activations are explained.
      corpus: its fit half is trained on, the first sentences of the other are measured.
      settings: all that determines the run besides these two.
      name: name of the model, for the SAE's files.
      checkpoints: place in which the run is saved, and from which it is resumed; Ctrl-C then saves it first.
      progress: called after each step with steps done, steps in all, and activations seen.

    Raises:
      AtlasError: for settings out of range, a site the model does not have, a checkpoint of another run, or
        activations that are not finite.
      KeyboardInterrupt: after Ctrl-C, once the run is saved.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.corpus import build_corpus, installed_documentation
      >>> from atlas_jax.models import LanguageModel
      >>> from atlas_jax.sae_lab import SAESettings, train_sae
      >>> model = LanguageModel.from_pretrained(SUBJECT)
      >>> settings = SAESettings("resid_post.2", features=512, k=8, tokens=100_000, buffer=8192)
      >>> corpus = build_corpus(installed_documentation(max_bytes=500_000))  # doctest: +SKIP
      >>> train_sae(model, corpus, settings, name="my-model").measured.fvu < 0.3  # doctest: +SKIP
      True
    """
    config, site = settings.config(), check_site(model.config, settings.site)
    space, cut = [Subject.from_model(model, [site])], {"max_length": settings.max_length}
    fit = SentenceStream.from_texts(space, corpus.fit, **cut)
    unseen = SentenceStream.from_texts(space, corpus.eval[: settings.held_out], token_budget=HELD_OUT_BUDGET, **cut)
    run = _begin(config, model.config.width(site))
    if checkpoints is not None:
        _, run = checkpoints.restore(STAGE, run, config.steps)
    if not int(run.state.step) and settings.norm_limit:
        run.norm_limit[0] = settings.norm_limit * typical_norm(fit, site)
    limit, describe = float(run.norm_limit[0]), SAEConfig("jumprelu", 0, 0, site=site, model=name)
    measure = lambda state: held_out(to_sae(config, state, describe), unseen, site, norm_limit=limit)
    rows = ActivationStream(fit, len(corpus.fit), site, limit, settings.seed)
    run = _watched(_steps(run, config, settings, rows, measure), run, config, settings, checkpoints, progress)
    measured = HeldOut(*run.held_out[-1, 1:-1].tolist(), int(run.held_out[-1, -1]))
    describe = dataclasses.replace(describe, advertised_l0=measured.l0)
    text = measured.tokens * len(corpus.fit) / min(len(corpus.eval), settings.held_out)
    return Trained(to_sae(config, run.state, describe), run.curves, measured, config.steps * settings.batch / text)


def _begin(config: TrainConfig, width: int) -> _Run:
    """Return a run before its first step."""
    empty = lambda looks, columns: np.full((-(-config.steps // _every(config, looks)), columns), np.nan)
    curves = empty(LOOKS, 1 + len(Metrics._fields)), empty(MEASUREMENTS, 1 + len(HeldOut._fields))
    return _Run(init_state(config, jnp.zeros((1, width))), np.zeros(4, np.int64), np.full(1, np.inf), *curves)


def _steps(
    run: _Run,
    config: TrainConfig,
    settings: SAESettings,
    rows: ActivationStream,
    measure: Callable[[TrainState], HeldOut],
) -> Iterator[_Run]:
    """Yield the run after each of the steps that are left."""
    start = Cursor(*run.cursor.tolist())
    batches = mixed_batches(rows, batch=settings.batch, buffer=settings.buffer, seed=settings.seed, start=start)
    for step in range(int(run.state.step) + 1, config.steps + 1):
        x, cursor = next(batches)
        x = jnp.asarray(x)
        state, metrics = train_step(config, init_state(config, x) if step == 1 else run.state, x)
        run = run._replace(state=state, cursor=np.array(cursor))
        if step % (every := _every(config, LOOKS)) == 0 or step == config.steps:
            run.training[(step - 1) // every] = step, *jax.device_get(metrics)
            if not np.isfinite(metrics.fvu):
                raise AtlasError(f"the loss is not finite at step {step}; use float32, or a lower learning rate")
        if step % (every := _every(config, MEASUREMENTS)) == 0 or step == config.steps:
            run.held_out[(step - 1) // every] = step, *measure(state)
            _log.info(_sentence(run.curves.held_out[-1]))
        yield run


def _watched(
    steps: Iterator[_Run],
    run: _Run,
    config: TrainConfig,
    settings: SAESettings,
    checkpoints: Checkpoints | None,
    progress: Progress | None,
) -> _Run:
    """Return the run after its last step; save it and report progress on the way."""
    done, report = int(run.state.step), progress or unreported
    report(STAGE, done, config.steps, done * settings.batch)
    with contextlib.nullcontext() if checkpoints is None else postponed_interrupts() as stopped:
        for done, run in enumerate(steps, done + 1):  # noqa: B020
            report(STAGE, done, config.steps, done * settings.batch)
            if checkpoints is not None:
                checkpoints.offer(STAGE, PassCursor(sentences=done), run, stop=stopped())
        if checkpoints is not None:
            checkpoints.save(STAGE, PassCursor(sentences=done), run)
    return run


def _every(config: TrainConfig, looks: int) -> int:
    return max(1, config.steps // looks)


def _rows(table: Float[np.ndarray, "rows columns"], names: tuple[str, ...]) -> list[dict[str, Any]]:
    there = table[~np.isnan(table[:, 0])].tolist()
    return [{"step": int(step), **dict(zip(names, values, strict=True))} for step, *values in there]


def _sentence(row: dict[str, Any]) -> str:
    return (
        f"step {row['step']}: FVU {row['fvu']:.4f}, L0 {row['l0']:.1f}, dead {row['dead']:.1%}, "
        f"loss recovered {row['loss_recovered']:.4f}"
    )
