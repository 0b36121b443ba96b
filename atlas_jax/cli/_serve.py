"""``atlas-jax serve``."""

from typing import Annotated

import typer

from atlas_jax.cli._console import err, note
from atlas_jax.cli._use import RunArgument


def serve(
    run: RunArgument,
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8765,
    host: Annotated[str, typer.Option(help="Address to listen at; 127.0.0.1 is this machine alone.")] = "127.0.0.1",
) -> None:
    """Open a run as a page on this machine: search concepts, steer, and read texts token by token.

    Example: atlas-jax serve runs/quickstart
    """
    from atlas_jax import explorer
    from atlas_jax.explorer._guard import is_loopback

    if not is_loopback(host):
        note(f"whoever can reach {host} may use this model; the page asks for no password")
    said = lambda address: err.print(f"open {address} in a browser; Ctrl-C ends it", highlight=False)
    explorer.serve(run, host=host, port=port, said=said)
