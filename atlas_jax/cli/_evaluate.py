"""``atlas-jax evaluate``: measure an alignment."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._concepts import given_concepts
from atlas_jax.cli._console import emit, note, notes, progress_bars
from atlas_jax.cli._options import finite
from atlas_jax.cli._use import AsJson, RunArgument, load_run

Paper = Annotated[bool, typer.Option("--paper", help="The paper's figures beside, where layers and methods agree.")]

app = typer.Typer(help="Measure an alignment as the paper does.", no_args_is_help=True)


@app.command()
def quality(
    run: RunArgument,
    features: Annotated[
        int | None,
        typer.Option(help="Atlas features to draw.", min=1, show_default="100, of the paper for its atlas"),
    ] = None,
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
    with progress_bars() as progress:
        stream, options = alignment.stream("eval"), options | {"progress": progress}
        if given is None:
            retrieval = experiments.semantic_retrieval(stream, alignment.translations, sentences=sentences, **options)
        else:
            retrieval = experiments.concept_retrieval(
                stream, alignment.translations, given, reliable=reliable, **options
            )
    if given is None and retrieval.sentences < sentences:
        fewer = f"queries are averaged over {retrieval.sentences} sentences, not over {sentences}"
        note(f"{fewer}: over at most half of the {retrieval.held_out} held out")
    notes(f.sentence(site) for site, f in (retrieval.filters or {}).items())
    data, table = retrieval.to_dict(), retrieval.table()
    if paper:
        data, table = experiments.retrieval_beside_paper(retrieval, alignment.atlas.width)
    emit(as_json, data, table)


@app.callback()
def _group() -> None:
    """Measure an alignment as the paper does."""
