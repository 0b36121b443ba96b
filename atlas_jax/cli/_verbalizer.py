"""``atlas-jax verbalizer`` and ``atlas-jax bridge explain``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_jax.cli._console import emit, err, note, progress_bars
from atlas_jax.cli._corpus import Text, read_corpus
from atlas_jax.cli._options import AsJson, Commands, Overwrite, Seed, finite
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from atlas_jax.atlas import ConceptAtlas
    from atlas_jax.labels import Embedder

app = Commands(help="Models that put a vector into words.", no_args_is_help=True)
KIND = "a verbalizer"
RECORD = "verbalizer.json"
CONTEXTS = 10  # strongest sentences of a feature
Sentences = Annotated[int, typer.Option(help="Sentences to read.", min=2)]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Of an explanation.", min=1)]


@app.command()
def train(
    atlas: Annotated[Path, typer.Option(help="Concept Atlas on the residual stream that is to be explained.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the verbalizer is written.")],
    text: Text = None,
    sentences: Sentences = 6000,
    steps: Annotated[int, typer.Option(min=1)] = 600,
    batch: Annotated[int, typer.Option(help="Vectors of a step.", min=2)] = 48,
    held_out: Annotated[
        float, typer.Option(help="Share of the labelled features that are not trained on.", min=0, max=0.9)
    ] = 0.15,
    learning_rate: Annotated[float, typer.Option(help="Peak.", max=1.0, callback=finite(above=0))] = 1e-3,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a small verbalizer: a vector of an atlas's residual stream in, words of a label out.

    Decoder directions with their labels and activations with the words they stand on, in equal parts. OUT is a model
    in Hugging Face layout with nla_meta.yaml; verbalizer.json lists the features that were held out.

    Example: atlas-jax verbalizer train --atlas my-atlas --out my-verbalizer
    """
    from atlas_jax import sae_lab
    from atlas_jax.atlas import ConceptAtlas
    from atlas_jax.files import check_place, new_directory, write_json
    from atlas_jax.table import facts_table

    check_place(out_dir, KIND, overwrite=overwrite)
    settings = sae_lab.VerbalizerSettings(steps, batch, held_out=held_out, learning_rate=learning_rate, seed=seed)
    loaded = ConceptAtlas.from_pretrained(atlas)
    note("reading text")
    corpus = read_corpus(text, n_fit=sentences, seed=seed)
    with new_directory(out_dir, KIND, overwrite=overwrite) as directory, progress_bars("steps") as progress:
        trained = sae_lab.train_verbalizer(loaded, corpus.fit[:sentences], settings, progress=progress)
        trained.model.save_pretrained(directory)
        trained.contract.save(directory)
        result = {"settings": vars(settings), "corpus": corpus.hash, "loss": trained.losses}
        result |= {"held_out": trained.held_out, "new_words": trained.new_words}
        write_json(directory / RECORD, result)
    facts = {"site": f"resid_post.{trained.contract.layer}", "vectors brought to norm": trained.contract.scale}
    facts |= {"loss, first and last": f"{trained.losses[0]:.2f} and {trained.losses[-1]:.2f} nats a token"}
    facts |= {"held-out features": len(trained.held_out), "of these with new words alone": len(trained.new_words)}
    emit(as_json, result, facts_table(f"Verbalizer in {out_dir}", facts))


