"""Training an SAE on the activations of a model: streamed, measured on held-out text, and resumable to the bit."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.corpus import Corpus
from atlas_jax.errors import AtlasError
from atlas_jax.experiments._activations import ActivationStream, typical_norm
from atlas_jax.experiments._held_out import HeldOut, held_out
from atlas_jax.experiments._sae_settings import SAESettings
from atlas_jax.models import LanguageModel, check_site
from atlas_jax.pipeline import Pass, Progress
from atlas_jax.sae import (
    Cursor,
    Metrics,
    SAEConfig,
    Saved,
    SparseAutoencoder,
    TrainConfig,
    TrainState,
    init_state,
    load_state,
    mixed_batches,
    save_state,
    to_sae,
    train_step,
)  # fmt: skip
from atlas_jax.subject import Subject

HELD_OUT_BUDGET = 1024  # tokens of a batch whose logits are held thrice


class Curves(NamedTuple):
    """What training showed, a row of numbers for each step that was looked at.

    Attributes:
      training: ``step, fvu, l0, dead, learning_rate`` of single batches.
      held_out: ``step`` and the fields of :class:`HeldOut`.
    """

    training: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


class Run(NamedTuple):
    """A run at some step.

    Attributes:
      state: of the training; None before the first step.
      cursor: where the activations stand.
      curves: so far.
      norm_limit: longer activations are left out.
    """

    state: TrainState | None
    cursor: Cursor
    curves: Curves
    norm_limit: float

    def save(self, directory: Path) -> None:
        """Write the run as it stands."""
        about = {"cursor": self.cursor, "curves": self.curves._asdict(), "norm_limit": self.norm_limit}
        save_state(directory, Saved(self.state, about))

    @classmethod
    def load(cls, directory: Path, config: TrainConfig, width: int) -> "Run | None":
        """The run as it was last written, None where it was not."""
        saved = load_state(directory, config, width)
        if saved is None:
            return None
        about = saved.about
        return cls(saved.state, Cursor(*about["cursor"]), Curves(**about["curves"]), about["norm_limit"])


class Trained(NamedTuple):
    """What came of a run.

    Attributes:
      sae: the SAE, for raw activations; its ``advertised_l0`` is what was measured.
      curves: of the run.
      measured: the SAE on held-out text.
      passes: how often the text was read.
    """

    sae: SparseAutoencoder
    curves: Curves
    measured: HeldOut
    passes: float


class Hooks(NamedTuple):
    """What a run tells and asks while it goes on.

    Attributes:
      progress: called after each step with steps done, steps in all, and activations seen.
      measured: called with each row of ``Curves.held_out``.
      stop: asked after each step; where true, the run is saved and ends in ``KeyboardInterrupt``.
      save_every: seconds between two saves.
    """

    progress: Progress = lambda done, total, tokens: None
    measured: Callable[[dict[str, Any]], None] = lambda row: None
    stop: Callable[[], bool] = lambda: False
    save_every: float = 60.0


QUIET = Hooks()


def train_sae(
    model: LanguageModel,
    corpus: Corpus,
    settings: SAESettings,
    checkpoints: Path,
    *,
    name: str,
    hooks: Hooks = QUIET,
) -> Trained:
    """Train an SAE, or go on with a run that was stopped.

    Activations are computed as they are needed and held only in a shuffled buffer. The result does not depend on
    where the run was stopped: on one machine it is the same to the bit.

    Args:
      model: whose activations are explained.
      corpus: its fit half is trained on, the first sentences of the other are measured on.
      settings: all that determines the run.
      checkpoints: a directory of this run alone.
      name: of the model, for the SAE's files.
      hooks: progress, interruption, saving.

    Raises:
      AtlasError: for settings that cannot be, a site the model does not have, or activations that are not finite.
      KeyboardInterrupt: where ``hooks.stop`` asked for it.

    Example:
      >>> settings = SAESettings("resid_post.3", 1536, 10)                                  # doctest: +SKIP
      >>> train_sae(model, corpus, settings, Path("my-sae/checkpoints"), name="my-model")  # doctest: +SKIP
    """
    config, site = settings.config(), check_site(model.config, settings.site)
    space, cut = [Subject.of(model, [site])], {"max_length": settings.max_length}
    fit = Pass.of(space, corpus.fit, **cut)
    unseen = Pass.of(space, corpus.eval[: settings.held_out], token_budget=HELD_OUT_BUDGET, **cut)
    run = Run.load(checkpoints, config, model.config.width(site.point))
    if run is None:
        limit = settings.norm_limit * typical_norm(fit, site) if settings.norm_limit else float("inf")
        run = Run(None, Cursor(), Curves([], []), limit)
    describe = SAEConfig("jumprelu", 0, 0, site=site, model=name)
    measure = lambda state: held_out(to_sae(config, state, describe), unseen, site, norm_limit=run.norm_limit)
    rows = ActivationStream(fit, len(corpus.fit), site, run.norm_limit, settings.seed)
    run = _train(run, config, settings, rows, measure, checkpoints, hooks)
    measured = HeldOut(**{k: v for k, v in run.curves.held_out[-1].items() if k != "step"})
    describe = dataclasses.replace(describe, advertised_l0=measured.l0)
    return Trained(to_sae(config, run.state, describe), run.curves, measured, run.cursor.chunk / rows.chunks)


def _train(
    run: Run,
    config: TrainConfig,
    settings: SAESettings,
    rows: ActivationStream,
    measure: Callable[[TrainState], HeldOut],
    checkpoints: Path,
    hooks: Hooks,
) -> Run:
    """All steps that are left."""
    step = 0 if run.state is None else int(run.state.step)
    batches = mixed_batches(rows, batch=settings.batch, buffer=settings.buffer, seed=settings.seed, start=run.cursor)
    saved = time.monotonic()
    while step < config.steps:
        x, cursor = next(batches)
        x = jnp.asarray(x)
        state, metrics = train_step(config, init_state(config, x) if run.state is None else run.state, x)
        step, run = step + 1, run._replace(state=state, cursor=cursor)
        hooks.progress(step, config.steps, step * settings.batch)
        if step % max(1, config.steps // 200) == 0 or step == config.steps:
            run.curves.training.append(_row(step, metrics))
        if step % max(1, config.steps // 10) == 0 or step == config.steps:
            run.curves.held_out.append({"step": step, **measure(state)._asdict()})
            hooks.measured(run.curves.held_out[-1])
        stop = hooks.stop()
        if stop or step == config.steps or time.monotonic() - saved > hooks.save_every:
            run.save(checkpoints)
            saved = time.monotonic()
        if stop:
            raise KeyboardInterrupt
    return run


def _row(step: int, metrics: Metrics) -> dict[str, Any]:
    row = {"step": step} | {k: float(v) for k, v in jax.device_get(metrics)._asdict().items()}
    if not np.isfinite(row["fvu"]):
        raise AtlasError(
            f"training gave a loss that is not finite at step {step}; use float32 or a lower learning rate"
        )
    return row
