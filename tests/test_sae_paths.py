"""What an SAE says of itself must not hang on how the path to it is written, nor on links on the way."""

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import sae_files

from atlas_jax.errors import AtlasError
from atlas_jax.sae import SparseAutoencoder
from atlas_jax.sae._formats._read import last_match

pytest.importorskip("torch")


def absolute(place, tmp_path, monkeypatch):
    return place


def trailing(place, tmp_path, monkeypatch):
    return f"{place}/" if place.is_dir() else str(place)


def relative(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path(os.path.relpath(place))


def through_the_parent(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place.parent)
    return Path("..") / place.parent.name / place.name


def inside(place, tmp_path, monkeypatch):
    """From within its own folder, as ``.`` or by the bare name of the file."""
    monkeypatch.chdir(place if place.is_dir() else place.parent)
    return "." if place.is_dir() else place.name


def linked(place, tmp_path, monkeypatch):
    """A link whose name tells nothing."""
    (tmp_path / "mine").symlink_to(place)
    return tmp_path / "mine"


def linked_files(place, tmp_path, monkeypatch):
    """A folder of the release's names whose files are links into a store that names them by their contents."""
    blobs = tmp_path / "store" / "objects"
    blobs.mkdir(parents=True)
    for file in [f for f in place.parent.rglob("*") if f.is_file()]:
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        if not blob.exists():
            shutil.copy(file, blob)
        file.unlink()
        file.symlink_to(os.path.relpath(blob, file.parent))
    return place


def hub_cache(place, tmp_path, monkeypatch):
    """The cache of huggingface_hub: ``models--owner--name/snapshots/REVISION/`` and links to blobs."""
    root = tmp_path / "release"
    repository = place.relative_to(root).parts[0]
    cache = tmp_path / "hub" / f"models--owner--{repository}"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / ("0123456789" * 4)
    for file in [f for f in (root / repository).rglob("*") if f.is_file()]:
        blob = cache / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(root / repository)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.rmtree(root)
    return snapshot / place.relative_to(root / repository)


def hub_cache_from_inside(place, tmp_path, monkeypatch):
    return inside(hub_cache(place, tmp_path, monkeypatch), tmp_path, monkeypatch)


def unzipped(place, tmp_path, monkeypatch):
    """From an archive of the release, unpacked somewhere else."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in [f for f in (tmp_path / "release").rglob("*") if f.is_file()]:
            archive.write(file, file.relative_to(tmp_path / "release"))
    elsewhere = tmp_path / "layer_9" / "down loads"
    zipfile.ZipFile(tmp_path / "all.zip").extractall(elsewhere)
    return elsewhere / place.relative_to(tmp_path / "release")


WAYS = [absolute, trailing, relative, through_the_parent, inside, linked, linked_files]
WAYS += [hub_cache, hub_cache_from_inside, unzipped]


@pytest.mark.parametrize("layout", sae_files.TOLD, ids=lambda f: f.__name__)
@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
def test_an_sae_is_the_same_by_every_path(layout, way, tmp_path, monkeypatch):
    place = layout(tmp_path / "release")
    plain = SparseAutoencoder.from_pretrained(place)
    sae = SparseAutoencoder.from_pretrained(way(place, tmp_path, monkeypatch))
    site, model, l0 = sae_files.TOLD[layout]
    assert (str(sae.config.site), sae.config.model, sae.config.advertised_l0) == (site, model, l0)
    assert sae.config == plain.config
    assert all(np.array_equal(sae.parameters[name], value) for name, value in plain.parameters.items())


def test_the_scale_of_an_embeddings_sae_is_applied_in_the_cache_too(tmp_path, monkeypatch):
    place = hub_cache(sae_files.gemma_scope_embedding(tmp_path / "release"), tmp_path, monkeypatch)
    sae = SparseAutoencoder.from_pretrained(place)
    np.testing.assert_allclose(sae.W_enc, sae_files.arrays()["W_enc"] / np.sqrt(sae_files.D), rtol=1e-6)


def test_the_only_sae_of_a_folder_is_read_and_none_of_several_is_chosen(tmp_path):
    folder = sae_files.goodfire(tmp_path).parent
    (folder / "README.md").write_text("an SAE")
    assert SparseAutoencoder.from_pretrained(folder).config.model == "Llama-3.1-8B-Instruct"
    file = sae_files.qwen_scope(tmp_path)
    assert SparseAutoencoder.from_pretrained(file.parent).config.k == 5
    shutil.copy(file, file.parent / "layer4.sae.pt")
    with pytest.raises(AtlasError, match=r"several SAEs \(layer3.sae.pt, layer4.sae.pt\); give the path of one"):
        SparseAutoencoder.from_pretrained(file.parent)


@pytest.mark.parametrize("name", ["sae.zip", "sae.tar", "sae.tar.gz"])
def test_an_archive_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(AtlasError, match=f"{name} is an archive: unpack it"):
        SparseAutoencoder.from_pretrained(tmp_path / name)


def test_names_nearest_to_the_file_count(tmp_path):
    assert last_match(r"/layer_(\d+)/", tmp_path / "layer_3" / "runs" / "layer_20" / "params.npz")[1] == "20"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(AtlasError, match="there is no SAE"):
        SparseAutoencoder.from_pretrained(tmp_path / "loop")
