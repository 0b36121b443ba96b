"""Reading and writing of parameters in safetensors, slice by slice onto the devices that hold them."""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from atlas_jax.errors import AtlasError
from atlas_jax.files import read_object
from atlas_jax.models._config import ModelConfig
from atlas_jax.models._decoder import Decoder, decoder_shapes
from atlas_jax.models._families import FAMILIES, Fused
from atlas_jax.sharding import parameter_sharding

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
_PARTS = ("layers", "embed_tokens", "norm", "lm_head")
NESTED_PREFIXES = ("language_model.model.", "model.language_model.")
_HEADS = {"lm_head.weight", "language_model.lm_head.weight"}
_BUFFERS = "rotary_emb.inv_freq"
_OTHER_MODALITIES = ("vision_tower", "multi_modal_projector")
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_FLOATS = ("F64", "F32", "F16", "BF16")


class Place(NamedTuple):
    """Place of a parameter in a checkpoint.

    Attributes:
      tensor: name of the tensor, without the prefix that a whole checkpoint has.
      shape: shape of the tensor, in the parameter's layout.
      transposed: true where it is stored ``[out, in]``.
      columns: the tensor's columns that are this parameter; all where it is None.
    """

    tensor: str
    shape: tuple[int, ...]
    transposed: bool
    columns: Int[np.ndarray, " o"] | None


