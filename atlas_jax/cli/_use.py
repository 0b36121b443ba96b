"""``atlas-jax identify``, ``name`` and ``steer``: using an alignment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_jax.cli._console import emit
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from atlas_jax.pipeline import Alignment

RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
Concept = Annotated[str | None, typer.Option("--concept", help="The concept in words, searched among the labels.")]
Features = Annotated[list[int] | None, typer.Option("--feature", help="Atlas feature id; may be repeated.")]
Method = Annotated[str, typer.Option(help="Translator.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def identify(
    run: RunArgument,
    site: Annotated[str, typer.Option(help="Subject site.")],
    concept: Concept = None,
    feature: Features = None,
    method: Method = "procrustes",
    k: Annotated[int, typer.Option(help="Subject features to show.", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Find the subject's features of a concept, with the held-out sentences that activate them most.

    Example: atlas-jax identify runs/quickstart --site mlp_act.2 --concept "dates and time"
    """
    from atlas_jax import experiments
    from atlas_jax.cli._tables import identified_table

    alignment = _load(run)
    translation = alignment.translation(site, method)
    top = alignment.top[translation.site]
    query = _query(alignment, concept, feature)
    found = experiments.identify(
        translation, query, top, alignment.corpus.sentence, alignment.subject.model.tokenizer, k=k
    )
    title = f"Subject features at {site} by {method}"
    emit(as_json, [i.as_json() for i in found], lambda: identified_table(title, found))


def name(
    run: RunArgument,
    site: Annotated[str, typer.Option(help="Subject site.")],
    feature: Annotated[int, typer.Option(help="Subject feature id.")],
    method: Method = "procrustes",
    k: Annotated[int, typer.Option(help="Atlas features to show.", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Name a subject feature by the atlas features that weigh most in its row of T.

    Example: atlas-jax name runs/quickstart --site mlp_act.2 --feature 17
    """
    from atlas_jax.cli._tables import hits_table
    from atlas_jax.labels import Hit

    alignment = _load(run)
    ranked = alignment.translation(site, method).name_feature(feature, k)
    pairs = zip(ranked.features.tolist(), ranked.scores.tolist(), strict=True)
    hits = [Hit(i, alignment.atlas.labels[i] or "", s, s) for i, s in pairs]
    title = f"Subject feature {feature} at {site} by {method}"
    emit(as_json, [h._asdict() for h in hits], lambda: hits_table(title, hits))


def steer(
    run: RunArgument,
    site: Annotated[list[str], typer.Option("--site", help="Subject site to steer at; may be repeated.")],
    prompt: Annotated[list[str], typer.Option("--prompt", help="Text to continue; may be repeated.")],
    concept: Concept = None,
    feature: Features = None,
    strength: Annotated[list[float] | None, typer.Option("--strength", help="λ of Eq. 4; may be repeated.")] = None,
    method: Method = "procrustes",
    tokens: Annotated[int, typer.Option(help="Tokens to generate.", min=1)] = 40,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.", min=0)] = 0.5,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Continue prompts, steered along a concept, beside the unsteered continuation.

    Example: atlas-jax steer runs/quickstart --site resid_post.2 --concept "plots" --prompt "This function"
    """
    from atlas_jax import experiments
    from atlas_jax.cli._tables import steered_table

    alignment = _load(run)
    translations = {t.site: t for t in (alignment.translation(s, method) for s in site)}
    query = _query(alignment, concept, feature)
    strengths = list(dict.fromkeys([0.0, *(strength or (20.0, 40.0))]))
    steered = experiments.steer(
        alignment.subject.model,
        alignment.atlas,
        translations,
        query,
        prompt,
        strengths,
        max_new_tokens=tokens,
        temperature=temperature,
        seed=seed,
    )
    emit(as_json, [s._asdict() for s in steered], lambda: steered_table("Steering", steered))


def _load(run: Path) -> "Alignment":
    from atlas_jax.pipeline import Alignment

    return Alignment.load(run)


def _query(alignment: "Alignment", concept: str | None, features: list[int] | None) -> Any:
    if (concept is None) == (not features):
        raise AtlasError("give either --concept in words or --feature ids")
    return alignment.atlas.query(features) if features else alignment.atlas.query_text(concept)
