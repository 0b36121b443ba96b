"""How results look."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


def table(title: str, *columns: str, caption: str | None = None) -> Table:
    """An empty table in the house style; column names that start with ``>`` are right-aligned."""
    made = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return made


def quality_table(quality: Any) -> Table:
    """Table 3: AUROC and AP of every method at every site."""
    caption = (
        f"mean over {len(quality.features)} atlas features that fire in {quality.band[0]:.1%} to {quality.band[1]:.0%} "
        f"of the sentences, 95% bootstrap interval over features; {quality.sentences} held-out sentences; "
        f"AP of chance {quality.chance:.3f}"
    )
    made = table("Translation quality", "site", "method", ">AUROC", ">AP", caption=caption)
    best = {}
    for row in quality.rows:
        best[row.site] = max(best.get(row.site, 0.0), row.average_precision.mean)
    for row in quality.rows:
        style = "bold" if row.average_precision.mean == best[row.site] else None
        cells = (str(row.site), row.method, interval(row.auroc), interval(row.average_precision))
        made.add_row(*cells, style=style)
    return made


def certificate_table(translations: Mapping[tuple[Any, str], Any]) -> Table:
    """How far each Procrustes solution may be from the best one, by its own certificate."""
    made = table(
        "Certificates", "site", "method", "solver", ">rank", ">residual", ">gap", "accepted",
        caption="what each Procrustes solution proves of itself. residual: how far its rows are from orthonormal; gap: "
        "how far, relatively, it can be from the best there is; accepted: both are within their tolerances",
    )  # fmt: skip
    for (site, method), translation in translations.items():
        found = translation.certificate
        if "gap" in found:
            numbers = ("none" if found[k] is None else f"{found[k]:.1e}" for k in ("orthogonality", "gap"))
            accepted = "yes" if found["accepted"] else "no"
            made.add_row(str(site), method, found["solver"], str(found["rank"]), *numbers, accepted)
    return made


def choice_table(choice: Any) -> Table:
    """The members of the whitened family that were chosen, with their scores on the part held out for it."""
    told = "; ".join(f"{use}: {meaning}" for use, meaning in choice.record["uses"].items())
    made = table(
        "Chosen members of the whitened family", "site", "use", ">α", ">β", "rows", "centred", ">ridge", ">score",
        caption="the family is (AsᵀAs)^-α AsᵀAc (AcᵀAc)^-β: α whitens the subject's side, β the atlas's; "
        f"scores on {choice.record['held_out']} held-out sentences of the fit half; {told}",
    )  # fmt: skip
    for row in choice.record["chosen"]:
        rows, centred = ("unit" if row["normalize_rows"] else "raw"), ("yes" if row["centre"] else "no")
        powers = f"{row['alpha']:g}", f"{row['beta']:g}"
        made.add_row(row["site"], row["use"], *powers, rows, centred, f"{row['ridge']:g}", f"{row['score']:.3f}")
    return made


def retrieval_table(retrieval: Any) -> Table:
    """Table 4: MRR and MPP of every method at every site."""
    chance = ", ".join(
        f"{site} {c['candidates']} features, chance MRR {c['mrr']:.3f} and MPP {c['mpp']:.4f}"
        for site, c in retrieval.as_json()["candidates"].items()
    )
    centred = "minus" if retrieval.centred else "without subtracting"
    caption = (
        f"queries averaged over the {retrieval.sentences} strongest of {retrieval.held_out} held-out sentences, "
        f"{centred} the mean atlas activations; 95% bootstrap interval over features; {chance}"
    )
    made = table("Semantic retrieval", "site", "method", ">MRR", ">MPP", caption=caption)
    for row in retrieval.rows:
        made.add_row(str(row.site), row.method, interval(row.mrr), interval(row.mpp))
    return made


def interval(x: Any) -> str:
    """``0.812 [0.790, 0.833]``."""
    return f"{x.mean:.3f} [{x.low:.3f}, {x.high:.3f}]"


def hits_table(title: str, hits: Sequence[Any]) -> Table:
    """Atlas features found by their labels."""
    made = table(title, ">feature", "label", ">score", ">weight")
    for hit in hits:
        made.add_row(str(hit.index), hit.label, f"{hit.score:.3f}", f"{hit.weight:.3f}")
    return made


def identified_table(title: str, found: Sequence[Any]) -> Table:
    """Subject features with their maximally activating sentences, the peak token marked."""
    made = table(title, ">feature", ">similarity", ">activation", "maximally activating held-out sentences")
    for item in found:
        head = (str(item.feature), f"{item.similarity:.3f}")
        for peak in item.peaks:
            made.add_row(*head, f"{peak.activation:.2f}", _marked(peak))
            head = ("", "")
        if not item.peaks:
            made.add_row(*head, "", "none known")
        made.add_section()
    return made


def steered_table(title: str, steered: Sequence[Any], unit: str) -> Table:
    """Baseline beside steered text."""
    told = {"norm": "in mean token norms of the site", "raw": "λ of Eq. 4"}[unit]
    made = table(
        title, "prompt", ">strength", ">concept", ">perplexity", "continuation",
        caption=f"strength: {told}, 0 is the baseline; concept: activation of the query's atlas features on the "
        "continuation; perplexity: of the continuation under the unsteered subject, sense is lost where it soars",
    )  # fmt: skip
    prompt = None
    for s in steered:
        if prompt not in (None, s.prompt):
            made.add_section()
        shown = "" if s.prompt == prompt else s.prompt
        prompt = s.prompt
        numbers = f"{s.strength:g}", f"{s.concept:.2f}", "" if s.perplexity is None else f"{s.perplexity:.3g}"
        made.add_row(shown, *numbers, " ".join(s.text.split()))
    return made


def concept_group(concept: Any) -> Group:
    """One concept from search to steering."""
    where = f"{concept.site}, {concept.method}"
    return Group(
        hits_table(f"Concept '{concept.text}': atlas features", concept.hits),
        identified_table(f"Concept '{concept.text}': subject features at {where}", concept.identified),
        steered_table(f"Concept '{concept.text}': steering", concept.steered, concept.unit),
    )


def facts_table(title: str, facts: dict[str, Any]) -> Table:
    """Names and values."""
    made = table(title, "", "")
    for name, value in facts.items():
        made.add_row(name, _shown(value))
    return made


def check_table(title: str, facts: dict[str, Any], check: Any) -> Group:
    """What was measured beside what is stated, and the usual mistakes undone where the two disagree."""
    caption = "stated: by the SAE's own files; when built: by atlas build, on the text it was given"
    made = table(title, "", "measured", "stated", "when built", caption=caption)
    columns = [dict(zip(("L0", "FVU", "dead share"), c, strict=True)) for c in (check.advertised, check.built)]
    for name, value in facts.items():
        told = ("" if column.get(name) is None else f"{column[name]:.4g}" for column in columns)
        made.add_row(name, _shown(value), *told)
    tried = table("The usual mistakes undone", "", ">L0", ">FVU", "agrees")
    for t in check.trials:
        tried.add_row(t.name, f"{t.l0:.3g}", f"{t.fvu:.3g}", "yes" if t.agrees else "")
    return Group(made, tried) if check.trials else Group(made)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _marked(peak: Any) -> Text:
    return Text.assemble(peak.before, (peak.token, "bold reverse"), peak.after)
