"""A page of a run: everything in one file that fetches nothing and runs no script but its own."""

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from atlas_jax.files import check_place, new_file
from atlas_jax.pipeline import Alignment
from atlas_jax.report._concepts import concept_data
from atlas_jax.report._content import Hint, Section, Source, aligned_pair, sections, steered_texts
from atlas_jax.report._figures import Figure
from atlas_jax.report._tables import table_csv, table_latex
from atlas_jax.report._text import embedded
from atlas_jax.table import Table, clean, table_html

PAGE = "report.html"  # in a run
CURVES = 6


class Report(NamedTuple):
    """A page that was written.

    Attributes:
      path: where.
      size: in bytes.
      faults: sentences about what of the run could not be shown.

    Example:
      >>> from pathlib import Path
      >>> from atlas_jax.report import Report
      >>> Report(Path("report.html"), 1234, []).to_dict()["bytes"]
      1234
    """

    path: Path
    size: int
    faults: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"path": str(self.path), "bytes": self.size, "faults": self.faults}


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    method: str | None = None,
    paper: bool = False,
    curves: int = CURVES,
    overwrite: bool = False,
    alignment: Alignment | None = None,
) -> Report:
    """Write one self-contained HTML page of a run.

    Args:
      run: its directory.
      out: the file; by default ``report.html`` in the run, where the last one is replaced.
      method: translation that concepts are searched by; by default the one recommended to identify.
      paper: put the paper's figures beside Tables 3 and 4.
      curves: features whose precision-recall and ROC curves are drawn, in a pass over some held-out sentences.
      overwrite: whether ``out`` may be replaced.
      alignment: the run, where it is loaded already.

    Raises:
      AtlasError: if the run is none or is damaged, has no such method, or the page cannot be written.

    Example:
      >>> from atlas_jax.report import write_report
      >>> write_report("runs/quickstart", "report.html").size < 5e6       # doctest: +SKIP
      True
    """
    run = Path(run)
    if out is not None:
        check_place(out, overwrite=overwrite)
    source = Source.read(run, method, alignment)
    path = run / PAGE if out is None else Path(out)
    page_sections = sections(source, paper=paper, curves=curves)
    data = None
    if source.alignment is not None:
        data = concept_data(source.alignment, source.method, steered_texts(source), source.ap)
    page = render(source, page_sections, data)
    with new_file(path) as place:
        place.write_text(page, "utf-8")
    return Report(path, len(page.encode()), [s for s in [source.fault, *source.faults] if s])


def render(source: Source, page_sections: list[Section], data: dict[str, Any] | None) -> str:
    """Return the page as HTML."""
    tables: list[dict[str, str]] = []

    def number(table: Table) -> int:
        """Keep what a table is copied as, and return its place."""
        tables.append({"csv": table_csv(table), "latex": table_latex(table)})
        return len(tables) - 1

    style, script = _file("report.css"), _file("report.js")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_file),
    )  # fmt: skip
    environment.filters |= {"clean": clean, "html": table_html}
    kinds = {"figure": Figure, "table": Table, "hint": Hint}
    environment.tests |= {name: lambda part, kind=kind: isinstance(part, kind) for name, kind in kinds.items()}
    subject, atlas = aligned_pair(source)
    body = environment.get_template("report.html.j2").render(
        subject=subject, atlas=atlas, facts=source.facts.facts, sections=page_sections, data=data and embedded(data),
        fault=source.fault, method=source.method, number=number, tables=lambda: embedded(tables),
        style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script),
        top=source.alignment is not None and source.alignment.top is not None, run=source.run.resolve().name,
    )  # fmt: skip
    return clean(body)


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
