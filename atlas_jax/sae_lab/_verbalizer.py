"""Training of a small verbalizer on a Concept Atlas: a vector of its residual stream in, words of a label out."""

import copy
import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.errors import AtlasError
from atlas_jax.models import Decoder, LanguageModel, Tokenizer, forward, run
from atlas_jax.progress import Progress, unreported
from atlas_jax.rows import unit
from atlas_jax.steering import Replace, at
from atlas_jax.types import Site, Tokens
from atlas_jax.verbalizers import Contract

AnyArray = Array | np.ndarray
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"
TEMPLATE = "about <{injection_char}>:"
PLACEHOLDERS = "㈎㈜㎡¤§~^|"
TOKENS_A_TEXT = 12  # whose activations are taken
MOST_TOKENS = 64  # of a text
LONGEST = 10.0  # times the median norm, beyond which an activation is left out


@dataclasses.dataclass(frozen=True)
class VerbalizerSettings:
    """All that determines a trained verbalizer besides the atlas and the text.

    Attributes:
      steps: number of steps.
      batch: vectors of a step.
      activations: share of them that are activations of the text, with the word they stand on; the others are decoder
        directions with their labels.
      held_out: share of the labelled features that are not trained on.
      learning_rate: peak of AdamW's learning rate.
      noise: length of the noise added to unit vectors.
      tokens: most tokens of a label.
      seed: seed of everything random.

    Example:
      >>> from atlas_jax.sae_lab import VerbalizerSettings
      >>> VerbalizerSettings(steps=100).batch
      48
    """

    steps: int = 600
    batch: int = 48
    activations: float = 0.5
    held_out: float = 0.15
    learning_rate: float = 1e-3
    noise: float = 0.3
    tokens: int = 8
    seed: int = 0


class TrainedVerbalizer(NamedTuple):
    """Result of :func:`train_verbalizer`.

    Attributes:
      model: the verbalizer, a fine-tuned copy of the atlas's model.
      contract: how it takes vectors.
      held_out: labelled features that it was not trained on.
      new_words: those of them whose label has no word of a label trained on.
      losses: training loss of every step, nats a token.

    Example:
      >>> from atlas_jax.sae_lab import TrainedVerbalizer
      >>> TrainedVerbalizer(None, None, [3, 8], [8], [7.5, 2.1]).losses[-1]
      2.1
    """

    model: Any
    contract: Any
    held_out: list[int]
    new_words: list[int]
    losses: list[float]


class _Examples(NamedTuple):
    vectors: Float[AnyArray, "n d"]
    ids: Int[AnyArray, "n t"]
    counted: Bool[AnyArray, "n t"]


