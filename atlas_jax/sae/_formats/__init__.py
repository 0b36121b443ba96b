"""On-disk layouts: one module each with NAME, detect, load and, where we write it, save."""

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
from atlas_jax.sae._formats._check import check as check
from atlas_jax.sae._formats._locate import locate, writing
from atlas_jax.sae._formats._read import Arrays
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
    module = _detect(where) if format is None else FORMATS.get(format)
    if module is None:
        raise AtlasError(f"unknown SAE format '{format}'; known are {', '.join(FORMATS)}")
    config, parameters = module.load(where, norm_scaling_factor)
    check(config, parameters)
    return config, parameters


def save(config: SAEConfig, parameters: Arrays, directory: str | Path, format: str) -> None:
    """Write the given layout into a directory; its files appear only when all are complete."""
    writers = [name for name, module in FORMATS.items() if hasattr(module, "save")]
    if format not in writers:
        raise AtlasError(f"cannot write SAE format '{format}'; choose one of {', '.join(writers)}")
    with writing(Path(directory)) as scratch:
        FORMATS[format].save(config, parameters, scratch)


def _detect(path: Path) -> ModuleType:
    fitting = [module for module in FORMATS.values() if module.detect(path)]
    if not fitting:
        found = ", ".join(sorted(p.name for p in path.iterdir())[:12]) if path.is_dir() else path.name
        raise AtlasError(
            f"{path} is in no known SAE layout (found {found}); known are {', '.join(FORMATS)}, "
            "and a file of bare parameters is read by SparseAutoencoder.from_state_dict"
        )
    if len(fitting) > 1:
        names = " and ".join(module.NAME for module in fitting)
        raise AtlasError(
            f"{path} holds an SAE in the layouts {names}, which may differ; name the format to read (--sae-format)"
        )
    return fitting[0]
