"""``atlas-jax sae``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_jax import interrupts
from atlas_jax.cli._align import resumable
from atlas_jax.cli._console import emit, err, note, progress_bars, warn
from atlas_jax.cli._corpus import Text, read_corpus
from atlas_jax.cli._options import SITES, AsJson, CheckpointEvery, Commands, Overwrite, Seed, finite
from atlas_jax.errors import AtlasError
from atlas_jax.table import facts_table

if TYPE_CHECKING:
    from atlas_jax.atlas import ConceptAtlas

app = Commands(help="Sparse autoencoders of one's own.", no_args_is_help=True)
Model = Annotated[str, typer.Option(help="Model: a directory or hub name.")]
Dtype = Annotated[str, typer.Option(help="Of the model: float32 or bfloat16.")]
SAE = "a trained SAE"
PER_WIDTH = 8  # features for each number of an activation, by default


@app.command()
def train(
    model: Model,
    site: Annotated[str, typer.Option(help=f"Where activations are read, {SITES}.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the SAE is written.")],
    text: Text = None,
    features: Annotated[int | None, typer.Option(help="Of the SAE; 8 times the width by default.", min=2)] = None,
    k: Annotated[
        float, typer.Option("--k", help="Active features a token (L0) to reach.", callback=finite(above=0))
    ] = 32.0,
    architecture: Annotated[str, typer.Option(help="batchtopk or jumprelu.")] = "batchtopk",
    tokens: Annotated[
        int, typer.Option("--training-tokens", "--tokens", help="Tokens whose activations are trained on.", min=1)
    ] = 4_000_000,
    batch: Annotated[int, typer.Option(help="Activations of a step.", min=2)] = 1024,
    buffer: Annotated[int, typer.Option(help="Activations held in memory for shuffling.", min=8)] = 1 << 17,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak; 0.1 / sqrt(width) by default.", max=1.0, callback=finite(above=0)),
    ] = None,
    sparsity_warmup: Annotated[float, typer.Option(help="Share of the steps.", min=0, max=1, callback=finite())] = 0.2,
    dead_after: Annotated[
        int, typer.Option(help="Silent activations after which a feature is revived.", min=1)
    ] = 50_000,
    norm_limit: Annotated[
        float, typer.Option(help="Times the median norm; 0 is none.", min=0, callback=finite())
    ] = 10.0,
    max_length: Annotated[int, typer.Option(help="Tokens at which sentences are cut.", min=2)] = 128,
    sentences: Annotated[int, typer.Option(help="Sentences to read; half as many are held out.", min=2)] = 50_000,
    held_out: Annotated[int, typer.Option(help="Held-out sentences that are measured.", min=1)] = 1000,
    dtype: Dtype = "float32",
    checkpoint_every: CheckpointEvery = 300.0,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what is at --out or unfinished there.")] = False,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a sparse autoencoder on the activations of a model, computed as they are needed.

    A run that was stopped, however, goes on when the same command is given again. Until it is complete it lives in
    OUT.partial. OUT then holds the SAE in Gemma Scope's layout, in SAELens' below it, and the curves.

    Example: atlas-jax sae train --model my-llama --site resid_post.12 --text my-texts/ --k 50 --out my-sae
    """
    from atlas_jax import sae_lab
    from atlas_jax.files import check_place, directory_hash, new_directory, partial_directory
    from atlas_jax.models import LanguageModel, check_site, resolve
    from atlas_jax.pipeline import Checkpoints

    check_place(out_dir, SAE, overwrite=True)
    start, path, overwrite = time.monotonic(), resolve(model).absolute(), overwrite or restart
    lm = LanguageModel.from_pretrained(path, dtype=dtype)
    width = lm.config.width(check_site(lm.config, site))
    settings = sae_lab.SAESettings(
        site, features or PER_WIDTH * width, k, architecture, tokens, batch, buffer, learning_rate, sparsity_warmup,
        dead_after, norm_limit, max_length, held_out, seed,
    )  # fmt: skip
    settings.config()
    saved = Checkpoints(partial_directory(out_dir) / "checkpoints", every=checkpoint_every, unit="steps")
    with resumable(saved):
        note("reading text")
        corpus = read_corpus(text, n_fit=sentences, seed=seed)
        about = settings.to_dict() | {"model": directory_hash(path), "dtype": dtype, "text": corpus.hash}
        result = None if overwrite else sae_lab.finished_training(out_dir, about)
        if result is not None:
            note(f"'{out_dir}' is trained already; --overwrite trains it anew")
        else:
            with new_directory(out_dir, SAE, overwrite=overwrite) as directory, progress_bars("steps") as progress:
                saved.fingerprint = about
                if restart:
                    saved.discard()
                options = {"checkpoints": saved, "progress": progress}
                trained = sae_lab.train_sae(lm, corpus, settings, name=path.name, **options)
                result = sae_lab.write_result(directory, trained, about)
            err.print(f"written to {out_dir} in {time.monotonic() - start:.0f} s")
    facts = {"features": settings.features, **result["measured"], "passes over the text, about": result["passes"]}
    facts |= {"SAELens layout": result["saelens"]}
    emit(as_json, result, facts_table(f"SAE of {site} in {out_dir}", facts))
    if not result["measured"]["fvu"] < 1:
        warn("it explains nothing of the activations (an FVU of 1 or more): training diverged; lower --learning-rate")


