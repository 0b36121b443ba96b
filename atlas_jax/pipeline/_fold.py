"""The loop of every pass that keeps a state."""

from collections.abc import Callable
from typing import TypeVar

import jax

from atlas_jax.pipeline._pass import Pass, Progress

State = TypeVar("State")


def fold(stream: Pass, step: Callable[..., State], state: State, *, progress: Progress | None = None) -> State:
    """Run every batch of a pass through ``state = step(state, *tokens)``.

    While the device is at work on one batch the next is made ready; no second one waits there.
    """
    for tokens in stream.batches(progress):
        state = step(jax.block_until_ready(state), *tokens)
    return jax.block_until_ready(state)
