"""``atlas-jax report``."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._console import emit, err, notes
from atlas_jax.cli._options import Overwrite
from atlas_jax.cli._use import AsJson, RunArgument


def report(
    run: RunArgument,
    out_file: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page.", show_default="report.html in the run, replaced")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Translator that concepts are searched by.", show_default="as of identify")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's figures beside, where it has some.")] = False,
    curves: Annotated[int, typer.Option(help="Features with precision-recall and ROC curves; 0: none.", min=0)] = 6,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page of a run: tables, plots, and a search over its concepts; it needs no network and no server.

    Example: atlas-jax report runs/quickstart -o report.html
    """
    from atlas_jax.report import write_report

    written = write_report(run, out_file, method=method, paper=paper, curves=curves, overwrite=overwrite)
    notes(written.faults)
    emit(as_json, written.to_dict())
    if not as_json:
        err.print(f"written to {written.path}, {written.size / 1e6:.1f} MB; open it in a browser", highlight=False)
