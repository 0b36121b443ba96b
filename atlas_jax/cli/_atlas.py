"""``atlas-jax atlas``."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._console import emit, stages
from atlas_jax.cli._corpus import read_corpus

app = typer.Typer(help="Foundation model, SAE and labels.", no_args_is_help=True)
Directory = Annotated[Path | None, typer.Argument(help="An atlas directory; the bundled one by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def info(
    directory: Directory = None,
    text: Annotated[list[Path] | None, typer.Option("--text", help="Text to measure on.")] = None,
    sentences: Annotated[int, typer.Option(help="Sentences to measure on.", min=100)] = 4000,
    as_json: AsJson = False,
) -> None:
    """Measure an atlas on text: FVU, L0 and dead features of its SAE, coverage and quality of its labels.

    Example: atlas-jax atlas info --text my-texts/
    """
    from atlas_jax.cli._tables import facts_table
    from atlas_jax.experiments import atlas_facts

    atlas = _load(directory)
    corpus = read_corpus(text, n_fit=2 * sentences, seed=0)
    with stages() as stage:
        facts = atlas_facts(atlas, corpus.eval[:sentences], stage=stage)
    emit(as_json, facts, lambda: facts_table("Concept Atlas", facts))


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for among the labels.")],
    directory: Annotated[Path | None, typer.Option("--atlas", help="An atlas directory.")] = None,
    k: Annotated[int, typer.Option(help="Features to show.", min=1)] = 10,
    as_json: AsJson = False,
) -> None:
    """Find atlas features by what their labels mean.

    Example: atlas-jax atlas search "dates and time"
    """
    from atlas_jax.cli._tables import hits_table

    hits = _load(directory).search(query, k)
    emit(as_json, [h._asdict() for h in hits], lambda: hits_table(f"Atlas features for '{query}'", hits))


def _load(directory: Path | None):  # noqa: ANN202
    from atlas_jax.atlas import ConceptAtlas
    from atlas_jax.bundled import ATLAS

    return ConceptAtlas.from_pretrained(directory or ATLAS)
