"""Generation: prompt and decoding in one compiled program, every row with its own edits."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from atlas_jax.errors import AtlasError
from atlas_jax.models._cache import LayerCache, init_cache
from atlas_jax.models._decoder import Context, Decoder
from atlas_jax.models._language_model import LanguageModel
from atlas_jax.models._run import blocks, check_edits, positions
from atlas_jax.models._sampling import Sampling, argmax, sample
from atlas_jax.models._taps import Taps
from atlas_jax.types import Site, Tokens, Where


class Generation(NamedTuple):
    """What was generated.

    Attributes:
      ids: new token ids ``[b, n]``; after a row's end-of-text token, that token repeats.
      texts: the new text of each row, without the prompt.
    """

    ids: Int[np.ndarray, "b n"]
    texts: list[str]


class _State(NamedTuple):
    ids: Int[Array, "b n"]
    step: Int[Array, ""]
    token: Int[Array, " b"]
    done: Bool[Array, " b"]
    caches: tuple[LayerCache, ...]


def generate(
    model: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    edits: Mapping[Site | str, Any] | None = None,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    seed: int | Sequence[int] = 0,
) -> Generation:
    """Continue prompts, with edits at any sites during prompt and decoding.

    Args:
      model: the language model.
      prompts: texts, or rows of token ids taken as they are.
      max_new_tokens: tokens to add to each prompt, fewer where an end-of-text token comes first.
      edits: as in :func:`run`; arrays with a row axis give each prompt its own edit.
      temperature: 0 is greedy. Like ``top_k``, ``top_p`` and ``seed``, one value or one a row.
      top_k: sample among this many most likely tokens; 0 among all.
      top_p: sample among the most likely tokens that together reach this probability.
      seed: one value seeds row i with ``seed + i``; a row's text depends on its own seed alone.

    Returns:
      :class:`Generation`.

    Raises:
      AtlasError: for no prompt, an empty one, or more tokens than the model's context.

    Example:
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> generate(lm, ["Return the"], max_new_tokens=4).ids.shape
      (1, 4)
    """
    tokens = _prompt_batch(model, prompts, max_new_tokens)
    rows = len(prompts)
    seeds = np.arange(seed, seed + rows) if isinstance(seed, int) else np.asarray(seed)
    sampling = Sampling(
        _per_row(temperature, rows, np.float32),
        _per_row(top_k, rows, np.int32),
        _per_row(top_p, rows, np.float32),
        jax.vmap(jax.random.PRNGKey)(jnp.asarray(seeds)),
    )
    greedy = not np.any(np.asarray(temperature) > 0)
    edits = check_edits(model.config, edits or {})
    ids = np.asarray(_generate(model.decoder, tokens, edits, sampling, max_new_tokens, greedy))
    return Generation(ids, [model.tokenizer.decode(_until(row, model.config.eos_ids)) for row in ids])


@partial(jax.jit, static_argnames=("n", "greedy"))
def _generate(
    decoder: Decoder, tokens: Tokens, edits: dict[Site, Any], sampling: Sampling, n: int, greedy: bool
) -> Int[Array, "b n"]:
    config, (rows, length) = decoder.config, tokens.ids.shape
    dtype = decoder.norm.weight[...].dtype
    position = positions(tokens)
    prompt_length = jnp.max(position, axis=1) + 1
    eos = jnp.asarray(config.eos_ids, jnp.int32)

    def step(x: Array, where: Where, time: Array, caches: tuple) -> tuple[Array, tuple]:
        taps = Taps(where, (), edits, None)
        x, caches = blocks(decoder, x, Context(where.position, time), taps, config.num_layers, caches)
        return decoder.logits(x[:, -1]), caches

    def choose(logits: Array, i: Array) -> Array:
        return argmax(logits) if greedy else sample(logits, sampling, i)

    def keep(state: _State, token: Array, caches: tuple) -> _State:
        token = jnp.where(state.done, state.token, token)
        ids = jax.lax.dynamic_update_slice_in_dim(state.ids, token[:, None], state.step, axis=1)
        ended = (token[:, None] == eos[None, :]).any(axis=1)
        return _State(ids, state.step + 1, token, state.done | ended, caches)

    def body(state: _State) -> _State:
        where = Where((prompt_length + state.step - 1)[:, None], prompt_length)
        logits, caches = step(decoder.embed_tokens(state.token[:, None]), where, length + state.step - 1, state.caches)
        return keep(state, choose(logits, state.step), caches)

    caches = init_cache(config, rows, length + n, dtype)
    logits, caches = step(
        decoder.embed_tokens(tokens.ids), Where(position, prompt_length), jnp.zeros((), jnp.int32), caches
    )
    start = _State(
        jnp.zeros((rows, n), jnp.int32), jnp.int32(0), jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool), caches
    )
    start = keep(start, choose(logits, start.step), caches)
    end = jax.lax.while_loop(lambda s: (s.step < n) & ~s.done.all(), body, start)
    filled = jnp.arange(n)[None, :] < end.step
    return jnp.where(filled, end.ids, end.token[:, None])


def _prompt_batch(model: LanguageModel, prompts: Sequence, n: int) -> Tokens:
    if not prompts:
        raise AtlasError("there is no prompt; give at least one")
    rows = [list(p) for p in prompts] if not isinstance(prompts[0], str) else model.tokenizer.encode(prompts)
    if empty := [i for i, row in enumerate(rows) if not row]:
        raise AtlasError(f"prompt {empty[0]} has no token; give a text that is not empty")
    longest = max(map(len, rows))
    if longest + n > model.config.max_positions:
        raise AtlasError(
            f"a prompt of {longest} tokens and {n} new ones exceed the model's context of {model.config.max_positions}"
        )
    length = min(-(-longest // 8) * 8, model.config.max_positions - n)
    return model.tokenizer.pad(rows, length, range(len(rows)), side="left")


def _per_row(value: Any, rows: int, dtype: type) -> Array:
    return jnp.asarray(np.broadcast_to(np.asarray(value, dtype), (rows,)))


def _until(ids: np.ndarray, eos_ids: tuple[int, ...]) -> np.ndarray:
    ends = np.flatnonzero(np.isin(ids, eos_ids))
    return ids[: ends[0]] if len(ends) else ids
