"""``atlas-jax evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._console import emit, stages

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

    with stages() as stage:
        _, found = experiments.measure(Alignment.load(run), stage=stage, features=features)
    emit(as_json, found.as_json(), lambda: quality_table(found))


@app.callback()
def _group() -> None:
    """Measure an alignment as the paper does."""
