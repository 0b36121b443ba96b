"""Directions that commands steer along, and the lens that names them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_jax.cli._console import progress_bars
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from jax import Array

    from atlas_jax.experiments import Direction
    from atlas_jax.lens import JacobianLens
    from atlas_jax.pipeline import Alignment
    from atlas_jax.types import Site

How = Annotated[
    str | None,
    typer.Option(help="Instead of --method: translate, ahead, gradient or optimise, or where steer --save kept some."),
]
Lens = Annotated[
    Path | None, typer.Option("--lens", help="A lens of the subject, whose tokens are shown beside the atlas's labels.")
]


def found_directions(
    alignment: "Alignment", query: "Array", sites: list[str], how: str, save: Path | None = None
) -> "dict[Site, Direction]":
    """Find the direction of a concept at every site, or read those kept in a directory."""
    from atlas_jax.experiments import HOWS, Direction, concept_directions

    if how not in HOWS and Path(how).is_dir():
        kept = [Direction.from_pretrained(Path(how) / site) for site in sites]
        if any(along.query.tolist() != query.tolist() for along in kept):
            raise AtlasError(f"the directions in '{how}' are of another concept; name the one they were found for")
        return {along.site: along for along in kept}
    with progress_bars() as progress:
        directions = concept_directions(alignment, {"the concept": query}, sites, how, progress=progress)
    return save_directions({site: along for (site, _), along in directions.items()}, save)


def save_directions(directions: "dict[Site, Direction]", save: Path | None) -> "dict[Site, Direction]":
    """Write directions below a place if there is one; return them."""
    for site, along in directions.items():
        if save is not None:
            along.save_pretrained(save / str(site))
    return directions


def opened(lens: Path | None, alignment: "Alignment") -> "JacobianLens | None":
    """Read a lens of a run's subject, where one was given."""
    from atlas_jax.lens import JacobianLens

    return None if lens is None else JacobianLens.from_pretrained(lens, alignment.subject.model)
