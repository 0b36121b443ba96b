"""Generation: prompt and decoding in one compiled program, every row with its own edits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.models._decode import Request, State, advance, complete, start
from atlas_jax.models._language_model import LanguageModel
from atlas_jax.models._partition import shard_rows
from atlas_jax.models._run import check_edits
from atlas_jax.models._sampling import Sampling
from atlas_jax.types import Site, Tokens


class Generation(NamedTuple):
    """What was generated.

    Attributes:
      ids: new token ids ``[b, n]``; after a row's end-of-text token, that token repeats.
      texts: the new text of each row, without the prompt.
      lengths: new tokens of each row before its end-of-text token.
    """

    ids: Int[np.ndarray, "b n"]
    texts: list[str]
    lengths: Int[np.ndarray, " b"]


def generate(
    model: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]] | Sequence[Float[Array | np.ndarray, "_ d"]],
    *,
    max_new_tokens: int,
    edits: Mapping[Site | str, Any] | None = None,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    seed: int | Sequence[int] = 0,
    stream: Callable[[Generation], None] | None = None,
    stream_every: int = 1,
) -> Generation:
    """Continue prompts, with edits at any sites during prompt and decoding.

    Args:
      model: the language model.
      prompts: texts; or rows of token ids taken as they are; or arrays ``[t, d]`` that enter the first block in place
        of embedded tokens (``inputs_embeds`` in transformers; Gemma's embeddings are already scaled there).
      max_new_tokens: tokens to add to each prompt, fewer where an end-of-text token comes first.
      edits: as in :func:`run`; arrays with a row axis give each prompt its own edit.
      temperature: 0 is greedy. Like ``top_k``, ``top_p`` and ``seed``, one value or one a row.
      top_k: sample among this many most likely tokens; 0 among all.
      top_p: sample among the most likely tokens that together reach this probability.
      seed: one value seeds row i with ``seed + i``; a row's text depends on its own seed alone.
      stream: called with all that was generated so far, every ``stream_every`` tokens and at the end.
      stream_every: tokens between two calls of ``stream``.

    Returns:
      :class:`Generation`.

    Raises:
      AtlasError: for no prompt, an empty one, more tokens than the model's context, or an edit that does not fit.

    Example:
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> generate(lm, ["Return the"], max_new_tokens=4).ids.shape
      (1, 4)
    """
    n, rows = max_new_tokens, len(prompts)
    if n < 1 or stream_every < 1:
        raise AtlasError(f"max_new_tokens {n} and stream_every {stream_every} must be at least 1")
    tokens, prompt_of, embeddings = _prompt_batch(model, prompts, n)
    edits = check_edits(model.config, edits or {}, rows)
    sampling = _sampling(rows, temperature, top_k, top_p, seed)
    batch = shard_rows((tokens, prompt_of, embeddings), model.decoder)
    request = Request(*batch, edits, shard_rows(sampling, model.decoder))
    greedy = not np.any(np.asarray(temperature) > 0)
    if stream is None:
        return _read(model, complete(model.decoder, request, n, greedy), n)
    state = start(model.decoder, request, n, greedy)
    for until in (*range(stream_every, n, stream_every), n):
        state = advance(model.decoder, request, state, jnp.int32(until), greedy)
        stream(_read(model, state, int(state.step)))
        if bool(state.done.all()):
            break
    return _read(model, state, n)


def _read(model: LanguageModel, state: State, n: int) -> Generation:
    """The first ``n`` tokens of each row, ended rows filled up with their end-of-text token."""
    ids = np.array(state.ids[:, :n])
    ids[:, int(state.step) :] = np.asarray(state.token)[:, None]
    ends = np.isin(ids, model.config.eos_ids)
    lengths = np.where(ends.any(axis=1), ends.argmax(axis=1), n)
    return Generation(
        ids, [model.tokenizer.decode(row[:k].tolist()) for row, k in zip(ids, lengths, strict=True)], lengths
    )


def _sampling(rows: int, temperature: Any, top_k: Any, top_p: Any, seed: Any) -> Sampling:
    seeds = np.arange(seed, seed + rows) if np.ndim(seed) == 0 else np.asarray(seed)
    return Sampling(
        _per_row("temperature", temperature, rows, np.float32),
        _per_row("top_k", top_k, rows, np.int32),
        _per_row("top_p", top_p, rows, np.float32),
        jax.vmap(jax.random.PRNGKey)(_per_row("seed", seeds, rows, np.uint32)),
    )


def _prompt_batch(
    model: LanguageModel, prompts: Sequence, n: int
) -> tuple[Tokens, Int[Array, " b"] | None, Float[Array, "b t d"] | None]:
    """The padded prompts, which of them each row has if rows share prompts, and their embeddings if those are given."""
    if not len(prompts):
        raise AtlasError("there is no prompt; give at least one")
    embedded = np.ndim(prompts[0]) == 2
    texts = isinstance(prompts[0], str)
    rows = model.tokenizer.encode(prompts) if texts else [[0] * len(p) if embedded else list(p) for p in prompts]
    if empty := [i for i, row in enumerate(rows) if not row]:
        raise AtlasError(f"prompt {empty[0]} has no token; give a text that is not empty")
    longest, context = max(map(len, rows)), model.config.max_positions
    if longest + n > context:
        raise AtlasError(f"a prompt of {longest} tokens and {n} new ones exceed the model's context of {context}")
    length = min(-(-longest // 4) * 4, context - n)
    rows, prompt_of = (rows, None) if embedded else _shared(rows)
    tokens = model.tokenizer.pad(rows, length, range(len(rows)), side="left")
    return tokens, prompt_of, _pad_embeddings(prompts, length, model.config.hidden_size) if embedded else None


def _shared(rows: list[list[int]]) -> tuple[list[list[int]], Int[Array, " b"] | None]:
    """Distinct prompts and the prompt of each row, if those are at most half as many: others would only retrace."""
    place: dict[tuple[int, ...], int] = {}
    prompt_of = [place.setdefault(tuple(row), len(place)) for row in rows]
    return (rows, None) if 2 * len(place) > len(rows) else ([list(p) for p in place], jnp.asarray(prompt_of, jnp.int32))


def _pad_embeddings(prompts: Sequence, length: int, width: int) -> Float[Array, "b t d"]:
    if wrong := [p.shape for p in prompts if np.shape(p)[1:] != (width,)]:
        raise AtlasError(f"input embeddings of shape {wrong[0]} do not fit a model of width {width}")
    return jnp.stack([jnp.pad(jnp.asarray(p), ((length - len(p), 0), (0, 0))) for p in prompts])


def _per_row(name: str, value: Any, rows: int, dtype: type) -> Array:
    value = np.asarray(value).astype(dtype)
    if value.ndim and value.shape != (rows,):
        raise AtlasError(f"{name} has {value.shape[0]} values for {rows} prompts; give one, or one a prompt")
    return jnp.asarray(np.broadcast_to(value, (rows,)))
