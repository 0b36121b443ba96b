"""One description of a feature, the origin of descriptions, and the choice of those of one SAE."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from atlas_jax.errors import AtlasError
from atlas_jax.types import Site

_WAYS = {"model": "--only model=NAME", "layer": "--layer", "hook": "--only hook=NAME", "release": "--only release=NAME"}


class Label(NamedTuple):
    """One description of one feature.

    Attributes:
      index: the feature.
      description: text without surrounding blanks, never empty.
      explainer: the model or method that wrote it, "" where unknown.
      source: the kind of explanation or the file's own source field, "" where unknown.
      score: quality reported with it (detection score, correlation, ...), None where there is none.
      polarity: "negative" where it describes what makes the activation most negative.

    Example:
      >>> from atlas_jax.labels import Label
      >>> Label(7, "words for time", explainer="my-model", score=0.9).polarity
      'positive'
    """

    index: int
    description: str
    explainer: str = ""
    source: str = ""
    score: float | None = None
    polarity: Literal["positive", "negative"] = "positive"


class Origin(NamedTuple):
    """The model and the SAE that labels are of, as their files state.

    Attributes:
      model: name of the model, "" where unknown.
      layer: layer number, or Neuronpedia's name of the SAE such as ``20-gemmascope-res-16k``, "" where unknown.
      hook: the hook point the SAE reads, "" where unknown.
      release: the release the SAE is of, "" where unknown.

    Example:
      >>> from atlas_jax.labels import Origin
      >>> Origin("gemma-2-2b", layer="20").hook
      ''
    """

    model: str = ""
    layer: str = ""
    hook: str = ""
    release: str = ""


class Row(NamedTuple):
    """One row of a table of labels.

    Attributes:
      label: the description.
      origin: the model and the SAE it is of.
      id: its own id, "" where it has none.
    """

    label: Label
    origin: Origin
    id: str


def narrowed(rows: list[Row], path: Path, only: Mapping[str, str], site: Site | None) -> tuple[list[Row], Origin]:
    """Return the rows of one model, layer, hook point and release, and their origin.

    Args:
      rows: all rows of a file.
      path: the file.
      only: values that fields of a row must have.
      site: site of the SAE, which decides among several layers or hook points.

    Raises:
      AtlasError: for an unknown field, where nothing is left, or where several are left.
    """
    if unknown := only.keys() - set(Origin._fields):
        raise AtlasError(f"labels cannot be told apart by '{min(unknown)}'; fields are {', '.join(Origin._fields)}")
    for field, value in only.items():
        there = _values(rows, field)
        rows = [row for row in rows if getattr(row.origin, field) == str(value)]
        if there and not rows:
            raise AtlasError(f"{path} has no labels of {field} {value}; it has {_listed(there)}")
    for field in ("hook", "layer"):
        if site is not None and len(_values(rows, field)) > 1:
            rows = _of_site(rows, path, field, site)
    for field in Origin._fields:
        if len(values := _values(rows, field)) > 1:
            raise AtlasError(
                f"{path} has labels of {len(values)} {field}s: {_listed(values)}; name one with {_WAYS[field]}"
            )
    return rows, rows[0].origin if rows else Origin()


def site_of_hook(hook: str) -> Site | None:
    """Return the site that a hook point names, None where it names none of ours.

    Example:
      >>> from atlas_jax.labels import site_of_hook
      >>> site_of_hook("blocks.20.hook_resid_post"), site_of_hook("the residual")
      (Site('resid_post.20'), None)
    """
    try:
        return Site.parse(hook)
    except AtlasError:
        return None


def _of_site(rows: list[Row], path: Path, field: str, site: Site) -> list[Row]:
    def fits(value: str) -> bool:
        if field == "hook" and (site_of_value := site_of_hook(value)) is not None:
            return site_of_value == site
        return (match := re.match(r"\d+", value)) is not None and int(match[0]) == site.layer

    chosen = {value for value in _values(rows, field) if fits(value)}
    if not chosen:
        raise AtlasError(f"{path} has labels of the {field}s {_listed(_values(rows, field))}, and none of {site}")
    return [row for row in rows if getattr(row.origin, field) in chosen]


def _values(rows: Sequence[Row], field: str) -> list[str]:
    return sorted({getattr(row.origin, field) for row in rows})


def _listed(values: Sequence[str]) -> str:
    return ", ".join(value or "(none)" for value in values[:8]) + (", ..." if len(values) > 8 else "")
