r"""The Jacobian lens: directions named in the model's own vocabulary, by the average Jacobian of its final residual.

For a site with activations :math:`a_t`, and the residual stream :math:`h_t` between the last block and the final norm,

.. math:: J = \operatorname{mean}_{texts} |V|^{-1} \sum_{t, u \in V} \partial h_u / \partial a_t ,

where V are the tokens of a text that count: a mean over the tokens that are moved, a sum over those that this moves.
It is the estimator of Gurnee et al. 2026 and of the lenses published with it; there V leaves out 16 tokens, here one.
"""

import dataclasses
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from safetensors import safe_open
from safetensors.numpy import save_file

from atlas_jax.checks import as_count, as_texts, finite_numbers
from atlas_jax.errors import AtlasError
from atlas_jax.files import local_or_hub, new_file, reading
from atlas_jax.models import (
    Decoder,
    LanguageModel,
    check_site,
    fingerprint_difference,
    forward,
    numerical_fingerprint,
    positions,
)
from atlas_jax.pipeline import SentenceStream
from atlas_jax.progress import Progress
from atlas_jax.sharding import to_host
from atlas_jax.subject import Subject
from atlas_jax.types import Site, Tokens, Where, sites_of

FILE = "lens.safetensors"
BLOCK = 256  # directions that are named at a time


class LensToken(NamedTuple):
    """A token by which a direction is named.

    Attributes:
      id: of the token.
      text: of the token, its leading space included.
      score: change of its logit by the direction, where the final residual is of root mean square 1.

    Example:
      >>> from atlas_jax.lens import LensToken
      >>> LensToken(17, " dog", 2.5)._asdict()
      {'id': 17, 'text': ' dog', 'score': 2.5}
    """

    id: int
    text: str
    score: float


