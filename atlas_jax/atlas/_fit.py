"""Do a model, a site, an SAE and labels belong together? Asked of what their own files say."""

import re
from collections.abc import Collection

from atlas_jax.errors import AtlasError
from atlas_jax.labels import Labels
from atlas_jax.models import LanguageModel, ModelConfig, check_site
from atlas_jax.sae import SAEConfig
from atlas_jax.types import Site

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
_DENSE = 0.95


def names_of(model: LanguageModel, given: str, stated: Collection[str] = ()) -> set[str]:
    """Names a model goes by: those the user states, or else those of its path and of its config.

    Example:
      >>> lm = LanguageModel.from_pretrained(SUBJECT)
      >>> names_of(lm, "google/gemma-2-2b"), names_of(lm, "/data/m", ["Qwen/Qwen3-8B"])
      ({'gemma-2-2b'}, {'Qwen3-8B'})
    """
    if stated:
        return {_short(name) for name in stated}
    cached = re.findall(r"models--[^/]+--([^/]+)/snapshots/", given)
    return {_short(n) for n in (given, model.hf_config.get("_name_or_path"), *cached) if n}


def check_model(source: str, expected: str | None, names: Collection[str]) -> None:
    """Refuse a model other than the one that the SAE or the labels name; case and punctuation do not matter.

    Raises:
      AtlasError: if they differ.
    """
    if expected and _bare(_short(expected)) not in {_bare(name) for name in names}:
        raise AtlasError(
            f"{source} of the model '{expected}', and this model goes by '{', '.join(sorted(names))}'; give the right "
            "model, or state its name with --model-name"
        )


def choose_site(config: ModelConfig, sae: SAEConfig, given: Site | str | None) -> Site:
    """The site the user names, or else the SAE's own; both must be the same place in the model.

    Raises:
      AtlasError: if neither says one, the model has no such site, or they differ.
    """
    if given is None and sae.site is None:
        raise AtlasError("the SAE's files do not say where it reads the model; name the site, such as resid_post.12")
    own = None if sae.site is None else check_site(config, sae.site)
    site = own if given is None else check_site(config, given)
    if own is not None and same_place(config, own) != same_place(config, site):
        raise AtlasError(f"by its own files the SAE reads {own}, not {site}; leave the site out or give the right SAE")
    return site


def check_labels(labels: Labels, site: Site, width: int, names: Collection[str], *, partial: bool = False) -> None:
    """Refuse labels of another model, layer or width, as far as their files or their indices tell.

    Raises:
      AtlasError: if they differ, or describe features 0 to n - 1 of a far wider SAE nearly without gap, which labels
        of an SAE with n features do, unless ``partial`` says that this is meant.
    """
    model, layer = labels.origin
    check_model("the labels are", model, names)
    named = re.fullmatch(r"(\d+)(?:-.*?(?:-(\d+)([km]?))?)?", layer.lower())
    if named is not None and int(named[1]) != site.layer:
        raise AtlasError(f"the labels are of layer {named[1]} ('{layer}'), and the SAE reads {site}")
    told = None if named is None or named[2] is None else int(named[2]) * _UNITS[named[3]]
    if told is not None and not _same_width(told, width):
        raise AtlasError(f"the labels are of an SAE with {told} features ('{layer}'), and this one has {width}")
    highest = max(labels.entries, default=-1) + 1
    if told is None and not partial and highest <= width / 2 and len(labels.entries) >= max(_DENSE * highest, 100):
        raise AtlasError(
            f"the labels describe features 0 to {highest - 1} nearly without gap and none of the {width - highest} "
            f"others, as labels of an SAE with {highest} features do; say --partial-labels if they are of this one"
        )


def same_place(config: ModelConfig, site: Site) -> Site:
    """One name for sites that hold the same tensor in every model, or in this one.

    Example:
      >>> same_place(LanguageModel.from_pretrained(SUBJECT).config, Site("resid_pre", 2))
      Site('resid_post.1')
    """
    if site.point == "resid_pre" and site.layer > 0:
        return Site("resid_post", site.layer - 1)
    return site if config.gemma else Site(site.point.replace("_out_post", "_out"), site.layer)


def _same_width(told: int, width: int) -> bool:
    """Releases write 16k for 16384 and for 16000."""
    return 0.9 < told / width < 1.1


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
