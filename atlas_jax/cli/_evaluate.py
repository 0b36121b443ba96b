"""``atlas-jax evaluate``: measure an alignment."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._concepts import given_concepts
from atlas_jax.cli._console import emit, note, notes, progress_bars
from atlas_jax.cli._options import METHODS, AsJson, Commands, Methods, Overwrite, Seed, Sites, finite, result_file
from atlas_jax.cli._use import RunArgument, load_run
from atlas_jax.names import PAIR_NAMES

FeatureCount = Annotated[
    int | None,
    typer.Option("--features", help="Atlas features to draw.", min=1, show_default="100, of the paper for its atlas"),
]
OutFile = Annotated[Path | None, typer.Option("--out", help="JSON file for the result, in the run by default.")]
Paper = Annotated[bool, typer.Option("--paper", help="The paper's figures beside, where layers and methods agree.")]

app = Commands(help="Measure an alignment as the paper does.", no_args_is_help=True)


@app.command()
def quality(
    run: RunArgument,
    features: FeatureCount = None,
    paper: Paper = False,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP of every translation on the run's held-out sentences (Table 3).

    Example: atlas-jax evaluate quality runs/quickstart
    """
    from atlas_jax import experiments

    alignment = load_run(run)
    with progress_bars() as progress:
        _, quality = experiments.evaluate_quality(alignment, progress=progress, features=features)
    data, table = quality.to_dict(), quality.table()
    if paper:
        data, table = experiments.quality_beside_paper(quality, alignment.sources["subject"]["path"])
    emit(as_json, data, table)
    ap = {(str(row.site), row.method): row.average_precision.mean for row in quality.rows}
    notes([experiments.coverage(alignment).note(), experiments.weak_sites(ap)])


@app.command()
def retrieval(
    run: RunArgument,
    sentences: Annotated[
        int, typer.Option(help="Sentences that a query is averaged over, or that a chat model writes.", min=1)
    ] = 20,
    centre: Annotated[
        bool | None,
        typer.Option(help="Subtract the mean atlas activations.", show_default="as the paper, not, with --concepts"),
    ] = None,
    concepts: Annotated[
        Path | None, typer.Option(help="JSON lines: site, feature, and sequences or a description.")
    ] = None,
    reliable: Annotated[
        float, typer.Option(help="With --concepts: FADE score that a concept must exceed.", callback=finite(least=0))
    ] = 0.75,
    chat_model: Annotated[str | None, typer.Option(help="Writes sequences for descriptions in --concepts.")] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible API; OPENAI_BASE_URL by default.")] = None,
    paper: Paper = False,
    as_json: AsJson = False,
) -> None:
    """MRR and MPP of every translation with queries averaged over held-out sentences (Table 4).

    With --concepts they are averaged over given sequences of each subject feature, as in the paper. Descriptions are
    turned into sequences by --chat-model (key in OPENAI_API_KEY), whose answers are kept beside the file.

    Examples: atlas-jax evaluate retrieval runs/quickstart --no-centre

    atlas-jax evaluate retrieval runs/quickstart --concepts concepts.jsonl
    """
    from atlas_jax import experiments

    alignment = load_run(run)
    given = concepts and given_concepts(alignment, concepts, sentences, chat_model, base_url)
    options = {"centre": given is None if centre is None else centre}
    with result_file(run, "retrieval", None, False) as store, progress_bars() as progress:
        stream, options = alignment.stream("eval"), options | {"progress": progress}
        if given is None:
            retrieval = experiments.semantic_retrieval(stream, alignment.translations, sentences=sentences, **options)
        else:
            retrieval = experiments.concept_retrieval(
                stream, alignment.translations, given, reliable=reliable, **options
            )
        store(retrieval.to_dict())
    if given is None and retrieval.sentences < sentences:
        fewer = f"queries are averaged over {retrieval.sentences} sentences, not over {sentences}"
        note(f"{fewer}: over at most half of the {retrieval.held_out} held out")
    notes(f.sentence(site) for site, f in (retrieval.filters or {}).items())
    data, table = retrieval.to_dict(), retrieval.table()
    if paper:
        data, table = experiments.retrieval_beside_paper(retrieval, alignment.atlas.width)
    emit(as_json, data, table)


