"""Commands that use an alignment: ``info``, ``identify``, ``name``, ``steer`` and ``inspect``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from atlas_jax.cli._console import emit, err, note, notes, out
from atlas_jax.cli._directions import How, Lens, found_directions, opened, save_directions
from atlas_jax.cli._lens import tokens_table
from atlas_jax.cli._options import AsJson, Concept, Features, Like, Overwrite, Seed, Unlike, asked_query, finite
from atlas_jax.errors import AtlasError, DamagedError
from atlas_jax.files import check_place, new_file
from atlas_jax.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jax import Array

    from atlas_jax.experiments import Direction
    from atlas_jax.labels import Hit
    from atlas_jax.lens import LensToken
    from atlas_jax.pipeline import Alignment
    from atlas_jax.translation import Named, Translation
    from atlas_jax.types import Site

RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
Method = Annotated[
    str | None,
    typer.Option(
        help="Translator, as METHOD or METHOD:POOLING; atlas-jax info RUN lists those of a run.",
        show_default="what suits the use best, as measured",
    ),
]


def info(run: RunArgument, as_json: AsJson = False) -> None:
    """Tell what a run holds: models, corpus, settings, and every translation with its token norm and certificate.

    Its models are not loaded.

    Example: atlas-jax info runs/quickstart
    """
    from atlas_jax.experiments import run_facts

    facts = run_facts(run)
    if not as_json:
        out.print(Text(str(run), style="bold"))
    emit(as_json, facts.to_dict(), *facts.tables())


def identify(
    run: RunArgument,
    site: Annotated[str, typer.Option(help="Subject site.")],
    concept: Concept = None,
    feature: Features = None,
    like: Like = None,
    unlike: Unlike = None,
    method: Method = None,
    lens: Lens = None,
    k: Annotated[int, typer.Option(help="Subject features to show.", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Find the subject's features of a concept, with the held-out sentences that activate them most.

    Example: atlas-jax identify runs/quickstart --site mlp_act.2 --concept "dates and time"
    """
    from atlas_jax import experiments

    alignment = load_run(run)
    translation = translation_for("retrieve" if like or unlike else "identify", alignment, site, method)
    query = asked_query(alignment, concept, feature, like, unlike)
    about = {"query": query.vector, "ap": stored_ap(run)}
    notes(experiments.diagnose(alignment, [translation.site], _measured_as(alignment, translation), **about))
    top = (alignment.top or {}).get(translation.site)
    if top is None:
        note("this run was saved without the strongest held-out sentences of its features, so none are shown")
    of, sentence, named = alignment.subject.model, alignment.corpus.sentence, opened(lens, alignment)
    identified = experiments.identify(translation, query.vector, top, sentence, of.tokenizer, k=k, lens=named)
    data = {"atlas_features": [h._asdict() for h in query.features], "identified": [i.to_dict() for i in identified]}
    title = f"Subject features at {translation.site} by {translation.described}"
    emit(as_json, data, query.table(), experiments.identified_table(title, identified))


