"""``atlas-jax quickstart``."""

import time
from pathlib import Path
from typing import Annotated

import typer

from atlas_jax.cli._align import Choose
from atlas_jax.cli._console import emit, err, note, out, stages
from atlas_jax.cli._corpus import read_corpus
from atlas_jax.errors import AtlasError

SITES = ("mlp_act.1", "mlp_act.2", "resid_post.2")
CONCEPTS = ("attention", "font", "file")
PROMPTS = ("This function", "The", "When")
STRENGTHS = (0.0, 0.25, 0.5, 1.0)


def quickstart(
    text: Annotated[list[Path] | None, typer.Option("--text", help="Your own text instead of installed docs.")] = None,
    more_text: Annotated[list[Path] | None, typer.Argument(help="More text files, after --text.")] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Where the run is written.")] = Path("runs/quickstart"),
    site: Annotated[list[str] | None, typer.Option("--site", help="Subject site; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="Translator; may be repeated.")] = None,
    choose: Choose = None,
    concept: Annotated[list[str] | None, typer.Option("--concept", help="Concept in words; may be repeated.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue; may be repeated.")] = None,
    strength: Annotated[
        list[float] | None, typer.Option("--strength", help="In mean token norms of a site; may be repeated.")
    ] = None,
    sentences: Annotated[int, typer.Option(help="Sentences for fitting; half as many measure.", min=2)] = 20000,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
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
    from atlas_jax.cli._tables import choice_table, concept_group, quality_table
    from atlas_jax.experiments import METHODS, Chooser, quickstart as experiment, whitened_grid
    from atlas_jax.pipeline import AlignSettings, load_pair

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
    corpus = read_corpus([*(text or ()), *(more_text or ())], n_fit=sentences, seed=seed)
    note(f"{len(corpus.fit)} sentences to fit on, {len(corpus.eval)} held out")
    with stages() as stage:
        result = experiment(
            pair, corpus, settings, out_dir,
            concepts=concept or CONCEPTS, prompts=prompt or PROMPTS, strengths=strength or STRENGTHS, stage=stage,
            note=note, chooser=chooser,
        )  # fmt: skip
    choice = result.alignment.choice
    data = {"quality": result.quality.as_json(), "concepts": [c.as_json() for c in result.concepts]}
    if choice is not None:
        data["chosen"] = choice.record["chosen"]
        if not as_json:
            out.print(choice_table(choice))
    emit(as_json, data, lambda: quality_table(result.quality))
    for found in [] if as_json else result.concepts:
        out.print(concept_group(found))
    err.print(f"written to {result.directory} in {time.monotonic() - start:.0f} s")
