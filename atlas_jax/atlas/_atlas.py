"""The Concept Atlas: a foundation model, a sparse autoencoder on one of its sites, and labels for its features."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from atlas_jax.atlas._manifest import INDEX, Manifest, record_parts
from atlas_jax.atlas._query import feature_query, finite_vector
from atlas_jax.errors import AtlasError
from atlas_jax.files import new_directory
from atlas_jax.labels import Embedder, Hit, Labels, TextIndex, open_index
from atlas_jax.models import LanguageModel, check_site, fingerprint_difference, forward, numerical_fingerprint, resolve
from atlas_jax.pooling import POOLINGS, Pooled, propagate_nonfinite, without_place
from atlas_jax.sae import SparseAutoencoder
from atlas_jax.stored import StoredModel, pooled_rows
from atlas_jax.types import Site, Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConceptAtlas:
    """A feature space whose features have names, and the concept queries over it (section 3.4).

    A pytree whose leaves are the parameters of the model and of the SAE.

    Attributes:
      model: the foundation language model.
      sae: the sparse autoencoder.
      site: where the SAE reads the model.
      labels: what its features mean.
      pooling: a key of :data:`atlas_jax.pooling.POOLINGS`.
      mean: mean pooled activation of every feature on the atlas's own text, ``[d_c]``, None where it is not known.
      home: the directory it was loaded from.

    Example:
      >>> from atlas_jax import ConceptAtlas
      >>> from atlas_jax.bundled import ATLAS
      >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
      >>> atlas.query(features=[3, 5]).sum().item()
      2.0
    """

    model: Any
    sae: Any
    site: Site = dataclasses.field(metadata={"static": True})
    labels: Labels = dataclasses.field(metadata={"static": True})
    pooling: str = dataclasses.field(default="max", metadata={"static": True})
    mean: Any = None
    home: Path | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        verify: bool = False,
        stored: StoredModel | None = None,
        attention: str = "xla",
    ) -> "ConceptAtlas":
        """Load an atlas directory: ``atlas.json`` names the model, the SAE, its site and the labels.

        The sizes of all files are compared with those the atlas was built with; ``atlas info --verify`` compares
        their hashes.

        Args:
          directory: where it is.
          dtype: of the model's parameters and activations.
          mesh: a mesh with an axis "model" to shard the parameters over.
          verify: compute the forward pass on a fixed text, and warn if it is not the one the atlas was built with.
          stored: read in place of the model: pooled rows are features of sentences, token rows what the SAE reads.
          attention: the kernel that computes the model's, as of :meth:`LanguageModel.from_pretrained`.

        Raises:
          AtlasError: for a missing, damaged or exchanged part, or parts that do not fit each other.
        """
        directory = resolve(directory)
        manifest = Manifest.read(directory)
        manifest.check(directory)
        at = lambda part: manifest.location(directory, part)
        how = {"dtype": dtype, "mesh": mesh, "attention": attention}
        atlas = cls.of(
            LanguageModel.from_pretrained(at("model"), **how) if stored is None else stored,
            SparseAutoencoder.from_pretrained(at("sae"), mesh=mesh),
            manifest.site,
            Labels.load(at("labels")),
            manifest.pooling,
        )
        mean = None if manifest.mean is None else _read_mean(at("mean"), atlas.width)
        atlas = dataclasses.replace(atlas, mean=mean, home=directory)
        if verify and manifest.fingerprint and (changed := fingerprint_difference(manifest.fingerprint, atlas)):
            warnings.warn(f"the atlas {directory} no longer computes what it was built with: {changed}", stacklevel=2)
        return atlas

    @classmethod
    def from_parts(
        cls,
        model: LanguageModel | StoredModel,
        sae: SparseAutoencoder,
        site: Site | str,
        labels: Labels,
        pooling: str = "max",
    ) -> "ConceptAtlas":
        """Put the parts together and check that they fit.

        Raises:
          AtlasError: if the SAE does not read activations of the site's width, labels are of another width, or the
            pooling is unknown.
        """
        if pooling not in POOLINGS:
            raise AtlasError(f"unknown pooling '{pooling}'; known are {', '.join(POOLINGS)}")
        if isinstance(model, StoredModel):
            model.check_poolings((pooling,))
        site = check_site(model.config, site)
        width = model.config.width(site)
        what, wanted = ("has", sae.config.d_sae) if pooled_rows(model) else ("reads", sae.config.d_in)
        if wanted != width:
            raise AtlasError(f"the SAE {what} {wanted} features, and {site} of the model has {width}")
        if labels.n_features != sae.config.d_sae:
            raise AtlasError(f"the labels are for {labels.n_features} features, and the SAE has {sae.config.d_sae}")
        return cls(model, sae, site, labels, pooling)

    of = from_parts  # its name until 0.1

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
        """Tokenize texts, see :meth:`LanguageModel.tokenize`."""
        return self.model.tokenize(texts, **options)

    def features(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d_c"]:
        """Features of the model's activations at single tokens, those of the SAE; of stored features, these."""
        return x if pooled_rows(self.model) else self.sae.encode(x)

    def pooled(self, tokens: Tokens) -> dict[Site, Pooled]:
        """Pooled SAE activations ``[b, d_c]``, with the position of each peak; nan where the model's are not finite."""
        pool = lambda x: propagate_nonfinite(POOLINGS[self.pooling](self.features(x), tokens.mask), x, tokens.mask)
        acts = forward(self.model.decoder, tokens, capture=self.sites, logits=False, pool=pool).acts
        return {site: without_place(x) for site, x in acts.items()} if pooled_rows(self.model) else acts

    def encode(self, tokens: Tokens) -> dict[Site, Float[Array, "b d_c"]]:
        """Pooled SAE activations, by site as of every feature space."""
        return {site: pooled.values for site, pooled in self.pooled(tokens).items()}

    def activations(self, texts: Sequence[str] | str) -> Float[Array, "n d_c"]:
        """Pooled SAE activations of a few texts, in one batch; one string is one text.

        Raises:
          AtlasError: if there is no text, or something that is none.
        """
        return _pooled(self, self.tokenize(texts))

    def query(
        self, features: Sequence[int] | np.ndarray, weights: Sequence[float] | np.ndarray | None = None
    ) -> Float[Array, " d_c"]:
        """The concept query with the given features set to one, or to their weights.

        Raises:
          AtlasError: for no feature, one the atlas does not have, one given twice with different weights, or weights
            that are not one finite number a feature.
        """
        return jnp.asarray(feature_query(features, weights, self.width))

    def search(self, text: str, k: int = 10, *, embedder: Embedder | None = None, method: str = "hybrid") -> list[Hit]:
        """The features whose labels are closest to a text, best first, with their weights in a query.

        Args:
          text: what to look for.
          k: how many features.
          embedder: one of :func:`atlas_jax.labels.open_embedder`, beside BM25, in place of the package's own vectors.
          method: a retriever of :class:`TextIndex`.

        Raises:
          AtlasError: for a blank text, k below 1, an unknown retriever, or an atlas without labels.
        """
        index = _index(self.labels, self.home)
        return (index if embedder is None else _embedded(index, embedder)).search(text, k, method)

    def top_features(self, query: Float[Array | np.ndarray, " w"], k: int = 10) -> list[Hit]:
        """The features of largest weight in a query, best first, with their labels ("" where there is none).

        Raises:
          AtlasError: for a query of another width, or with numbers that are not finite.

        Example:
          >>> from atlas_jax import ConceptAtlas
          >>> from atlas_jax.bundled import ATLAS
          >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
          >>> [hit.index for hit in atlas.top_features(atlas.query([3, 5], [1.0, 2.0]))]
          [5, 3]
        """
        weights = finite_vector(query, self.width, "a concept query")
        best = [i for i in np.argsort(-weights, kind="stable")[:k].tolist() if weights[i] > 0]
        return [Hit(i, self.labels[i] or "", float(weights[i]), float(weights[i] / weights[best[0]])) for i in best]

    def query_text(self, text: str, k: int = 5, *, embedder: Embedder | None = None) -> Float[Array, " d_c"]:
        """The concept query of the k best labels, weighted by similarity. See :meth:`search` for which they are.

        Raises:
          AtlasError: if no label has anything to do with the text.
        """
        hits = self.search(text, k, embedder=embedder)
        if not hits:
            raise AtlasError(f"no label of this atlas matches '{text}'; try other words, or give feature ids")
        return self.query([h.index for h in hits], [h.weight for h in hits])

    def query_from(
        self,
        texts: Sequence[str] | str,
        contrast: Sequence[str] | str | None = None,
        *,
        mean: Float[Array | np.ndarray, " d_c"] | None = None,
    ) -> Float[Array, " d_c"]:
        """The mean pooled activation over texts, minus that over ``contrast`` or else over a corpus.

        Args:
          texts: what the concept is in; one string is one text.
          contrast: what it is not in.
          mean: the corpus mean to subtract where there is no contrast, such as ``Translation.mean_atlas``; the
            atlas's own by default, nothing where that is not known.

        Raises:
          AtlasError: if there is no text, the mean is of another width or not finite, or the model's activations are
            not finite.

        Example:
          >>> from atlas_jax import ConceptAtlas
          >>> from atlas_jax.bundled import ATLAS
          >>> atlas = ConceptAtlas.from_pretrained(ATLAS)
          >>> atlas.query_from(["the font of a text"], ["a dictionary"]).shape
          (1536,)
        """
        average = self._average(texts)
        if contrast is not None:
            return average - self._average(contrast)
        mean = self.mean if mean is None else mean
        if mean is None:
            return average
        return average - jnp.asarray(finite_vector(mean, self.width, "a corpus mean"), jnp.float32)

    def _average(self, texts: Sequence[str] | str) -> Float[Array, " d_c"]:
        average = jnp.mean(self.activations(texts), axis=0)
        if not bool(jnp.isfinite(average).all()):
            raise AtlasError(
                "the model's activations of these texts are not finite; load it as float32, or leave them out"
            )
        return average

    def save_pretrained(
        self, directory: str | Path, metadata: dict[str, Any] | None = None, *, dtype: str | None = None
    ) -> None:
        """Write the model, the SAE, the labels and the manifest with the hash of every file into a directory.

        It appears under its name only when complete.

        Args:
          directory: where to; the files of an atlas already there are replaced, all others stay.
          metadata: plain values to keep in the manifest.
          dtype: of the stored model parameters, their own by default.

        Raises:
          AtlasError: if the place is taken by something else or cannot be written.
        """
        with new_directory(directory, "a Concept Atlas", overwrite=True) as new:
            self.model.save_pretrained(new / "model", dtype=dtype)
            mean = write_parts(self, new)
            manifest = Manifest(
                site=str(self.site),
                files=record_parts(new, new / "model"),
                mean=mean,
                pooling=self.pooling,
                metadata=metadata or {},
                fingerprint=numerical_fingerprint(self._as_stored(dtype)),
            )
            manifest.write(new)

    def _as_stored(self, dtype: str | None) -> "ConceptAtlas":
        """The atlas with its model's parameters rounded as they are stored."""
        if dtype is None:
            return self
        rounded = jax.tree.map(lambda x: x.astype(dtype).astype(x.dtype), self.model)
        return dataclasses.replace(self, model=rounded)


