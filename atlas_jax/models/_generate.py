"""Generation: prompt and decoding in one compiled program, every row with its own edits."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.errors import AtlasError
from atlas_jax.models._decode import Request, Sampling, State, advance, complete, start
from atlas_jax.models._forward import check_edits, shard_rows
from atlas_jax.models._language_model import LanguageModel
from atlas_jax.types import Tokens


class Generation(NamedTuple):
    """Result of :func:`generate`.

    Attributes:
      ids: new token ids; after a row's end-of-text token, that token repeats.
      texts: the new text of each row, without the prompt but with the space that separates them, so that prompt and
        text make the whole.
      lengths: new tokens of each row before its end-of-text token.

    Example:
      >>> import numpy as np
      >>> from atlas_jax.models import Generation
      >>> Generation(np.array([[5, 1]]), [" value"], np.array([1])).texts
      [' value']
    """

    ids: Int[np.ndarray, "b n"]
    texts: list[str]
    lengths: Int[np.ndarray, " b"]


def generate(
    model: LanguageModel,
    prompts: Any,
    *,
    max_new_tokens: int,
    edits: Any = None,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    seed: int | Sequence[int] = 0,
    stream: Callable[[Generation], None] | None = None,
    stream_every: int = 1,
    skip_special_tokens: bool = True,
    prompt_length: int = 0,
) -> Generation:
    """Continue prompts, with edits at any sites during prompt and decoding.

    Args:
      model: the language model.
      prompts: texts (one string is one prompt); or rows of token ids taken as they are, such as
        :meth:`LanguageModel.chat` gives; or arrays ``[t, d]`` that enter the first block in place of embedded tokens
        (``inputs_embeds`` in transformers; Gemma's embeddings are already scaled there).
      max_new_tokens: tokens to add to each prompt, fewer where an end-of-text token comes first.
      edits: as in :func:`run`; arrays with a row axis give each prompt its own edit.
      temperature: 0 is greedy. Like ``top_k``, ``top_p`` and ``seed``, one value or one a row.
      top_k: sample among this many most likely tokens; 0 among all.
      top_p: sample among the most likely tokens that together reach this probability.
      seed: one value seeds row i with ``seed + i``; a row's text depends on its own seed alone.
      stream: called with all that was generated so far, every ``stream_every`` tokens and at the end.
      stream_every: tokens between two calls of ``stream``.
      skip_special_tokens: leave special tokens out of the texts.
      prompt_length: tokens to which shorter prompts are padded, so that prompts of several lengths share one compiled
        program; their texts are the same.

    Returns:
      :class:`Generation`.

    Raises:
      AtlasError: for no prompt, an empty one, prompts of several kinds, more tokens than the model's context, an id
        the model does not have, sampling options out of range, or an edit that does not fit.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models import LanguageModel, generate
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> generate(lm, ["Return the"], max_new_tokens=4).ids.shape
      (1, 4)
    """
    n = max_new_tokens
    if n < 1 or stream_every < 1:
        raise AtlasError(f"max_new_tokens {n} and stream_every {stream_every} must be at least 1")
    prompts, kind = _prompts(prompts)
    ids = _prompt_ids(model, prompts, kind)
    tokens, prompt_of, embeddings = _prompt_batch(model, prompts, ids, n, kind, prompt_length)
    edits = check_edits(model.config, edits, len(ids))
    sampling = _sampling(len(ids), temperature, top_k, top_p, seed)
    batch = shard_rows((tokens, prompt_of, embeddings), model.decoder)
    request = Request(*batch, edits, shard_rows(sampling, model.decoder))
    greedy = not np.any(np.asarray(temperature) > 0)
    before = [[]] * len(ids) if kind == "embeddings" else ids
    read = lambda state, n: _read(model, before, state, n, skip_special_tokens)
    if stream is None:
        return read(complete(model.decoder, request, n, greedy), n)
    state = start(model.decoder, request, n, greedy)
    for until in (*range(stream_every, n, stream_every), n):
        state = advance(model.decoder, request, state, jnp.int32(until), greedy)
        stream(read(state, int(state.step)))
        if bool(state.done.all()):
            break
    return read(state, n)


def _read(
    model: LanguageModel, prompts: list[list[int]], state: State, n: int, skip_special_tokens: bool
) -> Generation:
    """The first ``n`` tokens of each row, ended rows filled up with their end-of-text token."""
    ids = np.array(state.ids[:, :n])
    ids[:, int(state.step) :] = np.asarray(state.token)[:, None]
    ends = np.isin(ids, model.config.eos_ids)
    lengths = np.where(ends.any(axis=1), ends.argmax(axis=1), n)
    parts = zip(prompts, ids, lengths, strict=True)
    text = lambda prompt, new: model.tokenizer.continuation(prompt, new, skip_special_tokens=skip_special_tokens)
    return Generation(ids, [text(prompt, row[:k].tolist()) for prompt, row, k in parts], lengths)


def _sampling(rows: int, temperature: Any, top_k: Any, top_p: Any, seed: Any) -> Sampling:
    seeds = np.arange(seed, seed + rows) if np.ndim(seed) == 0 else np.asarray(seed)
    in_range = (
        ("temperature", temperature, lambda x: np.isfinite(x) & (x >= 0), "finite and not negative"),
        ("top_k", top_k, lambda x: x >= 0, "not negative"),
        ("top_p", top_p, lambda x: (x > 0) & (x <= 1), "above 0 and at most 1"),
    )
    for name, value, good, wanted in in_range:
        if not np.all(good(np.asarray(value))):
            raise AtlasError(f"{name} {value} must be {wanted}")
    return Sampling(
        _per_row("temperature", temperature, rows, np.float32),
        _per_row("top_k", top_k, rows, np.int32),
        _per_row("top_p", top_p, rows, np.float32),
        jax.vmap(jax.random.PRNGKey)(_per_row("seed", seeds, rows, np.uint32)),
    )


def _prompts(prompts: Any) -> tuple[list, str]:
    """Return the prompts as a list and their kind: "texts", "ids" or "embeddings"."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise AtlasError("there is no prompt; give at least one")
    kinds = {_kind(p) for p in prompts}
    if len(kinds) > 1:
        raise AtlasError(f"prompts are {' and '.join(sorted(kinds))} at once; give all of one kind")
    return prompts, kinds.pop()


def _kind(prompt: Any) -> str:
    if isinstance(prompt, str):
        return "texts"
    array = np.asarray(prompt)
    if array.ndim == 1 and (array.dtype.kind in "iu" or not array.size):
        return "ids"
    if array.ndim == 2 and np.isfinite(np.asarray(array, np.float32)).all():
        return "embeddings"
    raise AtlasError(
        f"a prompt is a text, a row of token ids or an array [t, d] of finite numbers, not {str(prompt)[:60]}"
    )


def _prompt_ids(model: LanguageModel, prompts: list, kind: str) -> list[list[int]]:
    """Token ids of each prompt; an embedded prompt gets a zero for each of its vectors."""
    if kind == "texts":
        ids = model.tokenizer.encode(prompts)
    else:
        ids = [[0] * len(p) if kind == "embeddings" else np.asarray(p, np.int64).tolist() for p in prompts]
    if empty := [i for i, row in enumerate(ids) if not row]:
        raise AtlasError(f"prompt {empty[0]} has no token; give a text that is not empty")
    return ids


def _prompt_batch(
    model: LanguageModel, prompts: list, rows: list[list[int]], n: int, kind: str, least: int
) -> tuple[Tokens, Int[Array, " b"] | None, Float[Array, "b t d"] | None]:
    """Pad the prompts; return them, the prompt of each row if rows share prompts, and given embeddings."""
    longest, context = max(map(len, rows)), model.config.max_positions
    if longest + n > context:
        raise AtlasError(f"a prompt of {longest} tokens and {n} new ones exceed the model's context of {context}")
    length = min(-(-max(longest, least) // 4) * 4, context - n)
    embedded = kind == "embeddings"
    rows, prompt_of = (rows, None) if embedded else _shared(rows)
    tokens = model.tokenizer.pad(rows, length, range(len(rows)), side="left")
    return tokens, prompt_of, _pad_embeddings(prompts, length, model.config.hidden_size) if embedded else None


def _shared(rows: list[list[int]]) -> tuple[list[list[int]], Int[Array, " b"] | None]:
    """Distinct prompts and the prompt of each row, if at most half as many as rows; else sharing would only retrace."""
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
