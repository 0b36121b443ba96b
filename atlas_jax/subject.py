"""The subject as a feature space: some sites of a model, pooled over each sentence."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from atlas_jax.errors import AtlasError
from atlas_jax.models import LanguageModel, check_site, forward
from atlas_jax.pooling import (
    POOLINGS,
    Pooled,
    norm_sum,
    propagate_nonfinite,
    without_outliers,
    without_place,
)
from atlas_jax.stored import StoredModel, pooled_rows
from atlas_jax.types import Site, Tokens, sites_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Subject:
    """A feature space: ``tokenize(texts)`` then ``encode(tokens) -> {site: [b, d]}``.

    A pytree whose leaves are the model's parameters; ``encode`` may be called inside a jitted function.

    Attributes:
      model: the language model, or stored activations in its place.
      sites: where features are read.
      pooling: a key of :data:`atlas_jax.pooling.POOLINGS`.
      further: other poolings that one pass can read beside it, see :meth:`encode_poolings`.
      outlier: tokens whose norm exceeds this many times the median of their sentence's are not pooled; None pools all.

    Example:
      >>> from atlas_jax import LanguageModel, Subject
      >>> from atlas_jax.bundled import SUBJECT
      >>> subject = Subject.from_model(LanguageModel.from_pretrained(SUBJECT), ["mlp_act.1"])
      >>> [a.shape for a in subject.encode(subject.tokenize(["some text"])).values()]
      [(1, 384)]
    """

    model: Any
    sites: tuple[Site, ...] = dataclasses.field(metadata={"static": True})
    pooling: str = dataclasses.field(default="max", metadata={"static": True})
    further: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    outlier: float | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def from_model(
        cls,
        model: LanguageModel | StoredModel,
        sites: Sequence[Site | str] | Site | str,
        pooling: str = "max",
        further: Sequence[str] = (),
    ) -> "Subject":
        """Make a subject of a model, checking the sites and the poolings.

        Raises:
          AtlasError: for no site, one the model does not have, an unknown pooling, or one that stored rows do not have.
        """
        sites = sites_of(sites)
        if not sites:
            raise AtlasError("no site was given; name at least one, such as mlp_act.0")
        for name in (pooling, *further):
            if not isinstance(name, str) or name not in POOLINGS:
                raise AtlasError(f"unknown pooling '{name}'; known are {', '.join(POOLINGS)}")
        if isinstance(model, StoredModel):
            model.check_poolings((pooling, *further))
        return cls(model, tuple(check_site(model.config, s) for s in sites), pooling, tuple(further))

    of = from_model  # its name until 0.1

    @property
    def widths(self) -> dict[Site, int]:
        """Features of each site."""
        return {site: self.model.config.width(site) for site in self.sites}

    @property
    def site(self) -> Site:
        """The site of a subject that has one alone, as the second side of an alignment must.

        Raises:
          AtlasError: if there are several.
        """
        if len(self.sites) > 1:
            raise AtlasError(f"one site is needed here, and this subject has {', '.join(map(str, self.sites))}")
        return self.sites[0]

    @property
    def width(self) -> int:
        """Features of the one site."""
        return self.widths[self.site]

    def features(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Features of activations at single tokens: the activations."""
        return x

    def counted(self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Bool[Array, "b t"]:
        """The positions that count, without those of outlying norm where :attr:`outlier` is set."""
        return without_outliers(x, mask, self.outlier)

    def tokenize(self, texts: Sequence[str], **options: Any) -> Tokens:
        """Tokenize texts, see :meth:`LanguageModel.tokenize`."""
        return self.model.tokenize(texts, **options)

    @property
    def poolings(self) -> tuple[str, ...]:
        """Every pooling once, :attr:`pooling` first."""
        return tuple(dict.fromkeys((self.pooling, *self.further)))

    def pooled(self, tokens: Tokens) -> dict[Site, Pooled]:
        """Pooled activations of every site, with the position of each peak; nan in rows that are not finite."""
        pool = lambda x: self._pool(x, tokens.mask, self.pooling)
        return forward(self.model.decoder, tokens, capture=self.sites, logits=False, pool=pool).acts

    def encode(self, tokens: Tokens) -> dict[Site, Float[Array, "b d"]]:
        """Pooled activations of every site."""
        return {site: pooled.values for site, pooled in self.pooled(tokens).items()}

    def encode_norms(self, tokens: Tokens) -> tuple[dict[Site, Float[Array, "b d"]], dict[Site, Float[Array, " b"]]]:
        """Pooled activations of every site, and the sums of its token norms over the tokens that count."""
        acts, norms = self.encode_poolings(tokens)
        return acts[self.pooling], norms

    def encode_poolings(
        self, tokens: Tokens
    ) -> tuple[dict[str, dict[Site, Float[Array, "b d"]]], dict[Site, Float[Array, " b"]]]:
        """The same by every pooling, from one pass through the model."""
        pool = lambda x: (
            {name: self._pool(x, tokens.mask, name).values for name in self.poolings},
            jnp.full(len(x), jnp.nan) if pooled_rows(self.model) else norm_sum(x, tokens.mask),
        )
        acts = forward(self.model.decoder, tokens, capture=self.sites, logits=False, pool=pool).acts
        by_pooling = {name: {site: values[name] for site, (values, _) in acts.items()} for name in self.poolings}
        return by_pooling, {site: norm for site, (_, norm) in acts.items()}

    def _pool(self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"], pooling: str) -> Pooled:
        pooled = propagate_nonfinite(POOLINGS[pooling](x, self.counted(x, mask)), x, mask)
        return without_place(pooled) if pooled_rows(self.model) else pooled
