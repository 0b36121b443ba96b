"""``atlas-jax corpus``."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from atlas_jax.cli._console import emit, err
from atlas_jax.cli._options import Overwrite
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from atlas_jax.corpus import Corpus

app = typer.Typer(help="Sentences to align on.", no_args_is_help=True)
FEWEST = 100
BYTES_PER_SENTENCE = 210  # of installed documentation, for one unique sentence of the fit half
SHOWN = 20


@app.command()
def build(
    source: Annotated[
        list[str],
        typer.Argument(help="txt, md, jsonl (also .gz, .zst), parquet, directories of them, or datasets of the hub."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the corpus is written.")],
    sentences: Annotated[int | None, typer.Option(help="Sentences for fitting; as many are held out.")] = None,
    column: Annotated[str, typer.Option(help="Name of the text in jsonl, parquet and datasets.")] = "text",
    domain_column: Annotated[str, typer.Option(help="Their domain, if any: domain, meta.pile_set_name.")] = "domain",
    split: Annotated[str | None, typer.Option(help="Split of a dataset; train where not given.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a dataset.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most documents to read of each source.")] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="DOMAIN=2 doubles the share of a domain; may be given again.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; every CPU where the text is long.")] = None,
    seed: Annotated[int, typer.Option(help="Key of the hash that halves the corpus.")] = 0,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Split text into filtered, deduplicated sentences in two disjoint halves (Appendix A.2).

    The corpus depends on the text and the options alone: not on the number of workers, nor on a run that was killed.

    Example: atlas-jax corpus build my-texts/ --out corpus
    """
    from atlas_jax.artifacts import check_place
    from atlas_jax.corpus import build_corpus, read_sources

    check_place(out, "a corpus", overwrite=overwrite)
    weights = dict(_weight(text) for text in weight or ())
    documents = read_sources(
        source, column=column, domain_column=domain_column, split=split, subset=subset, limit=limit
    )
    with _rates() as progress:
        corpus = build_corpus(
            documents,
            n_fit=sentences,
            n_eval=sentences,
            seed=seed,
            weights=weights,
            workers=workers,
            directory=out,
            progress=progress,
        )
    facts = {"fit": len(corpus.fit), "eval": len(corpus.eval), "hash": corpus.hash, **corpus.statistics._asdict()}
    counts = corpus.domain_counts()
    emit(as_json, facts | {"domains": counts}, lambda: _tables(f"Corpus written to {out}", facts, counts))


def read_corpus(paths: list[Path] | None, *, n_fit: int, seed: int) -> "Corpus":
    """A saved corpus, one from the user's files, or one from installed documentation.

    At most ``n_fit`` sentences to fit on and half as many held out, at least :data:`FEWEST` each.
    """
    from atlas_jax.corpus import Corpus, build_corpus, installed_documentation, read_sources

    if paths and len(paths) == 1 and (paths[0] / "corpus.json").is_file():
        return Corpus.load(paths[0])
    limits = {"n_fit": n_fit, "n_eval": n_fit // 2, "at_least": FEWEST, "seed": seed}
    if paths:
        return build_corpus(read_sources(paths), **limits)
    enough = max(n_fit, 5 * FEWEST) * BYTES_PER_SENTENCE
    return build_corpus(installed_documentation(max_bytes=enough, seed=seed), **limits)


def _weight(text: str) -> tuple[str, float]:
    domain, _, number = text.rpartition("=")
    try:
        return domain, float(number)
    except ValueError as error:
        raise AtlasError(f"--weight '{text}' is not DOMAIN=NUMBER; write for example fiction=2") from error


@contextmanager
def _rates() -> Iterator[Callable[[int, int], None]]:
    """A line with documents and sentences so far and a second."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=err) as line:
        task, start = line.add_task("reading", total=None), time.monotonic()

        def advance(documents: int, sentences: int) -> None:
            seconds = max(time.monotonic() - start, 1e-9)
            shown = f"{documents:,} documents ({documents / seconds:,.0f}/s)  {sentences:,} sentences"
            line.update(task, description=f"{shown} ({sentences / seconds:,.0f}/s)")

        yield advance


def _tables(title: str, facts: dict, counts: dict[str, tuple[int, int]]) -> Group:
    from atlas_jax.cli._tables import facts_table, table

    shares = table("Sentences by domain", "domain", ">fit", ">eval")
    rows = list(counts.items())
    rest = rows[SHOWN:]
    if rest:
        others = tuple(sum(pair[side] for _, pair in rest) for side in (0, 1))
        rows = [*rows[:SHOWN], (f"{len(rest)} others", others)]
    for domain, (fit, held_out) in rows:
        shares.add_row(domain, str(fit), str(held_out))
    return Group(facts_table(title, facts), shares)
