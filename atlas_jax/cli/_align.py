"""``atlas-jax align``."""

from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._console import emit, err, note, stages
from atlas_jax.cli._corpus import read_corpus


def align(
    subject: Annotated[str, typer.Option(help="Subject model: a directory or hub name.")],
    atlas: Annotated[str, typer.Option(help="Concept Atlas directory.")],
    site: Annotated[list[str], typer.Option("--site", help="Subject site, such as mlp_act.19; may be repeated.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the run is written.")],
    text: Annotated[list[Path] | None, typer.Option("--text", help="Text files, or a corpus directory.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Translator; the paper's by default.")] = None,
    sentences: Annotated[int, typer.Option(help="Sentences for fitting; half as many are held out.", min=2)] = 20000,
    pooling: Annotated[str, typer.Option(help="Over a sentence: max, absmax, mean or last.")] = "max",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Stream text through a subject and an atlas, solve every translation, and measure them on held-out text.

    Example: atlas-jax align --subject my-llama --atlas my-atlas --site mlp_act.19 --out runs/llama
    """
    from atlas_jax import experiments, pipeline
    from atlas_jax.artifacts import run_directory, write_json
    from atlas_jax.cli._tables import quality_table

    settings = pipeline.AlignSettings(tuple(site), tuple(method or experiments.METHODS), pooling=pooling, seed=seed)
    pair = pipeline.load_pair(subject, atlas, settings)
    note("reading text")
    corpus = read_corpus(text, n_fit=sentences, seed=seed)
    with run_directory(out_dir) as directory, stages() as stage:
        alignment = pipeline.align(pair, corpus, settings, stage=stage)
        alignment, quality = experiments.measure(alignment, stage=stage)
        alignment.save(directory)
        write_json(directory / "tables" / "quality.json", quality.as_json())
    emit(as_json, quality.as_json(), lambda: quality_table(quality))
    err.print(f"written to {out_dir}")
