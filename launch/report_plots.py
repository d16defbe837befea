"""Line charts as SVG, drawn here: few lines of code, no library to pin, and they obey the page's colours.

A chart is as legible at 350 pixels as at 560: its letters grow where its box is narrow (see report_style.py). Without
a script, the value under the pointer is shown by bands that :hover reveals. Knows no run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from launch.report_axes import (
    Axis,
    common_power,
    linear_ticks,
    log_ticks,
    number_label,
    step_of,
    tick_step,
    value_label,
)
from launch.report_data import Series
from launch.report_html import Markup, join, tag

WIDTH, HEIGHT, LOW_HEIGHT = 480.0, 284.0, 200.0
LEFT, RIGHT, TOP, BELOW = 52.0, 468.0, 35.0, 43.0
MAX_POINTS = 240  # about one in two units of width: more can't be seen
MAX_BANDS = 60
LOG_FROM_RATIO = 20.0  # a range that a linear axis would squeeze into its lowest twentieth
MARK_GAP = 5.0
FLAT = 1e-4  # of the value: a smaller range is noise, and its ticks would differ in their fifth digit only
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """One curve. `style`: "a", "b" or "c", a colour and a form; `dots` for few points."""

    name: str
    series: Series
    style: str = "a"
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step: "resume" is a dashed line, "skip" a cross at the top."""

    step: float
    kind: str
    note: str


@dataclass(frozen=True)
class Chart:
    """What is drawn. `unit`: of the values; the ranges are shared by charts that are compared; `from_zero`: show 0;
    `is_low`: of lesser interest, and of lesser height.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    from_zero: bool = False
    may_be_log: bool = False
    y_range: tuple[float, float] | None = None
    x_range: tuple[float, float] | None = None
    is_low: bool = False

    @property
    def height(self) -> float:
        return LOW_HEIGHT if self.is_low else HEIGHT


@dataclass(frozen=True)
class Point:
    """The mean of the values that share a place, and their range; `mean` is NaN where none was finite."""

    x: float
    mean: float
    low: float
    high: float


def draw(chart: Chart) -> Markup:
    """The chart as one `<svg>`; a sentence instead where no value is finite."""
    lines = [line for line in chart.lines if line.series.finite]
    if not lines:
        return tag("p", "아직 기록이 없습니다 · nothing recorded yet", cls="empty")
    x_axis = _step_axis(lines, chart.x_range)
    low, high = chart.y_range or value_range(line.series for line in lines)
    y_axis = value_axis(low, high, chart)
    points = [downsample(line.series) for line in lines]
    drawn = [_curve(line, its, x_axis, y_axis) for line, its in zip(lines, points, strict=True)]
    return tag(
        "svg",
        *_frame(chart, x_axis, y_axis),
        *_marks(chart.marks, x_axis, bottom=y_axis.start),
        *drawn,
        *_bands(lines, points, x_axis, y_axis),
        viewbox=f"0 0 {WIDTH:g} {chart.height:g}",
        role="img",
        aria_label=_spoken(chart, lines),
    )


def legend(chart: Chart) -> Markup | None:
    """What the colours and forms mean; None where there is nothing to tell apart."""
    shown = [line for line in chart.lines if line.series.finite]
    entries = [(f"line-{line.style}{' dots' if line.dots else ''}", line.name) for line in shown]
    kinds = {mark.kind for mark in chart.marks}
    entries += [("resume", "이어서 시작 resumed")] * ("resume" in kinds) + [("skip", "건너뛴 단계 skipped")] * (
        "skip" in kinds
    )
    if len(entries) < 2 or chart.is_low:
        return None
    return tag("ul", *(tag("li", tag("i", cls=f"key {key}"), name) for key, name in entries), cls="legend")


def value_range(series: Iterable[Series]) -> tuple[float, float]:
    """The least and the greatest finite value of all series; (0, 1) where there is none."""
    bounds = [(min(values), max(values)) for one in series if (values := one.finite)]
    return (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else (0.0, 1.0)


def value_axis(low: float, high: float, chart: Chart) -> Axis:
    """An axis whose ends are ticks: linear, or logarithmic where that is allowed and the values span a lot."""
    bottom = chart.height - BELOW
    if chart.may_be_log and low > 0 and high / low >= LOG_FROM_RATIO:
        ticks = log_ticks(low, high)
        return Axis(min(low, ticks[0]), max(high, ticks[-1]), bottom, TOP, tuple(ticks), is_log=True)
    if chart.from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low <= FLAT * max(abs(low), abs(high)):
        pad = max(abs(high), abs(low)) * 0.1 or 1.0
        low, high = low if chart.from_zero else low - pad, high + pad
    step = tick_step(low, high, _num_ticks(chart))
    ticks = [number * step for number in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]
    return Axis(ticks[0], ticks[-1], bottom, TOP, tuple(ticks))


def _num_ticks(chart: Chart) -> int:
    return 3 if chart.is_low else 5


def downsample(series: Series, *, limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points in equal spans of steps; each keeps its span's mean, least and greatest value."""
    pairs = list(zip(series.steps, series.values, strict=True))
    if len(pairs) <= limit:
        return [Point(x, y, y, y) for x, y in pairs]
    first, last = min(series.steps), max(series.steps)
    width = (last - first) / limit or 1.0
    spans: dict[int, list[tuple[float, float]]] = {}
    for x, y in pairs:
        spans.setdefault(min(limit - 1, int((x - first) / width)), []).append((x, y))
    return [_merged(spans[number]) for number in sorted(spans)]


