"""Shards of stored activations, each format read by the library that defines it."""

from pathlib import Path
from typing import Any

import numpy as np

from atlas_jax.errors import AtlasError

_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
          "BOOL": "bool"}  # fmt: skip


class _Part:
    """An array in a safetensors file, of which only what is sliced is read."""

    def __init__(self, part: Any):
        self._part, self.shape = part, tuple(part.get_shape())
        self.dtype = _NAMES.get(part.get_dtype(), part.get_dtype())

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._part[rows]


def open_shard(path: Path) -> dict[str, Any]:
    """Open a shard: its arrays by name, with ``shape`` and ``dtype``, of which only what is sliced is read.

    Args:
      path: a ``.safetensors`` or ``.arrow`` file, or a directory of ``NAME.npy`` files.

    Raises:
      AtlasError: for another ending.
      ValueError, OSError, SafetensorError: if it is damaged.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from atlas_jax.stored._shards import open_shard
      >>> shard = Path(tempfile.mkdtemp())
      >>> np.save(shard / "resid_post.3.npy", np.ones((2, 3)))
      >>> open_shard(shard)["resid_post.3"].shape
      (2, 3)
    """
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        return {file.name.removesuffix(".npy"): np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        file = safe_open(path, "np")
        return {name: _Part(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 - it is no dict
    if path.suffix == ".arrow":
        return _open_arrow(path)
    raise AtlasError(f"'{path}' is no shard; write .safetensors, .arrow, or a directory of .npy files")


def _open_arrow(path: Path) -> dict[str, Any]:
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        table = (pa.ipc.open_file if source.read(6) == b"ARROW1" else _stream)(source).read_all()
        return {name: _column(table[name].combine_chunks()) for name in table.column_names}
    except pa.ArrowException as e:
        raise ValueError(str(e)) from e


def _stream(source: Any) -> Any:
    import pyarrow as pa

    source.seek(0)
    return pa.ipc.open_stream(source)


def _column(column: Any) -> np.ndarray:
    """A column of numbers, or of lists of one length, as an array."""
    values = column.flatten() if hasattr(column, "flatten") and column.type.num_fields else column
    array = values.to_numpy(zero_copy_only=False)
    return array if values is column else array.reshape(len(column), -1)
