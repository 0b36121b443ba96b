"""What options of several commands share: how numbers are checked, before any work is done."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0, max=2**32 - 1)]


def finite(*, above: float = -math.inf) -> Callable[[Any], Any]:
    """A callback for options that are numbers: refuses nan and infinity, and what is not ``above`` a limit.

    Typer's own ``min`` and ``max`` let nan pass, and have no open end.

    Example:
      >>> finite(above=0)(0.5)
      0.5
    """

    def check(value: Any) -> Any:
        for number in value if isinstance(value, list | tuple) else (value,):
            if number is not None and not math.isfinite(number):
                raise typer.BadParameter(f"{number} is not a finite number")
            if number is not None and number <= above:
                raise typer.BadParameter(f"{number:g} is not above {above:g}")
        return value

    return check