@app.command()
def curve(
    run: RunArgument,
    size: Annotated[
        list[int] | None, typer.Option("--size", help="Fit sentences; 1000, 3000, ... by default; may be repeated.")
    ] = None,
    method: Methods = None,
    features: FeatureCount = None,
    out_file: OutFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP against the number of fit sentences, in one pass over each half.

    Example: atlas-jax evaluate curve runs/quickstart --size 1000 --size 10000
    """
    from atlas_jax import experiments

    with result_file(run, "curve", out_file, overwrite) as store, progress_bars() as progress:
        result = experiments.quality_curve(load_run(run), size, methods=method, features=features, progress=progress)
        store(result.to_dict())
    emit(as_json, result.to_dict(), result.table())


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
    features: FeatureCount = None,
    out_file: OutFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP across the domains of the corpus: fitted to one, measured on the others.

    Example: atlas-jax evaluate domains runs/quickstart --most 4
    """
    from atlas_jax import experiments

    with result_file(run, "domains", out_file, overwrite) as store, progress_bars() as progress:
        result = experiments.quality_across_domains(
            load_run(run), domain, methods=method, least=least, most=most, features=features, progress=progress
        )
        store(result.to_dict())
    emit(as_json, result.to_dict(), *result.tables())


@app.command()
def layers(
    run: RunArgument,
    site: Sites = None,
    point: Annotated[str, typer.Option(help="Point that is read in every layer, without --site.")] = "resid_post",
    method: Methods = None,
    features: FeatureCount = None,
    out_file: OutFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP at every layer, fitted in one pass over the run's corpus.

    Example: atlas-jax evaluate layers runs/quickstart --point mlp_act
    """
    from atlas_jax import experiments

    with result_file(run, "layers", out_file, overwrite) as store, progress_bars() as progress:
        result = experiments.quality_by_layer(
            load_run(run), site or point, methods=method, features=features, progress=progress
        )
        store(result.to_dict())
    emit(as_json, result.to_dict(), result.table())


@app.command()
def heads(
    run: RunArgument,
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer whose heads are read; all by default; may be repeated.", min=0)
    ] = None,
    method: Annotated[
        str | None, typer.Option(help=f"Translator, {METHODS}.", show_default="the first of the run")
    ] = None,
    features: FeatureCount = None,
    sentences: Annotated[int, typer.Option(help="Sentences that a query is averaged over.", min=1)] = 20,
    out_file: OutFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """AUROC, AP and MRR of every attention head, fitted in one pass over the run's corpus.

    Example: atlas-jax evaluate heads runs/quickstart --layer 2
    """
    from atlas_jax import experiments

    with result_file(run, "heads", out_file, overwrite) as store, progress_bars() as progress:
        result = experiments.quality_by_head(
            load_run(run), layer, method=method, features=features, sentences=sentences, progress=progress
        )
        store(result.to_dict())
    emit(as_json, result.to_dict(), *result.tables())


@app.command()
def tokens(
    run: RunArgument,
    pairs: Annotated[
        list[str] | None,
        typer.Option(help=f"Tokens that are paired: {', '.join(PAIR_NAMES)}; all kinds by default; may be repeated."),
    ] = None,
    method: Methods = None,
    features: FeatureCount = None,
    sentences: Annotated[int, typer.Option(help="Held-out sentences whose tokens are ranked.", min=1)] = 2000,
    out_file: OutFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """AUROC and AP of translations fitted to single tokens beside the run's, for sentences and for tokens.

    Example: atlas-jax evaluate tokens runs/quickstart --method covariance
    """
    from atlas_jax import experiments

    with result_file(run, "tokens", out_file, overwrite) as store, progress_bars() as progress:
        result = experiments.token_level(
            load_run(run), pairs=pairs or PAIR_NAMES, methods=method, features=features, sentences=sentences,
            progress=progress,
        )  # fmt: skip
        store(result.to_dict())
    emit(as_json, result.to_dict(), result.table())


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
    method: Annotated[str, typer.Option(help="Translator; atlas-jax info RUN lists those of a run.")] = "procrustes",
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Text to continue; the paper's sixteen by default; may be repeated."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Texts a prompt.", min=1)] = 1,
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
        result = experiments.causality(
            alignment, queries or experiments.single_features(alignment, features),
            prompt or experiments.paper().prompts,
            site=site or next((s for s in sites if s.point.startswith("resid")), sites[0]), later=later or None,
            method=method, strength=strength, samples=samples, max_new_tokens=tokens, temperature=temperature,
            seed=seed, progress=progress,
        )  # fmt: skip
        store(result.to_dict())
    if not result.later:
        note(f"the run has no site behind {result.site}; name some by --later to project the concept out there too")
    emit(as_json, result.to_dict(), result.table())


@app.callback()
def _group() -> None:
    """Measure an alignment as the paper does."""
