"""Safetensors files of arrays that need not fit on one host."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Shaped

from atlas_jax.sharding import BLOCK_BYTES, row_blocks

_DTYPES = {"float32": "F32", "int32": "I32", "bfloat16": "BF16", "float16": "F16", "bool": "BOOL"}  # order in a file


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Shaped[Array | np.ndarray, "..."]],
    *,
    metadata: Mapping[str, str] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Write the file that ``safetensors.numpy.save_file`` would, byte for byte, in blocks of rows.

    Arrays may be spread over a mesh. Where they span several processes, all must call this; process 0 writes.

    Args:
      path: the file; only process 0 needs to reach it.
      tensors: arrays by name.
      metadata: words about the file, stored in its header.
      block_bytes: about how much of an array is on a host at once.

    Raises:
      ValueError: for a dtype the file cannot hold.
      OSError: on process 0, if the file cannot be written.

    Example:
      >>> import jax.numpy as jnp
      >>> import tempfile
      >>> from pathlib import Path
      >>> from safetensors.numpy import load_file
      >>> from atlas_jax.tensor_file import write_tensors
      >>> tmp = Path(tempfile.mkdtemp())
      >>> write_tensors(tmp / "a.safetensors", {"x": jnp.arange(3)})
      >>> load_file(tmp / "a.safetensors")["x"].tolist()
      [0, 1, 2]
    """
    rank = list(_DTYPES).index
    order = sorted(tensors, key=lambda name: (rank(tensors[name].dtype.name), name))
    with open(path, "wb") if jax.process_index() == 0 else contextlib.nullcontext() as file:
        if file:
            file.write(_header({name: tensors[name] for name in order}, metadata))
        for name in order:
            for block in row_blocks(tensors[name], block_bytes):
                if file:
                    file.write(np.ascontiguousarray(block).tobytes())


def _header(tensors: dict[str, Shaped[Array | np.ndarray, "..."]], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, x in tensors.items():
        span = [start, start := start + x.nbytes]
        entries[name] = {"dtype": _DTYPES[x.dtype.name], "shape": list(x.shape), "data_offsets": span}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