def train_verbalizer(
    atlas: ConceptAtlas, texts: Sequence[str], settings: VerbalizerSettings, *, progress: Progress | None = None
) -> TrainedVerbalizer:
    """Fine-tune the atlas's model to name vectors of its own residual stream.

    A unit vector, brought to the median norm of token embeddings, replaces the embedding of a placeholder, and the
    model learns to go on with the words: of the label for an SAE's decoder direction, the word a token belongs to for
    an activation less its mean. The same arguments give the same model on one machine.

    Args:
      atlas: model, SAE and labels; the site is on the residual stream.
      texts: where activations are taken.
      settings: how.
      progress: called after every step.

    Raises:
      AtlasError: if the SAE does not decode into vectors as wide as the model, or there are fewer than ten labels.

    Example:
      >>> from atlas_jax import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> from atlas_jax.sae_lab import VerbalizerSettings, train_verbalizer
      >>> atlas, settings = ConceptAtlas.from_pretrained(ATLAS), VerbalizerSettings(steps=1, batch=4)
      >>> trained = train_verbalizer(atlas, ["Return the value.", "Raise an error."], settings)
      >>> len(trained.held_out), trained.contract.d_model
      (216, 160)
    """
    rng = np.random.default_rng(settings.seed)
    features, directions = np.array(atlas.labels.described()), np.asarray(atlas.sae.W_dec, np.float32)
    if directions.shape[1] != atlas.model.config.hidden_size:
        raise AtlasError(
            f"a verbalizer takes vectors of the residual stream, {atlas.model.config.hidden_size} wide, and this SAE "
            f"decodes into {directions.shape[1]} at {atlas.site}; give an atlas on resid_post"
        )
    if len(features) < 10:
        raise AtlasError(f"the atlas has {len(features)} labelled features, too few to train on; label more")
    model = _with_chat(atlas.model)
    contract = _contract(model, atlas.site)
    held, known = np.split(rng.permutation(features), [int(settings.held_out * len(features))])
    labels = {int(f): atlas.labels[int(f)] for f in features}
    prompt, place = contract.prompt(model)
    encode = partial(_encode, model, prompt, settings.tokens)
    sources = [encode(unit(directions[known]), [labels[int(f)] for f in known])]
    if settings.activations > 0:
        sources.append(encode(*_activations(model, atlas.site, texts, rng)))
    share = [1 - settings.activations, settings.activations][: len(sources)]
    batches = _batches(sources, [round(settings.batch * s / sum(share)) for s in share], settings.steps, rng)
    decoder, losses = _fit(model.decoder, batches, place, contract, settings, progress or unreported)
    words = {word for f in known for word in _words(labels[int(f)])}
    new = [int(f) for f in held if not words & set(_words(labels[int(f)]))]
    return TrainedVerbalizer(model.replace(decoder=decoder), contract, sorted(map(int, held)), sorted(new), losses)


def _with_chat(model: LanguageModel) -> LanguageModel:
    """The model with a chat template that is the message itself, unless it has one."""
    hf = copy.deepcopy(model.tokenizer.hf)
    bos = "" if model.tokenizer.bos_id is None else "{{ bos_token }}"
    hf.chat_template = hf.chat_template or bos + CHAT
    return model.replace(tokenizer=Tokenizer(hf, model.tokenizer.limit))


def _contract(model: LanguageModel, site: Site) -> Contract:
    """A contract with the first placeholder that is one token by itself and in the prompt."""
    ids = jnp.arange(model.config.vocab_size)[None]
    norm = float(np.median(np.linalg.norm(np.asarray(model.decoder.embed_tokens(ids)[0], np.float32), axis=1)))
    for char in PLACEHOLDERS:
        alone = model.tokenizer.backend.encode(char, add_special_tokens=False).ids
        contract = Contract(TEMPLATE, char, alone[-1], None, round(norm, 4), model.config.hidden_size, layer=site.layer)
        try:
            prompt, p = contract.prompt(model)
        except AtlasError:  # split, or merged with its neighbours, by this tokenizer
            continue
        return dataclasses.replace(contract, neighbours=(prompt[p - 1], prompt[p + 1]))
    raise AtlasError(f"none of {' '.join(PLACEHOLDERS)} is one token of this model; give a contract of your own")


