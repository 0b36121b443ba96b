"""The options by which commands are given a concept, and the query they make."""

from typing import TYPE_CHECKING, Annotated

import typer

from atlas_jax.cli._console import warn
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from atlas_jax.experiments import ConceptQuery
    from atlas_jax.pipeline import Alignment

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
    """The query of the options; what speaks against it goes to standard error.

    Raises:
      AtlasError: unless the concept is given in exactly one way, or as :func:`experiments.concept_query`.
    """
    from atlas_jax.experiments import concept_query

    given = [
        name for name, x in (("--concept", concept), ("--feature", feature), ("--like", like)) if x not in (None, [])
    ]
    if len(given) != 1 or (unlike and not like):
        told = (
            "none was given" if not given else f"{' and '.join([*given, *(['--unlike'] if unlike else [])])} were given"
        )
        raise AtlasError(
            f"give the concept in one way: --concept in words, --feature ids, or --like texts with or without --unlike "
            f"ones; {told}"
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
    """Atlas features and weights from ``ID`` or ``ID:WEIGHT``.

    Raises:
      AtlasError: for anything else, or a feature with two weights.

    Example:
      >>> weights(["17:0.5", "40:-1", "3"])
      {17: 0.5, 40: -1.0, 3: 1.0}
    """
    found: dict[int, float] = {}
    for text in features:
        name, *weight = text.split(":", 1)
        try:
            feature, value = int(name), float(weight[0] if weight else 1)
        except ValueError as e:
            raise AtlasError(f"--feature '{text}' is not ID or ID:WEIGHT, such as 17, 17:0.5 or 40:-1") from e
        if found.setdefault(feature, value) != value:
            raise AtlasError(f"--feature {feature} was given with two weights, {found[feature]:g} and {value:g}")
    return found
