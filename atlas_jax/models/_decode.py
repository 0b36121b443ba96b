"""The compiled part of generation: prompt and decoding over a key-value cache, every row with its own edits."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from atlas_jax.models._cache import LayerCache, grow, trim
from atlas_jax.models._decoder import Decoder, Taps
from atlas_jax.models._forward import blocks, positions
from atlas_jax.types import Site, Tokens, Where

# Decoding goes in stretches, each of which adds a block to the cache, so that attention reads few empty slots. Every
# stretch is compiled on its own, which pays off only for many tokens; an accelerator reads faster and compiles for
# longer, so it needs more of them.
MOST_STRETCHES = 8
TOKENS_A_STRETCH = 1400
TOKENS_A_STRETCH_ON_ACCELERATORS = 32768


class Sampling(NamedTuple):
    """Sampling options; every field has one entry a row.

    Attributes:
      temperature: 0 takes the most likely token.
      top_k: keep this many most likely tokens; 0 keeps all.
      top_p: keep the fewest most likely tokens whose probabilities reach this, among those ``top_k`` left.
      keys: one random key a row, so that a row's text does not depend on its neighbours.
    """

    temperature: Float[Array, " b"]
    top_k: Int[Array, " b"]
    top_p: Float[Array, " b"]
    keys: UInt[Array, "b 2"]


def argmax(x: Float[Array, "b v"]) -> Int[Array, " b"]:
    """Index of the first maximum of each row, searched by blocks; several times faster than ``jnp.argmax`` on a CPU."""
    blocks = x.reshape(x.shape[0], -1, math.gcd(x.shape[1], 256))
    best = _first_maximum(jnp.max(blocks, axis=-1))
    inside = jnp.take_along_axis(blocks, best[:, None, None], axis=1)[:, 0]
    return best * blocks.shape[2] + _first_maximum(inside)


def _first_maximum(x: Float[Array, "b v"]) -> Int[Array, " b"]:
    v = x.shape[-1]
    index = jnp.broadcast_to(jnp.arange(v, dtype=jnp.int32)[None, :], x.shape)
    best = jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), index, v), axis=-1)
    return jnp.minimum(best, v - 1)


def sample(logits: Float[Array, "b v"], sampling: Sampling, step: Int[Array, ""]) -> Int[Array, " b"]:
    """One token a row: temperature, then ``top_k``, then ``top_p`` of what ``top_k`` left."""
    order = jnp.argsort(-logits, axis=-1)
    t = sampling.temperature[:, None]
    ranked = jnp.take_along_axis(logits, order, axis=-1) / jnp.where(t > 0, t, 1.0)
    ranked = jnp.where(_kept(ranked, sampling), ranked, -jnp.inf)
    keys = jax.vmap(jax.random.fold_in, (0, None))(sampling.keys, step)
    choice = jax.vmap(jax.random.categorical)(keys, ranked)
    drawn = jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0]
    return jnp.where(sampling.temperature > 0, drawn.astype(jnp.int32), argmax(logits))


def _kept(ranked: Float[Array, "b v"], sampling: Sampling) -> Bool[Array, "b v"]:
    rank = jnp.arange(ranked.shape[-1])[None, :]
    k = jnp.where(sampling.top_k > 0, sampling.top_k, ranked.shape[-1])[:, None]
    p = jax.nn.softmax(jnp.where(rank < k, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(p, axis=-1) - p
    top_p = sampling.top_p[:, None]
    return (rank < k) & ((before < top_p) | (top_p >= 1.0) | (rank == 0))


class Request(NamedTuple):
    """Prompts to continue and how.

    Attributes:
      tokens: prompts, padded on the left.
      prompt_of: the prompt of each row where rows share prompts; None where every row has its own.
      embeddings: vectors that enter the first block in place of the prompts' token embeddings, or None.
      edits: edits by site.
      sampling: options of each row.
    """

    tokens: Tokens
    prompt_of: Int[Array, " b"] | None
    embeddings: Float[Array, "b t d"] | None
    edits: dict[Site, Any]
    sampling: Sampling


class State(NamedTuple):
    """State of a generation.

    Attributes:
      ids: new tokens, the first ``step`` of each row filled.
      step: tokens generated so far.
      token: the last one of each row; an end-of-text token stays.
      done: true for rows that have ended.
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
    state = _start(decoder, request, n, greedy)
    chunk = max(1, -(-(n - 1) // stretches(n * state.done.shape[0], jax.default_backend())))
    for done in range(1, n, chunk):
        until = min(done + chunk, n)
        state = _advance(decoder, request, _with_room(decoder, request, state, until - done), jnp.int32(until), greedy)
    return state


def stretches(tokens: int, backend: str) -> int:
    """Number of stretches for ``tokens`` new tokens of all rows together.

    Example:
      >>> from atlas_jax.models._decode import stretches
      >>> stretches(11_200, "cpu"), stretches(11_200, "gpu")
      (8, 1)
    """
    return min(
        MOST_STRETCHES, 1 + tokens // (TOKENS_A_STRETCH if backend == "cpu" else TOKENS_A_STRETCH_ON_ACCELERATORS)
    )


@partial(jax.jit, static_argnames=("n", "greedy"))
def start(decoder: Decoder, request: Request, n: int, greedy: bool) -> State:
    """Read the prompts, choose the first of ``n`` tokens, and make room for the others."""
    state = _start(decoder, request, n, greedy)
    return _with_room(decoder, request, state, n - 1) if n > 1 else state


@partial(jax.jit, static_argnames=("greedy",), donate_argnames=("state",))
def advance(decoder: Decoder, request: Request, state: State, until: Int[Array, ""], greedy: bool) -> State:
    """Generate until ``until`` tokens are there or all rows have ended. Consumes ``state``."""
    return _advance(decoder, request, state, until, greedy)


def _start(decoder: Decoder, request: Request, n: int, greedy: bool) -> State:
    """The state after the prompts, with caches that have no room yet.

    Up to the first edited layer every prompt is read once, however many rows continue it.
    """
    layers = decoder.config.num_layers
    x, position, time = decoder.embed_tokens(request.tokens.ids), positions(request.tokens), jnp.int32(0)
    x = decoder.enter(x if request.embeddings is None else request.embeddings.astype(x.dtype), position)
    caches, shared = ((),) * layers, 0
    if request.prompt_of is not None:
        shared = min((site.layer for site in request.edits), default=layers)
        taps = Taps(Where(position, jnp.max(position, axis=1) + 1), (), {}, None)
        x, first = blocks(decoder, x, position, time, taps, range(shared), caches[:shared])
        x, position, first = jax.tree.map(lambda a: a[request.prompt_of], (x, position, first))
        caches = first + caches[shared:]
    rows = x.shape[0]
    nothing = State(
        jnp.zeros((rows, n), jnp.int32), jnp.int32(0), jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool), caches
    )
    state = _step(decoder, request, nothing, x, position, time, greedy, shared)
    return state._replace(caches=trim(decoder.config, state.caches, _text_length(request, state)))


def _with_room(decoder: Decoder, request: Request, state: State, slots: int) -> State:
    return state._replace(caches=grow(decoder.config, state.caches, slots, _text_length(request, state)))


def _text_length(request: Request, state: State) -> int:
    """Length of the prompts with all tokens that will follow."""
    return request.tokens.ids.shape[1] + state.ids.shape[1]


def _advance(decoder: Decoder, request: Request, state: State, until: Int[Array, ""], greedy: bool) -> State:
    length = request.tokens.ids.shape[1]
    prompt_length = _prompt_length(request)

    def body(state: State) -> State:
        x = decoder.embed_tokens(state.token[:, None])
        position = (prompt_length + state.step - 1)[:, None]
        x = decoder.enter(x, position)
        return _step(decoder, request, state, x, position, length + state.step - 1, greedy)

    return jax.lax.while_loop(lambda s: (s.step < until) & ~s.done.all(), body, state)


def _step(
    decoder: Decoder,
    request: Request,
    state: State,
    x: Float[Array, "b t d"],
    position: Int[Array, "b t"],
    time: Int[Array, ""],
    greedy: bool,
    first: int = 0,
) -> State:
    """Run the tokens at ``time`` of the padded batch from block ``first`` on, and choose each row's next one."""
    taps = Taps(Where(position, _prompt_length(request)), (), request.edits, None)
    config = decoder.config
    x, caches = blocks(decoder, x, position, time, taps, range(first, config.num_layers), state.caches[first:])
    logits = decoder.logits(x[:, -1])
    token = argmax(logits) if greedy else sample(logits, request.sampling, state.step)
    token = jnp.where(state.done, state.token, token)
    ids = jax.lax.dynamic_update_slice_in_dim(state.ids, token[:, None], state.step, axis=1)
    ended = (token[:, None] == jnp.asarray(config.eos_ids, jnp.int32)[None, :]).any(axis=1)
    return State(ids, state.step + 1, token, state.done | ended, state.caches[:first] + caches)


def _prompt_length(request: Request) -> Int[Array, " b"]:
    length = jnp.max(positions(request.tokens), axis=1) + 1
    return length if request.prompt_of is None else length[request.prompt_of]
