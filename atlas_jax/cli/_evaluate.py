"""``atlas-jax evaluate``: measure an alignment."""

from typing import Annotated

import typer

from atlas_jax.cli._console import emit, note, progress_bars
from atlas_jax.cli._use import AsJson, RunArgument, load_run

app = typer.Typer(help="Measure an alignment as the paper does.", no_args_is_help=True)


@app.command()
def quality(
    run: RunArgument,
    features: Annotated[int, typer.Option(help="Atlas features to translate.", min=1)] = 100,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP of every translation on the run's held-out sentences (Table 3).

    Example: atlas-jax evaluate quality runs/quickstart
    """
    from atlas_jax import experiments

    with progress_bars() as progress:
        _, quality = experiments.evaluate_quality(load_run(run), progress=progress, features=features)
    emit(as_json, quality.to_dict(), quality.table())


@app.command()
def retrieval(
    run: RunArgument,
    sentences: Annotated[int, typer.Option(help="Sentences that a query is averaged over.", min=1)] = 20,
    centre: Annotated[bool, typer.Option(help="Subtract the mean atlas activations from queries.")] = True,
    as_json: AsJson = False,
) -> None:
    """MRR and MPP of every translation with queries averaged over held-out sentences (Table 4).

    Example: atlas-jax evaluate retrieval runs/quickstart --no-centre
    """
    from atlas_jax import experiments

    alignment = load_run(run)
    with progress_bars() as progress:
        retrieval = experiments.semantic_retrieval(
            alignment.stream("eval"), alignment.translations, sentences=sentences, centre=centre, progress=progress
        )
    if retrieval.sentences < sentences:
        fewer = f"queries are averaged over {retrieval.sentences} sentences, not over {sentences}"
        note(f"{fewer}: over at most half of the {retrieval.held_out} held out")
    emit(as_json, retrieval.to_dict(), retrieval.table())


@app.callback()
def _group() -> None:
    """Measure an alignment as the paper does."""
