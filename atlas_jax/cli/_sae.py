"""``atlas-jax sae``."""

import time
from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._align import stopped_cleanly
from atlas_jax.cli._console import emit, err, note, stages
from atlas_jax.cli._corpus import read_corpus

app = typer.Typer(help="Sparse autoencoders of one's own.", no_args_is_help=True)
Model = Annotated[str, typer.Option(help="Model: a directory or hub name.")]
Text = Annotated[list[Path] | None, typer.Option("--text", help="Text files, or a corpus directory.")]
Dtype = Annotated[str, typer.Option(help="Of the model: float32 or bfloat16.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
PER_WIDTH = 8  # features for each number of an activation, unless told otherwise


@app.command()
def train(
    model: Model,
    site: Annotated[str, typer.Option(help="Where activations are read, such as resid_post.3.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the SAE is written.")],
    text: Text = None,
    features: Annotated[int | None, typer.Option(help="Of the SAE; 8 times the width by default.", min=2)] = None,
    k: Annotated[float, typer.Option("--k", help="Active features a token (L0) to reach.")] = 32.0,
    architecture: Annotated[str, typer.Option(help="batchtopk or jumprelu.")] = "batchtopk",
    tokens: Annotated[int, typer.Option(help="Activations to train on.", min=1)] = 4_000_000,
    batch: Annotated[int, typer.Option(help="Activations of a step.", min=2)] = 1024,
    buffer: Annotated[int, typer.Option(help="Activations held in memory for shuffling.", min=8)] = 1 << 17,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; 0.1 / sqrt(width) by default.")] = None,
    sparsity_warmup: Annotated[float, typer.Option(help="Share of the steps.", min=0, max=1)] = 0.2,
    dead_after: Annotated[int, typer.Option(help="Silent activations after which a feature is revived.")] = 50_000,
    norm_limit: Annotated[float, typer.Option(help="Times the median norm; 0 is none.", min=0)] = 10.0,
    max_length: Annotated[int, typer.Option(help="Tokens at which sentences are cut.", min=2)] = 128,
    sentences: Annotated[int, typer.Option(help="Sentences to read; half as many are held out.", min=2)] = 50_000,
    held_out: Annotated[int, typer.Option(help="Held-out sentences that are measured.", min=1)] = 1000,
    dtype: Dtype = "float32",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.", min=0)] = 300.0,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what is at --out or unfinished there.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a sparse autoencoder on the activations of a model, computed as they are needed.

    A run that was stopped, however, goes on when the same command is given again. Until it is complete it lives in
    OUT.partial. OUT then holds the SAE in Gemma Scope's layout, in SAELens' below it, and the curves.

    Example: atlas-jax sae train --model my-llama --site resid_post.12 --text my-texts/ --k 50 --out my-sae
    """
    from atlas_jax import experiments
    from atlas_jax.artifacts import directory_hash, partial_directory, run_directory
    from atlas_jax.cli._tables import facts_table
    from atlas_jax.models import LanguageModel, check_site, resolve
    from atlas_jax.pipeline import Checkpoints

    start, path = time.monotonic(), resolve(model).absolute()
    lm = LanguageModel.from_pretrained(path, dtype=dtype)
    width = lm.config.width(check_site(lm.config, site).point)
    settings = experiments.SAESettings(
        site, features or PER_WIDTH * width, k, architecture, tokens, batch, buffer, learning_rate, sparsity_warmup,
        dead_after, norm_limit, max_length, held_out, seed,
    )  # fmt: skip
    settings.config()
    with stopped_cleanly():
        note("reading text")
        corpus = read_corpus(text, n_fit=sentences, seed=seed)
        about = settings.as_json() | {"model": directory_hash(path), "dtype": dtype, "text": corpus.hash}
        result = None if restart else experiments.finished_training(out_dir, about)
        if result is None:
            with run_directory(out_dir) as directory, stages() as stage:
                saved = partial_directory(out_dir) / "checkpoints"
                saved = Checkpoints(saved, every=checkpoint_every, say=note, unit="steps")
                saved.fingerprint = about
                if restart:
                    saved.discard()
                trained = experiments.train_sae(
                    lm, corpus, settings, name=path.name, checkpoints=saved, progress=stage("train", "steps"), told=note
                )
                result = experiments.write_result(directory, trained, about)
            err.print(f"written to {out_dir} in {time.monotonic() - start:.0f} s")
        else:
            err.print(f"'{out_dir}' is trained already; --restart trains it anew")
    facts = {"features": settings.features, **result["measured"], "passes over the text": result["passes"]}
    facts |= {"SAELens layout": result["saelens"]}
    emit(as_json, result, lambda: facts_table(f"SAE of {site} in {out_dir}", facts))
