"""``atlas-jax atlas``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_jax.cli._console import emit, note, progress_bars, warn
from atlas_jax.cli._corpus import read_corpus
from atlas_jax.cli._options import AsJson, Commands, Overwrite, finite
from atlas_jax.errors import AtlasError
from atlas_jax.table import facts_table

if TYPE_CHECKING:
    from atlas_jax.atlas import ConceptAtlas
    from atlas_jax.labels import Embedder, Hit

app = Commands(help="Foundation model, SAE and labels.", no_args_is_help=True)
OWN_TEXT = "documentation of Python and installed packages, no --text being given"
Directory = Annotated[Path | None, typer.Argument(help="An atlas directory; the bundled one by default.")]
Text = Annotated[list[Path] | None, typer.Option("--text", help="Text to measure on.")]


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Where the atlas is written.")],
    preset: Annotated[
        str | None, typer.Option(help="A published atlas, such as gemma-scope-2b-16k, in place of the options below.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Foundation model: a directory or hub name.")] = None,
    sae: Annotated[str | None, typer.Option(help="SAE of any known layout: a directory, file or hub name.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Label file, or folder of a Neuronpedia export.")] = None,
    site: Annotated[str | None, typer.Option(help="Where the SAE reads the model, if its files do not say.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Refer to the model where it is, do not copy it.")] = False,
    model_name: Annotated[
        list[str] | None, typer.Option(help="Name of the model, if its directory does not tell; may be repeated.")
    ] = None,
    sae_format: Annotated[str | None, typer.Option(help="Layout of the SAE; found from its files by default.")] = None,
    norm_scaling_factor: Annotated[
        float | None,
        typer.Option(help="What activations were multiplied by, if no file says.", callback=finite(above=0)),
    ] = None,
    labels_format: Annotated[str | None, typer.Option(help="json, jsonl, csv or parquet; by suffix.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="A label field's name in the file, such as index=feature_id.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Read only labels of this layer.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Read only labels of this model, hook or release, such as release=NAME.")
    ] = None,
    prefer: Annotated[list[str] | None, typer.Option(help="Explainer whose labels win; may be repeated.")] = None,
    partial_labels: Annotated[bool, typer.Option(help="The labels cover only the first features on purpose.")] = False,
    text: Text = None,
    sentences: Annotated[int, typer.Option(help="Sentences to measure on, given --text.", min=100)] = 4000,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Assemble a model, an SAE and labels into one atlas directory with a manifest of hashes; refuse misfits.

    A preset downloads the model, the SAE's one folder and its labels; options given beside it win.

    Examples: atlas-jax atlas build --model gemma-2-2b --sae average_l0_71 --labels export/ --out my-atlas

    atlas-jax atlas build --preset gemma-scope-2b-16k --out my-atlas
    """
    from atlas_jax.atlas import assemble, write_atlas
    from atlas_jax.files import check_place

    check_place(out, "a Concept Atlas", overwrite=overwrite)
    if preset is not None:
        model, sae, site, labels = _of_preset(preset, model, sae, site, labels)
    if model is None or sae is None:
        raise AtlasError("give --model and --sae, or --preset")
    note("loading the parts")
    label_options = {"prefer": prefer or (), "layer": layer, "columns": _columns(column), "format": labels_format}
    label_options["only"] = _columns(only, "--only")
    sae_options = {"format": sae_format, "norm_scaling_factor": norm_scaling_factor}
    parts = assemble(
        model, sae, labels, site=site, model_name=model_name or (), sae_options=sae_options,
        label_options=label_options, partial_labels=partial_labels,
    )  # fmt: skip
    measured, mean, warnings = _measured(parts.atlas, text, sentences) if text else ({}, None, [])
    warnings = [*parts.notes, *warnings]
    write_atlas(parts, out, link=link, mean=mean, metadata={"measured": measured} if text else {})
    atlas = parts.atlas
    facts = {"site": str(atlas.site), "features": atlas.width, "labelled": len(atlas.labels.described())}
    facts |= {"label coverage": atlas.labels.coverage, "SAE format": atlas.sae.config.format, **measured}
    emit(as_json, facts | {"warnings": warnings}, facts_table(f"Concept Atlas written to {out}", facts))
    _warn(warnings)


def _of_preset(
    name: str, model: str | None, sae: str | None, site: str | None, labels: Path | None
) -> tuple[str, str, str, Path | None]:
    """Return the parts of a preset, but for those that were given."""
    from atlas_jax.atlas import fetch_labels, preset

    chosen = preset(name)
    note(f"licences: {chosen.licence}")
    if labels is None and chosen.source is not None:
        note(f"downloading labels of {chosen.source}")
        labels = fetch_labels(chosen)
    elif labels is None:
        note("no labels are published for this preset; make them with atlas-jax sae label")
    return model or chosen.model, sae or chosen.sae, site or chosen.site, labels


