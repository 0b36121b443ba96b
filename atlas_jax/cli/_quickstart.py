"""``atlas-jax quickstart``."""

import itertools
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_jax.cli._align import warn_of
from atlas_jax.cli._console import emit, err, note, progress_bars
from atlas_jax.cli._corpus import SENTENCES, read_corpus
from atlas_jax.cli._options import Choose, Methods, Overwrite, Seed, Sites, finite
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from atlas_jax.experiments import Result

OUT = Path("runs/quickstart")
SITES = ("mlp_act.1", "mlp_act.2", "resid_post.2")
CONCEPTS = ("attention", "font", "file")
PROMPTS = ("This function", "The", "When")


def quickstart(
    text: Annotated[list[Path] | None, typer.Option("--text", help="Your own text instead of installed docs.")] = None,
    more_text: Annotated[list[Path] | None, typer.Argument(help="More text files, after --text.")] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Where the run is written.", show_default=f"{OUT}, with a number if that is taken"),
    ] = None,
    overwrite: Overwrite = False,
    site: Sites = None,
    method: Methods = None,
    choose: Choose = None,
    concept: Annotated[list[str] | None, typer.Option("--concept", help="Concept in words; may be repeated.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue; may be repeated.")] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            "--strength",
            help="In mean token norms of a site; may be repeated.",
            show_default="0, half of what doubles the perplexity of neutral text, and all of it",
            callback=finite(),
        ),
    ] = None,
    sentences: Annotated[
        int | None, typer.Option(help="Sentences for fitting; half as many measure.", min=2, show_default="up to 20000")
    ] = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """The whole job offline on the bundled pair: align, measure, search, identify and steer.

    Example: atlas-jax quickstart --concept "image" --strength 0 --strength 0.5
    """
    start = time.monotonic()
    if more_text and not text:
        raise AtlasError(f"unexpected '{more_text[0]}'; name text files after --text")
    note("loading both models")
    from atlas_jax.bundled import ATLAS, SUBJECT
    from atlas_jax.experiments import METHODS, Chooser, quickstart as experiment, whitened_grid
    from atlas_jax.files import check_place
    from atlas_jax.pipeline import AlignSettings, load_pair

    out_dir = out_dir or _free(OUT)
    check_place(out_dir, "a run", overwrite=overwrite)
    settings = AlignSettings(tuple(site or SITES), tuple(method or METHODS), seed=seed)
    chooser = None
    if choose:
        chooser = Chooser(tuple(choose), seed=seed)
    elif not method:
        chooser = Chooser(
            ("detect",), whitened_grid(betas=(0.0,)), seed=seed
        )  # detection never wants the atlas whitened
    pair = load_pair(SUBJECT, ATLAS, settings)
    note("reading text")
    paths = [*(text or ()), *(more_text or ())]
    corpus = read_corpus(paths, n_fit=sentences or SENTENCES, seed=seed, exact=sentences is not None)
    note(f"{len(corpus.fit)} sentences to fit on, {len(corpus.eval)} held out")
    with progress_bars() as progress:
        result = experiment(
            pair, corpus, settings, out_dir,
            concepts=concept or CONCEPTS, prompts=prompt or PROMPTS, strengths=strength,
            progress=progress, chooser=chooser, overwrite=overwrite,
        )  # fmt: skip
    _show(result, as_json=as_json)
    err.print(f"written to {result.directory} in {time.monotonic() - start:.0f} s")
    _look_next(result, (concept or CONCEPTS)[0])


def _free(path: Path) -> Path:
    """Return ``path``, or where that exists the first unused path with a number after it."""
    numbered = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(p for p in itertools.chain([path], numbered) if not p.exists())


def _look_next(result: "Result", concept: str) -> None:
    """Write the page of the run, and name it and the next three commands; without a page the run is whole too."""
    from atlas_jax.report import write_report

    note("writing the page")
    try:
        page = write_report(result.directory, curves=0, alignment=result.alignment)
    except AtlasError as e:
        note(f"there is no page of it: {e}")
        return
    run, site = shlex.quote(str(result.directory)), result.alignment.subject.sites[-1]
    asked = f"{run} --site {site} --concept {shlex.quote(concept)}"
    err.print(f"look at it in a browser: {page.path}; next:", highlight=False)
    for command in (f"identify {asked}", f"steer {asked} --prompt {shlex.quote(PROMPTS[0])}", f"evaluate layers {run}"):
        err.print(f"  atlas-jax {command}", highlight=False, soft_wrap=True)


def _show(result: "Result", *, as_json: bool) -> None:
    emit(as_json, result.to_dict(), *result.tables())
    warn_of(result.alignment, result.fault)
