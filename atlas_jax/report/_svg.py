"""Plots as inline SVG, coloured by the page's style sheet so that they follow light and dark."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from atlas_jax.table import clean

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 44
COLOURS = 8  # of lines in the style sheet; past these the dashes tell them apart
DASHES = ("", "7 3", "2 3", "9 3 2 3")
CELL, ROW = 78, 40  # of a heatmap
LETTER = 7.4  # mean width of one at 13 px


class Point(NamedTuple):
    """A point of a line, with the ends of its interval where it has one."""

    x: float
    y: float
    low: float | int | None = None
    high: float | int | None = None


class Axis(NamedTuple):
    """An axis: its label, its ends, whether it is logarithmic, and where it lies on the plot."""

    label: str
    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def over(
        cls,
        values: Sequence[float | int],
        label: str,
        *,
        log: bool,
        start: float | int,
        end: float | int,
        ends: tuple | None = None,
    ) -> "Axis":
        """Make an axis that has room for all finite values, which have to be positive on a logarithmic one."""
        known = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        low, high = ends or (min(known), max(known))
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        return cls(label, low, high, log, start, end)

    def at(self, value: float | int) -> float:
        """Return the place of a value on the plot, at an end of the axis where it lies beyond."""
        value = min(max(value, self.low), self.high)
        share = (
            math.log(value / self.low) / math.log(self.high / self.low)
            if self.log
            else (value - self.low) / (self.high - self.low)
        )
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float | int]:
        """Return round values in its range."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5)):
                ticks = [d * 10.0**p for p in powers for d in digits if self.low <= d * 10.0**p <= self.high * 1.0001]
                if len(ticks) > 2:
                    break
            return ticks[:: -(-len(ticks) // 6)] if ticks else [self.low, self.high]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (m * step) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def lines(
    series: Mapping[str, Sequence[Point]],
    x: str,
    y: str,
    *,
    title: str,
    log_x: bool = False,
    log_y: bool = False,
    ends: tuple[float | int, float | int] | None = None,
    names: Sequence[str] = (),
) -> Markup:
    """Draw lines with their intervals, and a legend below.

    Args:
      series: points by the name of the line, in ascending order.
      x: label of the horizontal axis.
      y: label of the vertical axis.
      title: what a screen reader says.
      log_x: whether the horizontal axis is logarithmic.
      log_y: whether the vertical one is.
      ends: of the vertical axis, by default those of the values.
      names: of the places 0, 1, ... of the horizontal axis, where these are no numbers.
    """
    points = [p for line in series.values() for p in line]
    across = Axis.over([p.x for p in points], x, log=log_x, start=LEFT, end=WIDTH - RIGHT)
    values = [v for p in points for v in p[1:] if v is not None]
    up = Axis.over(values, y, log=log_y, start=HEIGHT - BOTTOM, end=TOP, ends=ends)
    drawn = [_line(line, across, up, i) for i, line in enumerate(series.values())]
    body = Markup("").join([_grid(across, up, names), *drawn])
    return _svg(WIDTH, HEIGHT, title, body) + _legend(list(series))


def _line(line: Sequence[Point], across: Axis, up: Axis, number: int) -> Markup:
    known = [p for p in line if math.isfinite(p.y) and (p.y > 0 or not up.log) and (p.x > 0 or not across.log)]
    path = " ".join(f"{across.at(p.x)},{up.at(p.y)}" for p in known)
    look = Markup('class="c{}" stroke-dasharray="{}"').format(number % COLOURS, _dash(number))
    parts = [Markup('<polyline {} points="{}"/>').format(look, path)]
    ranged = [p for p in known if p.low is not None and p.high is not None and math.isfinite(p.low + p.high)]
    for p in ranged:
        at = (across.at(p.x), up.at(p.low), up.at(p.high))
        parts.append(Markup('<path class="c{} interval" d="M{} {}V{}"/>').format(number % COLOURS, *at))
    if len(known) <= 12:
        dot = Markup('<circle class="c{}" cx="{}" cy="{}" r="3"/>')
        parts += [dot.format(number % COLOURS, across.at(p.x), up.at(p.y)) for p in known]
    return Markup("<g>{}</g>").format(Markup("").join(parts))


def _grid(across: Axis, up: Axis, names: Sequence[str]) -> Markup:
    parts = []
    for value in up.ticks():
        at = up.at(value)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(LEFT, at, WIDTH - RIGHT))
        parts.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(LEFT - 6, at + 4, _number(value)))
    ticks = [(float(i), name) for i, name in enumerate(names)] or [(v, _number(v)) for v in across.ticks()]
    every = -(-len(ticks) // 6)
    for value, name in ticks[::every]:
        place = across.at(value), HEIGHT - BOTTOM + 16
        parts.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(*place, clean(name)))
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = Markup('<text class="middle axis" x="{}" y="{}">{}</text>')
    parts.append(label.format(middle, HEIGHT - 8, clean(across.label)))
    turned = Markup('<text class="middle axis" transform="translate(12 {}) rotate(-90)">{}</text>')
    parts.append(turned.format((TOP + HEIGHT - BOTTOM) / 2, clean(up.label)))
    return Markup("").join(parts)


