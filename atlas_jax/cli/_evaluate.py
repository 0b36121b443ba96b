"""``atlas-jax evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._console import emit, note, progress_bars

app = typer.Typer(help="Measure an alignment as the paper does.", no_args_is_help=True)


@app.command()
def quality(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    features: Annotated[int, typer.Option(help="Atlas features to translate.", min=1)] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """AUROC and AP of every translation on the run's held-out sentences (Table 3).

    Example: atlas-jax evaluate quality runs/quickstart
    """
    from atlas_jax import experiments
    from atlas_jax.cli._tables import quality_table
    from atlas_jax.pipeline import Alignment

    with progress_bars() as progress:
        _, found = experiments.measure(Alignment.load(run), progress=progress, features=features)
    emit(as_json, found.as_json(), lambda: quality_table(found))


@app.command()
def retrieval(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    sentences: Annotated[int, typer.Option(help="Sentences that a query is averaged over.", min=1)] = 20,
    centre: Annotated[bool, typer.Option(help="Subtract the mean atlas activations from queries.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """MRR and MPP of every translation with queries averaged over held-out sentences (Table 4).

    Example: atlas-jax evaluate retrieval runs/quickstart --no-centre
    """
    from atlas_jax import experiments
    from atlas_jax.cli._tables import retrieval_table
    from atlas_jax.pipeline import Alignment

    alignment = Alignment.load(run)
    with progress_bars() as progress:
        found = experiments.semantic_retrieval(
            alignment.stream("eval"), alignment.translations, sentences=sentences, centre=centre, progress=progress
        )
    if found.sentences < sentences:
        told = f"queries are averaged over {found.sentences} sentences, not over {sentences}"
        note(f"{told}: over at most half of the {found.held_out} held out")
    emit(as_json, found.as_json(), lambda: retrieval_table(found))


@app.callback()
def _group() -> None:
    """Measure an alignment as the paper does."""
