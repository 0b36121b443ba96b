"""``atlas-jax evaluate``: measure an alignment."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._console import emit, note, progress_bars
from atlas_jax.cli._options import Methods, Overwrite, Seed, Sites, finite, result_file
from atlas_jax.cli._quickstart import PROMPTS
from atlas_jax.cli._use import AsJson, Method, RunArgument, load_run

FeatureCount = Annotated[int, typer.Option("--features", help="Atlas features to translate.", min=1)]
OutFile = Annotated[Path | None, typer.Option("--out", help="JSON file for the result, in the run by default.")]
app = typer.Typer(help="Measure an alignment as the paper does.", no_args_is_help=True)


@app.command()
def quality(
    run: RunArgument,
    features: Annotated[int, typer.Option(help="Atlas features to translate.", min=1)] = 100,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP of every translation on the run's held-out sentences (Table 3).

    Example: atlas-jax evaluate quality runs/quickstart
    """
    from atlas_jax import experiments

    with progress_bars() as progress:
        _, quality = experiments.evaluate_quality(load_run(run), progress=progress, features=features)
    emit(as_json, quality.to_dict(), quality.table())


@app.command()
def retrieval(
    run: RunArgument,
    sentences: Annotated[int, typer.Option(help="Sentences that a query is averaged over.", min=1)] = 20,
    centre: Annotated[bool, typer.Option(help="Subtract the mean atlas activations from queries.")] = True,
    as_json: AsJson = False,
) -> None:
    """MRR and MPP of every translation with queries averaged over held-out sentences (Table 4).

    Example: atlas-jax evaluate retrieval runs/quickstart --no-centre
    """
    from atlas_jax import experiments

    alignment = load_run(run)
    with progress_bars() as progress:
        retrieval = experiments.semantic_retrieval(
            alignment.stream("eval"), alignment.translations, sentences=sentences, centre=centre, progress=progress
        )
    if retrieval.sentences < sentences:
        fewer = f"queries are averaged over {retrieval.sentences} sentences, not over {sentences}"
        note(f"{fewer}: over at most half of the {retrieval.held_out} held out")
    emit(as_json, retrieval.to_dict(), retrieval.table())


@app.command()
def curve(
    run: RunArgument,
    size: Annotated[
        list[int] | None, typer.Option("--size", help="Fit sentences; 1000, 3000, ... by default; may be repeated.")
    ] = None,
    method: Methods = None,
    features: FeatureCount = 100,
    out_file: OutFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP against the number of fit sentences, in one pass over each half.

    Example: atlas-jax evaluate curve runs/quickstart --size 1000 --size 10000
    """
    from atlas_jax import experiments

    with result_file(run, "curve", out_file, overwrite) as store, progress_bars() as progress:
        found = experiments.quality_curve(load_run(run), size, methods=method, features=features, progress=progress)
        store(found.to_dict())
    emit(as_json, found.to_dict(), found.table())


@app.command()
def domains(
    run: RunArgument,
    domain: Annotated[
        list[str] | None,
        typer.Option("--domain", help="A domain of the corpus; the largest by default; may be repeated."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Translator; the run's first by default; may be repeated.")
    ] = None,
    least: Annotated[int, typer.Option(help="Sentences that a domain needs in each half.", min=1)] = 100,
    most: Annotated[int, typer.Option(help="Domains to compare where none are named.", min=2)] = 6,
    features: FeatureCount = 100,
    out_file: OutFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP across the domains of the corpus: fitted to one, measured on the others.

    Example: atlas-jax evaluate domains runs/quickstart --most 4
    """
    from atlas_jax import experiments

    with result_file(run, "domains", out_file, overwrite) as store, progress_bars() as progress:
        found = experiments.quality_across_domains(
            load_run(run), domain, methods=method, least=least, most=most, features=features, progress=progress
        )
        store(found.to_dict())
    emit(as_json, found.to_dict(), *found.tables())


@app.command()
def layers(
    run: RunArgument,
    site: Sites = None,
    point: Annotated[str, typer.Option(help="Point that is read in every layer, without --site.")] = "resid_post",
    method: Methods = None,
    features: FeatureCount = 100,
    out_file: OutFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP at every layer, fitted in one pass over the run's corpus.

    Example: atlas-jax evaluate layers runs/quickstart --point mlp_act
    """
    from atlas_jax import experiments

    with result_file(run, "layers", out_file, overwrite) as store, progress_bars() as progress:
        found = experiments.quality_by_layer(
            load_run(run), site or point, methods=method, features=features, progress=progress
        )
        store(found.to_dict())
    emit(as_json, found.to_dict(), found.table())


@app.command()
def causality(
    run: RunArgument,
    concept: Annotated[
        list[str] | None,
        typer.Option("--concept", help="A concept in words; single atlas features by default; may be repeated."),
    ] = None,
    features: Annotated[int, typer.Option(help="Single atlas features, without --concept.", min=1)] = 10,
    site: Annotated[
        str | None, typer.Option(help="Subject site to steer at; the run's first of the residual stream by default.")
    ] = None,
    later: Annotated[
        list[str] | None,
        typer.Option("--later", help="Site behind it to project out at; those of the run by default; may be repeated."),
    ] = None,
    method: Method = "procrustes",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(help="Texts a prompt.", min=1)] = 4,
    strength: Annotated[
        float, typer.Option(help="Of steering, in mean token norms of the site.", callback=finite())
    ] = 0.5,
    tokens: Annotated[int, typer.Option("--max-new-tokens", help="Tokens to generate.", min=1)] = 40,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.", min=0, callback=finite())] = 0.5,
    seed: Seed = 0,
    out_file: OutFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Steer with the concept's direction projected out, and at right angles to it: does the effect go through it?

    Example: atlas-jax evaluate causality runs/quickstart --site resid_post.2 --later resid_post.3
    """
    from atlas_jax import experiments

    with result_file(run, "causality", out_file, overwrite) as store, progress_bars() as progress:
        alignment = load_run(run)
        queries = {text: experiments.concept_query(alignment.atlas, concept=text).vector for text in concept or ()}
        sites = alignment.subject.sites
        found = experiments.causality(
            alignment, queries or experiments.single_features(alignment, features), prompt or PROMPTS,
            site=site or next((s for s in sites if s.point.startswith("resid")), sites[0]), later=later or None,
            method=method, strength=strength, samples=samples, max_new_tokens=tokens, temperature=temperature,
            seed=seed, progress=progress,
        )  # fmt: skip
        store(found.to_dict())
    if not found.later:
        note(f"the run has no site behind {found.site}; name some by --later to project the concept out there too")
    emit(as_json, found.to_dict(), found.table())


@app.callback()
def _group() -> None:
    """Measure an alignment as the paper does."""
