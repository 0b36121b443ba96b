"""``atlas-jax evaluate steering``: Table 5 for a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_jax.cli._console import emit, note, notes, progress_bars
from atlas_jax.cli._options import AsJson, Overwrite, Seed, finite
from atlas_jax.cli._use import RunArgument, load_run, read_lines, stored_ap
from atlas_jax.errors import AtlasError

if TYPE_CHECKING:
    from atlas_jax.experiments import Judge, SteeringConcept, SteeringSettings
    from atlas_jax.pipeline import Alignment

STRENGTHS = (-0.5, 0.25, 0.5, 0.75)  # in mean token norms; past these the bundled pair's texts lose their sense
UNITS = "norm (mean token norms of the site), raw (λ of Eq. 4) or length (s_c of unit length)"
CONTROLS = "random, other concept, diffmean, prompt, native"


def steering(
    run: RunArgument,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", help="A concept in words, searched among the labels; repeatable.")
    ] = None,
    concepts: Annotated[
        Path | None, typer.Option("--concepts", help="JSON lines with concept, features and perhaps weights.")
    ] = None,
    count: Annotated[int, typer.Option("--count", help="Single atlas features, without concepts.", min=1)] = 10,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A file with a prompt a line; the paper's sixteen by default.")
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option("--strength", help="In --unit; the paper's λ where that is raw; repeatable.", callback=finite()),
    ] = None,
    unit: Annotated[str, typer.Option(help=f"Of strengths: {UNITS}.")] = "norm",
    site: Annotated[
        list[str] | None,
        typer.Option("--site", help="Site to steer at, or several joined by +; by default each of the run, and all."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Translator, or translate, ahead, gradient, optimise; all translators of the run by default; "
            "repeatable.",
        ),
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option("--control", help=f"Of {CONTROLS}; all by default, none: 'none'; repeatable.")
    ] = None,
    tokens: Annotated[int, typer.Option("--max-new-tokens", help="Tokens to generate.", min=1)] = 100,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.", min=0, callback=finite())] = 0.0,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are messages in the model's chat template.")] = False,
    judge: Annotated[
        str,
        typer.Option(
            help="Offline: atlas (its features), embedding or words (of the concept's name); else chat:MODEL behind an "
            "OpenAI-compatible API, or model:PATH."
        ),
    ] = "atlas",
    base_url: Annotated[str | None, typer.Option(help="Of the chat judge's API; OPENAI_BASE_URL by default.")] = None,
    aspects: Annotated[bool, typer.Option("--aspects", help="Have instruction and fluency rated too.")] = False,
    labelled: Annotated[
        Path | None,
        typer.Option("--labelled", help="JSON lines with concept, text and label (1 or 0), for a difference of means."),
    ] = None,
    bridge: Annotated[
        Path | None,
        typer.Option(help="Bridge from another model to the subject, for a difference of means made there."),
    ] = None,
    neutral: Annotated[int, typer.Option(help="Held-out sentences for the cost of steering; 0: none.", min=0)] = 32,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count texts and requests.")] = False,
    price: Annotated[
        tuple[float, float], typer.Option("--price", help="Of a million tokens, in and out.", callback=finite(least=0))
    ] = (0.0, 0.0),
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where texts and ratings are kept.")] = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Steer along concepts at every strength, site and method beside controls, and have the texts judged (Table 5).

    Texts and ratings are kept in RUN/steering: a stopped evaluation goes on, and another judge costs no decoding.

    Example: atlas-jax evaluate steering runs/quickstart --site resid_post.2 --method procrustes
    """  # fmt: skip
    from atlas_jax import experiments
    from atlas_jax.files import write_json
    from atlas_jax.table import facts_table

    alignment, directory = load_run(run), out_dir or run / "steering"
    chosen = _concepts(alignment, concept, concepts, count)
    groups = [s.split("+") for s in site or ()] or _groups(alignment)
    default = experiments.paper().strengths if unit == "raw" else STRENGTHS
    settings = experiments.SteeringSettings(
        chosen, tuple(read_lines(prompts)) if prompts else experiments.paper().prompts,
        tuple(strength or default), tuple(map(tuple, groups)),
        tuple(method or (m for m in alignment.methods if m != "random")), unit=unit,
        controls=tuple(experiments.CONTROLS if not control else () if control == ["none"] else control),
        max_new_tokens=tokens, temperature=temperature, seed=seed, chat=chat,
        labelled=experiments.read_labelled_texts(labelled, chosen) if labelled else (),
        bridge=None if bridge is None else str(bridge),
    )  # fmt: skip
    diagnosis = experiments.diagnose_steering(alignment, settings, ap=stored_ap(run))
    if overwrite and not dry_run:
        experiments.forget_evaluation(directory)
    judged = _judge(judge, base_url, alignment, settings, directory)
    rated = judged.aspects if aspects else ("concept",)
    if isinstance(judged, experiments.ChatJudge) or dry_run:
        facts = _count(settings, judged, rated, price)
        if dry_run:
            emit(as_json, facts, facts_table("Evaluation of steering", facts))
            return
        note(", ".join(f"{name} {value:,}" for name, value in facts.items()))
    notes(diagnosis)
    with progress_bars("texts") as progress:
        options = {"neutral": neutral, "progress": progress, "aspects": rated}
        evaluation = experiments.steering_evaluation(alignment, settings, judged, directory, **options)
    result = evaluation.to_dict() | {"diagnosis": diagnosis}
    if isinstance(judged, experiments.ChatJudge):
        result["judge tokens"] = dict(zip(("prompt", "answer"), judged.spent, strict=True))
        note("the judge spent {:,} prompt and {:,} answer tokens on this".format(*judged.spent))
    write_json(directory / f"table-{experiments.file_name(judged.name)}.json", result)
    notes(evaluation.warnings())
    emit(as_json, result, *evaluation.tables())


