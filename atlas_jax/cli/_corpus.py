"""``atlas-jax corpus``."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from atlas_jax.cli._console import emit, err
from atlas_jax.cli._options import Commands, Overwrite
from atlas_jax.errors import AtlasError
from atlas_jax.table import Column, Table, facts_table

if TYPE_CHECKING:
    from atlas_jax.corpus import Corpus

app = Commands(help="Sentences to align on.", no_args_is_help=True)
FEWEST = 100
Text = Annotated[list[Path] | None, typer.Option("--text", help="Text files, or a corpus directory.")]
SENTENCES = 20000  # to fit on, where no number is given
BYTES_PER_SENTENCE = 210  # of installed documentation, for one unique sentence of the fit half
SHOWN = 20
COUNTED = ("split", "after_length", "after_letters", "unique")  # which the table of filters tells


@app.command()
def build(
    source: Annotated[
        list[str],
        typer.Argument(help="txt, md, jsonl (also .gz, .zst), parquet, directories of them, or datasets of the hub."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Where the corpus is written.")],
    sentences: Annotated[
        int | None, typer.Option(help="Sentences for fitting; as many are held out. All where not given.", min=1)
    ] = None,
    column: Annotated[str, typer.Option(help="Name of the text in jsonl, parquet and datasets.")] = "text",
    domain_column: Annotated[str, typer.Option(help="Their domain, if any: domain, meta.pile_set_name.")] = "domain",
    encoding: Annotated[
        str | None, typer.Option(help="Of text files without a byte order mark, such as latin-1; UTF-8 by default.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a dataset; train where not given.")] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of a dataset.")] = None,
    limit: Annotated[int | None, typer.Option(help="Most documents to read of each source.", min=1)] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="DOMAIN=2 doubles the share of a domain; may be given again.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; every CPU where the text is long.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Key of the hash that halves the corpus.")] = 0,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Split text into filtered, deduplicated sentences in two disjoint halves (Appendix A.2).

    The corpus depends on the text and the options alone: not on the number of workers, nor on a run that was killed.

    Example: atlas-jax corpus build my-texts/ --out corpus
    """
    from atlas_jax.corpus import build_corpus, read_sources
    from atlas_jax.files import check_place

    check_place(out, "a corpus", overwrite=overwrite)
    weights = dict(_weight(text) for text in weight or ())
    skipped: Counter[str] = Counter()
    documents = read_sources(
        source, column=column, domain_column=domain_column, split=split, subset=subset, limit=limit,
        encoding=encoding, skipped=skipped,
    )  # fmt: skip
    with _rates() as progress:
        corpus = build_corpus(
            documents,
            n_fit=sentences,
            n_eval=sentences,
            at_least=sentences or 1,
            seed=seed,
            weights=weights,
            workers=workers,
            directory=out,
            progress=progress,
        )
    facts = {"fit": len(corpus.fit), "eval": len(corpus.eval), "hash": corpus.hash, **corpus.statistics._asdict()}
    shown = {name: value for name, value in facts.items() if name not in COUNTED}
    counts, dropped = corpus.domain_counts(), corpus.statistics.dropped
    emit(
        as_json,
        facts | {"domains": counts, "dropped": dropped, "skipped": skipped},
        facts_table(f"Corpus written to {str(out)}", shown),
        _filters(corpus, skipped),
        _domains(counts),
    )


def read_corpus(paths: list[Path] | None, *, n_fit: int, seed: int, exact: bool = False) -> "Corpus":
    """Return a saved corpus, one of the user's files, or one of installed documentation.

    At most ``n_fit`` sentences to fit on and half as many held out, at least :data:`FEWEST` each. A saved corpus comes
    whole.

    Args:
      paths: a corpus, or files and directories; None for installed documentation.
      n_fit: sentences to fit on.
      seed: seed of the halves.
      exact: true where the user asked for that number: fewer are an error, and a saved corpus is cut to it.

    Raises:
      AtlasError: if there are too few sentences, with their number.
    """
    from atlas_jax.corpus import Corpus, build_corpus, installed_documentation, read_sources

    n_eval = n_fit // 2
    if paths and len(paths) == 1 and (paths[0] / "corpus.json").is_file():
        saved = Corpus.load(paths[0])
        return saved.head(n_fit, n_eval) if exact else saved
    at_least = (max(FEWEST, n_fit), max(FEWEST, n_eval)) if exact else FEWEST
    limits = {"n_fit": n_fit, "n_eval": n_eval, "seed": seed}
    if paths:
        return build_corpus(read_sources(paths), at_least=at_least, **limits)
    enough = max(n_fit, 5 * FEWEST) * BYTES_PER_SENTENCE
    corpus = build_corpus(installed_documentation(max_bytes=enough, seed=seed), at_least=FEWEST, **limits)
    if not exact or (len(corpus.fit), len(corpus.eval)) == (n_fit, n_eval):
        return corpus
    return build_corpus(installed_documentation(seed=seed), at_least=at_least, **limits)


def _weight(text: str) -> tuple[str, float]:
    domain, _, number = text.rpartition("=")
    try:
        return domain, float(number)
    except ValueError as error:
        raise AtlasError(f"--weight '{text}' is not DOMAIN=NUMBER; write for example fiction=2") from error


@contextmanager
def _rates() -> Iterator[Callable[[int, int], None]]:
    """Show a line with the numbers of documents and sentences so far, and of each a second."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=err) as line:
        task, start = line.add_task("reading", total=None), time.monotonic()

        def advance(documents: int, sentences: int) -> None:
            seconds = max(time.monotonic() - start, 1e-9)
            shown = f"{documents:,} documents ({documents / seconds:,.0f}/s)  {sentences:,} sentences"
            line.update(task, description=f"{shown} ({sentences / seconds:,.0f}/s)")

        yield advance


def _filters(corpus: "Corpus", skipped: Counter[str]) -> Table:
    """Make a table of the sentences that each filter dropped."""
    statistics = corpus.statistics
    low, high = statistics.length_bounds
    caption = f"kept are {low:g} to {high:g} characters"
    if skipped:
        caption += f"; {skipped.total():,} records without text were skipped, in {', '.join(skipped)}"
    counts = {"found": statistics.split, **statistics.dropped}
    counts |= {"left out": statistics.unique - len(corpus), "in the corpus": len(corpus)}
    return Table("Sentences by filter", (Column(), Column("sentences", ",")), list(counts.items()), caption)


def _domains(counts: dict[str, tuple[int, int]]) -> Table:
    rows = [(domain, *halves) for domain, halves in counts.items()]
    if rest := rows[SHOWN:]:
        rows = [*rows[:SHOWN], (f"{len(rest)} others", sum(r[1] for r in rest), sum(r[2] for r in rest))]
    return Table("Sentences by domain", (Column("domain"), Column("fit", "d"), Column("eval", "d")), rows)