def name(
    run: RunArgument,
    site: Annotated[str, typer.Option(help="Subject site.")],
    feature: Annotated[int | None, typer.Option(help="Subject feature id.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Name all subject features of the site, into --out.")] = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="JSON lines, with --all.")] = None,
    overwrite: Overwrite = False,
    method: Method = None,
    lens: Lens = None,
    k: Annotated[int, typer.Option(help="Atlas features, and tokens, to show.", min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Name a subject feature by the atlas features that weigh most in its row of T, or all of them into a file.

    Examples: atlas-jax name runs/quickstart --site mlp_act.2 --feature 17

    atlas-jax name runs/quickstart --site mlp_act.2 --all --out names.jsonl
    """
    if every == (feature is not None) or every != (out_file is not None):
        raise AtlasError("give either --feature ID, or --all with --out FILE")
    if out_file is not None:
        check_place(out_file, overwrite=overwrite)
    alignment = load_run(run)
    translation, labels = translation_for("identify", alignment, site, method), alignment.atlas.labels
    own = opened(lens, alignment)
    tokens = own and own.name_features(range(translation.d_s) if every else [feature], translation.site, k)
    if out_file is not None:
        hits = [_hits(named) for named in translation.name_features(k, labels)]
        count = _write_names(out_file, translation, hits, tokens)
        err.print(f"{count} names written to {out_file}", highlight=False)
        return
    hits = _hits(translation.name_feature(feature, k, labels))
    if not hits:
        note(f"subject feature {feature} has nothing in its row of T, as features that never fired, so it has no name")
    title = f"Subject feature {feature} at {translation.site} by {translation.described}"
    columns = Column("feature", "d"), Column("label"), Column("weight in T", ".3f")
    data, tables = [h._asdict() for h in hits], [Table(title, columns, [tuple(h[:3]) for h in hits])]
    if tokens:
        data = {"atlas_features": data, "tokens": [t._asdict() for t in tokens[0]]}
        tables.append(tokens_table("Its tokens by the Jacobian lens", [({}, tokens[0])]))
    emit(as_json, data, *tables)


def steer(
    run: RunArgument,
    site: Annotated[list[str], typer.Option("--site", help="Subject site to steer at; may be repeated.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A file with a prompt a line.")] = None,
    concept: Concept = None,
    feature: Features = None,
    like: Like = None,
    unlike: Unlike = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            "--strength",
            help="In mean token norms of the site; may be repeated.",
            show_default="half of what doubles the perplexity of neutral text, and all of it",
            callback=finite(),
        ),
    ] = None,
    raw_strength: Annotated[
        list[float] | None,
        typer.Option("--raw-strength", help="λ of Eq. 4 instead, as in the paper; may be repeated.", callback=finite()),
    ] = None,
    method: Method = None,
    how: How = None,
    lens: Annotated[Path | None, typer.Option("--lens", help="A lens of the subject, which --token is of.")] = None,
    token: Annotated[
        str | None,
        typer.Option(help="Steer towards this token by --lens, such as ' dog'; its concept is --concept's by default."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="With --how or --token: keep the direction of every site here.")
    ] = None,
    tokens: Annotated[int, typer.Option("--max-new-tokens", "--tokens", help="Tokens to generate.", min=1)] = 40,
    temperature: Annotated[float, typer.Option(help="Of sampling; 0 is greedy.", min=0, callback=finite())] = 0.5,
    seed: Seed = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are messages in the model's chat template.")] = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts, steered along a concept, beside the unsteered continuation and one along a random direction.

    Example: atlas-jax steer runs/quickstart --site resid_post.2 --concept "plots" --prompt "This function"
    """  # fmt: skip
    from atlas_jax import experiments

    if strength and raw_strength:
        raise AtlasError("give strengths either as --strength or as --raw-strength, not both")
    unit = "raw" if raw_strength else "norm"
    texts = [*(prompt or ()), *(read_lines(prompts) if prompts else ())]
    if not texts:
        raise AtlasError("there is no prompt; give --prompt TEXT, or --prompts FILE with a prompt a line")
    if (lens is None) != (token is None) or None not in (token, how or method):
        raise AtlasError("give --lens and --token together, and neither --method nor --how with them")
    alignment = load_run(run)
    if token is not None and not (concept or feature or like):
        concept = token.strip()
    query = asked_query(alignment, concept, feature, like, unlike)
    translations, method, described = _along(alignment, query.vector, site, method, how, (lens, token), save)
    asked = raw_strength or strength
    if not asked:
        own = None if token is None and how is None else {s: t.vector[None] for s, t in translations.items()}
        asked, reason = experiments.default_strengths(alignment, list(translations), own)
        note(reason)
    strengths = list(dict.fromkeys([0.0, *asked]))
    about = {"query": query.vector, "ap": stored_ap(run), "steered": True}
    notes(experiments.diagnose(alignment, list(translations), method, **about))
    steered = experiments.steer(
        alignment.subject.model, alignment.atlas, translations, query.vector, texts, strengths,
        max_new_tokens=tokens, temperature=temperature, seed=seed, unit=unit, chat=chat, random=True,
    )  # fmt: skip
    notes([experiments.beyond_sense(experiments.median_perplexities(steered))])
    data = {"atlas_features": [h._asdict() for h in query.features], "unit": unit, "method": method}
    data["steered"] = [s._asdict() for s in steered]
    title = f"Steering at {', '.join(map(str, translations))} by {described}"
    emit(as_json, data, query.table(), experiments.steered_table(title, steered, unit))


def inspect(
    run: RunArgument,
    text: Annotated[str, typer.Option(help="The text to look at.")],
    concept: Concept = None,
    feature: Features = None,
    like: Like = None,
    unlike: Unlike = None,
    site: Annotated[
        list[str] | None, typer.Option("--site", help="Subject site; may be repeated; all of the run by default.")
    ] = None,
    method: Method = None,
    as_json: AsJson = False,
) -> None:
    """Show a concept at every token of a text: the atlas's features of it, and the subject's activation along it.

    Example: atlas-jax inspect runs/quickstart --concept "font" --text "The size of the font is a number."
    """
    from atlas_jax import experiments

    alignment = load_run(run)
    of = (translation_for("detect", alignment, s, method) for s in site or alignment.subject.sites)
    translations = {t.site: t for t in of}
    query = asked_query(alignment, concept, feature, like, unlike)
    features = [hit.index for hit in query.features]
    seen = experiments.token_features(alignment.atlas, text, features)
    along = experiments.token_projections(alignment.subject.model, translations, query.vector, text)
    norms = {str(site): t.token_norm for site, t in translations.items()}
    data = {"atlas_features": [h._asdict() for h in query.features], "atlas": seen.to_dict()}
    data |= {"sites": list(norms), "token_norms": norms, "subject": along.to_dict()}
    emit(as_json, data, query.table(), seen.table(), along.table())


def load_run(run: Path) -> "Alignment":
    """Load the alignment of a run directory."""
    from atlas_jax.pipeline import Alignment

    return Alignment.load(run)


def translation_for(use: str, alignment: "Alignment", site: "Site | str", method: str | None) -> "Translation":
    """Return the translation by a method, or by the one recommended for a use."""
    return alignment.translation(site, *((method,) if method else alignment.recommended(use)))


def _measured_as(alignment: "Alignment", translation: "Translation") -> str:
    """Return the name of a translation in the run's table of quality, which none of another pooling is in."""
    own = translation.pooling in (None, alignment.settings.pooling)
    return translation.method if own else translation.described


def _along(
    alignment: "Alignment",
    query: "Array",
    sites: list[str],
    method: str | None,
    how: str | None,
    pull_back: tuple[Path | None, str | None],
    save: Path | None,
) -> "tuple[Mapping[Site, Translation | Direction], str, str]":
    """Return what is steered along at every site, the method as the table of quality names it, and in words."""
    from atlas_jax.experiments import token_direction

    lens, token = pull_back
    if lens is not None and token is not None:
        own = opened(lens, alignment)
        directions = [token_direction(alignment, own, token, query, s) for s in sites]
        return save_directions({along.site: along for along in directions}, save), "lens", "the Jacobian lens"
    if how is not None:
        return found_directions(alignment, query, sites, how, save), how, how
    translations = {t.site: t for t in (translation_for("steer", alignment, s, method) for s in sites)}
    first = next(iter(translations.values()))
    return translations, _measured_as(alignment, first), first.described


def stored_ap(run: Path) -> dict[tuple[str, str], float]:
    """Read the AP of a run's translations; a table that is damaged is told, and nothing needs it."""
    from atlas_jax import experiments

    try:
        return experiments.stored_ap(run)
    except DamagedError as e:
        note(str(e))
        return {}


def _hits(named: "Named") -> "list[Hit]":
    """Return the atlas features of positive weight in a subject feature's row."""
    from atlas_jax.labels import Hit

    rows = zip(named.features.tolist(), named.labels, named.scores.tolist(), strict=True)
    return [Hit(i, label, score, score) for i, label, score in rows if score > 0]


def _write_names(
    path: Path, translation: "Translation", names: "list[list[Hit]]", tokens: "list[list[LensToken]] | None"
) -> int:
    """Write one JSON object a subject feature; the file appears when it is complete."""
    with new_file(path) as place, place.open("w", encoding="utf-8", newline="\n") as file:
        for i, hits in enumerate(names):
            row = {"feature": i, "site": str(translation.site), "method": translation.method}
            row["atlas_features"] = [{"index": h.index, "label": h.label, "score": h.score} for h in hits]
            if tokens:
                row["tokens"] = [t._asdict() for t in tokens[i]]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(names)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a file that are not blank.

    Raises:
      AtlasError: if it cannot be read, or holds nothing.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise AtlasError(f"'{path}' cannot be read as UTF-8 text with a prompt a line ({e})") from e
    if not lines:
        raise AtlasError(f"'{path}' has no prompt; write one a line")
    return lines
