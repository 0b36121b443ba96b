"""Writing of stored activations: in shards as they come, so that a stopped extraction goes on where it was."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Bool, Int, Num
from safetensors.numpy import save_file

from atlas_jax.errors import AtlasError
from atlas_jax.files import differences, new_directory, new_file, partial_directory, read_object, sha256, write_json
from atlas_jax.stored._manifest import Manifest, text_hash

SHARD_BYTES = 2**28
_STATE = "extraction.json"
_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class ActivationWriter:
    """What :func:`writing_activations` gives: it takes the rows of sentences, and writes them a shard at a time.

    Attributes:
      position: what the last :meth:`save` was given, None at the beginning.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from atlas_jax.stored import Manifest, StoredModel, writing_activations
      >>> place = f"{tempfile.mkdtemp()}/activations"
      >>> manifest = Manifest("my-model", "sentence", "block", "float32", {"resid_post.3": 2}, (), pooling="max")
      >>> with writing_activations(place, manifest) as writer:
      ...     writer.add(["a text", "another"], {"resid_post.3": np.ones((2, 2))})
      >>> StoredModel.open(place).config.widths
      {Site('resid_post.3'): 2}
    """

    def __init__(self, directory: Path, manifest: Manifest, state: dict[str, Any]):
        self._directory, self._manifest, self._state = directory, manifest, state
        self._parts: list[dict[str, np.ndarray]] = []
        self.position = state["position"]

    def add(
        self,
        texts: Sequence[str],
        values: Mapping[str, Num[np.ndarray, "m d"]],
        *,
        index: Int[np.ndarray, " n"] | None = None,
        lengths: Int[np.ndarray, " n"] | None = None,
        tokens: Int[np.ndarray, " n"] | None = None,
        counts: Bool[np.ndarray, " m"] | None = None,
    ) -> None:
        """Add the rows of some sentences.

        Args:
          texts: the sentences.
          values: rows by the names of the manifest's sites, one a sentence or one a token, a sentence after the other.
          index: their ids; by default they are counted on.
          lengths: token rows of each sentence.
          tokens: how many tokens the model read in each, ``lengths`` by default.
          counts: token rows that count when pooling (no BOS, no special token); all by default.

        Raises:
          AtlasError: for a site too many or too few, or rows of another number or width.
        """
        n, first = len(texts), self._state["sentences"]
        lengths = np.ones(n, np.int64) if lengths is None else np.asarray(lengths, np.int64)
        rows = int(lengths.sum())
        if values.keys() != self._manifest.sites.keys():
            raise AtlasError(
                f"rows of {', '.join(values)} were given, and the sites are {', '.join(self._manifest.sites)}"
            )
        if wrong := [(k, v) for k, v in values.items() if v.shape != (rows, self._manifest.sites[k])]:
            name, x = wrong[0]
            raise AtlasError(f"{name} is {list(x.shape)}, where {[rows, self._manifest.sites[name]]} is needed")
        part = {name: np.asarray(x).astype(_TYPES[self._manifest.dtype]) for name, x in values.items()}
        part |= {"text": text_hash(texts), "sentence": np.arange(first, first + n) if index is None else index}
        if self._manifest.rows == "token":
            part |= {"length": lengths if tokens is None else tokens, "rows": lengths}
            part |= {"counts": np.ones(rows, bool) if counts is None else counts}
        self._parts.append(part)
        self._state["sentences"] += n

    def save(self, position: Any = None, *, least: int = 1) -> None:
        """Write what was added as a shard, if it is of ``least`` bytes, and remember a position to go on from."""
        if sum(x.nbytes for part in self._parts for x in part.values()) < least:
            return
        arrays = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        if (lengths := arrays.pop("rows", None)) is not None:
            arrays["offsets"] = np.concatenate([[0], np.cumsum(lengths)])
        arrays = {name: x.astype(np.int64) if x.dtype.kind == "i" else x for name, x in arrays.items()}
        path = self._directory / f"{len(self._state['shards']):05d}.safetensors"
        with new_file(path) as file:
            save_file(arrays, file)
        rows = len(arrays[next(iter(self._manifest.sites))])
        self._state["shards"].append({"file": path.name, "rows": rows, "sha256": sha256(path)})
        self._state["position"], self._parts = position, []
        with new_file(self._directory / _STATE) as file:
            write_json(file, self._state)


@contextlib.contextmanager
def writing_activations(
    directory: str | Path, manifest: Manifest, *, asked: Mapping[str, Any] | None = None, overwrite: bool = False
) -> Iterator[ActivationWriter]:
    """Give a writer of stored activations; they appear at ``directory`` when the block ends without an error.

    Args:
      directory: where to.
      manifest: what they are; its shards are those to come.
      asked: what decides the rows, in plain values. What an earlier block that was stopped had saved is kept, and
        :attr:`ActivationWriter.position` is where it was; None to begin anew.
      overwrite: whether activations that are there may be replaced.

    Raises:
      AtlasError: if something else is at ``directory``, it cannot be written, or what was left unfinished there was
        asked for otherwise.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from atlas_jax.stored import Manifest, writing_activations
      >>> place = f"{tempfile.mkdtemp()}/activations"
      >>> manifest = Manifest("closed", "sentence", "block", "float16", {"resid_post.0": 2}, (), pooling="mean")
      >>> with writing_activations(place, manifest) as writer:
      ...     writer.add(["a text"], {"resid_post.0": np.ones((1, 2))})
      ...     writer.save()
    """
    shards = partial_directory(directory) / "shards"
    with new_directory(directory, "stored activations", overwrite=overwrite) as new:
        state = {"asked": None if asked is None else json.loads(json.dumps(asked)), "shards": [], "sentences": 0}
        state |= {"position": None}
        if asked is not None and (shards / _STATE).is_file():
            state = _continued(shards / _STATE, state)
        shards.mkdir(exist_ok=True)
        writer = ActivationWriter(shards, manifest, state)
        yield writer
        writer.save()
        if not state["shards"]:
            raise AtlasError("no activations were given; add the rows of at least one sentence")
        for shard in state["shards"]:  # linked, for a run stopped here to go on from
            _link(shards / shard["file"], new / shard["file"])
        dataclasses.replace(manifest, shards=state["shards"]).write(new)


def _link(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # not every file system has links
        shutil.copy2(path, new)


def _continued(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    state = read_object(path, remedy=f"remove {path.parent}")
    if changed := differences(state["asked"], asked["asked"]):
        raise AtlasError(
            f"an unfinished extraction at {path.parent} is another one ({changed}); remove it to begin anew"
        )
    return state
