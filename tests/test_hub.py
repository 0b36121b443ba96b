"""What is put on the hub comes back the same, with a card; a fake hub keeps the files."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import atlas_jax as aj

T = aj.Translation(
    jnp.arange(6.0).reshape(2, 3), jnp.ones(2), jnp.zeros(3), "covariance", certificate={"residual": 0.5}
)
EDITS = {"resid_post.2": aj.Steer(np.array([0.0, 3.0], np.float32), 0.5)}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Uploads are copied into a folder, downloads come from there."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    def upload(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / "hub" / repo_id)

    def create(self, repo_id, **_):
        validate_repo_id(repo_id)
        return f"https://hub/{repo_id}"

    def download(repo_id, **_):
        if not (tmp_path / "hub" / repo_id).is_dir():
            raise LocalEntryNotFoundError("no such repository")
        return str(tmp_path / "hub" / repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path / "hub"


def test_a_translation_comes_back(hub):
    assert aj.push_to_hub(T, "me/words", base_models=["a/b"], corpus="docs", license="mit") == "https://hub/me/words"
    for back in (aj.Translation.from_pretrained("me/words"), aj.Translation.from_pretrained(hub / "me/words")):
        np.testing.assert_array_equal(back.matrix, T.matrix)
        assert back.certificate == T.certificate
    _, head, text = (hub / "me/words/README.md").read_text().split("---\n")
    tags = ["atlas-alignment", "interpretability", "translation"]
    assert yaml.safe_load(head) == {"library_name": "atlas-jax", "tags": tags, "base_model": ["a/b"], "license": "mit"}
    assert all(part in text for part in ("covariance", '"residual": 0.5', "Corpus: docs"))


def test_a_bridge_comes_back(hub):
    bridge = aj.Bridge(dataclasses.replace(T, site=aj.Site("resid_post", 1), metadata={"source_site": "resid_post.3"}))
    aj.push_to_hub(bridge, "me/bridge")
    back = aj.Bridge.from_pretrained("me/bridge")
    assert (str(back.source), str(back.target)) == ("resid_post.3", "resid_post.1")
    np.testing.assert_array_equal(back.direction(np.eye(3)), np.asarray(T.matrix).T)
    card = (hub / "me/bridge/README.md").read_text()
    assert all(part in card for part in ("bridge", "aj.Bridge.from_pretrained", "From resid_post.3 to resid_post.1"))


def test_vectors_come_back(hub):
    aj.push_to_hub(EDITS, "me/dogs")
    for back in (aj.load_edits("me/dogs"), aj.load_edits(hub / "me/dogs")):
        assert back[aj.Site("resid_post", 2)].strength == 0.5
        np.testing.assert_array_equal(back[aj.Site("resid_post", 2)].direction, [0, 3])
    assert "license" not in (hub / "me/dogs/README.md").read_text()


def test_an_atlas_comes_back(hub):
    from atlas_jax.bundled import ATLAS

    atlas = aj.ConceptAtlas.from_pretrained(ATLAS)
    aj.push_to_hub(atlas, "me/atlas")
    back = aj.ConceptAtlas.from_pretrained("me/atlas")
    np.testing.assert_array_equal(back.sae.W_dec, atlas.sae.W_dec)
    assert back.labels[7] == atlas.labels[7]


@pytest.mark.parametrize("read", [aj.Translation.from_pretrained, aj.load_edits])
def test_a_missing_repository_is_one_sentence(hub, read):
    with pytest.raises(aj.AtlasError, match="'nobody/nothing' is no local path and could not be fetched"):
        read("nobody/nothing")


@pytest.mark.parametrize("name", ["a b", "a/b/c", "--x"])
def test_a_name_that_is_no_repository_is_one_sentence(hub, name):
    with pytest.raises(aj.AtlasError, match=r"could not be written on the hub .*; check the name \(owner/name\)"):
        aj.push_to_hub(T, name)


def test_no_token_is_one_sentence(hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalTokenNotFoundError

    def refuse(self, *_, **__):
        raise LocalTokenNotFoundError("Token is required")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(aj.AtlasError, match=r"\(Token is required\).*logged in"):
        aj.push_to_hub(T, "me/words")