def _legend(names: Sequence[str]) -> Markup:
    line = Markup(
        '<svg width="26" height="10" aria-hidden="true"><path class="c{}" stroke-dasharray="{}" d="M1 5H25"/></svg>'
    )
    items = [
        Markup("<li>{} <bdi>{}</bdi></li>").format(line.format(i % COLOURS, _dash(i)), clean(n))
        for i, n in enumerate(names)
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items)) if len(names) > 1 else Markup("")


def _dash(number: int) -> str:
    return DASHES[(number + number // COLOURS) % len(DASHES)]


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[int, int], Point],
    *,
    title: str,
    best: frozenset[tuple[int, int]] = frozenset(),
) -> Markup:
    """Draw a matrix of numbers, the larger the stronger its colour, each with its interval where there is one.

    Args:
      rows: names of the rows.
      columns: names of the columns.
      cells: ``y`` and the interval by row and column.
      title: what a screen reader says.
      best: cells in bold.
    """
    known = [p.y for p in cells.values() if math.isfinite(p.y)] or [0.0]
    low, high = min(known), max(known)
    label = LETTER * min(17, max(map(len, rows), default=0)) + 8
    parts = [
        Markup('<text class="middle" x="{}" y="16">{}</text>').format(label + CELL * (j + 0.5), _short(name, 12))
        for j, name in enumerate(columns)
    ]
    for i, name in enumerate(rows):
        y = 24 + ROW * i
        parts.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(label - 6, y + 24, _short(name, 17)))
        parts += [
            _heat(label + CELL * j, y, cells[i, j], (low, high), (i, j) in best)
            for j in range(len(columns))
            if (i, j) in cells
        ]
    width, height = label + CELL * len(columns) + 2, 24 + ROW * len(rows) + 2
    return Markup('<div class="scroll" tabindex="0" role="group" aria-label="{}">{}</div>').format(
        clean(title), _svg(width, height, title, Markup("").join(parts))
    )


def _heat(x: float | int, y: float | int, value: Point, ends: tuple[float | int, float | int], best: bool) -> Markup:
    share = (value.y - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] and math.isfinite(value.y) else 0.0
    rect = Markup('<rect class="heat" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}"/>')
    box = rect.format(x, y, CELL - 2, ROW - 2, round(0.04 + 0.42 * share, 3))
    middle, ranged = x + CELL / 2 - 1, value.low is not None
    number = Markup('<text class="middle{}" x="{}" y="{}">{:.3f}</text>')
    text = number.format(" best" if best else "", middle, y + (17 if ranged else 24), value.y)
    if ranged:
        small = Markup('<text class="middle small" x="{}" y="{}">{:.2f} to {:.2f}</text>')
        text += small.format(middle, y + 31, value.low, value.high)
    return box + text


def bars(values: Mapping[str, Point], *, title: str) -> Markup:
    """Draw horizontal bars from zero, with intervals where there are any."""
    ends = [v for p in values.values() for v in p[1:] if v is not None and math.isfinite(v)]
    left = 190
    across = Axis.over([0.0, *ends], "", log=False, start=left, end=WIDTH - 50)
    parts = []
    for i, (name, p) in enumerate(values.items()):
        y, zero, end = 6 + 26 * i, across.at(0.0), across.at(p.y) if math.isfinite(p.y) else across.at(0.0)
        parts.append(Markup('<text class="end" x="{}" y="{}">{}</text>').format(left - 6, y + 14, _short(name, 28)))
        box = min(zero, end), y, abs(end - zero)
        parts.append(Markup('<rect class="bar" x="{}" y="{}" width="{}" height="18"/>').format(*box))
        if p.low is not None and p.high is not None and math.isfinite(p.low + p.high):
            at = across.at(p.low), y + 9, across.at(p.high)
            parts.append(Markup('<path class="whisker" d="M{} {}H{}"/>').format(*at))
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(WIDTH - 44, y + 14, _number(p.y)))
    return _svg(WIDTH, 26 * len(values) + 10, title, Markup("").join(parts))


def _svg(width: float | int, height: float | int, title: str, body: Markup) -> Markup:
    size = Markup('viewBox="0 0 {0} {1}" width="{0}" height="{1}"').format(width, height)
    return Markup('<svg class="plot" {} role="img" aria-label="{}">{}</svg>').format(size, clean(title), body)


def _short(text: str, most: int) -> str:
    text = clean(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _number(value: float | int) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
