"""``atlas-jax info`` and ``inspect``: what a run holds, and concepts token by token in a text."""

from typing import Annotated

import typer

from atlas_jax.cli._console import emit
from atlas_jax.cli._query import Concept, Features, Like, Unlike, asked_query
from atlas_jax.cli._use import AsJson, Method, RunArgument, load_run


def info(run: RunArgument, as_json: AsJson = False) -> None:
    """Tell what a run holds: models, corpus, settings, and every translation with its token norm and certificate.

    Its models are not loaded.

    Example: atlas-jax info runs/quickstart
    """
    from atlas_jax.cli._use_tables import run_group
    from atlas_jax.experiments import run_facts

    found = run_facts(run)
    emit(as_json, found.as_json(), lambda: run_group(str(run), found))


def inspect(
    run: RunArgument,
    text: Annotated[str, typer.Option(help="The text to look at.")],
    concept: Concept = None,
    feature: Features = None,
    like: Like = None,
    unlike: Unlike = None,
    site: Annotated[
        list[str] | None, typer.Option("--site", help="Subject site; may be repeated; all of the run by default.")
    ] = None,
    method: Method = "procrustes",
    as_json: AsJson = False,
) -> None:
    """Show a concept at every token of a text: the atlas's features of it, and the subject's activation along it.

    Example: atlas-jax inspect runs/quickstart --concept "font" --text "The size of the font is a number."
    """
    from rich.console import Group

    from atlas_jax import experiments
    from atlas_jax.cli._use_tables import projected_table, query_table, traced_table

    alignment = load_run(run)
    translations = {t.site: t for t in (alignment.translation(s, method) for s in site or alignment.subject.sites)}
    query = asked_query(alignment, concept, feature, like, unlike)
    features = [hit.index for hit in query.features]
    seen = experiments.token_features(alignment.atlas, text, features)
    along = experiments.token_projections(alignment.subject.model, translations, query.vector, text)
    norms = {str(site): t.token_norm for site, t in translations.items()}
    data = {"atlas_features": [h._asdict() for h in query.features], "atlas": seen.as_json()}
    data |= {"sites": list(norms), "token_norms": norms, "subject": along.as_json()}
    emit(
        as_json,
        data,
        lambda: Group(query_table(query.features), traced_table(features, seen), projected_table(norms, along, method)),
    )