@app.command()
def label(
    model: Model,
    sae: Annotated[str, typer.Option(help="SAE: a directory, a file or a hub name.")],
    out: Annotated[Path, typer.Option("--out", help="Where the labels are written, a .jsonl file.")],
    site: Annotated[str | None, typer.Option(help="Where the SAE reads; what its files say by default.")] = None,
    text: Text = None,
    feature: Annotated[list[int] | None, typer.Option("--feature", help="Only this one; may be repeated.")] = None,
    contexts: Annotated[int, typer.Option(help="Strongest sentences to look at for each feature.", min=1)] = 20,
    sentences: Annotated[int, typer.Option(help="Sentences to read; half as many are held out.", min=2)] = 20_000,
    chat_model: Annotated[str | None, typer.Option(help="Ask this model; count words where none is given.")] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible API; OPENAI_BASE_URL by default.")] = None,
    workers: Annotated[int, typer.Option(help="Questions asked at the same time.", min=1)] = 8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what asking would take.")] = False,
    price: Annotated[
        tuple[float, float], typer.Option(help="Of a million tokens, in and out.", callback=finite(least=0))
    ] = (0.0, 0.0),
    overwrite: Overwrite = False,
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Describe every feature of an SAE by the sentences that activate it most, and test it on held-out ones.

    Without --chat-model a label lists the words that set these sentences apart. With it an OpenAI-compatible endpoint
    (key in OPENAI_API_KEY) is asked; its answers are kept beside OUT, so the same command goes on where it stopped.
    The score of a label is the AUROC with which it tells held-out sentences that activate the feature from others.

    Example: atlas-jax sae label --model my-llama --sae my-sae --text my-texts/ --out labels.jsonl
    """
    from atlas_jax import sae_lab
    from atlas_jax.files import check_place, new_file
    from atlas_jax.labels import AnswerBook, ChatEndpoint

    if out.suffix != ".jsonl":
        raise AtlasError(f"labels are written as lines of JSON: name --out something.jsonl, not '{out.name}'")
    check_place(out, overwrite=overwrite or dry_run)
    endpoint = None if chat_model is None else ChatEndpoint.connect(chat_model, base_url=base_url)
    if endpoint is None and dry_run:
        raise AtlasError("--dry-run tells what asking a chat model would take: give --chat-model too")
    atlas = _unlabelled(model, sae, site, dtype)
    note("reading text")
    corpus = read_corpus(text, n_fit=sentences, seed=seed)
    labels, facts = None, {"features": atlas.width}
    if endpoint is not None:
        interrupts.say_at_end(lambda: "interrupted; give the same command again, which asks no question twice")
    with progress_bars() as progress:
        options = {"features": feature, "contexts": contexts, "seed": seed, "progress": progress}
        shown = sae_lab.gather_evidence(atlas, corpus, **options)
    facts["that fire"] = len(shown)
    if endpoint is None:
        labels = sae_lab.label_by_words(shown, corpus.fit, atlas.width)
    else:
        book = AnswerBook(out.with_suffix(".answers.jsonl"))
        facts |= sae_lab.estimate_requests(shown, endpoint, book).facts(price)
        note(", ".join(f"{name} {value:,}" for name, value in facts.items()))
    if endpoint is not None and not dry_run:
        with progress_bars("features") as progress:
            options = {"workers": workers, "progress": progress}
            labels = sae_lab.label_by_chat(shown, endpoint, book, atlas.width, **options)
            facts |= {"answers that cannot be read": book.unread, "tokens spent": sum(book.spent)}
    if labels is not None:
        with new_file(out) as file:
            labels.save(file)
        facts |= sae_lab.label_facts(labels)
        err.print(f"written to {out}")
    emit(as_json, facts, facts_table("Labels", facts))


def _unlabelled(model: str, sae: str, site: str | None, dtype: str) -> "ConceptAtlas":
    from atlas_jax.atlas import ConceptAtlas
    from atlas_jax.labels import Labels
    from atlas_jax.models import LanguageModel
    from atlas_jax.sae import SparseAutoencoder
    from atlas_jax.types import Site

    loaded = SparseAutoencoder.from_pretrained(sae)
    stated, given = loaded.config.site, None if site is None else Site.parse(site)
    if stated is None and given is None:
        raise AtlasError(f"the files of {sae} do not say where the SAE reads; give --site")
    if None not in (stated, given) and stated != given:
        raise AtlasError(f"the SAE at {sae} was trained on {stated}, not on {given}; leave --site out")
    lm = LanguageModel.from_pretrained(model, dtype=dtype)
    return ConceptAtlas.from_parts(lm, loaded, given or stated, Labels.empty(loaded.config.d_sae))