@dataclasses.dataclass(frozen=True, eq=False)
class JacobianLens:
    """Average Jacobians of a model's final residual with respect to its sites, and what they say about directions.

    Attributes:
      model: the model, whose unembedding reads the final residual.
      matrices: by site, float32 ``[d, width]``: what an activation of the site adds to the final residual.
      sentences: that are averaged over.
      facts: how it was fitted, as plain values.

    Example:
      >>> import atlas_jax as aj
      >>> from atlas_jax.bundled import SUBJECT
      >>> lm = aj.LanguageModel.from_pretrained(SUBJECT)
      >>> lens = aj.JacobianLens.fit(lm, ["Return the value of the key.", "Close the file."], ["resid_post.2"])
      >>> lens.matrices[aj.Site("resid_post", 2)].shape
      (128, 128)
      >>> [named.text for named in lens.name(lens.direction(" file", "resid_post.2"), "resid_post.2", k=1)]
      [' file']
      >>> [len(tokens) for tokens in lens.name_features([17, 40], "resid_post.2", k=3)]
      [3, 3]
      >>> import tempfile
      >>> aj.JacobianLens.from_pretrained(lens.save_pretrained(tempfile.mkdtemp()), lm).sentences
      2
    """

    model: LanguageModel
    matrices: Mapping[Site, Float[np.ndarray, "d w"]]
    sentences: int
    facts: Mapping[str, Any]

    @classmethod
    def fit(
        cls,
        model: LanguageModel,
        texts: Sequence[str],
        sites: Sequence[Site | str] | Site | str | None = None,
        *,
        skip: int = 1,
        max_length: int = 128,
        token_budget: int = 1024,
        progress: Progress | None = None,
    ) -> "JacobianLens":
        """Average the Jacobian over texts, by one backward pass a batch and dimension of the residual stream.

        All sites come out of the same passes, and memory does not grow with the number of texts.

        Args:
          model: the language model.
          texts: a few hundred suffice.
          sites: where directions are to be named; by default the residual stream after every block.
          skip: tokens at the beginning of a text that do not count, since attention gathers there; nor do special
            tokens, nor the last token, which predicts nothing.
          max_length: tokens at which texts are cut.
          token_budget: tokens of a batch, padding included.
          progress: called after every batch.

        Raises:
          AtlasError: for no text, texts too short to have a token that counts, or a site that the model does not have
            or that can only be read.
        """
        skip = as_count(skip, "the number of tokens to skip", least=0)
        every = [Site("resid_post", layer) for layer in range(model.config.num_layers)]
        subject = Subject.from_model(model, every if sites is None else sites)
        if wrong := [s for s in subject.sites if s.point == "head_norm"]:
            raise AtlasError(f"{wrong[0]} can only be read; fit the lens at z.{wrong[0].layer}")
        options = {"max_length": max_length, "token_budget": token_budget}
        stream = SentenceStream.from_texts([subject], as_texts(texts), **options)
        zeros = {s: jnp.zeros((model.config.hidden_size, width), jnp.float32) for s, width in subject.widths.items()}
        state = zeros, jnp.zeros((), jnp.int32)
        for (tokens,) in stream.batches(stage="lens", progress=progress):
            state = _add(state, model.decoder, tokens, skip)
        count = int(state[1])
        if not count:
            raise AtlasError(
                f"no text has a token that counts behind the first {skip}; give longer texts, or skip fewer"
            )
        facts = {"skip": skip, "max_length": stream.max_length, "fingerprint": numerical_fingerprint(subject)}
        return cls(model, {site: to_host(state[0][site]) / count for site in subject.sites}, count, facts)

    def name(self, directions: Any, site: Site | str, k: int = 10) -> "list[LensToken] | list[list[LensToken]]":
        """Return the k tokens whose logits a direction raises most, best first.

        Args:
          directions: ``[width]`` of the site, or several ``[n, width]``, each of which gets a list.
          site: of the lens.
          k: tokens to return.

        Raises:
          AtlasError: for a site the lens does not have, directions of another width or not finite, or k past the
            vocabulary.
        """
        matrix, x = self._matrix(site), np.asarray(finite_numbers(directions, "the direction"), np.float32)
        if x.ndim not in (1, 2) or x.shape[-1] != matrix.shape[1]:
            raise AtlasError(f"a direction at {site} has {matrix.shape[1]} features, got an array of shape {x.shape}")
        k = as_count(k, "the number of tokens", most=self.model.config.vocab_size)
        named = []
        for start in range(0, len(rows := np.atleast_2d(x)), BLOCK):
            top = _top(self.model.decoder, jnp.asarray(rows[start : start + BLOCK] @ matrix.T), k)
            named += [list(zip(*row, strict=True)) for row in zip(*(part.tolist() for part in top), strict=True)]
        text = lambda i: self.model.tokenizer.decode([i], skip_special_tokens=False)
        tokens = [[LensToken(i, text(i), score) for score, i in row] for row in named]
        return tokens if x.ndim == 2 else tokens[0]

    def name_features(self, features: Sequence[int], site: Site | str, k: int = 10) -> list[list[LensToken]]:
        """Return the tokens of some features of a site, each of which is a direction: a neuron, say.

        Raises:
          AtlasError: as :meth:`name`, or for a feature that the site does not have.
        """
        width = self._matrix(site).shape[1]
        chosen = [as_count(i, f"a feature of {site}", least=0, most=width - 1) for i in features]
        return self.name(np.eye(width, dtype=np.float32)[chosen], site, k) if chosen else []

    def direction(self, token: str | int, site: Site | str) -> Float[np.ndarray, " w"]:
        """Return the pull-back of a token: the direction at a site that raises its logit most, of no given length.

        Args:
          token: its text, with the leading space that most tokenizers keep, or its id.
          site: of the lens.

        Raises:
          AtlasError: for a site the lens does not have, or a text that is not one token of the model.
        """
        matrix, one = self._matrix(site), self._token(token)
        return np.asarray(_pull(self.model.decoder, jnp.asarray(one))) @ matrix

    def save_pretrained(self, directory: str | os.PathLike) -> Path:
        """Write ``lens.safetensors``, a matrix a site, with its facts in the header; never seen half-written.

        Raises:
          AtlasError: if the directory cannot be written.
        """
        record = json.dumps({"sentences": self.sentences, **self.facts})
        with new_file(Path(directory) / FILE) as file:
            save_file({str(s): np.ascontiguousarray(x) for s, x in self.matrices.items()}, file, {"lens": record})
        return Path(directory)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike, model: LanguageModel) -> "JacobianLens":
        """Read what :meth:`save_pretrained` wrote, from a directory or a repository of the hub (``owner/name``).

        Args:
          directory: where it is; or a published lens, a file ``.pt``, in which layer k is ``resid_post.k``.
          model: the model that it was fitted on. A published lens has no fingerprint to tell it from others as wide.

        Raises:
          AtlasError: if the file is missing or damaged, or was fitted on another model, or on this one by other code.
        """
        path = local_or_hub(directory)
        matrices, sentences, facts = _read_published(path) if path.suffix == ".pt" else _read(path / FILE)
        config, other = model.config, f"the lens in '{directory}' was fitted on another model"
        for site, matrix in matrices.items():
            if matrix.shape != (config.hidden_size, config.width(check_site(config, site))):
                raise AtlasError(f"{other}: {site} has a matrix of {matrix.shape} there; give that model")
        fingerprint = facts.get("fingerprint")
        if fingerprint and (changed := fingerprint_difference(fingerprint, Subject.from_model(model, list(matrices)))):
            raise AtlasError(f"{other}, or its forward pass has changed: {changed}; fit the lens again")
        return cls(model, matrices, sentences, facts)

    def _matrix(self, site: Site | str) -> Float[np.ndarray, "d w"]:
        (wanted,) = sites_of(site)
        if wanted not in self.matrices:
            raise AtlasError(f"this lens has no matrix of {site}; it has {', '.join(map(str, self.matrices))}")
        return self.matrices[wanted]

    def _token(self, token: str | int) -> int:
        """The id of a token."""
        tokenizer = self.model.tokenizer
        if not isinstance(token, str):
            return as_count(token, "the id of a token", least=0, most=self.model.config.vocab_size - 1)
        ids = [i for i in tokenizer.encode([token])[0] if i not in tokenizer.special_ids]
        if len(ids) != 1:
            parts = " + ".join(repr(tokenizer.decode([i])) for i in ids) or "nothing"
            raise AtlasError(
                f"{token!r} is {parts} to this model's tokenizer; give one token, such as ' the', or its id"
            )
        return ids[0]


