"""Tables as HTML, CSV and LaTeX."""

import csv
import io
import re
from typing import Any

from atlas_jax.table import Marked, Table, clean

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: f"\\{c}" for c in "&%$#_{}"}


def table_csv(table: Table) -> str:
    r"""Return a table as CSV with its numbers in full; a mean with its interval takes three columns.

    Example:
      >>> from atlas_jax.report import table_csv
      >>> from atlas_jax.table import Column, Table
      >>> table_csv(Table("Quality", (Column("method"), Column("AP", ".1f")), [("ridge", (0.31, 0.25, 0.4))]))
      'method,AP,AP low,AP high\r\nridge,0.31,0.25,0.4\r\n'
    """
    rows = table.to_dict()["rows"]
    wide = {i for row in rows for i, value in enumerate(row) if isinstance(value, dict)}
    parts = lambda i, name: [name, f"{name} low", f"{name} high"] if i in wide else [name]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([clean(part) for i, c in enumerate(table.columns) for part in parts(i, c.name)])
    for row in rows:
        writer.writerow([part for i, value in enumerate(row) for part in _numbers(value, i in wide)])
    return out.getvalue()


def _numbers(value: Any, wide: bool) -> list[Any]:
    if isinstance(value, dict):
        return [value["mean"], value["low"], value["high"]]
    if isinstance(value, list):
        value = " to ".join(map(str, value))
    return [clean(value) if isinstance(value, str) else value, *([None, None] if wide else [])]


def table_latex(table: Table) -> str:
    r"""Return a table as a ``tabular`` of the package booktabs, the best rows and marked cells in bold.

    Example:
      >>> from atlas_jax.report import table_latex
      >>> from atlas_jax.table import Column, Table
      >>> print(table_latex(Table("Quality", (Column("method"), Column("AP", ".2f")), [("least_squares", 0.3)])))
      \begin{tabular}{lr}
      \toprule
      method & AP \\
      \midrule
      least\_squares & 0.30 \\
      \bottomrule
      \end{tabular}
    """
    kinds = "".join("r" if column.right else "l" for column in table.columns)
    head = " & ".join(_latex(column.name) for column in table.columns)
    lines = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", rf"{head} \\", r"\midrule"]
    for i, row in enumerate(table.rows):
        again = i > 0 and table.group(i) == table.group(i - 1)
        cells = [
            ""
            if again and column.group
            else _latex_cell(column.parts(value), isinstance(value, Marked), i in table.best)
            for column, value in zip(table.columns, row, strict=True)
        ]
        lines.append(rf"{' & '.join(cells)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_cell(parts: tuple[str, str, str], marked: bool, best: bool) -> str:
    before, middle, after = map(_latex, parts)
    whole = f"{before}\\textbf{{{middle}}}{after}" if marked and middle else before + middle + after
    return f"\\textbf{{{before}{middle}{after}}}" if best and whole else whole


def _latex(text: str) -> str:
    spaced = re.sub(r"\s", " ", clean(text))
    return "".join(_LATEX.get(c, c) for c in spaced)
