"""On-disk layouts: one module each with NAME, detect, load and, where we write it, save."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats import (
    _dictionary_learning,
    _gemma_scope,
    _gemma_scope_2,
    _goodfire,
    _llama_scope,
    _native,
    _qwen_scope,
    _saelens,
    _sparsify,
)
from atlas_jax.sae._formats._parameters import check as check
from atlas_jax.sae._formats._read import Arrays, locate, writing
from atlas_jax.sae._formats._state_dict import load_state_dict as load_state_dict

_MODULES: Sequence[ModuleType] = (
    _gemma_scope,
    _gemma_scope_2,
    _native,
    _saelens,
    _sparsify,
    _dictionary_learning,
    _llama_scope,
    _qwen_scope,
    _goodfire,
)
FORMATS: dict[str, ModuleType] = {module.NAME: module for module in _MODULES}


def load(
    path: str | Path, format: str | None = None, norm_scaling_factor: float | None = None
) -> tuple[SAEConfig, Arrays]:
    """Find the files, find their layout, read them, and check that they are complete."""
    where = locate(path)
    if format is None:
        where, module = _detect(where)
    elif (module := FORMATS.get(format)) is None:
        raise AtlasError(f"unknown SAE format '{format}'; known are {', '.join(FORMATS)}")
    _check_factor(norm_scaling_factor)
    config, parameters = module.load(where, norm_scaling_factor)
    try:
        check(config, parameters)
    except AtlasError as error:
        raise AtlasError(f"{where}: {error}") from None
    return config, parameters


def save(config: SAEConfig, parameters: Arrays, directory: str | Path, format: str) -> None:
    """Write the given layout into a directory; its files appear only when all are complete."""
    writers = [name for name, module in FORMATS.items() if hasattr(module, "save")]
    if format not in writers:
        raise AtlasError(f"cannot write SAE format '{format}'; choose one of {', '.join(writers)}")
    with writing(Path(directory)) as scratch:
        FORMATS[format].save(config, parameters, scratch)


def _detect(path: Path) -> tuple[Path, ModuleType]:
    """Find the layout of a folder or file, or of the one file of a folder that is in a known layout by itself."""
    fitting = [(path, module) for module in FORMATS.values() if module.detect(path)]
    inside = sorted(path.iterdir()) if path.is_dir() else []
    if not fitting:
        fitting = [(file, module) for file in inside for module in (_qwen_scope, _goodfire) if module.detect(file)]
        if len(fitting) > 1:
            names = ", ".join(file.name for file, _ in fitting[:12])
            raise AtlasError(f"{path} holds several SAEs ({names}); give the path of one of them")
    if not fitting:
        names = ", ".join(p.name for p in inside[:12]) if path.is_dir() else path.name
        raise AtlasError(
            f"{path} is in no known SAE layout (found {names}); known are {', '.join(FORMATS)}, "
            "and a file of bare parameters is read by SparseAutoencoder.from_state_dict"
        )
    if len(fitting) > 1:
        names = " and ".join(module.NAME for _, module in fitting)
        raise AtlasError(
            f"{path} holds an SAE in the layouts {names}, which may differ; name the format to read (--sae-format)"
        )
    return fitting[0]


def _check_factor(factor: float | None) -> None:
    if factor is not None and not (isinstance(factor, int | float) and math.isfinite(factor) and factor > 0):
        raise AtlasError(f"norm_scaling_factor should be a number above 0, it is {factor!r}")
