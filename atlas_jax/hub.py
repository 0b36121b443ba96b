"""Translations, bridges, atlases and steering vectors on the Hugging Face hub, with a model card."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas_jax.atlas import ConceptAtlas
from atlas_jax.bridge import Bridge
from atlas_jax.files import asking_hub
from atlas_jax.translation import Translation
from atlas_jax.vectors import VECTORS, save_edits

_KINDS = {  # tag, heading, how it is read
    Translation: ("translation", "A translation", "aj.Translation.from_pretrained"),
    Bridge: ("bridge", "A bridge", "aj.Bridge.from_pretrained"),
    ConceptAtlas: ("concept-atlas", "A concept atlas", "aj.ConceptAtlas.from_pretrained"),
}


def push_to_hub(
    thing: Translation | Bridge | ConceptAtlas | Mapping[Any, Any],
    repository: str,
    *,
    base_models: Sequence[str] = (),
    corpus: str | None = None,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Put a translation, a bridge, an atlas or steering edits into a repository of the hub; return its address.

    ``from_pretrained`` of the same class, and ``load_edits``, read it back by its name.

    Args:
      thing: what to publish; edits by site, as for :func:`atlas_jax.save_edits`.
      repository: ``owner/name``; made where there is none.
      base_models: hub names of the models it belongs to, for the card.
      corpus: name of the text it was fitted to, for the card.
      license: its licence as the hub writes it, such as "apache-2.0"; the card names none by default.
      private: of a new repository.
      token: of the hub; by default that of the login.

    Raises:
      AtlasError: if the name is no repository's, there is no token, or the hub refuses.

    Example:
      >>> import jax.numpy as jnp
      >>> import atlas_jax as aj
      >>> t = aj.Translation(jnp.eye(2), jnp.zeros(2), jnp.zeros(2), "covariance")
      >>> aj.push_to_hub(t, "me/dogs", license="mit")  # doctest: +SKIP
      'https://huggingface.co/me/dogs'
    """
    from huggingface_hub import HfApi

    failure = f"'{repository}' could not be written on the hub"
    login = "that you are logged in (hf auth login) with a token that may write"
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "files"
        if isinstance(thing, Mapping):
            directory.mkdir()
            save_edits(thing, directory / VECTORS)
        else:
            thing.save_pretrained(directory)
        (directory / "README.md").write_text(_card(thing, base_models, corpus, license), encoding="utf-8")
        with asking_hub(failure, f"check the name (owner/name), the network, and {login}"):
            api = HfApi(token=token)
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=directory, commit_message="Upload with atlas-jax")
    return str(address)


def _card(thing: Any, base_models: Sequence[str], corpus: str | None, license: str | None) -> str:
    """The model card; JSON strings are YAML strings."""
    tag, title, read = _KINDS.get(type(thing), ("steering-vectors", "Steering vectors", "aj.load_edits"))
    head = {"library_name": "atlas-jax", "tags": ["atlas-alignment", "interpretability", tag]}
    head |= {"base_model": list(base_models)} if base_models else {}
    head |= {"license": license} if license else {}
    yaml = "\n".join(f"{name}: {json.dumps(value)}" for name, value in head.items())
    lines = [f"---\n{yaml}\n---\n", f"# {title}", f"Read it with `{read}(NAME)`, after `import atlas_jax as aj`.\n"]
    if corpus:
        lines.append(f"Corpus: {corpus}\n")
    if isinstance(thing, Bridge):
        lines.append(f"From {thing.source} to {thing.target}.\n")
        thing = thing.translation
    if isinstance(thing, Translation):
        lines += [f"Method: {thing.described}; site: {thing.site}; {thing.d_s} x {thing.d_c}\n", "## Certificate\n"]
        lines.append(f"```json\n{json.dumps(thing.certificate, indent=1, default=str)}\n```")
    return "\n".join(lines) + "\n"
