"""Figures drawn in text: a curve of braille dots with its axes, and a row of bars. Pure; knows no run and no screen.

A braille character is two dots wide and four high (Unicode, chapter 21.1), so that a curve has eight times the dots of
its cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_MAX_POINTS = 4096
_BARS = "▁▂▃▄▅▆▇█"
_LOG_RATIO = 3.0
# Bits of the dots of a braille character, by (row from the top, column).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))

Point = tuple[float, float]


@dataclass
class Curve:
    """Points in the order of x; above `_MAX_POINTS` neighbours are joined to their mean, so that it stays small."""

    _points: list[Point] = field(default_factory=list)
    _stride: int = 1
    _open: list[Point] = field(default_factory=list)

    def add(self, x: object, y: object) -> None:
        """One more point; what is no finite number is left out."""
        if not (isinstance(x, (int, float)) and isinstance(y, (int, float)) and math.isfinite(y)):
            return
        self._open.append((float(x), float(y)))
        if len(self._open) >= self._stride:
            self._points.append(_mean(self._open))
            self._open = []
        if len(self._points) > _MAX_POINTS:
            self._points = [_mean(self._points[at : at + 2]) for at in range(0, len(self._points), 2)]
            self._stride *= 2

    def clear(self) -> None:
        """Forget all points."""
        self._points, self._stride, self._open = [], 1, []

    @property
    def points(self) -> list[Point]:
        return [*self._points, *([_mean(self._open)] if self._open else [])]


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def bars(values: Sequence[float], *, width: int) -> str:
    """The last `width` values as bars over a scale from 0 to the largest."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return ""
    return "".join(_BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] for value in shown)


def plot(points: Sequence[Point], *, width: int, height: int, unit: str = "step") -> list[str]:
    """A curve with its scales, `height` lines of at most `width` cells, the last of them the x axis' labels.

    The y axis is logarithmic where the largest value is three times the smallest or more, and says so.
    """
    if not points:
        return []
    low, high = min(y for _, y in points), max(y for _, y in points)
    is_log = low > 0 and high / low >= _LOG_RATIO
    labels = _labels(low, high, is_log=is_log, num_rows=height - 1)
    margin = max(len(label) for label in labels.values())
    columns = max(4, width - margin - 2)
    dots = _dots(_scaled(points, low, high, is_log=is_log), columns=2 * columns, rows=4 * (height - 1))
    lines = []
    for row in range(height - 1):
        label = labels.get(row, "")
        lines.append(f"{label:>{margin}} {'┤' if label else '│'}{_braille(dots, row, columns)}".rstrip())
    return [*lines, " " * (margin + 2) + _axis(points, columns, unit=unit, is_log=is_log)]


def _labels(low: float, high: float, *, is_log: bool, num_rows: int) -> dict[int, str]:
    """Values of the first, the middle and the last row."""
    middle = math.sqrt(low * high) if is_log else (low + high) / 2
    places = {0: high, num_rows - 1: low} | ({num_rows // 2: middle} if num_rows >= 5 else {})
    digits = max(0, min(4, 3 - math.floor(math.log10(max(abs(high), 1e-9)))))
    return {row: f"{value:.{digits}f}" for row, value in places.items()}


def _axis(points: Sequence[Point], columns: int, *, unit: str, is_log: bool) -> str:
    first, last = f"{unit} {points[0][0]:,.0f}", f"{points[-1][0]:,.0f}"
    middle = "log scale" if is_log else ""
    space = columns - len(first) - len(last)
    return f"{first}{middle:^{max(0, space)}}{last}" if space > len(middle) else first


def _scaled(points: Sequence[Point], low: float, high: float, *, is_log: bool) -> list[Point]:
    """Points in the unit square."""
    first, last = points[0][0], points[-1][0]

    def level(value: float) -> float:
        if high <= low:
            return 0.5
        return math.log(value / low) / math.log(high / low) if is_log else (value - low) / (high - low)

    return [((x - first) / (last - first) if last > first else 0.0, level(y)) for x, y in points]


def _dots(points: Sequence[Point], *, columns: int, rows: int) -> set[tuple[int, int]]:
    """The dots (row from the top, column) of the mean of each column, joined where they are not neighbours."""
    by_column: dict[int, list[float]] = {}
    for x, y in points:
        by_column.setdefault(round(x * (columns - 1)), []).append(y)
    found: set[tuple[int, int]] = set()
    before: tuple[int, int] | None = None
    for column in sorted(by_column):
        mean = sum(by_column[column]) / len(by_column[column])
        row = round((1 - mean) * (rows - 1))
        found |= _join(before, (row, column))
        before = (row, column)
    return found


def _join(start: tuple[int, int] | None, end: tuple[int, int]) -> set[tuple[int, int]]:
    """The dots of a straight line."""
    if start is None:
        return {end}
    count = max(abs(end[0] - start[0]), end[1] - start[1], 1)
    return {
        (round(start[0] + (end[0] - start[0]) * at / count), round(start[1] + (end[1] - start[1]) * at / count))
        for at in range(count + 1)
    }


def _braille(dots: set[tuple[int, int]], row: int, columns: int) -> str:
    bits = (_bits(dots, row, column) for column in range(columns))
    return "".join(chr(0x2800 + one) if one else " " for one in bits)  # some fonts draw U+2800, which has no dots


def _bits(dots: set[tuple[int, int]], row: int, column: int) -> int:
    return sum(_DOTS[y][x] for y in range(4) for x in range(2) if (4 * row + y, 2 * column + x) in dots)
