"""What options of several commands share: names that help lists, and how numbers are checked before any work."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

from atlas_jax.names import METHOD_NAMES, POINT_NAMES, POOLING_NAMES, USE_NAMES


def finite(*, above: float | int = -math.inf, least: float | int = -math.inf) -> Callable[[Any], Any]:
    """A callback for options that are numbers: refuses nan and infinity, and what is not above a limit.

    Typer's own ``min`` and ``max`` let nan pass, have no open end, and do not work for several numbers.

    Example:
      >>> finite(above=0)(0.5)
      0.5
    """

    def check(value: Any) -> Any:
        for number in value if isinstance(value, list | tuple) else (value,):
            if number is not None and not math.isfinite(number):
                raise typer.BadParameter(f"{number} is not a finite number")
            if number is not None and (number <= above or number < least):
                limit = f"at least {least:g}" if number > above else f"above {above:g}"
                raise typer.BadParameter(f"{number:g} is not {limit}")
        return value

    return check


METHODS, POOLINGS, USES = map(", ".join, (METHOD_NAMES, POOLING_NAMES, USE_NAMES))
SITES = f"POINT.LAYER, such as mlp_act.19, with a point of {', '.join(POINT_NAMES)}"
Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=2**32 - 1)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is finished at --out.")]
CheckpointEvery = Annotated[float, typer.Option(help="Seconds between two checkpoints.", min=0, callback=finite())]
Sites = Annotated[list[str] | None, typer.Option("--site", help=f"Subject site, {SITES}; may be repeated.")]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help=f"Translator, {METHODS}; may be repeated.", show_default="those of the paper"),
]
Choose = Annotated[
    list[str] | None,
    typer.Option("--choose", help=f"Choose a member of the whitened family for a use, {USES}; may be repeated."),
]
