"""The Concept Atlas: a foundation model, a sparse autoencoder on one of its sites, and labels for its features."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from atlas_jax.errors import AtlasError
from atlas_jax.labels import Hit, Labels, TextIndex
from atlas_jax.models import LanguageModel, check_site, forward, resolve
from atlas_jax.pooling import POOLINGS, Pooled, spoil
from atlas_jax.sae import SparseAutoencoder
from atlas_jax.types import Site, Tokens

MANIFEST = "atlas.json"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConceptAtlas:
    """A feature space whose features have names, and the queries one can put to it (section 3.4).

    A pytree whose leaves are the parameters of the model and of the SAE.

    Attributes:
      model: the foundation language model.
      sae: the sparse autoencoder.
      site: where the SAE reads the model.
      labels: what its features mean.
      pooling: a key of :data:`atlas_jax.pooling.POOLINGS`.

    Example:
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> atlas.query(features=[3, 5]).sum().item()
      2.0
    """

    model: Any
    sae: Any
    site: Site = dataclasses.field(metadata={"static": True})
    labels: Labels = dataclasses.field(metadata={"static": True})
    pooling: str = dataclasses.field(default="max", metadata={"static": True})

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, dtype: str = "float32") -> "ConceptAtlas":
        """Load an atlas directory: ``atlas.json`` names the model, the SAE, its site and the labels.

        Raises:
          AtlasError: for a missing or damaged part, or parts that do not fit each other.
        """
        directory = resolve(directory)
        path = directory / MANIFEST
        if not path.is_file():
            raise AtlasError(f"{directory} has no {MANIFEST}, so it is no Concept Atlas; build one with atlas build")
        try:
            manifest = json.loads(path.read_text())
            model, sae, labels, site = (manifest[k] for k in ("model", "sae", "labels", "site"))
        except (json.JSONDecodeError, KeyError) as e:
            raise AtlasError(f"{path} is damaged ({e!r}); build the atlas again") from e
        return cls.of(
            LanguageModel.from_pretrained(_part(directory, model), dtype=dtype),
            SparseAutoencoder.from_pretrained(_part(directory, sae)),
            site,
            Labels.load(_part(directory, labels)),
        )

    @classmethod
    def of(
        cls, model: LanguageModel, sae: SparseAutoencoder, site: Site | str, labels: Labels, pooling: str = "max"
    ) -> "ConceptAtlas":
        """Put the parts together and check that they fit.

        Raises:
          AtlasError: if the SAE does not read activations of the site's width, or labels are of another width.
        """
        site = check_site(model.config, site)
        width = model.config.width(site.point)
        if sae.config.d_in != width:
            raise AtlasError(f"the SAE reads {sae.config.d_in} features, and {site} of the model has {width}")
        if labels.n_features != sae.config.d_sae:
            raise AtlasError(f"the labels are for {labels.n_features} features, and the SAE has {sae.config.d_sae}")
        return cls(model, sae, site, labels, pooling)

    @property
    def width(self) -> int:
        """Number of features, ``d_c``."""
        return self.sae.config.d_sae

    @property
    def widths(self) -> dict[Site, int]:
        """Features by site, as of every feature space."""
        return {self.site: self.width}

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site features are read at."""
        return (self.site,)

    def tokenize(self, texts: Sequence[str], **options: Any) -> Tokens:
        """As :meth:`LanguageModel.tokenize`."""
        return self.model.tokenize(texts, **options)

    def pooled(self, tokens: Tokens) -> dict[Site, Pooled]:
        """Pooled SAE activations ``[b, d_c]``, with the position of each peak; nan where the model's are not finite."""
        pool = lambda x: spoil(POOLINGS[self.pooling](self.sae.encode(x), tokens.mask), x, tokens.mask)
        return forward(self.model.decoder, tokens, capture=self.sites, logits=False, pool=pool).acts

    def encode(self, tokens: Tokens) -> dict[Site, Float[Array, "b d_c"]]:
        """Pooled SAE activations, by site as of every feature space."""
        return {site: pooled.values for site, pooled in self.pooled(tokens).items()}

    def activations(self, texts: Sequence[str]) -> Float[Array, "n d_c"]:
        """Pooled SAE activations of a few texts, in one batch.

        Raises:
          AtlasError: if there is no text.
        """
        return _pooled(self, self.tokenize(texts))

    def query(self, features: Sequence[int], weights: Sequence[float] | None = None) -> Float[Array, " d_c"]:
        """The concept query with the given features set to one, or to their weights.

        Raises:
          AtlasError: for no feature, one the atlas does not have, or as many weights as not features.
        """
        ids = np.asarray(list(features), np.int64)
        if not len(ids):
            raise AtlasError("a concept query needs at least one atlas feature")
        if outside := ids[(ids < 0) | (ids >= self.width)].tolist():
            raise AtlasError(f"atlas feature {outside[0]} does not exist; this atlas has 0 to {self.width - 1}")
        if weights is not None and len(weights) != len(ids):
            raise AtlasError(f"{len(ids)} features need as many weights, and {len(weights)} were given")
        q = np.zeros(self.width, np.float32)
        q[ids] = 1.0 if weights is None else np.asarray(weights, np.float32)
        return jnp.asarray(q)

    def search(self, text: str, k: int = 10) -> list[Hit]:
        """The features whose labels are closest to a text, best first."""
        return _index(self.labels).search(text, k)

    def query_text(self, text: str, k: int = 5) -> Float[Array, " d_c"]:
        """The concept query of the k best labels, weighted by similarity. See :meth:`search` for which they are.

        Raises:
          AtlasError: if no label has anything to do with the text.
        """
        hits = self.search(text, k)
        if not hits:
            raise AtlasError(f"no label of this atlas matches '{text}'; try other words, or give feature ids")
        return self.query([h.index for h in hits], [h.weight for h in hits])

    def query_from(self, texts: Sequence[str], contrast: Sequence[str] | None = None) -> Float[Array, " d_c"]:
        """The mean pooled activation over texts, minus that over ``contrast`` where given.

        Subtract ``Translation.mean_atlas`` from a query without contrast before translating it.

        Raises:
          AtlasError: if there is no text.
        """
        mean = jnp.mean(self.activations(texts), axis=0)
        return mean if contrast is None else mean - jnp.mean(self.activations(contrast), axis=0)

    def save_pretrained(
        self, directory: str | Path, metadata: dict[str, Any] | None = None, *, dtype: str | None = None
    ) -> None:
        """Write the model, the SAE (Gemma Scope layout), the labels and the manifest into a directory.

        Args:
          directory: where to.
          metadata: plain values to keep in the manifest.
          dtype: of the stored model parameters, their own by default.
        """
        directory = Path(directory)
        self.model.save_pretrained(directory / "model", dtype=dtype)
        self.sae.save_pretrained(directory / "sae")
        self.labels.save(directory / "labels.jsonl")
        manifest = {"model": "model", "sae": "sae", "labels": "labels.jsonl", "site": str(self.site)}
        (directory / MANIFEST).write_text(json.dumps(manifest | {"metadata": metadata or {}}, indent=2))


@jax.jit
def _pooled(atlas: ConceptAtlas, tokens: Tokens) -> Float[Array, "b d_c"]:
    return atlas.encode(tokens)[atlas.site]


def _part(directory: Path, name: str) -> str | Path:
    """A part beside the manifest, or else a path or hub name of its own."""
    return directory / name if (directory / name).exists() else name


@functools.lru_cache(maxsize=4)
def _index(labels: Labels) -> TextIndex:
    return TextIndex.of(labels)
