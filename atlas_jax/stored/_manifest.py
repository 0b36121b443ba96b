"""The manifest of stored activations: whose they are, at which sites, in which files."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object, reading, write_json
from atlas_jax.names import POOLING_NAMES
from atlas_jax.types import Site

MANIFEST = "activations.json"
AGAIN = "extract the activations again"
ROWS, LAYERS, DTYPES = ("sentence", "token"), ("block", "hidden_states"), ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of ``activations.json``.

    Attributes:
      model: name of the model the activations are of.
      rows: "sentence" for one pooled row a sentence, "token" for one row a token.
      layers: how the names of ``sites`` count: "block" for sites as everywhere here, "hidden_states" for
        ``hidden_states.K`` as transformers and vLLM number them, where K is the output of block K - 1.
      dtype: of the rows, "float32", "float16" or "bfloat16".
      sites: width of each site, by the name of its array in the shards.
      shards: the file of each shard, its number of rows and its SHA-256.
      pooling: of sentence rows, a key of :data:`atlas_jax.pooling.POOLINGS`; None for token rows.
      max_length: tokens at which sentences were cut; None where none was.
      corpus: hash of the corpus whose sentence ids these are; None for ids of another origin.

    Example:
      >>> from atlas_jax.stored import Manifest
      >>> manifest = Manifest("my-llama", "token", "hidden_states", "bfloat16", {"hidden_states.4": 128}, ())
      >>> manifest.names
      {Site('resid_post.3'): 'hidden_states.4'}
    """

    model: str
    rows: str
    layers: str
    dtype: str
    sites: Mapping[str, int]
    shards: Sequence[Mapping[str, Any]]
    pooling: str | None = None
    max_length: int | None = None
    corpus: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("rows", ROWS), ("layers", LAYERS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise AtlasError(f"{name} of stored activations is {getattr(self, name)!r}; it is {' or '.join(known)}")
        if not self.sites:
            raise AtlasError("stored activations have no site; name at least one, with its width")
        pooling = (None,) if self.rows == "token" else POOLING_NAMES
        if self.pooling not in pooling:
            raise AtlasError(
                f"pooling of {self.rows} rows is {self.pooling!r}; it is {', '.join(map(str, pooling))}"
            )  # fmt: skip
        if len(self.names) < len(self.sites):
            raise AtlasError(f"two of {', '.join(self.sites)} are one site; give each site once")

    @property
    def names(self) -> dict[Site, str]:
        """The name of each site's array in the shards."""
        return {self._site(name): name for name in self.sites}

    @property
    def widths(self) -> dict[Site, int]:
        """Features of each site."""
        return {site: self.sites[name] for site, name in self.names.items()}

    def _site(self, name: str) -> Site:
        if self.layers == "block":
            return Site.parse(name)
        kind, _, number = name.rpartition(".")
        if kind != "hidden_states" or not number.isdecimal():
            raise AtlasError(f"site '{name}' of stored activations counts hidden_states; write hidden_states.K")
        return Site("resid_post", int(number) - 1) if int(number) else Site("resid_pre", 0)

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read the manifest of a directory.

        Raises:
          AtlasError: if there is none, it is damaged, or states something else than the attributes.
        """
        path = directory / MANIFEST
        if not path.is_file():
            raise AtlasError(f"'{directory}' holds no stored activations (no {MANIFEST}); see atlas-jax activations")
        raw = read_object(path, remedy=AGAIN)
        with reading(path, AGAIN):
            known = {field.name for field in dataclasses.fields(cls)}
            if strange := sorted(raw.keys() - known):
                raise ValueError(f"it states {', '.join(strange)}, which is not known")
            if missing := [name for name in ("model", "rows", "layers", "dtype", "sites", "shards") if name not in raw]:
                raise ValueError(f"it does not state {', '.join(missing)}")
            sites = {str(name): int(width) for name, width in raw["sites"].items()}
            shards = [
                {"file": str(s["file"]), "rows": int(s["rows"]), "sha256": str(s["sha256"])} for s in raw["shards"]
            ]
        return cls(**raw | {"sites": sites, "shards": shards})

    def write(self, directory: Path) -> None:
        """Write it."""
        write_json(directory / MANIFEST, dataclasses.asdict(self))


def text_hash(texts: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Compute the key of each sentence: the first 8 bytes of the SHA-256 of its UTF-8, little-endian, as int64.

    Example:
      >>> from atlas_jax.stored import text_hash
      >>> text_hash(["a text"]).dtype
      dtype('int64')
    """
    digests = b"".join(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] for text in texts)
    return np.frombuffer(digests, "<i8").astype(np.int64)