def _groups(alignment: "Alignment") -> list[list[str]]:
    """Each site of the run alone, and all together."""
    sites = list(dict.fromkeys(str(site) for site, _ in alignment.translations))
    return [[site] for site in sites] + ([sites] if len(sites) > 1 else [])


def _concepts(
    alignment: "Alignment", texts: list[str] | None, file: Path | None, count: int
) -> "tuple[SteeringConcept, ...]":
    """The concepts asked for: searched, of a file, the paper's where the atlas is the paper's, or single features."""
    from atlas_jax.experiments import SteeringConcept, concept_query, paper, read_steering_concepts, single_features
    from atlas_jax.experiments._paper import is_papers

    if texts and file:
        raise AtlasError("give concepts either by --concept or by --concepts, not both")
    if file:
        return read_steering_concepts(file)
    if texts:
        hits = {text: concept_query(alignment.atlas, concept=text).features for text in texts}
        return tuple(
            SteeringConcept(text, tuple(h.index for h in own), tuple(float(h.weight) for h in own))
            for text, own in hits.items()
        )
    if is_papers(alignment.atlas.sae.config):
        return tuple(SteeringConcept(name, own, (1.0,) * len(own)) for name, own in paper().concepts.items())
    import numpy as np

    features = single_features(alignment, count)
    return tuple(SteeringConcept(name, (int(np.argmax(query)),), (1.0,)) for name, query in features.items())


def _judge(
    name: str, base_url: str | None, alignment: "Alignment", settings: "SteeringSettings", directory: Path
) -> "Judge":
    from atlas_jax import experiments
    from atlas_jax.models import LanguageModel

    kind, _, model = name.partition(":")
    if name == "words":
        return experiments.WordsJudge()
    if name in ("atlas", "embedding"):
        texts = alignment.corpus.eval
        neutral = [texts[i] for i in range(0, len(texts), max(1, len(texts) // 256))]
        return experiments.AtlasJudge(
            alignment.atlas,
            experiments.concept_queries(alignment.atlas, settings.concepts),
            neutral,
            parts=("activation" if name == "atlas" else name,),
        )
    if kind == "chat" and model:
        return experiments.ChatJudge.connect(model, directory / "replies.jsonl", base_url=base_url)
    if kind == "model" and model:
        return experiments.ModelJudge(LanguageModel.from_pretrained(model), Path(model).name)
    raise AtlasError(f"unknown judge '{name}'; give atlas, embedding, words, chat:MODEL or model:PATH")


def _count(
    settings: "SteeringSettings", judge: "Judge", aspects: Sequence[str], price: tuple[float, float]
) -> dict[str, float | int]:
    """How many texts and tokens an evaluation decodes and has judged; of a chat judge what it will cost at most."""
    from atlas_jax.experiments import ChatJudge, plan

    cells, size = plan(settings), len(settings.prompts)
    rated = {c.name: sum(cell.concept in (None, c.name) for cell in cells) * size for c in settings.concepts}
    facts = {
        "texts": len(cells) * size, "tokens at most": len(cells) * size * settings.max_new_tokens,
        "texts to rate": sum(rated.values()) * len(aspects),
    }  # fmt: skip
    if isinstance(judge, ChatJudge):
        longest = lambda count: [f"{i}".ljust(4 * settings.max_new_tokens) for i in range(count)]  # about 4 a token
        asked = lambda name, n, aspect: (name, longest(n), aspect, ["?"] * n if aspect == "instruction" else None)
        facts |= judge.estimate([asked(*item, aspect) for aspect in aspects for item in rated.items()]).facts(price)
    return facts