_Stored = tuple[dict[Site, Float[np.ndarray, "d w"]], int, dict[str, Any]]


def _read(path: Path) -> _Stored:
    with reading(path, "fit the lens again"), safe_open(path, "numpy") as file:
        facts = json.loads((file.metadata() or {})["lens"])
        matrices = {Site.parse(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return matrices, int(facts.pop("sentences")), facts


def _read_published(path: Path) -> _Stored:
    """The layout of ``neuronpedia/jacobian-lens``: matrices by layer in half precision, and the number of prompts."""
    try:
        import torch
    except ImportError:
        raise AtlasError(f"'{path}' is a torch file: install torch to read it (pip install torch)") from None
    with reading(path, "fetch it again"):
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as e:
            raise ValueError(str(e).splitlines()[0]) from e
        matrices = {Site("resid_post", int(layer)): x.float().numpy() for layer, x in stored["J"].items()}
        return matrices, int(stored["n_prompts"]), {}


class _Move(NamedTuple):
    """The addition of one vector to the tokens that count, shared among them by weight."""

    vector: Float[Array, " w"]
    weight: Float[Array, "b t"]

    def __call__(self, x: Float[Array, "b t w"], where: Where) -> Float[Array, "b t w"]:
        return x + (self.weight[:, :, None] * self.vector[None, None, :]).astype(x.dtype)


_State = tuple[dict[Site, Float[Array, "d w"]], Int[Array, ""]]


@partial(jax.jit, donate_argnums=0, static_argnames="skip")
def _add(state: _State, decoder: Decoder, tokens: Tokens, skip: int) -> _State:
    """Add the Jacobians of a batch of texts to their sums, and the number of texts.

    What is differentiated takes a vector of each site to the sum of the final residuals over the tokens that count.
    """
    sums, count = state
    position = positions(tokens)
    last = jnp.max(position, axis=1, keepdims=True)
    counts = (tokens.mask & (position >= skip) & (position < last)).astype(jnp.float32)
    share = counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1.0)
    final = Site("resid_post", decoder.config.num_layers - 1)

    def moved(vectors: dict[Site, Float[Array, " w"]]) -> Float[Array, " d"]:
        edits = {site: _Move(vector, share) for site, vector in vectors.items()}
        h = forward(decoder, tokens, capture=[final], edits=edits, logits=False).acts[final]
        return jnp.einsum("btd,bt->d", h.astype(jnp.float32), counts, precision=jax.lax.Precision.HIGHEST)

    _, pull = jax.vjp(moved, {site: jnp.zeros(x.shape[1], jnp.float32) for site, x in sums.items()})
    (jacobians,) = jax.lax.map(pull, jnp.eye(decoder.config.hidden_size))  # XLA for CPUs gets several at once wrong
    return jax.tree.map(jnp.add, sums, jacobians), count + jnp.sum(jnp.any(counts > 0, axis=1))


# The final norm is x / size(x) times a matrix, plus a bias. At zero its size is the square root of epsilon and does not
# change, so the derivative of the logits there is that matrix and the unembedding: without bias, and inside any cap.


@partial(jax.jit, static_argnames="k")
def _top(decoder: Decoder, x: Float[Array, "n d"], k: int) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """The k largest changes of logits by final residuals, and their tokens."""
    dtype, size = decoder.norm.weight[...].dtype, jnp.sqrt(jnp.float32(decoder.config.norm_eps))
    x = x.astype(dtype)
    return tuple(jax.lax.top_k(size * jax.jvp(decoder.logits, (jnp.zeros_like(x),), (x,))[1], k))


@jax.jit
def _pull(decoder: Decoder, token: Int[Array, ""]) -> Float[Array, " d"]:
    """The gradient of a token's logit with respect to the final residual, at root mean square 1."""
    dtype, size = decoder.norm.weight[...].dtype, jnp.sqrt(jnp.float32(decoder.config.norm_eps))
    zero = jnp.zeros(decoder.config.hidden_size, dtype)
    return size * jax.grad(lambda x: decoder.logits(x)[token])(zero).astype(jnp.float32)
