"""The compiled part of generation: prompt and decoding over a key-value cache, every row with its own edits."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.models._cache import LayerCache, grow, init_cache
from atlas_jax.models._decoder import Decoder
from atlas_jax.models._run import blocks, positions
from atlas_jax.models._sampling import Sampling, argmax, sample
from atlas_jax.models._taps import Taps
from atlas_jax.types import Site, Tokens, Where

# Decoding goes in stretches, each with a cache just long enough, so attention reads little that is still empty.
STRETCHES = 4
SHORTEST_STRETCH = 24


class Request(NamedTuple):
    """What is to be generated.

    Attributes:
      tokens: prompts, padded on the left.
      embeddings: what enters the first block in place of the prompts' token embeddings, or None.
      edits: edits by site.
      sampling: how each row samples.
    """

    tokens: Tokens
    embeddings: Float[Array, "b t d"] | None
    edits: dict[Site, Any]
    sampling: Sampling


class State(NamedTuple):
    """Where a generation stands.

    Attributes:
      ids: new tokens, the first ``step`` of each row filled.
      step: tokens generated so far.
      token: the last one of each row; an end-of-text token stays.
      done: whether a row has ended.
      caches: keys and values of every layer.
    """

    ids: Int[Array, "b n"]
    step: Int[Array, ""]
    token: Int[Array, " b"]
    done: Bool[Array, " b"]
    caches: tuple[LayerCache, ...]


@partial(jax.jit, static_argnames=("n", "greedy"))
def complete(decoder: Decoder, request: Request, n: int, greedy: bool) -> State:
    """Read the prompts and generate ``n`` tokens, fewer when all rows end before."""
    state = _start(decoder, request, n, greedy, room=0)
    return _advance(decoder, request, state, jnp.int32(n), greedy)


@partial(jax.jit, static_argnames=("n", "greedy"))
def start(decoder: Decoder, request: Request, n: int, greedy: bool) -> State:
    """Read the prompts and choose the first of ``n`` tokens."""
    return _start(decoder, request, n, greedy, room=n)


@partial(jax.jit, static_argnames=("greedy",), donate_argnames=("state",))
def advance(decoder: Decoder, request: Request, state: State, until: Int[Array, ""], greedy: bool) -> State:
    """Generate until ``until`` tokens are there or all rows have ended. Consumes ``state``."""
    return _advance(decoder, request, state, until, greedy)


def _start(decoder: Decoder, request: Request, n: int, greedy: bool, room: int) -> State:
    """Caches have ``room`` for that many tokens after the prompt; :func:`_advance` makes more where it is needed."""
    rows, length = request.tokens.ids.shape
    position = positions(request.tokens)
    x = decoder.embed_tokens(request.tokens.ids)
    x = x if request.embeddings is None else request.embeddings.astype(x.dtype)
    state = State(
        jnp.zeros((rows, n), jnp.int32),
        jnp.int32(0),
        jnp.zeros(rows, jnp.int32),
        jnp.zeros(rows, bool),
        init_cache(decoder.config, rows, length + room, x.dtype),
    )
    return _step(decoder, request, state, x, position, jnp.int32(0), greedy)


def _advance(decoder: Decoder, request: Request, state: State, until: Int[Array, ""], greedy: bool) -> State:
    length, n = request.tokens.ids.shape[1], state.ids.shape[1]
    prompt_length = _prompt_length(request)

    def body(state: State) -> State:
        x = decoder.embed_tokens(state.token[:, None])
        position = (prompt_length + state.step - 1)[:, None]
        return _step(decoder, request, state, x, position, length + state.step - 1, greedy)

    stretch = max(SHORTEST_STRETCH, -(-n // STRETCHES))
    for end in (*range(stretch, n, stretch), n):
        state = state._replace(caches=grow(decoder.config, state.caches, length + end))
        stop = jnp.minimum(until, end)
        state = jax.lax.while_loop(lambda s, stop=stop: (s.step < stop) & ~s.done.all(), body, state)
    return state


def _step(
    decoder: Decoder,
    request: Request,
    state: State,
    x: Float[Array, "b t d"],
    position: Int[Array, "b t"],
    time: Int[Array, ""],
    greedy: bool,
) -> State:
    """Run tokens that stand at ``time`` of the padded batch, and choose the next one of each row."""
    taps = Taps(Where(position, _prompt_length(request)), (), request.edits, None)
    config = decoder.config
    x, caches = blocks(decoder, x, position, time, taps, config.num_layers, state.caches)
    logits = decoder.logits(x[:, -1])
    token = argmax(logits) if greedy else sample(logits, request.sampling, state.step)
    token = jnp.where(state.done, state.token, token)
    ids = jax.lax.dynamic_update_slice_in_dim(state.ids, token[:, None], state.step, axis=1)
    ended = (token[:, None] == jnp.asarray(config.eos_ids, jnp.int32)[None, :]).any(axis=1)
    return State(ids, state.step + 1, token, state.done | ended, caches)


def _prompt_length(request: Request) -> Int[Array, " b"]:
    return jnp.max(positions(request.tokens), axis=1) + 1
