"""Copy a quickstart run's tables into README and docs: ``python benchmarks/readme_examples.py runs/quickstart``."""

import json
import re
import sys
from pathlib import Path

HOME = Path(__file__).parent.parent
PAGES = HOME / "README.md", HOME / "docs" / "examples.md"


def quality_lines(quality: dict) -> list[str]:
    """The quality table in Markdown."""
    sites = list(dict.fromkeys(row["site"] for row in quality["rows"]))
    methods = list(dict.fromkeys(row["method"] for row in quality["rows"]))
    cell = {(r["site"], r["method"]): f"{r['auroc']['mean']:.3f} / {r['ap']['mean']:.3f}" for r in quality["rows"]}
    low, high = quality["band"]
    yield_lines = [
        f"AUROC / AP, mean over {len(quality['features'])} atlas features that fire in {low:.1%} to {high:.0%} of the "
        f"sentences; {quality['sentences']} held-out sentences; AP of chance {quality['chance']:.3f}. "
        "Intervals are in the printed table.",
        "",
        "| method | " + " | ".join(sites) + " |",
        "|---|" + "---|" * len(sites),
    ]
    return yield_lines + [f"| {m} | " + " | ".join(cell[s, m] for s in sites) + " |" for m in methods]


def concept_lines(concept: dict) -> list[str]:
    """One concept: atlas features, subject features with their sentences, steered text of the first prompt."""
    labels = "; ".join(f"{h['index']} ({h['label']})" for h in concept["atlas_features"])
    lines = [f"### {concept['text']}", "", f"Atlas features: {labels}.", ""]
    lines += [
        f"Subject features at `{concept['site']}` by {concept['method']}, with their strongest held-out sentences:",
        "",
    ]
    for found in concept["identified"][:2]:
        lines.append(f"- feature {found['feature']}, similarity {found['similarity']:.2f}")
        lines += [f"  - {marked(p)}" for p in found["peaks"][:2]]
    lines += ["", "| along | strength | concept in the text | perplexity | continuation |", "|---|---|---|---|---|"]
    first = concept["steered"][0]["prompt"]
    for s in (s for s in concept["steered"] if s["prompt"] == first):
        text = " ".join(s["text"].split()).replace("|", "\\|")
        perplexity = "" if s["perplexity"] is None else f"{s['perplexity']:.3g}"
        lines.append(f"| {s['along']} | {s['strength']:g} | {s['concept']:.2f} | {perplexity} | {text} |")
    return [*lines, ""]


def marked(peak: dict) -> str:
    """A sentence with the peak token in bold, blanks outside."""
    token = peak["token"].strip()
    blanks = peak["token"][: len(peak["token"]) - len(peak["token"].lstrip())]
    return f"{peak['before']}{blanks}**{token or '␣'}**{peak['after']}"


def replaced(text: str, section: str, lines: list[str]) -> str:
    """A page with other lines between the markers of a section, where it has one."""
    begin, end = (f"<!-- --8<-- [{edge}:{section}] -->" for edge in ("start", "end"))
    block = "\n".join([begin, *lines, end])
    return re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: block, text, flags=re.S)


def main() -> None:
    """Replace what stands between the markers."""
    tables = Path(sys.argv[1]) / "tables"
    quality, concepts = (json.loads((tables / f"{n}.json").read_text()) for n in ("quality", "concepts"))
    found = [line for c in concepts for line in concept_lines(c)][:-1]
    for page in PAGES:
        text = replaced(page.read_text(), "quality", quality_lines(quality))
        page.write_text(replaced(text, "concepts", found))


if __name__ == "__main__":
    main()
