"""Vectors into words: a vector goes into a verbalizer's prompt by an edit, and the text that follows is kept."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from atlas_jax.checks import as_count, as_texts, finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.files import local_or_hub, read_object
from atlas_jax.models import LanguageModel, Tokenizer, generate, merge_adapter
from atlas_jax.progress import Progress, unreported
from atlas_jax.steering import Add, Replace, at
from atlas_jax.types import Site, Where
from atlas_jax.verbalizers._contract import RAW, SQRT, Contract

ROW_BYTES = 2**30  # of keys, values and logits that decode at once
MOST_ROWS = 1024
_EXPLANATION = re.compile(r"<explanation>\s*(.*?)\s*</explanation>", re.DOTALL)


class Verbalization(NamedTuple):
    """What a verbalizer said of some vectors.

    Attributes:
      explanations: what stands between ``<explanation>`` and ``</explanation>``; the whole text without these.
      texts: all it said.

    Example:
      >>> from atlas_jax.verbalizers import Verbalization
      >>> Verbalization(["dogs"], ["<explanation>dogs</explanation>"]).explanations
      ['dogs']
    """

    explanations: list[str]
    texts: list[str]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Verbalization":
        """Find the explanations in texts."""
        matches = [_EXPLANATION.search(text) for text in texts]
        return cls([m[1] if m else t.strip() for m, t in zip(matches, texts, strict=True)], list(texts))


class _NormMatchedAdd(NamedTuple):
    """``h + strength ‖h‖ v`` with a unit vector v for each row."""

    direction: Any
    strength: Any

    @property
    def rows(self) -> int:
        return jnp.shape(self.direction)[0]

    def __call__(self, x: Float[Array, "b t d"], where: Where) -> Float[Array, "b t d"]:
        h = x.astype(jnp.float32)
        length = jnp.linalg.norm(h, axis=-1, keepdims=True)
        return (h + self.strength * length * self.direction[:, None, :]).astype(x.dtype)


def load_verbalizer(
    directory: str | Path, *, base: str | Path | None = None, dtype: str = "float32"
) -> tuple[LanguageModel, Contract]:
    """Load a verbalizer as published: a model in Hugging Face layout, or a LoRA adapter, with ``nla_meta.yaml``.

    Args:
      directory: local directory, or a repository on the hub.
      base: base model of an adapter; the one that its config names by default.
      dtype: as in :meth:`LanguageModel.from_pretrained`.

    Returns:
      The model, an adapter merged into it, and its contract.

    Raises:
      AtlasError: as :meth:`LanguageModel.from_pretrained`, :func:`merge_adapter` and :meth:`Contract.load`, and for a
        base model where there is no adapter.

    Example:
      >>> from atlas_jax.verbalizers import load_verbalizer  # doctest: +SKIP
      >>> model, contract = load_verbalizer("kitft/nla-qwen2.5-7b-L20-av")  # doctest: +SKIP
    """
    directory = local_or_hub(directory)
    contract = Contract.load(directory)
    adapter = read_object(directory / "adapter_config.json", missing={})
    if not adapter:
        if base is not None:
            raise AtlasError(f"{directory} is a whole model, so it needs no base model")
        return LanguageModel.from_pretrained(directory, dtype=dtype), contract
    named = adapter.get("base_model_name_or_path")
    if (base or named) is None:
        raise AtlasError(f"the adapter {directory} names no base model; give its directory or hub name as base")
    if base is not None and named and not Path(base).is_dir() and Path(base).name != Path(named).name:
        raise AtlasError(f"the adapter {directory} is for {named}, not for {base}; give its own base model")
    model = merge_adapter(LanguageModel.from_pretrained(base or named, dtype=dtype), directory)
    if not (directory / "tokenizer.json").is_file():
        return model, contract
    tokenizer = Tokenizer.load(directory, model.config.vocab_size)  # its chat template may be another
    return model.replace(tokenizer=tokenizer), contract


def verbalize(
    model: LanguageModel,
    vectors: Any,
    contract: Contract,
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    rows: int | None = None,
    progress: Progress | None = None,
) -> Verbalization:
    """Let a verbalizer explain vectors, many in one compiled program.

    The vector is an edit of the prompt's placeholder, at the input of block 0 or the output of a block, and decoding
    goes on from there without it.

    Args:
      model: the verbalizer.
      vectors: ``[d]`` or ``[n, d]``, such as decoder directions of an SAE on the stream it explains, or activations.
      contract: what it was trained with.
      max_new_tokens: tokens of a text.
      temperature: 0 is greedy.
      seed: one value seeds vector i with ``seed + i``.
      rows: vectors that decode at once; as many as fit :data:`ROW_BYTES` by default.
      progress: called with what is done.

    Raises:
      AtlasError: for vectors of another width, zero or not finite, or as :meth:`Contract.prompt`.

    Example:
      >>> import numpy as np
      >>> from atlas_jax import LanguageModel, verbalize
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.verbalizers import Contract
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> lm.tokenizer.hf.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
      >>> contract = Contract("It ({injection_char}) is:", "~", 95, None, 5.0, 128)
      >>> len(verbalize(lm, np.eye(128)[:3], contract, max_new_tokens=4).explanations)
      3
    """
    ids, position = contract.prompt(model)
    injected = _scaled(_checked(vectors, contract), contract)
    edits = lambda chunk: _edits(model, contract, injected[chunk], position)
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    prompts, seeds = [ids] * len(injected), _seeds(seed, len(injected), "vector")
    return _continued(model, prompts, edits, seeds, rows, progress, **options)


def verbalize_texts(
    model: LanguageModel,
    texts: Any,
    contract: Contract,
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    rows: int | None = None,
) -> Verbalization:
    """Let a verbalizer explain texts that stand where the vector would: a control, for nothing is injected.

    The placeholder itself as the text is the prompt without injection.

    Args:
      model: the verbalizer.
      texts: such as the tokens a feature fires on.
      contract: what it was trained with.
      max_new_tokens: tokens of a text.
      temperature: 0 is greedy.
      seed: one value seeds text i with ``seed + i``.
      rows: texts that decode at once.

    Raises:
      AtlasError: for no text, or as :func:`atlas_jax.generate`.

    Example:
      >>> from atlas_jax import LanguageModel
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.verbalizers import Contract, verbalize_texts
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> lm.tokenizer.hf.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
      >>> contract = Contract("It ({injection_char}) is:", "~", 5, None, "raw", 128)
      >>> len(verbalize_texts(lm, ["return, value"], contract, max_new_tokens=4).texts)
      1
    """
    texts = as_texts(texts)
    prompts = [model.chat([{"role": "user", "content": contract.message(text)}]) for text in texts]
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    seeds = _seeds(seed, len(prompts), "text")
    return _continued(model, prompts, lambda chunk: None, seeds, rows, None, **options)


def _seeds(seed: int | Sequence[int], n: int, what: str) -> Int[np.ndarray, " n"]:
    seeds = np.arange(seed, seed + n) if np.ndim(seed) == 0 else np.asarray(seed)
    if seeds.shape != (n,):
        raise AtlasError(f"there are {seeds.size} seeds for {n} {what}s; give one, or one a {what}")
    return seeds


def _continued(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    edits: Callable[[Int[np.ndarray, " r"]], Any],
    seeds: Int[np.ndarray, " n"],
    rows: int | None,
    progress: Progress | None,
    **options: Any,
) -> Verbalization:
    """Continue prompts in chunks of one shape, each with the edits of its rows."""
    longest, n = max(map(len, prompts)), len(prompts)
    most = _rows(model, longest + options["max_new_tokens"], n) if rows is None else min(n, as_count(rows, "rows"))
    report, texts = progress or unreported, []
    for start in range(0, n, most):
        chunk = np.minimum(np.arange(start, start + most), n - 1)  # the last is filled up, to run the same program
        own = {"edits": edits(chunk), "seed": seeds[chunk].tolist(), "prompt_length": longest}
        texts += generate(model, [prompts[i] for i in chunk], **own, **options).texts[: min(most, n - start)]
        report("verbalize", len(texts), n, 0)
    return Verbalization.of(texts)


def _checked(vectors: Any, contract: Contract) -> Float[np.ndarray, "n d"]:
    array = np.asarray(finite_numbers(vectors, "the vector"), np.float32)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] != contract.d_model or not len(array):
        raise AtlasError(
            f"this verbalizer explains vectors of width {contract.d_model}, and these have the shape "
            f"{np.shape(vectors)}; carry those of another model over a bridge"
        )
    if not (sound := (array != 0).any(axis=1)).all():
        raise AtlasError(f"vector {np.argmin(sound)} is zero, so there is nothing to explain; leave it out")
    return array


def _scaled(vectors: Float[np.ndarray, "n d"], contract: Contract) -> Float[np.ndarray, "n d"]:
    """Vectors at the contract's norm; unit vectors where its scale is a factor of the activation's norm."""
    if contract.scale == RAW:
        return vectors
    scale = contract.d_model**0.5 if contract.scale == SQRT else contract.scale
    scale = 1.0 if contract.how == "norm_matched_add" else scale
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) / np.float32(scale))


def _edits(
    model: LanguageModel, contract: Contract, vectors: Float[np.ndarray, "b d"], position: int
) -> dict[Site, Any]:
    embedded = contract.where == "embedding"
    vectors = jnp.asarray(vectors)
    if contract.how == "norm_matched_add":
        edit: Any = _NormMatchedAdd(vectors, jnp.float32(contract.scale))
    elif contract.how == "add":
        edit = Add(vectors)
    elif embedded:  # what learned positions add is added here too
        edit = Replace(model.decoder.enter(vectors[:, None], jnp.full((len(vectors), 1), position))[:, 0])
    else:
        edit = Replace(vectors)
    return {Site("resid_pre", 0) if embedded else Site("resid_post", contract.where): at(edit, [position])}


def _rows(model: LanguageModel, tokens: int, n: int) -> int:
    """Vectors a program: as few programs as fit the memory, all of one size."""
    config = model.config
    width = np.dtype(model.decoder.norm.weight[...].dtype).itemsize
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * max(width, 4)
    most = max(1, min(ROW_BYTES // (cache + 16 * config.vocab_size), MOST_ROWS))
    return -(-n // -(-n // most))
