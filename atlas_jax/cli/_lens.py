"""``atlas-jax lens``: the Jacobian lens."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_jax.cli._console import emit, err, note, progress_bars
from atlas_jax.cli._corpus import Text, read_corpus
from atlas_jax.cli._options import SITES, AsJson, Commands, Overwrite, Seed
from atlas_jax.errors import AtlasError
from atlas_jax.files import check_place
from atlas_jax.table import Column, Table, facts_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atlas_jax.lens import LensToken

app = Commands(help="Name directions in the model's own vocabulary, without labels.", no_args_is_help=True)
Model = Annotated[str, typer.Option(help="Model: a directory or hub name.")]
Dtype = Annotated[str, typer.Option(help="Of the model: float32 or bfloat16.")]


@app.command()
def fit(
    model: Model,
    out_dir: Annotated[Path, typer.Option("--out", help="Where the lens is written.")],
    site: Annotated[
        list[str] | None,
        typer.Option("--site", help=f"{SITES}; may be repeated.", show_default="resid_post of every layer"),
    ] = None,
    text: Text = None,
    sentences: Annotated[int, typer.Option(help="Sentences to average over.", min=1)] = 200,
    skip: Annotated[int, typer.Option(help="First tokens of a sentence that do not count.", min=0)] = 1,
    max_length: Annotated[int, typer.Option(help="Tokens at which sentences are cut.", min=2)] = 128,
    token_budget: Annotated[int, typer.Option(help="Tokens of a batch.", min=1)] = 1024,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Average the Jacobian of a model's final residual over text, which names directions and turns tokens into some.

    Example: atlas-jax lens fit --model my-llama --text my-texts/ --site mlp_act.12 --out my-lens
    """
    from atlas_jax.lens import FILE, JacobianLens
    from atlas_jax.models import LanguageModel

    check_place(out_dir / FILE, overwrite=overwrite)
    lm = LanguageModel.from_pretrained(model, dtype=dtype)
    note("reading text")
    texts = read_corpus(text, n_fit=sentences, seed=seed).fit[:sentences]
    with progress_bars() as progress:
        options = {"skip": skip, "max_length": max_length, "token_budget": token_budget, "progress": progress}
        lens = JacobianLens.fit(lm, list(texts), site, **options)
    lens.save_pretrained(out_dir)
    err.print(f"written to {out_dir}")
    facts = {"sites": ", ".join(map(str, lens.matrices)), "sentences": lens.sentences, "skip": skip}
    emit(as_json, facts, facts_table("Jacobian lens", facts))


@app.command()
def name(
    lens: Annotated[Path, typer.Argument(help="A directory written by lens fit, or a published lens (.pt).")],
    model: Model,
    site: Annotated[str | None, typer.Option(help="Site of the features.")] = None,
    feature: Annotated[list[int] | None, typer.Option("--feature", help="Feature of it; may be repeated.")] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Name the steering vectors in this file instead, as atlas-jax export writes it.")
    ] = None,
    k: Annotated[int, typer.Option(help="Tokens to show.", min=1)] = 10,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Name features of a site, or steering vectors, by the tokens whose logits they raise most.

    Examples: atlas-jax lens name my-lens --model my-llama --site mlp_act.12 --feature 17

    atlas-jax lens name my-lens --model my-llama --vectors steering.safetensors
    """
    from atlas_jax.lens import JacobianLens
    from atlas_jax.models import LanguageModel
    from atlas_jax.vectors import load_edits

    if (site is not None and bool(feature)) == (vectors is not None) or (vectors and (site or feature)):
        raise AtlasError("give either --site POINT.LAYER with --feature ID, or --vectors FILE")
    loaded = JacobianLens.from_pretrained(lens, LanguageModel.from_pretrained(model, dtype=dtype))
    if vectors is None:
        named = [
            ({"feature": i}, tokens) for i, tokens in zip(feature, loaded.name_features(feature, site, k), strict=True)
        ]
    else:
        along = {at: edit.direction for at, edit in load_edits(vectors).items()}
        named = [({"site": str(at)}, loaded.name(direction, at, k)) for at, direction in along.items()]
    data = [about | {"tokens": [t._asdict() for t in tokens]} for about, tokens in named]
    emit(as_json, data, tokens_table("Tokens by the Jacobian lens", named))


def tokens_table(title: str, named: "Iterable[tuple[dict[str, Any], list[LensToken]]]") -> Table:
    """Tabulate the tokens of several directions."""
    (first, _), *_ = named = list(named)
    columns = *(Column(name, group=True) for name in first), Column("token"), Column("logit change", ".3f")
    rows = [(*map(str, about.values()), repr(t.text), t.score) for about, tokens in named for t in tokens]
    return Table(title, columns, rows)