def layout(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """The places of all parameters of a decoder, given their shapes."""
    return {name: _place(config, name, shapes) for name in shapes}


def stored_name(family: str, name: str) -> str:
    """Name of a parameter or module in a family's checkpoints.

    Example:
      >>> from atlas_jax.models._weights import stored_name
      >>> stored_name("llama", "layers.0.mlp.up_proj.weight")
      'layers.0.mlp.up_proj.weight'
    """
    names = FAMILIES[family].names
    return ".".join(names.get(part, part) for part in name.split("."))


def is_decoders(family: str, tensor: str) -> bool:
    """True if a tensor's name belongs to the decoder, used or not."""
    parts = (*_PARTS, *FAMILIES[family].names)
    return tensor.split(".")[0] in {stored_name(family, part) for part in parts}


def _place(config: ModelConfig, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Place:
    *parents, module, kind = name.split(".")
    family, row = config.family, FAMILIES[config.family]
    transposed = name == HEAD or (name.endswith("proj.weight") and not row.conv1d)
    fused = next((f for f in row.fused if module in f.parts), None)
    if fused is None:
        return Place(stored_name(family, name), shapes[name], transposed, None)
    together = [shapes[".".join([*parents, part, kind])] for part in fused.parts]
    shape = (*shapes[name][:-1], sum(s[-1] for s in together))
    columns = _columns(fused, module, [s[-1] for s in together], config.head_dim)
    return Place(stored_name(family, ".".join([*parents, fused.name, kind])), shape, transposed, columns)


def _columns(fused: Fused, part: str, widths: list[int], head_dim: int) -> Int[np.ndarray, " o"]:
    """Columns of one part of a fused tensor."""
    i = fused.parts.index(part)
    if fused.by_head:
        return np.arange(sum(widths)).reshape(-1, len(widths), head_dim)[:, i].reshape(-1)
    return np.arange(sum(widths[:i]), sum(widths[: i + 1]))


class _Tensor(NamedTuple):
    """A tensor in a file, as described by the file's header."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def load_decoder(directory: Path, config: ModelConfig, dtype: jnp.dtype, mesh: Mesh | None) -> Decoder:
    """Build a decoder with its parameters read from the safetensors files that transformers would choose.

    Every process reads only the slices its own devices hold, each of them once, one parameter after the other. A tied
    matrix is read from whichever of its two names is stored; where both are and differ, they are not tied, as in
    transformers, and the decoder's config says so.

    Raises:
      AtlasError: one that lists all missing, unexpected and mis-shaped tensors, names an unreadable file, or says
        between which files or tensors it cannot choose.
    """
    stored = _by_name(_tensors(weight_files(directory)), config.family)
    if config.tie_embeddings:
        config = _tie(stored, config)
    graph, state = nnx.split(decoder_shapes(config))
    places = layout(config, {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(state)})
    _check(directory, config.family, places.values(), stored)

    def load(path: tuple, leaf: Any) -> Any:
        name = ".".join(map(str, path))
        where = parameter_sharding(name, leaf.shape, mesh)
        return leaf.replace(_read(stored[places[name].tensor], places[name], leaf.shape, dtype, where))

    flat = [(path, load(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a directory's weights, chosen as ``from_pretrained`` of transformers chooses them.

    That is the file or index that ``config.json`` names as ``transformers_weights``, else ``model.safetensors``, else
    ``model.safetensors.index.json`` and the files it lists. Without any of these, a complete set of numbered shards or
    a single file is taken too.

    Raises:
      AtlasError: if there are none, several candidates, or a LoRA adapter beside them.

    Example:
      >>> from atlas_jax.bundled import SUBJECT
      >>> from atlas_jax.models._weights import weight_files
      >>> [file.name for file in weight_files(SUBJECT)]
      ['model.safetensors']
    """
    named = read_object(directory / "config.json", missing={}).get("transformers_weights")
    choices = [named] if named else ["model.safetensors", "model.safetensors.index.json"]
    first = next((directory / str(name) for name in choices if (directory / str(name)).is_file()), None)
    if named and first is None:
        raise AtlasError(f"{directory}/config.json names the weights '{named}', which is not there; download it again")
    others = sorted(p.name for p in directory.glob("*.safetensors") if not p.name.startswith("adapter_model"))
    if (directory / "adapter_config.json").is_file():
        raise AtlasError(
            f"{directory} holds weights ({', '.join(others) or 'none'}) and a LoRA adapter (adapter_config.json); "
            "merge the adapter (merge_and_unload) and save the result, or move the adapter's files away"
        )
    if first is None:
        return [directory / name for name in _only_candidate(directory, others)]
    return _listed(first) if first.name.endswith(".index.json") else [first]


def _only_candidate(directory: Path, names: list[str]) -> list[str]:
    """Return a single file, or all shards of one set, which transformers would not take by itself."""
    if len(names) == 1 and not _SHARD.fullmatch(names[0]):
        return names
    shards = [m for m in map(_SHARD.fullmatch, names) if m]
    sets = {(m[1], m[3]) for m in shards}
    if len(sets) == 1 and len(shards) == len(names) == int(shards[0][3]):
        return names
    if not names:
        raise AtlasError(
            f"{directory} has no *.safetensors; convert the checkpoint with save_pretrained of transformers"
        )
    raise AtlasError(
        f"{directory} has neither model.safetensors nor an index, and several candidates: {', '.join(names)}; keep the "
        "one that is meant as model.safetensors, or download the index of the shards"
    )


def _listed(index: Path) -> list[Path]:
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise AtlasError(f"{index} has no weight_map of tensor names to files; download it again")
    files = [index.parent / name for name in sorted(set(shards.values()))]
    if lost := [file.name for file in files if not file.is_file()]:
        raise AtlasError(
            f"{index} lists {', '.join(lost)}, which cannot be read because it is not there; download it again"
        )
    return files


def save_decoder(decoder: Decoder, directory: Path, dtype: jnp.dtype) -> None:
    """Write ``model.safetensors`` with Hugging Face's names and layout."""
    family = decoder.config.family
    parameters = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(decoder))}
    tensors: dict[str, np.ndarray] = {}
    for name, place in layout(decoder.config, {name: x.shape for name, x in parameters.items()}).items():
        value = np.asarray(parameters[name].astype(dtype))
        full = place.tensor if name == HEAD else FAMILIES[family].prefix + place.tensor
        if place.columns is None:
            tensors[full] = np.ascontiguousarray(value.T if place.transposed else value)
            continue
        shape = place.shape[::-1] if place.transposed else place.shape
        fused = tensors.setdefault(full, np.empty(shape, value.dtype))
        (fused.T if place.transposed else fused)[..., place.columns] = value
    save_file(tensors, str(directory / "model.safetensors"), metadata={"format": "pt"})


def _open(file: Path, use: Callable[[Any], Any]) -> Any:
    try:
        with safe_open(str(file), framework="numpy") as f:
            return use(f)
    except (SafetensorError, OSError) as e:
        raise AtlasError(f"{file} cannot be read ({e}); download it again") from e


def _tensors(files: Iterable[Path]) -> Iterator[_Tensor]:
    """All tensors of some files.

    Raises:
      AtlasError: if a file cannot be read, or a tensor is in two of them.
    """
    seen: dict[str, Path] = {}
    for file in files:
        parts = _open(file, lambda f: [(name, f.get_slice(name)) for name in f.keys()])  # noqa: SIM118 - no mapping
        for name, part in parts:
            if name in seen:
                raise AtlasError(f"the tensor {name} is in {seen[name]} and in {file}; keep one of the two")
            seen[name] = file
            yield _Tensor(file, name, tuple(part.get_shape()), part.get_dtype())


