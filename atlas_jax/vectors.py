"""Steering vectors as files: safetensors, read back as edits, and GGUF control vectors for llama.cpp and repeng."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import safe_open
from safetensors.numpy import save_file

from atlas_jax.errors import AtlasError
from atlas_jax.files import local_or_hub, new_file, reading
from atlas_jax.steering import Add, Steer
from atlas_jax.types import Site

VECTORS = "steering.safetensors"  # in a directory or a repository
KINDS = {"steer": Steer, "add": Add}
_LLAMA_CPP = {"mistral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox"}  # where it has another name


def save_edits(edits: Mapping[Site | str, Any], path: str | os.PathLike) -> Path:
    """Write steering edits as safetensors: a float32 vector ``[d]`` a site, with kind and strength in the header.

    Args:
      edits: :class:`atlas_jax.Steer` or :class:`atlas_jax.Add` by site, each of one direction and one strength.
      path: the file; never seen half-written.

    Raises:
      AtlasError: for other edits, or a file that cannot be written.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> import atlas_jax as aj
      >>> edits = {"resid_post.2": aj.Steer(jnp.array([0.0, 3.0]), 0.5)}
      >>> kept = aj.load_edits(aj.save_edits(edits, tempfile.mkdtemp() + "/dogs.safetensors"))
      >>> kept
      {Site('resid_post.2'): Steer(direction=array([0., 3.], dtype=float32), strength=0.5)}
    """
    parts = {site: _parts(site, edit) for site, edit in _by_site(edits).items()}
    words = {str(site): {"edit": kind, "strength": strength} for site, (kind, _, strength) in parts.items()}
    with new_file(path) as file:
        save_file({str(site): vector for site, (_, vector, _) in parts.items()}, file, {"edits": json.dumps(words)})
    return Path(path)


def load_edits(path: str | os.PathLike) -> dict[Site, Steer | Add]:
    """Read what :func:`save_edits` wrote, as edits for :func:`atlas_jax.generate` and :func:`atlas_jax.run`.

    The path may be a directory or a repository of the hub (``owner/name``) that holds ``steering.safetensors``.

    Raises:
      AtlasError: if the file is missing, damaged or none of these.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> import atlas_jax as aj
      >>> path = aj.save_edits({"mlp_act.1": aj.Add(np.ones(2), -1.0)}, tempfile.mkdtemp() + "/dogs.safetensors")
      >>> aj.load_edits(path)[aj.Site("mlp_act", 1)].strength
      -1.0
    """
    path = local_or_hub(path)
    path = path / VECTORS if path.is_dir() else path
    with reading(path, "export the vectors again"), safe_open(path, "numpy") as file:
        words = json.loads((file.metadata() or {})["edits"])
        return {
            Site.parse(name): KINDS[own["edit"]](file.get_tensor(name), float(own["strength"]))
            for name, own in words.items()
        }


def export_gguf(
    edits: Mapping[Site | str, Any], path: str | os.PathLike, *, family: str = "llama", additive: bool = False
) -> Path:
    r"""Write steering edits as a control vector of llama.cpp, which repeng reads too.

    llama.cpp adds the vector ``direction.k`` to the residual stream after block k, at every token, k counted from 0 and
    at least 1; this is ``resid_post.k`` here. The strength is multiplied in: give the file a scale of 1
    (``--control-vector FILE``). It has no place for Eq. 4, which scales activations back to their norm: with
    ``additive`` its sum :math:`a + \lambda s` is written instead, which goes further at the same strength.

    Args:
      edits: :class:`atlas_jax.Add`, or :class:`atlas_jax.Steer` with ``additive``, by site.
      path: the file; never seen half-written.
      family: ``model_type`` of the subject's config, a hint for those who load the file.
      additive: write the sum in the place of Eq. 4.

    Raises:
      AtlasError: for what the format cannot express: Eq. 4, block 0, and any site but the residual stream after a
        block; for vectors of different widths; without the package ``gguf``, the extra of that name.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> import atlas_jax as aj
      >>> path = aj.export_gguf({"resid_post.2": aj.Add(np.ones(4), 0.5)}, tempfile.mkdtemp() + "/dogs.gguf")
      >>> import gguf                                                                       # doctest: +SKIP
      >>> [(t.name, t.data.tolist()) for t in gguf.GGUFReader(path).tensors]                # doctest: +SKIP
      [('direction.2', [0.5, 0.5, 0.5, 0.5])]
    """
    vectors = {}
    for site, edit in _by_site(edits).items():
        kind, vector, strength = _parts(site, edit)
        _check_gguf(site, kind, additive)
        vectors[site.layer] = (strength * vector).astype(np.float32)
    if len({v.size for v in vectors.values()}) > 1:
        raise AtlasError("the vectors of one control vector have one width; export each model's by itself")
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise AtlasError('to write GGUF install the package gguf: pip install "atlas-jax[gguf]"') from error
    with new_file(path) as file:
        writer = GGUFWriter(file, "controlvector")
        writer.add_string("controlvector.model_hint", _LLAMA_CPP.get(family, family))
        writer.add_uint32("controlvector.layer_count", len(vectors))
        for layer in sorted(vectors):
            writer.add_tensor(f"direction.{layer}", vectors[layer])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return Path(path)


def _by_site(edits: Mapping[Site | str, Any]) -> dict[Site, Any]:
    if not edits:
        raise AtlasError("there is no edit to write; such as {'resid_post.2': Steer(direction, 0.5)}")
    return {Site.parse(name): edit for name, edit in edits.items()}


def _parts(site: Site, edit: Any) -> tuple[str, Float[np.ndarray, " d"], float]:
    """The kind of an edit, its direction and its strength."""
    kind = next((name for name, known in KINDS.items() if isinstance(edit, known)), None)
    if kind is None:
        raise AtlasError(f"only Steer and Add can be written as vectors, and at {site} is {type(edit).__name__}")
    edit.check()
    vector, strength = np.asarray(edit.direction, np.float32), np.asarray(edit.strength)
    if vector.ndim != 1 or strength.ndim:
        raise AtlasError(f"a vector has one direction and one strength; the edit at {site} has several, one a row")
    return kind, np.ascontiguousarray(vector), float(strength)


def _check_gguf(site: Site, kind: str, additive: bool) -> None:
    if site.point != "resid_post":
        raise AtlasError(
            f"llama.cpp adds control vectors to the residual stream after a block, resid_post, not at {site}; steer "
            "there, or write safetensors"
        )
    if site.layer == 0:
        raise AtlasError("llama.cpp has no control vector after block 0; steer at a later block, or write safetensors")
    if kind == "steer" and not additive:
        raise AtlasError(
            f"Steer at {site} scales activations back to their norm (Eq. 4), which control vectors of llama.cpp cannot "
            "do; ask for the additive form, or write safetensors"
        )
