"""``atlas-jax corpus``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_jax.cli._console import emit

if TYPE_CHECKING:
    from atlas_jax.corpus import Corpus

app = typer.Typer(help="Sentences to align on.", no_args_is_help=True)
FEWEST = 100
BYTES_PER_SENTENCE = 210  # of installed documentation, for one unique sentence of the fit half


@app.command()
def build(
    source: Annotated[list[Path], typer.Argument(help="txt, md, jsonl (also .gz), parquet, or directories of them.")],
    out: Annotated[Path, typer.Option("--out", help="Where the corpus is written.")],
    sentences: Annotated[int | None, typer.Option(help="Sentences for fitting; as many are held out.")] = None,
    seed: Annotated[int, typer.Option(help="Key of the hash that halves the corpus.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Split text into filtered, deduplicated sentences in two disjoint halves (Appendix A.2).

    Example: atlas-jax corpus build my-texts/ --out corpus
    """
    from atlas_jax.cli._tables import facts_table
    from atlas_jax.corpus import build_corpus, read_documents

    corpus = build_corpus(read_documents(source), n_fit=sentences, n_eval=sentences, seed=seed)
    corpus.save(out)
    facts = {"fit": len(corpus.fit), "eval": len(corpus.eval), "hash": corpus.hash, **corpus.statistics._asdict()}
    emit(as_json, facts, lambda: facts_table(f"Corpus written to {out}", facts))


def read_corpus(paths: list[Path] | None, *, n_fit: int, seed: int) -> "Corpus":
    """A saved corpus, one from the user's files, or one from installed documentation.

    At most ``n_fit`` sentences to fit on and half as many held out, at least :data:`FEWEST` each.
    """
    from atlas_jax.corpus import Corpus, build_corpus, installed_documentation, read_documents

    if paths and len(paths) == 1 and (paths[0] / "corpus.json").is_file():
        return Corpus.load(paths[0])
    limits = {"n_fit": n_fit, "n_eval": n_fit // 2, "at_least": FEWEST, "seed": seed}
    if paths:
        return build_corpus(read_documents(paths), **limits)
    return build_corpus(installed_documentation(max_bytes=n_fit * BYTES_PER_SENTENCE, seed=seed), **limits)
