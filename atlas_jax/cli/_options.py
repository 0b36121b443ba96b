"""Options of several commands: names that help lists, numbers checked before any work, and the query of a concept."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_jax.cli._console import warn, whole_tables
from atlas_jax.errors import AtlasError
from atlas_jax.files import RUN, check_place, new_file, write_json
from atlas_jax.names import METHOD_NAMES, POINT_NAMES, POOLING_NAMES, USE_NAMES

if TYPE_CHECKING:
    from atlas_jax.experiments import ConceptQuery
    from atlas_jax.pipeline import Alignment


def finite(*, above: float | int = -math.inf, least: float | int = -math.inf) -> Callable[[Any], Any]:
    """Make a callback for options that are numbers: it refuses nan, infinity, and numbers below a limit.

    Typer's own ``min`` and ``max`` let nan pass, have no open end, and do not work for several numbers.

    Example:
      >>> from atlas_jax.cli._options import finite
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


class Commands(typer.Typer):
    """A group of commands; those that print tables take ``--wide`` too."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Add a command."""
        return lambda function: super(Commands, self).command(name, **options)(_with_wide(function))


def _with_wide(function: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(function)
    if "as_json" not in signature.parameters:
        return function

    @functools.wraps(function)
    def command(*arguments: Any, wide: bool = False, **options: Any) -> None:
        with whole_tables() if wide else nullcontext():
            function(*arguments, **options)

    said = "Print tables as wide as they are, instead of leaving out what does not fit."
    kind = Annotated[bool, typer.Option("--wide", help=said)]
    added = inspect.Parameter("wide", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])
    command.__annotations__ = function.__annotations__ | {"wide": kind}
    return command


METHODS, POOLINGS, USES = map(", ".join, (METHOD_NAMES, POOLING_NAMES, USE_NAMES))
SITES = f"POINT.LAYER, such as mlp_act.19, with a point of {', '.join(POINT_NAMES)}"
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
HEADS = "z.19.5 for one attention head, z.19.all for every head by itself"
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
Concept = Annotated[str | None, typer.Option("--concept", help="The concept in words, searched among the labels.")]
Features = Annotated[
    list[str] | None,
    typer.Option("--feature", help="Atlas feature, with a weight if not 1, such as 17:0.5 or 40:-1; may be repeated."),
]
Like = Annotated[list[str] | None, typer.Option("--like", help="A text the concept is in; may be repeated.")]
Unlike = Annotated[
    list[str] | None, typer.Option("--unlike", help="A text it is not in, beside --like; may be repeated.")
]


def asked_query(
    alignment: "Alignment",
    concept: str | None,
    feature: list[str] | None,
    like: list[str] | None,
    unlike: list[str] | None,
) -> "ConceptQuery":
    """Make the query of the options; its warning goes to standard error.

    Raises:
      AtlasError: unless the concept is given in exactly one way, or as :func:`experiments.concept_query`.
    """
    from atlas_jax.experiments import concept_query

    given = [
        name for name, x in (("--concept", concept), ("--feature", feature), ("--like", like)) if x not in (None, [])
    ]
    if len(given) != 1 or (unlike and not like):
        reason = (
            "none was given" if not given else f"{' and '.join([*given, *(['--unlike'] if unlike else [])])} were given"
        )
        raise AtlasError(
            f"give the concept in one way: --concept in words, --feature ids, or --like texts with or without --unlike "
            f"ones; {reason}"
        )
    mean = next(iter(alignment.translations.values())).mean_atlas
    query = concept_query(
        alignment.atlas,
        concept=concept,
        features=weights(feature or []),
        like=like or (),
        unlike=unlike or (),
        mean=mean,
    )
    if query.warning:
        warn(f"{query.warning}; read the labels, or try --feature or --like")
    return query


def weights(features: list[str]) -> dict[int, float]:
    """Read atlas features and weights from ``ID`` or ``ID:WEIGHT``.

    Raises:
      AtlasError: for anything else, a weight that is not finite, or a feature with two weights.

    Example:
      >>> from atlas_jax.cli._options import weights
      >>> weights(["17:0.5", "40:-1", "3"])
      {17: 0.5, 40: -1.0, 3: 1.0}
    """
    weight_of: dict[int, float] = {}
    for text in features:
        name, *weight = text.split(":", 1)
        try:
            feature, value = int(name), float(weight[0] if weight else 1)
        except ValueError as e:
            raise AtlasError(f"--feature '{text}' is not ID or ID:WEIGHT, such as 17, 17:0.5 or 40:-1") from e
        if not math.isfinite(value):
            raise AtlasError(f"--feature '{text}': the weight must be a finite number")
        if weight_of.setdefault(feature, value) != value:
            raise AtlasError(f"--feature {feature} was given with two weights, {weight_of[feature]:g} and {value:g}")
    return weight_of


@contextmanager
def result_file(run: Path, name: str, out: Path | None, overwrite: bool) -> Iterator[Callable[[Any], None]]:
    """Give what writes a result as JSON to ``out``, or as a table of the run, where the last one is replaced.

    Raises:
      AtlasError: before any work, if nothing can be written there, or ``out`` exists and is not to be replaced.
    """
    path = run / "tables" / f"{name}.json" if out is None else out
    if out is not None or (run / RUN).is_file():  # what is no run is for its reader to say
        check_place(path, overwrite=overwrite or out is None)

    def store(content: Any) -> None:
        with new_file(path) as place:
            write_json(place, content)

    yield store
