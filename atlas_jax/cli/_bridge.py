"""``atlas-jax bridge``: maps between the residual streams of two models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_jax.cli._console import emit, err, note, progress_bars
from atlas_jax.cli._corpus import SENTENCES, Text, read_corpus
from atlas_jax.cli._options import POOLINGS, SITES, AsJson, Commands, Overwrite, Seed, finite
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from atlas_jax.corpus import Corpus
    from atlas_jax.subject import Subject

DRAWN = "svg", "png", "pdf"
app = Commands(help="Maps between the residual streams of two models.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="Model whose activations are mapped: a directory or hub name.")]
Target = Annotated[str, typer.Argument(help="Model they are mapped to.")]
_SITES = "every resid_post"
SourceSites = Annotated[
    list[str] | None,
    typer.Option("--source-site", help=f"Site of the source, {SITES}; may be repeated.", show_default=_SITES),
]
TargetSites = Annotated[
    list[str] | None, typer.Option("--target-site", help="Site of the target; may be repeated.", show_default=_SITES)
]
Sentences = Annotated[
    int | None,
    typer.Option(help="Sentences for fitting; half as many are held out.", min=2, show_default="up to 20000"),
]
Pooling = Annotated[str, typer.Option(help=f"Over the tokens of a sentence, {POOLINGS}.")]
Outlier = Annotated[
    float,
    typer.Option(
        help="Leave out tokens whose norm exceeds this many times the median of their sentence, and dimensions whose "
        "root mean square exceeds it times the median dimension's; 0 keeps all.",
        callback=finite(least=0),
    ),
]
MaxLength = Annotated[int, typer.Option(help="Tokens at which sentences are cut.", min=2)]
TokenBudget = Annotated[int, typer.Option(help="Tokens of a batch, for each model.", min=1)]
Dtype = Annotated[str, typer.Option(help="Of the models: float32 or bfloat16.")]


@app.command()
def fit(
    source: Source,
    target: Target,
    source_site: Annotated[str, typer.Option(help=f"Site of the source, {SITES}.")],
    target_site: Annotated[str, typer.Option(help="Site of the target.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the bridge is written.")],
    text: Text = None,
    sentences: Sentences = None,
    level: Annotated[str, typer.Option(help="Rows of the regression: sentence (pooled) or token.")] = "sentence",
    pooling: Pooling = "mean",
    outlier: Outlier = 10.0,
    penalty: Annotated[
        list[float] | None,
        typer.Option(
            "--penalty",
            help="Of the ridge, in units of the mean scatter of the source's dimensions; may be repeated.",
            show_default="20 from 1e-6 to 100",
            callback=finite(least=0),
        ),
    ] = None,
    max_length: MaxLength = 128,
    token_budget: TokenBudget = 4096,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit affine maps from a site of one model to a site of another, by ridge regression and by Procrustes.

    The penalty is the one that explains most of the held-out half. OUT is a translation: aj.Bridge.from_pretrained
    reads it, and OUT/procrustes.

    Example: atlas-jax bridge fit my-qwen my-gemma --source-site resid_post.20 --target-site resid_post.41 --out bridge
    """
    from atlas_jax import experiments
    from atlas_jax.files import check_place, new_directory
    from atlas_jax.translators import PENALTIES

    check_place(out_dir, "a bridge", overwrite=overwrite)
    sides, models = _sides({"source": (source, [source_site]), "target": (target, [target_site])}, pooling, dtype)
    corpus = _read(text, sentences, seed)
    with new_directory(out_dir, "a bridge", overwrite=overwrite) as directory, progress_bars() as progress:
        fitted = experiments.fit_bridge(
            *sides, corpus.fit, corpus.eval, level=level, outlier=outlier or None, penalties=penalty or PENALTIES,
            max_length=max_length, token_budget=token_budget, models=models, progress=progress,
        )  # fmt: skip
        fitted.save(directory)
    emit(as_json, fitted.to_dict(), *fitted.tables())
    err.print(f"written to {out_dir}")


@app.command()
def layers(
    source: Source,
    target: Target,
    source_site: SourceSites = None,
    target_site: TargetSites = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Draw a heatmap here (.svg, .png, .pdf), or write a .json."),
    ] = None,
    text: Text = None,
    sentences: Sentences = None,
    pooling: Pooling = "mean",
    outlier: Outlier = 10.0,
    max_length: MaxLength = 128,
    token_budget: TokenBudget = 4096,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare ridge bridges between all layers of two models, by what they explain of held-out text.

    Example: atlas-jax bridge layers my-qwen my-gemma --out layers.svg
    """
    from atlas_jax import experiments
    from atlas_jax.files import check_place, new_file, write_json

    kind = None if out_file is None else out_file.suffix.lstrip(".")
    if kind not in (None, *DRAWN, "json"):
        raise AtlasError(f"'{out_file}' names no kind of file; end it in {', '.join(f'.{k}' for k in DRAWN)} or .json")
    if out_file is not None:
        check_place(out_file, overwrite=overwrite)
    sides, _ = _sides({"source": (source, source_site), "target": (target, target_site)}, pooling, dtype)
    corpus = _read(text, sentences, seed)
    with progress_bars() as progress:
        result = experiments.bridge_layers(
            *sides, corpus.fit, corpus.eval, outlier=outlier or None, max_length=max_length, token_budget=token_budget,
            progress=progress,
        )  # fmt: skip
    if out_file is not None:
        with new_file(out_file) as place:
            write_json(place, result.to_dict()) if kind == "json" else result.plot().savefig(place, format=kind)
    emit(as_json, result.to_dict(), result.table())


def _sides(
    asked: dict[str, tuple[str, list[str] | None]], pooling: str, dtype: str
) -> "tuple[list[Subject], dict[str, dict[str, Any]]]":
    """Load source and target; with their paths and hashes."""
    from atlas_jax.pipeline import load_subject

    note("loading both models")
    loaded = {side: load_subject(name, sites, pooling, dtype) for side, (name, sites) in asked.items()}
    return [subject for subject, _ in loaded.values()], {side: about for side, (_, about) in loaded.items()}


def _read(text: list[Path] | None, sentences: int | None, seed: int) -> "Corpus":
    note("reading text")
    return read_corpus(text, n_fit=sentences or SENTENCES, seed=seed, exact=sentences is not None)
