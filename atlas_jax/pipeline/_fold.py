"""The loop of every pass that keeps a state."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import jax

from atlas_jax.interrupts import postponed_interrupts
from atlas_jax.pipeline._checkpoint import Checkpoints
from atlas_jax.pipeline._pass import Cursor, Pass
from atlas_jax.progress import Progress, unreported

State = TypeVar("State")


def fold(
    stream: Pass,
    step: Callable[..., State],
    state: State,
    *,
    name: str = "pass",
    stage: str | None = None,
    progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> State:
    """Run every batch of a pass through ``state = step(state, *tokens)``.

    While the device is at work on one batch the next is made ready; no second one waits there. With checkpoints the
    pass goes on from the newest one of its name, and Ctrl-C or SIGTERM saves the state before it stops the run.
    ``stage`` is what progress is reported as, ``name`` where there is none.

    Raises:
      KeyboardInterrupt: after a signal, once the state is saved.
      AtlasError: if a checkpoint is of another run or cannot be written.
    """
    at, report, stage = Cursor(), progress or unreported, stage or name
    with contextlib.nullcontext() if checkpoints is None else postponed_interrupts() as stopped:
        if checkpoints is not None:
            at, state = checkpoints.restore(name, state, stream.size)
        report(stage, at.sentences, stream.size, at.tokens)
        for after, tokens in stream.steps(at):
            jax.block_until_ready(state)
            if checkpoints is not None:
                checkpoints.offer(name, at, state, stop=stopped())
            state, at = step(state, *tokens), after
            report(stage, at.sentences, stream.size, at.tokens)
        jax.block_until_ready(state)
        if checkpoints is not None:
            checkpoints.save(name, at, state)
    return state
