"""Steering, measured: Table 5 with controls, fluency and what steering costs (section 4.4)."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_jax.errors import AtlasError
from atlas_jax.experiments._steering_cost import steering_cost
from atlas_jax.experiments._steering_directions import directions
from atlas_jax.experiments._steering_plan import SteeringSettings
from atlas_jax.experiments._steering_scores import Rated, SteeringEvaluation, evaluate_ratings
from atlas_jax.experiments._steering_texts import Decoder, Row, appended, decode, file_name, json_lines
from atlas_jax.files import differences, read_json, write_json
from atlas_jax.pipeline import Alignment
from atlas_jax.progress import Progress, unreported

if TYPE_CHECKING:
    from atlas_jax.experiments._judges import Judge

TOGETHER = 256  # texts that a judge is given at once
SETTINGS, GENERATIONS, COSTS = "settings.json", "generations.jsonl", "costs.jsonl"


def steering_evaluation(
    alignment: Alignment,
    settings: SteeringSettings,
    judge: "Judge",
    directory: Path,
    *,
    neutral: int = 32,
    aspects: Sequence[str] = ("concept",),
    progress: Progress | None = None,
) -> SteeringEvaluation:
    """Reproduce Table 5: steer along concepts at sites by methods and controls, and have the texts judged.

    Texts are decoded once, as one batched program in chunks, and kept in ``directory``; judging reads them, so another
    judge costs no decoding. Both go on where a process was stopped, and end with the same table.

    Args:
      alignment: the run.
      settings: concepts, prompts, strengths, sites, methods and controls.
      judge: rates texts 0, 1 or 2; see :class:`atlas_jax.experiments.Judge`.
      directory: where generations and ratings are kept.
      neutral: held-out sentences on which the cost of steering is measured, 0 for none.
      aspects: what the judge rates; "instruction" and "fluency" beside "concept" give the harmonic mean of AxBench.
      progress: called after every chunk.

    Returns:
      :class:`SteeringEvaluation`.

    Raises:
      AtlasError: if the directory holds the texts of another evaluation, or as :func:`directions` and the judge.

    Example:
      >>> from atlas_jax.experiments import AtlasJudge, steering_evaluation                 # doctest: +SKIP
      >>> steering_evaluation(alignment, settings, judge, Path("steering")).tables()         # doctest: +SKIP
    """
    if unknown := [a for a in aspects if a not in judge.aspects]:
        raise AtlasError(f"the judge {judge.name} does not rate {unknown[0]}; it rates {', '.join(judge.aspects)}")
    _same(directory, settings, alignment)
    along = functools.cache(lambda: directions(alignment, settings, progress=progress))  # not where all is decoded
    rows = decode(Decoder(alignment, settings, along), directory / GENERATIONS, progress=progress)
    rated = [r for a in aspects for r in _rated(rows, settings, judge, a, directory, progress)]
    costs = []
    if neutral:
        costs = steering_cost(alignment, settings, along, directory / COSTS, sentences=neutral, progress=progress)
    return evaluate_ratings(settings, judge.name, rows, rated, costs)


def forget_evaluation(directory: Path) -> None:
    """Remove the texts, ratings and tables of an evaluation, and nothing else; replies of a chat judge stay, paid for.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from atlas_jax.experiments import forget_evaluation
      >>> directory = Path(tempfile.mkdtemp())
      >>> _ = (directory / "generations.jsonl").write_text(""), (directory / "notes.txt").write_text("mine")
      >>> forget_evaluation(directory)
      >>> [path.name for path in directory.iterdir()]
      ['notes.txt']
    """
    for name in (SETTINGS, GENERATIONS, COSTS, "ratings-*.jsonl", "table-*.json"):
        for path in directory.glob(name):
            path.unlink()


def _same(directory: Path, settings: SteeringSettings, alignment: Alignment) -> None:
    """Refuse a directory of another evaluation; note which one this is."""
    now = settings.to_dict() | {"run": {k: alignment.sources[k]["sha256"] for k in ("subject", "atlas")}}
    path = directory / SETTINGS
    if path.is_file():
        if changed := differences(read_json(path, "evaluate again with --overwrite"), now):
            raise AtlasError(
                f"'{directory}' holds the texts of another evaluation: {changed}; choose another --out, or "
                "replace them with --overwrite"
            )
        return
    write_json(path, now)


def _rated(
    rows: Sequence[Row],
    settings: SteeringSettings,
    judge: "Judge",
    aspect: str,
    directory: Path,
    progress: Progress | None,
) -> list[Rated]:
    """Ratings of all texts, those kept on disk and those that the judge is asked for now."""
    path = directory / f"ratings-{file_name(judge.name)}.jsonl"
    lines = [Rated(**content) for content in json_lines(path) if content]
    there = {r[:5]: r for r in lines}
    wanted = dict(_cells_to_rate(rows, settings, aspect))
    place = {c.name: i for i, c in enumerate(settings.concepts)}  # a request may hold texts of one concept alone
    lacking = sorted((key for key in wanted if key not in there), key=lambda key: place[key[0]])
    report, size, groups = progress or unreported, len(settings.prompts), []
    for key in lacking:  # cells of a concept together, for a judge that has several requests under way
        if groups and groups[-1][0][0] == key[0] and len(groups[-1]) < max(1, TOGETHER // size):
            groups[-1].append(key)
        else:
            groups.append([key])
    done = len(wanted) - len(lacking)
    report("judge", done * size, len(wanted) * size, 0)
    with appended(path, [r._asdict() for r in lines]) as add:
        for group in groups:
            texts = [row for key in group for row in wanted[key]]
            instruction = [row.prompt for row in texts] if aspect == "instruction" else None
            ratings = judge.judge(group[0][0], [row.text for row in texts], aspect, instruction=instruction)
            for i, key in enumerate(group):
                there[key] = Rated(*key, ratings[i * size : (i + 1) * size])
            add([there[key]._asdict() for key in group])
            done += len(group)
            report("judge", done * size, len(wanted) * size, 0)
    return [there[key] for key in wanted]


def _cells_to_rate(
    rows: Sequence[Row], settings: SteeringSettings, aspect: str
) -> Iterable[tuple[tuple[str, str, str, str, float], list[Row]]]:
    """Cells with their rows; those without steering are rated for every concept."""
    size = len(settings.prompts)
    for start in range(0, len(rows), size):
        part = list(rows[start : start + size])
        cell = part[0].cell
        for concept in [cell.concept] if cell.concept else [c.name for c in settings.concepts]:
            yield (concept, aspect, cell.method, cell.sites, cell.strength), part