def _activations(
    model: LanguageModel, site: Site, texts: Sequence[str], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n d"], list[str]]:
    """Unit activations of some tokens of each text, less their mean, and the words these tokens belong to."""
    rows, words = [], []
    for start in range(0, len(texts), 64):
        some = list(texts[start : start + 64])
        some += [some[-1]] * (64 - len(some))  # of one shape
        tokens = model.tokenize(some, length=MOST_TOKENS, max_length=MOST_TOKENS)
        acts = np.asarray(run(model, tokens, capture=[site], logits=False).acts[site], np.float32)
        spans = model.tokenizer.spans(some, MOST_TOKENS)
        for row in range(min(64, len(texts) - start)):
            for p in rng.permutation(len(spans[row]))[:TOKENS_A_TEXT]:
                if word := _word_at(some[row], *spans[row][p]):
                    rows.append(acts[row, p])
                    words.append(word)
    if not rows:
        raise AtlasError("the texts have no word of two letters; give more text")
    x = np.stack(rows) - np.mean(rows, axis=0)
    norm = np.linalg.norm(x, axis=1)
    kept = np.flatnonzero((norm > 0) & (norm <= LONGEST * np.median(norm)))
    return unit(x[kept]), [words[i] for i in kept]


def _word_at(text: str, start: int, end: int) -> str | None:
    over = (m[0] for m in re.finditer(r"\w{2,}", text) if m.start() < end and m.end() > start)
    return next(over, "").lower() or None


def _words(label: str) -> list[str]:
    return re.findall(r"\w+", label.lower())


def _encode(
    model: LanguageModel, prompt: list[int], most: int, vectors: Float[np.ndarray, "n d"], words: Sequence[str]
) -> _Examples:
    """Prompts with the words after them, ended by the end of text; only the words count."""
    texts = [f" {word}" for word in words]
    encoded = model.tokenizer.backend.encode_batch(texts, add_special_tokens=False)
    ids = np.full((len(words), len(prompt) + most), model.tokenizer.pad_id, np.int32)
    counted = np.zeros(ids.shape, bool)
    for i, e in enumerate(encoded):
        row = [*prompt, *e.ids[: most - 1], *model.config.eos_ids[:1]]
        ids[i, : len(row)], counted[i, len(prompt) : len(row)] = row, True
    return _Examples(vectors, ids, counted)


def _batches(
    sources: Sequence[_Examples], sizes: Sequence[int], steps: int, rng: np.random.Generator
) -> Iterator[_Examples]:
    for _ in range(steps):
        drawn = [rng.integers(0, len(s.ids), size) for s, size in zip(sources, sizes, strict=True)]
        fields = zip(*(tuple(x[i] for x in s) for s, i in zip(sources, drawn, strict=True)), strict=True)
        yield _Examples(*(np.concatenate(field) for field in fields))


def _fit(
    decoder: Decoder, batches: Iterator[_Examples], place: int, contract: Contract, settings: VerbalizerSettings,
    report: Progress,
) -> tuple[Decoder, list[float]]:  # fmt: skip
    graph, params = nnx.split(decoder)
    schedule = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, settings.steps // 20, settings.steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.95, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )
    key, state = jax.random.PRNGKey(settings.seed), optimizer.init(params)
    params, losses = jax.tree.map(jnp.copy, params), []  # those of the atlas are kept
    options = {"place": place, "scale": float(contract.scale), "noise": settings.noise}
    for step, batch in enumerate(batches):
        moved = _step(graph, optimizer, params, state, batch, jax.random.fold_in(key, step), **options)
        params, state, loss = moved
        losses.append(float(loss))
        report("train", step + 1, settings.steps, 0)
    return nnx.merge(graph, params), losses


@partial(jax.jit, static_argnames=("graph", "optimizer", "place"), donate_argnames=("params", "state"))
def _step(
    graph: Any, optimizer: Any, params: Any, state: Any, batch: _Examples, key: Array, *, place: int,
    scale: Float[Array, ""], noise: Float[Array, ""],
) -> tuple[Any, Any, Array]:  # fmt: skip
    vectors = batch.vectors + noise * jax.random.normal(key, batch.vectors.shape) / batch.vectors.shape[1] ** 0.5
    vectors = scale * vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)

    def loss(params: Any) -> Float[Array, ""]:
        every = jnp.ones(batch.ids.shape, bool)
        tokens = Tokens(batch.ids, every, jnp.arange(batch.ids.shape[0]), every)
        edits = {Site("resid_pre", 0): at(Replace(vectors), [place])}
        logits = forward(nnx.merge(graph, params), tokens, edits=edits).logits
        nats = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch.ids[:, 1:])
        return jnp.mean(nats, where=batch.counted[:, 1:])

    value, gradients = jax.value_and_grad(loss)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counts with floats
        updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value
