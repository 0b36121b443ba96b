"""Parameters from and to safetensors, read slice by slice onto the devices that hold them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from atlas_jax.errors import AtlasError
from atlas_jax.models._config import ModelConfig
from atlas_jax.models._decoder import Decoder
from atlas_jax.models._partition import sharding

_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")
_SKIPPED = ("rotary_emb.inv_freq", "vision_tower", "multi_modal_projector")


def load_decoder(directory: Path, config: ModelConfig, dtype: jnp.dtype, mesh: Mesh | None) -> Decoder:
    """Build a decoder with its parameters read from ``*.safetensors``.

    Every process reads only the slices its own devices hold, each of them once, one parameter after the other.

    Raises:
      AtlasError: one that lists all missing, unexpected and mis-shaped tensors, or names an unreadable file.
    """
    abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    files = _tensor_files(directory)
    stored = _strip_prefix(files)
    wanted = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    _check(directory, wanted, stored, config)

    def load(path: tuple, leaf: Any) -> Any:
        name = ".".join(map(str, path))
        tensor, file = stored[name]
        return leaf.replace(
            _read(file, tensor, leaf.shape, _is_transposed(name), dtype, sharding(name, leaf.shape, mesh))
        )

    flat = [(path, load(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def save_decoder(decoder: Decoder, directory: Path, dtype: jnp.dtype) -> None:
    """Write ``model.safetensors`` with Hugging Face's names and layout."""
    tensors = {}
    for path, leaf in nnx.to_flat_state(nnx.state(decoder)):
        name = ".".join(map(str, path))
        value = np.asarray(leaf[...].astype(dtype))
        full = name if name.startswith("lm_head") else f"model.{name}"
        tensors[full] = np.ascontiguousarray(value.T if _is_transposed(name) else value)
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})


def _is_transposed(name: str) -> bool:
    return name.endswith("proj.weight") or name == "lm_head.weight"


def _tensor_files(directory: Path) -> dict[str, Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = sorted(p.name for p in directory.glob("*.safetensors"))
    if not files:
        raise AtlasError(
            f"{directory} has no *.safetensors; convert the checkpoint with save_pretrained of transformers"
        )
    names: dict[str, Path] = {}
    for file in files:
        names |= dict.fromkeys(_open(directory / file, lambda f: list(f.keys())), directory / file)
    return names


def _open(file: Path, use: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(str(file), framework="numpy") as f:
            return use(f)
    except (SafetensorError, OSError) as e:
        raise AtlasError(f"{file} cannot be read ({e}); download it again") from e


def _strip_prefix(files: dict[str, Path]) -> dict[str, tuple[str, Path]]:
    prefix = next(p for p in _PREFIXES if any(n.startswith(f"{p}layers.") for n in files) or not p)
    heads = {"lm_head.weight", "language_model.lm_head.weight"}

    def short(name: str) -> str:
        return "lm_head.weight" if name in heads else name.removeprefix(prefix)

    return {short(n): (n, f) for n, f in files.items() if not any(s in n for s in _SKIPPED)}


def _check(directory: Path, wanted: dict[str, Any], stored: dict[str, tuple[str, Path]], config: ModelConfig) -> None:
    problems = [f"missing {n}" for n in wanted if n not in stored]
    tied = {"lm_head.weight"} if config.tie_embeddings else set()
    problems += [f"unexpected {n}" for n in stored if n not in wanted and n not in tied]
    for name, shape in _shapes(wanted, stored):
        expected = tuple(wanted[name].shape)
        expected = expected[::-1] if _is_transposed(name) else expected
        if shape != expected:
            problems.append(f"{name} has shape {shape} where the config asks for {expected}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise AtlasError(f"the tensors of {directory} do not fit its config.json: {shown}")


def _shapes(wanted: dict[str, Any], stored: dict[str, tuple[str, Path]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for file in sorted({f for _, f in stored.values()}):
        here = [(n, t) for n, (t, f) in stored.items() if f == file and n in wanted]
        yield from _open(file, lambda f, here=here: [(n, tuple(f.get_slice(t).get_shape())) for n, t in here])


def _read(
    file: Path, tensor: str, shape: tuple[int, ...], transposed: bool, dtype: jnp.dtype, where: jax.sharding.Sharding
) -> jax.Array:
    read: dict[tuple, np.ndarray] = {}  # devices that hold the same slice share one reading of it

    def part(index: tuple[slice, ...]) -> np.ndarray:
        key = tuple((s.start, s.stop) for s in index)
        if key not in read:
            value = _open(file, lambda f: f.get_slice(tensor)[index[::-1] if transposed else index])
            value = value.view(ml_dtypes.bfloat16) if value.dtype == np.dtype("V2") else value
            read[key] = np.ascontiguousarray(value.T if transposed else value).astype(dtype, copy=False)
        return read[key]

    return jax.make_array_from_callback(shape, where, part)
