"""``atlas-jax activations``."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._align import mesh_of_all
from atlas_jax.cli._console import emit, note, progress_bars
from atlas_jax.cli._corpus import SENTENCES, Text, read_corpus
from atlas_jax.cli._options import POOLINGS, SITES, AsJson, Commands, Overwrite, Seed
from atlas_jax.errors import AtlasError
from atlas_jax.table import facts_table

app = Commands(help="Activations on disk, to be read in place of a model.", no_args_is_help=True)


@app.command()
def extract(
    out_dir: Annotated[Path, typer.Option("--out", help="Where they are written.")],
    model: Annotated[str | None, typer.Option(help="The model: a directory or hub name.")] = None,
    atlas: Annotated[str | None, typer.Option(help="In its place an atlas, for its features.")] = None,
    site: Annotated[
        list[str] | None, typer.Option("--site", help=f"Site of --model, {SITES}; may be repeated.")
    ] = None,
    text: Text = None,
    sentences: Annotated[int | None, typer.Option(help="As of atlas-jax align.", min=2)] = None,
    rows: Annotated[str, typer.Option(help="sentence for one pooled row each, token for a row a token.")] = "sentence",
    pooling: Annotated[str, typer.Option(help=f"Of sentence rows, {POOLINGS}.")] = "max",
    max_length: Annotated[int, typer.Option(help="Tokens at which sentences are cut.", min=2)] = 128,
    token_budget: Annotated[int, typer.Option(help="Tokens of a batch.", min=1)] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the model: float32 or bfloat16.")] = "float32",
    save_dtype: Annotated[str, typer.Option(help="Of the rows: float32, float16 or bfloat16.")] = "float32",
    model_parallel: Annotated[int, typer.Option(help="Devices that share the model.", min=1)] = 1,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Store the activations of text, for align --subject-activations or --atlas-activations.

    Shards are written as they come: the same command goes on where it was stopped.

    Example: atlas-jax activations extract --model my-llama --site mlp_act.19 --text corpus --out activations
    """
    from atlas_jax.atlas import ConceptAtlas
    from atlas_jax.files import check_place, directory_hash
    from atlas_jax.models import LanguageModel, resolve
    from atlas_jax.pipeline import extract_activations
    from atlas_jax.subject import Subject

    if (model is None) == (atlas is None) or (model is None) != (not site):
        raise AtlasError("give --model with at least one --site, or --atlas alone")
    check_place(out_dir, "stored activations", overwrite=overwrite)
    name = str(model or atlas)
    note("loading the model")
    source, options = resolve(name), {"dtype": dtype, "mesh": mesh_of_all(model_parallel)}
    if model is None:
        space = ConceptAtlas.from_pretrained(source, **options)
        space = space if rows == "sentence" else Subject.from_model(space.model, [space.site])
    else:
        space = Subject.from_model(LanguageModel.from_pretrained(source, **options), site or (), pooling)
    note("reading text")
    corpus = read_corpus(text, n_fit=sentences or SENTENCES, seed=seed, exact=sentences is not None)
    asked = {"model hash": directory_hash(source), "model dtype": dtype}
    with progress_bars() as progress:
        extract_activations(
            space, corpus, out_dir, model=name, rows=rows, dtype=save_dtype, max_length=max_length,
            token_budget=token_budget, asked=asked, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    facts = {"sentences": len(corpus), "sites": ", ".join(map(str, space.widths)), "rows": rows, "dtype": save_dtype}
    emit(as_json, facts, facts_table(f"Activations written to {out_dir}", facts))
