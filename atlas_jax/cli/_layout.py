"""Layout of tables in a terminal: no word or number is broken, and columns that do not fit are left out."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from atlas_jax.table import Column, Marked, Table

LONGEST = 32  # characters of a word, beyond which it may be broken
LINES = 3  # of a sample, whose rest is cut off
SHORT = 20  # characters that sentences always have
BETWEEN = 3  # characters from one column to the next


def render(table: Table, width: int) -> Grid:
    """Lay a table out in so many characters.

    Numbers and words stay whole. Where all columns take more room than there is, optional ones are left out first; then
    long words of sentences are cut; then columns of numbers are left out, from the right. The caption says which.
    Samples are cut to a few lines around what is marked.
    """
    whole = [_least(c, cells) for c, cells in _columns(table)]
    shown, least = _fitting(table, whole, width)
    widths = _widths(table, shown, least, width)
    left_out = [c.name for i, c in enumerate(table.columns) if i not in shown]
    said = f"left out to fit: {', '.join(left_out)} (--wide shows them)" if left_out else None
    caption = "; ".join(filter(None, (table.caption, said))) or None
    grid = Grid(title=table.title, title_justify="left", caption=caption, caption_justify="left")
    for i in shown:
        column = table.columns[i]
        justify = "right" if column.right else "left"
        grid.add_column(column.name, justify=justify, overflow="fold", width=widths[i])
    for number, row in enumerate(table.rows):
        again = number > 0 and table.group(number) == table.group(number - 1)
        if not again:
            grid.add_section()
        kept = {i: _words_cut(row[i], widths[i]) if widths[i] < whole[i] else row[i] for i in shown}
        hidden = {i for i in shown if again and table.columns[i].group}
        cells = [Text() if i in hidden else _text(table.columns[i], kept[i], widths[i]) for i in shown]
        grid.add_row(*cells, style="bold" if number in table.best else None)
    return grid


def _fitting(table: Table, least: list[int], width: int) -> tuple[list[int], list[int]]:
    """The columns that fit, of those that may be left out as many as possible, and the least width of each column."""
    shown = list(range(len(table.columns)))
    cut = [min(w, SHORT) if _is_prose(*c) else w for w, c in zip(least, _columns(table), strict=True)]
    fits = lambda least: sum(least[j] + BETWEEN for j in shown) + 1 <= width
    may_go = [i for i in reversed(shown[1:]) if not table.columns[i].group]
    numbers = lambda i: bool(table.columns[i].format)
    for i in sorted(may_go, key=lambda i: (not table.columns[i].optional, not numbers(i))):
        if not (fits(least) or table.columns[i].optional):
            least = cut
        if fits(least):
            break
        shown.remove(i)
    return shown, least


def _is_prose(column: Column, cells: Sequence[Any]) -> bool:
    """True for sentences, whose words may be cut; names and labels are shown whole."""
    texts = all(isinstance(v, str | None) for v in cells)
    return texts and not (column.format or column.group) and any(" " in (v or "") for v in cells)


def _words_cut(value: Any, width: int) -> Any:
    """A text with the words that are wider than its column cut."""
    words = [Text(word) for word in value.split(" ")] if isinstance(value, str) else []
    for word in words:
        word.truncate(width, overflow="ellipsis")
    return " ".join(word.plain for word in words) if words else value


def _widths(table: Table, shown: Sequence[int], least: Sequence[int], width: int) -> dict[int, int]:
    """The width of each column: what its longest word needs, and as much of the rest as it can use."""
    columns = list(_columns(table))
    widths = {i: least[i] for i in shown}
    wanted = {i: max(map(cell_len, ("".join(p) for p in _parts(*columns[i]))), default=0) for i in shown}
    room = width - 1 - sum(w + BETWEEN for w in widths.values())
    for place, i in enumerate(sorted(shown, key=lambda i: wanted[i] - widths[i])):
        more = max(0, min(wanted[i] - widths[i], room // (len(shown) - place)))
        widths[i], room = widths[i] + more, room - more
    return widths


def _columns(table: Table) -> Iterable[tuple[Column, list[Any]]]:
    return ((column, [row[i] for row in table.rows]) for i, column in enumerate(table.columns))


def _parts(column: Column, cells: Iterable[Any]) -> Iterable[tuple[str, str, str]]:
    yield column.name, "", ""
    yield from (column.parts(value) for value in cells)


def _least(column: Column, cells: Iterable[Any]) -> int:
    """Characters of the longest piece of a column that must not be broken."""
    whole = [column.text(v) for v in cells if not isinstance(v, str | Marked | list | None)]
    words = [w for v in cells if isinstance(v, str | Marked | list) for w in "".join(column.parts(v)).split()]
    words = [min(LONGEST, cell_len(w)) for w in (*words, *column.name.split())]
    return max([1, *words, *map(cell_len, whole)])


def _text(column: Column, value: Any, width: int) -> Text:
    before, marked, after = column.parts(value)
    if isinstance(value, Marked):
        before, after = _cut(before, marked, after, LINES * width)
    return Text.assemble(before, (marked, "bold reverse"), after)


def _cut(before: str, marked: str, after: str, room: int) -> tuple[str, str]:
    """What stands before and after a mark, cut to so many characters together with it."""
    spare = max(0, room - len(marked))
    if len(before) + len(after) <= spare:
        return before, after
    left = min(len(before), max(spare // 2, spare - len(after)))
    right = min(len(after), spare - left)
    if left < len(before):
        before = "…" + before[len(before) - max(0, left - 1) :]
    if right < len(after):
        after = after[: max(0, right - 1)] + "…"
    return before, after
