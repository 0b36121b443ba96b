"""``atlas-jax info`` and ``inspect``: what a run holds, and concepts token by token in a text."""

from typing import Annotated

import typer
from rich.text import Text

from atlas_jax.cli._console import emit, out
from atlas_jax.cli._query import Concept, Features, Like, Unlike, asked_query
from atlas_jax.cli._use import AsJson, Method, RunArgument, load_run


def info(run: RunArgument, as_json: AsJson = False) -> None:
    """Tell what a run holds: models, corpus, settings, and every translation with its token norm and certificate.

    Its models are not loaded.

    Example: atlas-jax info runs/quickstart
    """
    from atlas_jax.experiments import run_facts

    facts = run_facts(run)
    if not as_json:
        out.print(Text(str(run), style="bold"))
    emit(as_json, facts.to_dict(), *facts.tables())


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
    from atlas_jax import experiments

    alignment = load_run(run)
    translations = {t.site: t for t in (alignment.translation(s, method) for s in site or alignment.subject.sites)}
    query = asked_query(alignment, concept, feature, like, unlike)
    features = [hit.index for hit in query.features]
    seen = experiments.token_features(alignment.atlas, text, features)
    along = experiments.token_projections(alignment.subject.model, translations, query.vector, text)
    norms = {str(site): t.token_norm for site, t in translations.items()}
    data = {"atlas_features": [h._asdict() for h in query.features], "atlas": seen.to_dict()}
    data |= {"sites": list(norms), "token_norms": norms, "subject": along.to_dict()}
    emit(as_json, data, query.table(), seen.table(), along.table())
