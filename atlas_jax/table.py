"""Tables, the common form of results for display, on a terminal or elsewhere."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

from markupsafe import Markup, escape

T = TypeVar("T")
LONG = 80  # characters from which a cell is given room
_LONG, _RIGHT, _BEST = ' class="long"', ' class="right"', ' class="best"'
# Control characters but tab and newline, and the marks that turn the direction of the text around them.
REMOVED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
UNPAIRED = re.compile(r"[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Marked:
    """A cell with a highlighted part: the largest number of a column, or a token within its sentence.

    Example:
      >>> from atlas_jax.table import Column, Marked
      >>> Column().parts(Marked("cat", before="The ", after=" sat."))
      ('The ', 'cat', ' sat.')
    """

    value: Any
    before: str = ""
    after: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      name: its heading.
      format: format of its numbers, as for :func:`format`; a column without one is text.
      unit: text after each number.
      left: aligned as text is, although it has numbers.
      group: rows that agree in all such columns belong together, and the value is shown once for them.
      optional: the first to be left out where a table is too wide.

    Example:
      >>> from atlas_jax.table import Column
      >>> column = Column("AUROC", ".3f")
      >>> column.text((0.8124, 0.7899, 0.8333)), column.text([0.5, 1.0]), column.right
      ('0.812 [0.790, 0.833]', '0.500 to 1.000', True)
    """

    name: str = ""
    format: str = ""
    unit: str = ""
    left: bool = False
    group: bool = False
    optional: bool = False

    @property
    def right(self) -> bool:
        """True if it is aligned to the right, as numbers are."""
        return bool(self.format) and not self.left

    def text(self, value: Any) -> str:
        """Format the value of a cell: None is blank, three numbers are a mean and its interval, a list is a range."""
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, Integral):
            return format(value, "," if self.format == "," else "d") + self.unit
        if isinstance(value, Real):
            return format(value, self.format) + self.unit
        if isinstance(value, list):
            return " to ".join(map(self.text, value))
        if isinstance(value, tuple) and len(value) == 3:
            mean, low, high = map(self.text, value)
            return f"{mean} [{low}, {high}]"
        return str(value)

    def parts(self, value: Any) -> tuple[str, str, str]:
        """Format a cell as three texts: the one before its marked part, that part, and the one after it."""
        if isinstance(value, Marked):
            return value.before, self.text(value.value), value.after
        return self.text(value), "", ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A result to show. Cells hold values; the columns and the renderer decide their look.

    Attributes:
      title: text above it.
      columns: names and formats.
      rows: cells: None, text, numbers, means with intervals, lists or :class:`Marked` ones, as many as columns.
      caption: text below it.
      best: the rows to highlight.

    Example:
      >>> from atlas_jax.table import Column, Table
      >>> table = Table("Quality", (Column("method"), Column("AP", ".2f")), [("ridge", 0.314)], "chance is 0.02")
      >>> list(table.texts()), table.group(0)
      ([['ridge', '0.31']], ())
      >>> table.to_dict()["rows"]
      [['ridge', 0.314]]
    """

    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[Any, ...]]
    caption: str | None = None
    best: frozenset[int] = frozenset()

    def texts(self) -> Iterator[list[str]]:
        """Yield every row as plain text, without marks."""
        for row in self.rows:
            yield ["".join(c.parts(value)) for c, value in zip(self.columns, row, strict=True)]

    def group(self, row: int) -> tuple[Any, ...]:
        """Return the values of a row by which rows are grouped."""
        return tuple(value for c, value in zip(self.columns, self.rows[row], strict=True) if c.group)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        rows = [list(map(_plain, row)) for row in self.rows]
        return {"title": self.title, "columns": [c.name for c in self.columns], "rows": rows, "caption": self.caption}

    def _repr_html_(self) -> str:
        return table_html(self)


def facts_table(title: str, facts: Mapping[str, Any], caption: str | None = None) -> Table:
    """Return a table of names and values.

    Example:
      >>> from atlas_jax.table import facts_table
      >>> list(facts_table("SAE", {"features": 1536, "FVU": 0.123456, "seen": [1, 2]}).texts())
      [['features', '1536'], ['FVU', '0.1235'], ['seen', '1 to 2']]
    """
    return Table(title, (Column(), Column(format=".4g", left=True)), list(facts.items()), caption)


class Shown(list[T]):
    """A list that notebooks show as a table; otherwise a list.

    Example:
      >>> from atlas_jax.table import Column, Shown, Table
      >>> words = Shown(["<dog>"], lambda items: Table("Words", (Column("word"),), [(w,) for w in items]))
      >>> words, "&lt;dog&gt;" in words._repr_html_()
      (['<dog>'], True)
    """

    def __init__(self, items: Iterable[T] = (), table: Callable[[list[T]], Table] | None = None) -> None:
        super().__init__(items)
        self._table = table

    def _repr_html_(self) -> str | None:
        return None if self._table is None else table_html(self._table(self))


def table_html(table: Table) -> Markup:
    """Return a ``table`` element, all text of it escaped.

    Example:
      >>> from atlas_jax.table import Column, Table, table_html
      >>> table = Table("Words", (Column("id", "d"), Column("word")), [(3, "<b>")])
      >>> "<td><bdi>&lt;b&gt;</bdi></td>" in table_html(table)
      True
    """
    heads = "".join(f'<th scope="col"{_RIGHT * c.right}>{escape(clean(c.name))}</th>' for c in table.columns)
    head = f"<thead><tr>{heads}</tr></thead>" if any(c.name for c in table.columns) else ""
    rows = "\n".join(_row(table, i) for i in range(len(table.rows)))
    title = escape(clean(table.title))
    return Markup(f"<table><caption><span>{title}</span></caption>{head}<tbody>\n{rows}\n</tbody></table>")


def _row(table: Table, number: int) -> str:
    again = number > 0 and table.group(number) == table.group(number - 1)
    cells = []
    for i, (column, value) in enumerate(zip(table.columns, table.rows[number], strict=True)):
        text = "" if again and column.group else _cell(*column.parts(value))
        look = _LONG if len(text) > LONG else _RIGHT * column.right
        cells.append(f'<th scope="row"{look}>{text}</th>' if i == 0 and text else f"<td{look}>{text}</td>")
    return f"<tr{_BEST * (number in table.best)}>{''.join(cells)}</tr>"


def _cell(*parts: str) -> str:
    before, marked, after = (str(escape(clean(part))) for part in parts)
    if not (before or marked or after):
        return ""
    return f"<bdi>{before}{marked and f'<mark>{marked}</mark>'}{after}</bdi>"


def clean(text: str) -> str:
    r"""Remove control characters and direction marks, and put U+FFFD for halves of surrogate pairs.

    Example:
      >>> from atlas_jax.table import clean
      >>> clean("a\x00 \u202edog")
      'a dog'
    """
    return UNPAIRED.sub("\ufffd", REMOVED.sub("", text))


def _plain(value: Any) -> Any:
    if isinstance(value, Marked):
        return f"{value.before}{value.value}{value.after}" if isinstance(value.value, str) else value.value
    if isinstance(value, tuple) and len(value) == 3:
        return dict(zip(("mean", "low", "high"), value, strict=True))
    return value
