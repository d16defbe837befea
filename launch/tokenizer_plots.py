"""Bars as SVG, grouped: one group a source or a number of pieces, one bar a tokenizer. Knows no audit.

A bar carries the letter of its tokenizer beside its value, so that no colour need be told from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.doctor_findings import width_of
from launch.report_html import Markup, join, tag

WIDTH = 480.0
LONGEST = 372.0  # of a bar; its letter and value stand behind it
TOP, PITCH, THICK, LABEL, GAP = 4.0, 20.5, 13.0, 23.0, 9.0
MAX_LABEL_COLUMNS = 56  # what 480 units hold where letters are largest; a Korean syllable is two
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NUM_COLOURS = 5

STYLE = """
svg .rod { stroke: none; }
svg .rod.r0 { fill: var(--accent); } svg .rod.r1 { fill: var(--a); } svg .rod.r2 { fill: var(--b); }
svg .rod.r3 { fill: var(--c); } svg .rod.r4 { fill: var(--other); }
svg .group { fill: var(--ink); }
.key.rod { width: 12px; height: 12px; border: 0; border-radius: 3px; }
.key.r0 { background: var(--accent); } .key.r1 { background: var(--a); } .key.r2 { background: var(--b); }
.key.r3 { background: var(--c); } .key.r4 { background: var(--other); }
"""


@dataclass(frozen=True)
class Group:
    """A label and a value for each of the names; `shown`: the values as they are read."""

    label: str
    values: tuple[float, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Bars:
    """What is drawn: groups of bars from zero on one scale; names are those of the bars in every group."""

    title: str
    names: tuple[str, ...]
    groups: tuple[Group, ...]


def letter(number: int) -> str:
    return LETTERS[number] if number < len(LETTERS) else str(number + 1)


def figure(bars: Bars, *, subtitle: str = "") -> Markup:
    """The bars with title and legend, as a card of the page."""
    words = tag("figcaption", tag("b", bars.title), tag("span", subtitle, cls="sub") if subtitle else None)
    return tag("figure", join(words, legend(bars.names)), draw(bars), cls="card chart")


def legend(names: Sequence[str]) -> Markup:
    entries = (
        tag("li", tag("i", cls=f"key rod r{number % NUM_COLOURS}"), f"{letter(number)} {name}")
        for number, name in enumerate(names)
    )
    return tag("ul", *entries, cls="legend")


def draw(bars: Bars) -> Markup:
    """One `<svg>`; a bar of value 0 is a hair, so that its letter is not alone."""
    most = max((value for group in bars.groups for value in group.values), default=0.0) or 1.0
    parts: list[Markup] = []
    y = TOP
    for group in bars.groups:
        parts.append(tag("text", _cut(group.label), x=0, y=y + 13, cls="group"))
        y += LABEL
        for number, (value, shown) in enumerate(zip(group.values, group.shown, strict=True)):
            length = max(1.0, LONGEST * value / most)
            parts.append(_rod(number, length, y, f"{letter(number)} {shown}", f"{bars.names[number]}: {shown}"))
            y += PITCH
        y += GAP
    spoken = f"{bars.title}. " + "; ".join(
        f"{group.label}: " + ", ".join(f"{name} {shown}" for name, shown in zip(bars.names, group.shown, strict=True))
        for group in bars.groups
    )
    return tag("svg", *parts, viewbox=f"0 0 {WIDTH:g} {max(y - GAP, 1):g}", role="img", aria_label=spoken)


def _rod(number: int, length: float, y: float, words: str, title: str) -> Markup:
    shape = tag("rect", x=0, y=y + 2, width=length, height=THICK, rx=3, cls=f"rod r{number % NUM_COLOURS}")
    return tag("g", shape, tag("text", words, x=length + 7, y=y + 12), tag("title", title))


def _cut(label: str) -> str:
    if width_of(label) <= MAX_LABEL_COLUMNS:
        return label
    while width_of(label) >= MAX_LABEL_COLUMNS:
        label = label[:-1]
    return f"{label}…"
