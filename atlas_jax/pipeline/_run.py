"""The loop of every pass that keeps a state, and the compiled reading of a batch."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from atlas_jax.interrupts import postponed_interrupts
from atlas_jax.pipeline._checkpoint import Checkpoints
from atlas_jax.pipeline._stream import Cursor, SentenceStream
from atlas_jax.pooling import Pooled
from atlas_jax.progress import Progress, unreported
from atlas_jax.subject import Subject
from atlas_jax.types import FeatureSpace, NormedSpace, Site, Tokens

State = TypeVar("State")


def run_stream(
    stream: SentenceStream,
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

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import SentenceStream, run_stream
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> stream = SentenceStream.from_texts([subject], ["one text", "another", "a third"])
      >>> run_stream(stream, lambda count, tokens: count + int((tokens.index >= 0).sum()), 0)
      3
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


@jax.jit
def encode_batch(space: FeatureSpace, tokens: Tokens) -> dict[Site, Float[Array, "b _"]]:
    """Compute pooled activations ``[b, d]`` of a batch by site; the residual streams they come from stay inside.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.pipeline import encode_batch
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> encode_batch(subject, subject.tokenize(["some text"]))[subject.sites[0]].shape
      (1, 384)
    """
    return space.encode(tokens)


@jax.jit
def encode_norms(
    space: FeatureSpace, tokens: Tokens
) -> tuple[dict[Site, Float[Array, "b _"]], dict[Site, Float[Array, " b"]], Float[Array, " b"]]:
    """Compute the same with the sums of the token norms by site, nan where the space has none, and the tokens."""
    count = jnp.sum(tokens.mask, axis=1, dtype=jnp.float32)
    if isinstance(space, NormedSpace):
        return *space.encode_norms(tokens), count
    return space.encode(tokens), {site: jnp.full_like(count, jnp.nan) for site in space.widths}, count


@jax.jit
def encode_poolings(
    space: Subject, tokens: Tokens
) -> tuple[dict[str, dict[Site, Float[Array, "b _"]]], dict[Site, Float[Array, " b"]], Float[Array, " b"]]:
    """Compute the same by every pooling of a subject."""
    return *space.encode_poolings(tokens), jnp.sum(tokens.mask, axis=1, dtype=jnp.float32)


@jax.jit
def encode_peaks(space: FeatureSpace, tokens: Tokens) -> dict[Site, Pooled]:
    """Compute the same with the token of each peak."""
    return space.pooled(tokens)
