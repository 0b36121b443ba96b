"""The nouns that every layer shares: sites, token batches, and the result of a forward pass.

Axis letters used throughout: ``b`` rows of a batch, ``t`` token positions, ``d`` width of a site,
``d_s`` subject features, ``d_c`` atlas features, ``n`` samples, ``q`` queries, ``v`` vocabulary.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

from atlas_jax.checks import as_count
from atlas_jax.errors import AtlasError

POINTS: dict[str, str] = {
    "resid_pre": "residual stream entering the block",
    "attn_in": "input of the query, key and value projections (after the pre-attention norm, where there is one)",
    "z": "attention output of every head, concatenated, before the output projection; z.LAYER.HEAD is one head's",
    "head_norm": "norm of every attention head's part of z, one feature a head; for reading alone",
    "attn_out": "output projection of attention, before any post-attention norm",
    "attn_out_post": "what attention adds to the residual stream (after the post-norm where there is one)",
    "resid_mid": "residual stream between attention and MLP",
    "mlp_in": "input of the gate and up projections (after the pre-MLP norm, where there is one)",
    "mlp_gate_act": "activation function applied to the gate projection",
    "mlp_act": "input of the down projection: act(gate) * up, or act(up) without a gate",
    "mlp_out": "output of the down projection, before any post-MLP norm",
    "mlp_out_post": "what the MLP adds to the residual stream (after the post-norm where there is one)",
    "resid_post": "residual stream leaving the block (= hidden_states[layer + 1] in transformers, except in the last)",
}

_TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out_post",
    "hook_mlp_out": "mlp_out_post",
    "attn.hook_z": "z",
    "attn.hook_out": "attn_out",
    "mlp.hook_out": "mlp_out",
    "mlp.hook_post": "mlp_act",
}


@functools.total_ordering
@dataclasses.dataclass(frozen=True)
class Site:
    """A named place in a decoder: ``point`` of block ``layer`` (0-based), written ``mlp_act.19``.

    Layer k means block k, so ``resid_post.k`` is ``hidden_states[k + 1]`` in transformers. The last block is the
    exception: there transformers returns the state after the final norm, and ``resid_post`` is the one before it.
    ``z.19.5`` is attention head 5 (0-based) of block 19 alone, its part of ``z.19``.

    Raises:
      AtlasError: for an unknown point, a layer or a head that is no whole number from 0 up, a head of anything but
        ``z``, or a malformed name.

    Example:
      >>> from atlas_jax import Site
      >>> Site.parse("mlp_act.19")
      Site('mlp_act.19')
      >>> Site.parse("blocks.19.mlp.hook_post") == Site("mlp_act", 19)
      True
      >>> Site.parse("z.19.5").head
      5
    """

    point: str
    layer: int
    head: int | None = None

    def __post_init__(self) -> None:
        if self.point not in POINTS:
            raise AtlasError(f"unknown point '{self.point}' of a site; known are {', '.join(POINTS)}")
        object.__setattr__(self, "layer", as_count(self.layer, "the layer of a site", least=0))
        if self.head is not None:
            object.__setattr__(self, "head", as_count(self.head, "the head of a site", least=0))
            if self.point != "z":
                raise AtlasError(f"only z has heads, as in z.{self.layer}.{self.head}; {self.point} has none")

    def __lt__(self, other: "Site") -> bool:
        return self._place < other._place

    @property
    def _place(self) -> tuple[str, int, int]:
        return self.point, self.layer, -1 if self.head is None else self.head

    @classmethod
    def parse(cls, name: Any) -> "Site":
        """Read ``point.layer``, ``z.layer.head`` or a TransformerLens hook name."""
        if isinstance(name, Site):
            return name
        if not isinstance(name, str):
            raise AtlasError(f"a site is text such as mlp_act.3, or a Site, not {name!r}")
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            point = _TRANSFORMER_LENS.get(match[2])
            if point is None:
                raise AtlasError(f"unknown TransformerLens hook '{match[2]}'; known are {', '.join(_TRANSFORMER_LENS)}")
            return cls(point, int(match[1]))
        match = re.fullmatch(r"(\w+)\.(\d+)(?:\.(\d+))?", name)
        if match is None or match[1] not in POINTS:
            raise AtlasError(f"unknown site '{name}'; write POINT.LAYER with a point of {', '.join(POINTS)}")
        return cls(match[1], int(match[2]), None if match[3] is None else int(match[3]))

    def __str__(self) -> str:
        return f"{self.point}.{self.layer}" + ("" if self.head is None else f".{self.head}")

    def __repr__(self) -> str:
        return f"Site('{self}')"


def sites_of(names: Any) -> tuple[Site, ...]:
    """Sites by name, each once, in their order; one name alone is one site.

    Raises:
      AtlasError: as :meth:`Site.parse`.

    Example:
      >>> from atlas_jax import Site
      >>> from atlas_jax.types import sites_of
      >>> sites_of("mlp_act.3"), sites_of(["mlp_act.3", Site("mlp_act", 3), "z.0"])
      ((Site('mlp_act.3'),), (Site('mlp_act.3'), Site('z.0')))
    """
    if isinstance(names, str | Site):
        names = (names,)
    if not isinstance(names, Iterable):
        raise AtlasError(f"sites are a list of names such as mlp_act.3, not {names!r}")
    return tuple(dict.fromkeys(map(Site.parse, names)))


def edits_by_site(edits: Any) -> dict[Site, Any]:
    """Return edits by site; several at one site are a list under one name.

    Raises:
      AtlasError: for anything but a mapping, a site that is named twice, or as :meth:`Site.parse`.

    Example:
      >>> from atlas_jax.types import edits_by_site
      >>> edits_by_site({"mlp_act.3": "an edit"})
      {Site('mlp_act.3'): 'an edit'}
    """
    if not isinstance(edits, Mapping | None):
        kind = type(edits).__name__
        raise AtlasError(f"edits are a mapping from sites to edits, such as {{'mlp_act.3': edit}}, not a {kind}")
    by_site: dict[Site, Any] = {}
    for name, edit in (edits or {}).items():
        site = Site.parse(name)
        if site in by_site:
            raise AtlasError(f"{site} is named twice among the edits; give its edits as one list, in their order")
        by_site[site] = edit
    return by_site


class Tokens(NamedTuple):
    """A rectangular batch of token ids.

    Attributes:
      ids: token ids; padding holds any valid id.
      mask: the positions that count when pooling: true for content, false for BOS, special tokens and padding.
      index: the sentence id of each row, -1 for rows that only fill the batch.
      attention_mask: true for every real token, BOS and special ones included; None when nothing is padded.
      acts: activations read from disk, in the place of what a model would compute; None for a model to compute them.

    Example:
      >>> from atlas_jax import LanguageModel
      >>> from atlas_jax.bundled import SUBJECT
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> tokens = lm.tokenize(["a short text", "a"])
      >>> tokens.mask.sum(axis=1).tolist(), tokens.index.tolist()
      ([3, 1], [0, 1])
    """

    ids: Int[Array, "b t"]
    mask: Bool[Array, "b t"]
    index: Int[Array, " b"]
    attention_mask: Bool[Array, "b t"] | None = None
    acts: dict[Site, Float[Array, "b t _"]] | None = None


class Run(NamedTuple):
    """The result of a forward pass.

    Attributes:
      logits: float32, None where the pass stopped at the last captured layer.
      acts: one array per captured site, ``[b, t, d]``, or ``[b, d]`` when pooled inside the pass.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax import Run, Site
      >>> result = Run(logits=None, acts={Site("mlp_act", 1): jnp.zeros((2, 384))})
      >>> [str(site) for site in result.acts]
      ['mlp_act.1']
    """

    logits: Float[Array, "b t v"] | None
    acts: dict[Site, Float[Array, "b *t d"]]


class Where(NamedTuple):
    """Positions, in their texts, of the rows handed to an edit.

    Attributes:
      position: 0-based position among the real tokens of a row, -1 on padding.
      prompt_length: real tokens of the row's prompt; positions from there on were generated.

    Example:
      >>> import jax.numpy as jnp
      >>> from atlas_jax.types import Where
      >>> where = Where(position=jnp.array([[0, 1, 2]]), prompt_length=jnp.array([2]))
      >>> (where.position >= where.prompt_length[:, None]).tolist()
      [[False, False, True]]
    """

    position: Int[Array, "b t"]
    prompt_length: Int[Array, " b"]


@runtime_checkable
class FeatureSpace(Protocol):
    """One side of an alignment: text to tokens, and tokens to one row of features a sentence.

    ``model`` has a ``config`` and a ``tokenizer``; ``widths`` is the number of features of each site; ``pooled`` gives
    the features with the positions of their peaks, and ``encode`` the features alone, ``{site: [b, d]}``. Both are
    pure functions of the space's arrays, so they may be called inside ``jax.jit``.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.types import FeatureSpace
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> isinstance(subject, FeatureSpace)
      True
    """

    model: Any

    @property
    def widths(self) -> dict[Site, int]:
        """Features of each site."""

    def tokenize(self, texts: Sequence[str], **options: Any) -> Tokens:
        """Encode texts into one padded batch."""

    def pooled(self, tokens: Tokens) -> dict[Site, Any]:
        """Pooled activations of every site, with the position of each peak."""

    def encode(self, tokens: Tokens) -> dict[Site, Float[Array, "b d"]]:
        """Pooled activations of every site."""


@runtime_checkable
class NormedSpace(FeatureSpace, Protocol):
    """A feature space that also measures the size of its activations, the unit of steering strengths.

    Example:
      >>> from atlas_jax import ConceptAtlas, LanguageModel, Subject
      >>> from atlas_jax.bundled import ATLAS, SUBJECT
      >>> from atlas_jax.types import NormedSpace
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> isinstance(subject, NormedSpace), isinstance(ConceptAtlas.from_pretrained(ATLAS), NormedSpace)
      (True, False)
    """

    def encode_norms(self, tokens: Tokens) -> tuple[dict[Site, Float[Array, "b d"]], dict[Site, Float[Array, " b"]]]:
        """Pooled activations of every site, and the sums of its token norms over the tokens that count."""