def _merged(pairs: Sequence[tuple[float, float]]) -> Point:
    finite = [y for _, y in pairs if not math.isnan(y)]
    x = sum(x for x, _ in pairs) / len(pairs)
    if not finite:
        return Point(x, math.nan, math.nan, math.nan)
    return Point(x, sum(y / len(finite) for y in finite), min(finite), max(finite))


def _step_axis(lines: Sequence[Line], given: tuple[float, float] | None) -> Axis:
    low, high = given or (min(min(line.series.steps) for line in lines), max(max(line.series.steps) for line in lines))
    if high - low < 1:
        low, high = low - 1, high + 1
    return Axis(low, high, LEFT + 6, RIGHT - 6)


def _frame(chart: Chart, x_axis: Axis, y_axis: Axis) -> list[Markup]:
    """Grid, ticks, and the words at the axes."""
    bottom = y_axis.start
    ticks = y_axis.ticks
    power = 0 if y_axis.is_log else common_power(ticks)
    unit = chart.unit + (f" ×10{str(power).translate(SUPERSCRIPTS)}" if power else "")
    unit += " (로그 log)" if y_axis.is_log else ""
    parts = [tag("text", unit, x=0, y=17, cls="unit")]
    for tick in ticks:
        y = y_axis(tick)
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, cls="grid"))
        label = f"{tick:g}" if y_axis.is_log else number_label(tick / 10.0**power, step=step_of(ticks) / 10.0**power)
        parts.append(tag("text", label, x=LEFT - 7, y=y + 4, cls="tick y"))
    parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=bottom, y2=bottom, cls="axis"))
    steps = [tick for tick in linear_ticks(x_axis.low, x_axis.high, 6) if tick == int(tick)]
    for tick in steps:
        x = x_axis(tick)
        parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, cls="axis"))
        label = number_label(tick, step=step_of(steps))
        end = " end" if x > RIGHT - 24 else ""
        parts.append(tag("text", label, x=RIGHT if end else x, y=bottom + 18, cls=f"tick x{end}"))
    parts.append(tag("text", "단계 step", x=RIGHT, y=chart.height - 4, cls="unit end"))
    return parts


