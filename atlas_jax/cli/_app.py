"""All commands. Their modules import the numerics only when they run, so ``--help`` is quick."""

import importlib.metadata
from typing import Annotated

import typer

from atlas_jax.cli import (
    _activations,
    _align,
    _atlas,
    _bridge,
    _corpus,
    _evaluate,
    _evaluate_steering,
    _export,
    _lens,
    _quickstart,
    _report,
    _sae,
    _serve,
    _use,
    _verbalizer,
)
from atlas_jax.cli._options import Commands

app = Commands(
    name="atlas-jax",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"atlas-jax {importlib.metadata.version('atlas-jax')}")
        raise typer.Exit
    return asked


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Read and steer a language model through a labelled concept atlas of another."""


app.command()(_quickstart.quickstart)
app.add_typer(_corpus.app, name="corpus")
app.add_typer(_atlas.app, name="atlas")
app.add_typer(_sae.app, name="sae")
app.add_typer(_activations.app, name="activations")
app.command()(_align.align)
_bridge.app.command()(_verbalizer.explain)
app.add_typer(_bridge.app, name="bridge")
app.add_typer(_verbalizer.app, name="verbalizer")
app.command()(_use.info)
app.command()(_use.identify)
app.command()(_use.name)
app.command()(_use.steer)
app.command()(_use.inspect)
app.command()(_export.export)
app.add_typer(_lens.app, name="lens")
app.command()(_report.report)
app.command()(_serve.serve)
_evaluate.app.command("steering")(_evaluate_steering.steering)
app.add_typer(_evaluate.app, name="evaluate")