def _by_name(tensors: Iterable[_Tensor], family: str) -> dict[str, _Tensor]:
    """Tensors by their names without the prefix of the whole checkpoint."""
    row = FAMILIES[family]
    buffers = (_BUFFERS, *row.buffers)
    tensors = [t for t in tensors if not t.name.endswith(buffers) and not any(m in t.name for m in _OTHER_MODALITIES)]
    layers, head = stored_name(family, "layers"), stored_name(family, HEAD)
    prefixes = (row.prefix, *NESTED_PREFIXES)
    prefix = next((p for p in prefixes if any(t.name.startswith(f"{p}{layers}.") for t in tensors)), "")
    stored: dict[str, _Tensor] = {}
    for tensor in tensors:
        name = head if tensor.name in _HEADS else tensor.name.removeprefix(prefix)
        if is_decoders(family, name) and tensor.dtype not in _FLOATS:
            raise AtlasError(
                f"{tensor.file} stores {tensor.name} as {tensor.dtype}, which is not supported; save the model in "
                "bfloat16 or float32"
            )
        if name in stored:
            raise AtlasError(f"{tensor.file} holds {name} twice, as {stored[name].name} and {tensor.name}; keep one")
        stored[name] = tensor
    return stored


def _tie(stored: dict[str, _Tensor], config: ModelConfig) -> ModelConfig:
    """Keep one of the two names of a tied matrix, or untie the config where they hold different values."""
    embedding, head = (stored_name(config.family, name) for name in (EMBEDDING, HEAD))
    if head not in stored:
        return config
    if embedding in stored and not _equal(stored[embedding], stored[head]):
        return dataclasses.replace(config, tie_embeddings=False)
    stored.setdefault(embedding, stored.pop(head))
    return config


def _equal(a: _Tensor, b: _Tensor) -> bool:
    n, step = a.shape[0], 4096  # rows at a time, for the memory
    rows = [slice(i, min(i + step, n)) for i in range(0, n, step)]
    return a.shape == b.shape and all(np.array_equal(_part(a, (r,)), _part(b, (r,))) for r in rows)


def _check(directory: Path, family: str, places: Iterable[Place], stored: dict[str, _Tensor]) -> None:
    wanted = {p.tensor: p.shape[::-1] if p.transposed else p.shape for p in places}
    problems = [f"missing {n}" for n in wanted if n not in stored]
    extra = [n for n in stored if n not in wanted]
    problems += [f"unexpected {n}" for n in extra if is_decoders(family, n)]
    for name in wanted.keys() & stored.keys():
        if stored[name].shape != wanted[name]:
            problems.append(f"{name} has shape {stored[name].shape} where the config asks for {wanted[name]}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise AtlasError(f"the tensors of {directory} do not fit its config.json: {shown}")
    if others := [n for n in extra if not is_decoders(family, n)]:
        shown = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
        warnings.warn(f"{directory} holds tensors of no part of the language model, not used: {shown}", stacklevel=3)


def _read(
    tensor: _Tensor, place: Place, shape: tuple[int, ...], dtype: jnp.dtype, where: jax.sharding.Sharding
) -> jax.Array:
    read: dict[tuple, np.ndarray] = {}  # devices that hold the same slice share one reading of it
    return jax.make_array_from_callback(shape, where, functools.partial(_slice, read, tensor, place, dtype))


def _slice(
    read: dict[tuple, np.ndarray], tensor: _Tensor, place: Place, dtype: jnp.dtype, index: tuple[slice, ...]
) -> np.ndarray:
    key = tuple((s.start, s.stop) for s in index)
    if key not in read:
        read[key] = np.ascontiguousarray(_placed(tensor, place, index)).astype(dtype, copy=False)
    return read[key]


def _placed(tensor: _Tensor, place: Place, index: tuple[slice, ...]) -> np.ndarray:
    """A slice of a parameter, read from the tensor that holds it."""
    *rows, last = index
    columns = None if place.columns is None else place.columns[last]
    if columns is not None:
        last = slice(int(columns.min()), int(columns.max()) + 1)
    stored = _part(tensor, (last, *rows) if place.transposed else (*rows, last))
    value = stored.T if place.transposed else stored
    return value if columns is None else value[..., columns - last.start]


def _part(tensor: _Tensor, index: tuple[slice, ...]) -> np.ndarray:
    value = _open(tensor.file, lambda f: f.get_slice(tensor.name)[index])
    return value.view(ml_dtypes.bfloat16) if value.dtype == np.dtype("V2") else value
