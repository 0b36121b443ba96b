"""Qwen-Scope: ``layer{L}.sae.pt`` in a repository whose name states model, width and k.

The name reads like ``SAE-Res-Qwen3-8B-Base-W64K-L0_50``.
TopK with nothing subtracted; torch tensors ``W_enc[m, d] W_dec[d, m] b_enc b_dec``.
"""

from pathlib import Path

from atlas_jax.errors import AtlasError
from atlas_jax.sae._config import SAEConfig
from atlas_jax.sae._formats._read import Arrays, last_match, pick, read_torch
from atlas_jax.types import Site

NAME = "qwen_scope"
_FILE = r"/layer(\d+)\.sae\.pt$"
_REPOSITORY = r"SAE-Res-([^/]+)-W(\d+)K-L0_(\d+)"


def detect(path: Path) -> bool:
    """Test for one ``layer{L}.sae.pt`` file."""
    return path.is_file() and last_match(_FILE, path) is not None


def load(path: Path, norm_scaling_factor: float | None = None) -> tuple[SAEConfig, Arrays]:
    """Read parameters, with k and the model from the path."""
    del norm_scaling_factor
    named, layer = last_match(_REPOSITORY, path), last_match(_FILE, path)
    if named is None or layer is None:
        raise AtlasError(
            f"the k of {path} is stated only by the repository's name: keep the file in a folder named like "
            "SAE-Res-Qwen3-8B-Base-W64K-L0_50"
        )
    state = read_torch(path)
    parameters = {
        "W_enc": pick(state, "W_enc", path, 2).T,
        "b_enc": pick(state, "b_enc", path, 1),
        "W_dec": pick(state, "W_dec", path, 2).T,
        "b_dec": pick(state, "b_dec", path, 1),
    }
    d, m = parameters["W_enc"].shape
    return SAEConfig(
        "topk",
        d,
        m,
        k=int(named[3]),
        site=Site("resid_post", int(layer[1])),
        model=f"Qwen/{named[1]}",
        format=NAME,
        advertised_l0=float(named[3]),
    ), parameters