def explain(
    source: Annotated[Path, typer.Option(help="Concept Atlas whose features are explained: model, SAE and labels.")],
    verbalizer: Annotated[str, typer.Option(help="Verbalizer: a directory or hub name with nla_meta.yaml.")],
    bridge: Annotated[
        Path | None,
        typer.Option(help="Bridge from the source's stream to the verbalizer's; none where it is the same."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base model of a verbalizer that is a LoRA adapter.")] = None,
    own_verbalizer: Annotated[
        str | None, typer.Option(help="Verbalizer of the source, to compare with in place of labels.")
    ] = None,
    feature: Annotated[list[int] | None, typer.Option("--feature", help="Only this one; may be repeated.")] = None,
    count: Annotated[int, typer.Option(help="Labelled features drawn at random, where none is given.", min=2)] = 45,
    split: Annotated[
        str | None, typer.Option(help="Draw among held_out or new_words of a verbalizer trained on the source.")
    ] = None,
    text: Text = None,
    sentences: Sentences = 6000,
    alpha: Annotated[
        list[float] | None,
        typer.Option(help="Washout, experimental: unit(d + α b); may be repeated.", callback=finite()),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Model of the stream that the verbalizer explains, for --alpha.")
    ] = None,
    embedder: Annotated[
        str, typer.Option(help="Of texts: static, sentence-transformers:NAME or endpoint:MODEL.")
    ] = "static",
    max_new_tokens: MaxNewTokens = 60,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.", min=0, callback=finite())] = 0.0,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Where explanations are kept; a stopped run goes on there.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Explain features of one model by the verbalizer of another: decoder directions over a bridge, with controls.

    Explanations are compared with labels by the cosine of their embeddings; lift is what they gain over wrong features,
    random directions, a shuffled map, no injection, and the prompt given the feature's top tokens as text.

    Example: atlas-jax bridge explain --source my-atlas --bridge my-bridge --verbalizer kitft/nla-gemma3-27b-L41-av
    """
    from atlas_jax import experiments
    from atlas_jax.atlas import ConceptAtlas
    from atlas_jax.bridge import Bridge
    from atlas_jax.files import local_or_hub, write_json
    from atlas_jax.verbalizers import load_verbalizer, verbalize

    atlas, over = ConceptAtlas.from_pretrained(source), None if bridge is None else Bridge.from_pretrained(bridge)
    if over is not None and (over.source != atlas.site or over.translation.d_c != atlas.model.config.width(atlas.site)):
        raise AtlasError(f"the bridge starts at {over.source}, and the features of {source} are at {atlas.site}")
    model, contract = load_verbalizer(home := local_or_hub(verbalizer), base=base)
    wanted = feature or experiments.draw_features(atlas, count, seed, among=_split(home, split))
    note("reading text")
    corpus = read_corpus(text, n_fit=sentences, seed=seed)
    options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    with progress_bars("features") as progress:
        explained = experiments.features_to_explain(atlas, corpus, wanted, contexts=CONTEXTS, progress=progress)
        directions = experiments.directions_of(atlas, explained)
        if own_verbalizer is not None:
            speaker, terms = load_verbalizer(own_verbalizer)
            own = verbalize(speaker, directions, terms, **options)
            explained = [f._replace(reference=said) for f, said in zip(explained, own.explanations, strict=True)]
        result = experiments.explain_features(
            explained, directions, model, contract, _embedder(embedder), bridge=over,
            background=_background(atlas, over, target, corpus.fit) if alpha else None, alphas=alpha or (),
            directory=out_dir, settings=_about(source, home, bridge, corpus.hash), progress=progress, **options,
        )  # fmt: skip
    if out_dir is not None:
        write_json(out_dir / "explained.json", result.to_dict())
        err.print(f"written to {out_dir}")
    emit(as_json, result.to_dict(), *result.tables())


def _split(verbalizer: Path, name: str | None) -> list[int] | None:
    """The features of a split that a trained verbalizer's directory lists."""
    from atlas_jax.files import read_object

    if name is None:
        return None
    record = read_object(verbalizer / RECORD, remedy="leave --split out, or train the verbalizer with atlas-jax")
    if name not in ("held_out", "new_words"):
        raise AtlasError(f"unknown split '{name}'; known are held_out and new_words")
    return record[name]


def _about(source: Path, verbalizer: Path, bridge: Path | None, corpus: str) -> dict[str, Any]:
    """What determines explanations besides the options."""
    from atlas_jax.files import directory_hash

    paths = {"source": source, "verbalizer": verbalizer, "bridge": bridge}
    return {name: directory_hash(p) for name, p in paths.items() if p is not None} | {"corpus": corpus}


def _embedder(spec: str) -> "Embedder":
    from atlas_jax.labels import StaticEmbedding, open_embedder

    return StaticEmbedding.default() if spec == "static" else open_embedder(spec)


def _background(atlas: "ConceptAtlas", bridge: Any, target: str | None, texts: Any) -> Any:
    from atlas_jax import experiments
    from atlas_jax.models import LanguageModel

    if target is None and bridge is not None:
        raise AtlasError(
            "washout needs activations of the stream that the verbalizer explains; give its model: --target"
        )
    model = atlas.model if target is None else LanguageModel.from_pretrained(target)
    return experiments.mean_unit_activation(model, atlas.site if bridge is None else bridge.target, texts)