def _curve(line: Line, points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> Markup:
    """The range of merged points as an area, their mean as a path with a gap where nothing was finite, and dots."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isnan(point.mean):
            runs.append([])
        else:
            runs[-1].append(point)
    runs = [run for run in runs if run]
    path = "".join(_path([(x_axis(p.x), y_axis(p.mean)) for p in run]) for run in runs)
    areas = ""
    if any(point.high > point.low for point in points):
        for run in runs:
            upper = [(x_axis(p.x), y_axis(p.high)) for p in run]
            lower = [(x_axis(p.x), y_axis(p.low)) for p in reversed(run)]
            areas += _path([*upper, *lower]) + "Z"
    dots = [
        tag("circle", cx=x_axis(p.x), cy=y_axis(p.mean), r=3.2)
        for run in runs
        for p in run
        if line.dots and len(points) <= 40
    ]
    return tag("g", tag("path", d=areas, cls="area") if areas else None, tag("path", d=path, cls="stroke"), *dots,
               cls=f"curve {line.style}")  # fmt: skip


def _path(places: Sequence[tuple[float, float]]) -> str:
    """SVG's words for a line through `places`; a single place is a dot of the line's width."""
    if len(places) == 1:
        return f"M{places[0][0]:.1f} {places[0][1]:.1f}h.01"
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _marks(marks: Sequence[Mark], x_axis: Axis, *, bottom: float) -> list[Markup]:
    """Marks that would lie on one another become one."""
    drawn: list[Markup] = []
    last: dict[str, float] = {}
    for mark in sorted(marks, key=lambda mark: mark.step):
        if not x_axis.low <= mark.step <= x_axis.high:
            continue
        x = x_axis(mark.step)
        if x - last.get(mark.kind, -math.inf) < MARK_GAP:
            continue
        last[mark.kind] = x
        shape = f"M{x:.1f} {TOP:g}V{bottom:g}" if mark.kind == "resume" else _cross(x, TOP + 5)
        drawn.append(tag("path", tag("title", mark.note), d=shape, cls=mark.kind))
    return drawn


def _cross(x: float, y: float) -> str:
    return f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"


def _bands(lines: Sequence[Line], points: Sequence[Sequence[Point]], x_axis: Axis, y_axis: Axis) -> Iterable[Markup]:
    """Columns that show step and values while the pointer is over them, and as a title."""
    shown = [point for point in points[0] if not math.isnan(point.mean)]
    shown = shown[:: max(1, math.ceil(len(shown) / MAX_BANDS))]
    centres = [x_axis(point.x) for point in shown]
    middles = [(a + b) / 2 for a, b in pairwise(centres)]
    for point, x, start, end in zip(shown, centres, [LEFT, *middles], [*middles, RIGHT], strict=True):
        near = [_nearest(its, x, start, end, x_axis) for its in points]
        values = [
            f"{line.name.split()[0]} {value_label(p.mean)}"
            for line, p in zip(lines, near, strict=True)
            if p is not None
        ]
        words = " · ".join([f"{round(point.x):,}단계", *values])
        yield tag(
            "g",
            tag("rect", x=start, y=TOP, width=max(0.1, end - start), height=y_axis.start - TOP),
            tag("line", x1=x, x2=x, y1=TOP, y2=y_axis.start),
            *(
                tag("circle", cx=x_axis(p.x), cy=y_axis(p.mean), r=4, cls=line.style)
                for line, p in zip(lines, near, strict=True)
                if p is not None
            ),
            tag("text", words, x=RIGHT, y=17, cls="end"),
            tag("title", words),
            cls="band",
        )


def _nearest(points: Sequence[Point], x: float, start: float, end: float, x_axis: Axis) -> Point | None:
    """The point of a curve that lies in a band, nearest to its middle."""
    inside = [point for point in points if start <= x_axis(point.x) <= end and not math.isnan(point.mean)]
    return min(inside, key=lambda point: abs(x_axis(point.x) - x), default=None)


def _spoken(chart: Chart, lines: Sequence[Line]) -> str:
    parts = []
    for line in lines:
        finite = line.series.finite
        parts.append(f"{line.name}: {value_label(finite[0])} → {value_label(finite[-1])}")
    return f"{chart.title} ({chart.unit}). " + "; ".join(parts)


def figure(chart: Chart, *, subtitle: str = "") -> Markup:
    """The chart with its title and legend, as a card of the page."""
    words = tag("figcaption", tag("b", chart.title), tag("span", subtitle, cls="sub") if subtitle else None)
    return tag("figure", join(words, legend(chart)), draw(chart), cls="card chart")
