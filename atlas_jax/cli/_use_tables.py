"""How what is in a run, a query and a text looks."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from atlas_jax.cli._tables import table


def query_table(hits: Sequence[Any]) -> Table:
    """The atlas features a concept became."""
    made = table("Atlas features of the concept", ">feature", "label", ">score", ">weight")
    for hit in hits:
        made.add_row(str(hit.index), Text(hit.label), f"{hit.score:.3f}", f"{hit.weight:.3f}")
    return made


def named_table(title: str, hits: Sequence[Any]) -> Table:
    """The atlas features that name a subject feature."""
    made = table(title, ">feature", "label", ">weight in T")
    for hit in hits:
        made.add_row(str(hit.index), Text(hit.label), f"{hit.score:.3f}")
    return made


def traced_table(features: Sequence[int], traced: Any) -> Table:
    """Activations of atlas features, token by token."""
    made = table(
        "The atlas, token by token", "token", *(f">{i}" for i in features),
        caption="activation of each atlas feature; blank where it is 0",
    )  # fmt: skip
    return _with_values(made, traced, lambda x: f"{x:.2f}" if x else "")


def projected_table(norms: Mapping[str, float | None], traced: Any, method: str) -> Table:
    """Projections of the subject onto the concept, token by token."""
    known = [site for site, norm in norms.items() if norm is not None]
    unit = "in mean token norms of the site" if len(known) == len(norms) else "in units of the activation"
    if 0 < len(known) < len(norms):
        unit = f"in mean token norms of the site at {', '.join(known)}, and in units of the activation elsewhere"
    made = table(
        f"The subject, token by token, by {method}", "token", *(f">{site}" for site in norms),
        caption=f"length of the activation along the concept, {unit}",
    )  # fmt: skip
    return _with_values(made, traced, lambda x: f"{x:.3f}")


def run_group(title: str, found: Any) -> Group:
    """What a run holds."""
    facts = table("Run", "", "")
    for name, value in found.facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        facts.add_row(name, Text(_size(value) if name == "bytes" else shown or "none"))
    sites = table(
        "Sites", "site", ">subject features", ">atlas features", ">token norm",
        caption="token norm: mean length of the site's activation at a token, the unit of strengths",
    )  # fmt: skip
    made = table(
        "Translations", "site", "method", "certificate", ">size",
        caption="certificate: whether the solution is within its tolerances, - where it judges nothing",
    )  # fmt: skip
    for site, row in {row["site"]: row for row in found.translations}.items():
        norm = "unknown" if row["token norm"] is None else f"{row['token norm']:.4g}"
        sites.add_row(site, str(row["subject features"]), str(row["atlas features"]), norm)
    for row in found.translations:
        judged = {True: "within", False: "misses", None: "-"}[row["within tolerances"]]
        made.add_row(row["site"], row["method"], judged, _size(row["bytes"]))
    return Group(Text(title, style="bold"), facts, sites, made)


def _with_values(made: Table, traced: Any, shown: Any) -> Table:
    """Rows of tokens; the largest value of each column stands out."""
    highest = traced.values.argmax(axis=0)
    for i, (token, values) in enumerate(zip(traced.tokens, traced.values.tolist(), strict=True)):
        cells = [
            Text(shown(x), style="bold reverse" if i == highest[c] and shown(x) else "") for c, x in enumerate(values)
        ]
        made.add_row(Text(token.replace("\n", "⏎").replace(" ", "␣")), *cells)
    return made


def _size(count: int) -> str:
    """Bytes in MB."""
    return f"{count / 1e6:.1f} MB"