@app.command()
def info(
    directory: Directory = None,
    text: Text = None,
    sentences: Annotated[int, typer.Option(help="Sentences to measure on.", min=100)] = 4000,
    verify: Annotated[bool, typer.Option("--verify", help="Compare the hash of every file, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure an atlas on text beside what its release states, and say what is wrong where the two disagree.

    FVU, L0 and dead features of its SAE, coverage and quality of its labels; on documentation of Python and the
    installed packages where there is no --text.

    Example: atlas-jax atlas info my-atlas --text my-texts/
    """
    if verify:
        count = _verified(directory)
        emit(as_json, {"verified": count}, facts_table("Concept Atlas", {"files as built": count}))
        return
    atlas = _load(directory, verify=True)
    facts, check = _examined(atlas, text, sentences)
    emit(as_json, facts | {"check": check.to_dict()}, *check.tables("Concept Atlas", facts))
    _warn(check.warnings)
    if check.warnings and not text:
        note(f"measured on {OWN_TEXT}, which is unlike most text; give --text of the kind the SAE was trained on")


@app.command()
def search(
    query: Annotated[str | None, typer.Argument(help="What to look for among the labels.")] = None,
    directory: Annotated[Path | None, typer.Option("--atlas", help="An atlas directory.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Features to show.", min=1)] = 10,
    embedder: Annotated[
        str, typer.Option(help="static, bm25, sentence-transformers:NAME or endpoint:MODEL.")
    ] = "static",
    base_url: Annotated[str | None, typer.Option(help="Of the endpoint; OPENAI_BASE_URL by default.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="A text the concept is in, instead of QUERY; repeats.")] = None,
    unlike: Annotated[list[str] | None, typer.Option(help="A text it is not in; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find atlas features by what their labels mean, or by the texts they are active in.

    The weights are those of a concept query of these features. An endpoint's key is read from OPENAI_API_KEY.

    Example: atlas-jax atlas search "dates and time"
    """
    from atlas_jax.experiments import hits_table

    if (query is None) == (like is None) or (unlike and not like):
        raise AtlasError("give either a text to search for, or --like texts with or without --unlike ones")
    if query is None:
        atlas = _load(directory)
        hits = atlas.top_features(atlas.query_from(like or [], unlike), k)
        title = "Atlas features of the texts"
    else:
        hits, title = _search(directory, query, k, embedder, base_url), f"Atlas features for '{query}'"
    emit(as_json, [h._asdict() for h in hits], hits_table(title, hits))


def _load(directory: Path | None, verify: bool = False) -> "ConceptAtlas":
    from atlas_jax.atlas import ConceptAtlas
    from atlas_jax.bundled import ATLAS

    return ConceptAtlas.from_pretrained(ATLAS if directory is None else directory, verify=verify)


def _search(directory: Path | None, query: str, k: int, embedder: str, base_url: str | None) -> "list[Hit]":
    """Search the labels of an atlas, whose model and SAE are not needed for it."""
    from atlas_jax.atlas import open_search
    from atlas_jax.bundled import ATLAS

    index = open_search(directory or ATLAS)
    if embedder in ("static", "bm25"):
        return index.search(query, k, "hybrid" if embedder == "static" else "bm25")
    return index.with_embedder(_embedder(embedder, base_url)).search(query, k)


def _embedder(spec: str, base_url: str | None) -> "Embedder":
    from atlas_jax.labels import open_embedder

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlas-jax" / "embeddings"
    return open_embedder(spec, base_url=base_url, cache=cache)


def _examined(atlas: "ConceptAtlas", text: list[Path] | None, sentences: int) -> Any:
    from atlas_jax.sae_lab import atlas_facts, check_sae

    texts = read_corpus(text, n_fit=2 * sentences, seed=0).eval[:sentences]
    with progress_bars() as progress:
        facts = atlas_facts(atlas, texts, progress=progress)
    return {"text": ", ".join(map(str, text)) if text else OWN_TEXT} | facts, check_sae(atlas, texts, facts)


def _measured(atlas: "ConceptAtlas", text: list[Path], sentences: int) -> Any:
    from atlas_jax.sae_lab import mean_activation

    facts, check = _examined(atlas, text, sentences)
    texts = read_corpus(text, n_fit=2 * sentences, seed=0).fit[:sentences]
    return facts, mean_activation(atlas, texts), check.warnings


def _columns(pairs: list[str] | None, option: str = "--column") -> dict[str, str]:
    columns = dict(pair.split("=", 1) for pair in pairs or () if "=" in pair)
    if len(columns) != len(pairs or ()):
        raise AtlasError(f"write {option} FIELD=NAME, each field once, not {' '.join(pairs or ())}")
    return columns


def _verified(directory: Path | None) -> int:
    from atlas_jax.atlas import Manifest
    from atlas_jax.bundled import ATLAS

    place = directory or ATLAS
    return Manifest.read(place).check(place, contents=True)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        warn(warning)