@jax.jit
def _pooled(atlas: ConceptAtlas, tokens: Tokens) -> Float[Array, "b d_c"]:
    return atlas.encode(tokens)[atlas.site]


def write_parts(atlas: ConceptAtlas, directory: Path) -> str | None:
    """Write all but the model and the manifest; return the name of the file of the mean, if there is one."""
    atlas.sae.save_pretrained(directory / "sae", format="native")
    atlas.labels.save(directory / "labels.jsonl")
    if atlas.mean is None:
        return None
    np.save(directory / "mean.npy", np.asarray(atlas.mean, np.float32))
    return "mean.npy"


def _read_mean(file: Path, width: int) -> Float[np.ndarray, " d_c"]:
    try:
        mean = np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise AtlasError(f"{file} is damaged ({error}); build the atlas again") from None
    return finite_vector(mean, width, str(file)).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _index(labels: Labels, home: Path | None) -> TextIndex:
    return open_index(labels, None if home is None else home / INDEX)


@functools.lru_cache(maxsize=4)
def _embedded(index: TextIndex, embedder: Embedder) -> TextIndex:
    return index.with_embedder(embedder)


def open_search(directory: str | Path) -> TextIndex:
    """The search index of an atlas directory, without loading its model and SAE.

    Raises:
      AtlasError: for a directory that is no atlas, damaged labels, or none.

    Example:
      >>> from atlas_jax.atlas import open_search
      >>> from atlas_jax.bundled import ATLAS
      >>> open_search(ATLAS).search("font")[0].label
      'font'
    """
    directory = resolve(directory)
    manifest = Manifest.read(directory)
    return open_index(Labels.load(manifest.location(directory, "labels")), directory / INDEX)
