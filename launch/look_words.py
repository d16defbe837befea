"""Figures and times as a person reads them, and text cut by the cells that it takes on a screen (한글 takes two)."""

from __future__ import annotations

import time
from typing import Any

from rich.cells import cell_len, set_cell_size

NOTHING = "-"
_HALF_A_YEAR = 180 * 86400


def figure(value: Any, form: str) -> str:
    """A number by a format; a dash for none, and what was written for one that is no number ("nan")."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return format(value, form)
    return str(value) if value else NOTHING


def rate(value: Any) -> str:
    """Tokens a second: 853, 12.3k, 1.25M."""
    if not isinstance(value, (int, float)):
        return figure(value, "")
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 1000 * size else f"{value / size:,.0f}{unit}"
    return f"{value:.0f}"


def duration(seconds: Any) -> str:
    """The two largest units: 45 s, 12 m 05 s, 3 h 20 m, 5 d 04 h."""
    if not isinstance(seconds, (int, float)):
        return figure(seconds, "")
    whole = max(0, round(seconds))
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part:02d} {small}"
    return f"{whole} s"


def ago(moment: float, *, now: float) -> str:
    """How long before `now`, in one unit; a clock that is ahead of ours counts as just now."""
    seconds = now - moment
    for size, unit in ((172800, "d"), (5400, "h"), (90, "min")):
        if seconds >= size:
            return f"{seconds / {'d': 86400, 'h': 3600, 'min': 60}[unit]:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def clock(moment: float, *, now: float) -> str:
    """Local time: of today without the date; far away the date alone."""
    then = time.localtime(moment)
    if abs(moment - now) > _HALF_A_YEAR:
        return time.strftime("%Y-%m-%d", then)
    return time.strftime("%H:%M:%S" if then[:3] == time.localtime(now)[:3] else "%m-%d %H:%M", then)


def cut(text: str, width: int) -> str:
    """At most `width` cells, with … where something was cut off."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…" if width > 0 else ""


def cut_front(text: str, width: int) -> str:
    """The same from the front, for paths: their end tells more."""
    return text if cell_len(text) <= width else f"…{cut(text[::-1], width)[:-1][::-1]}" if width > 0 else ""


def pad(text: str, width: int, *, right: bool = False) -> str:
    """Exactly `width` cells, where it is not longer."""
    space = " " * max(0, width - cell_len(text))
    return space + text if right else text + space


def wrap(text: str, width: int | None, *, indent: str = "", num_lines: int = 0) -> list[str]:
    """Lines of at most `width` cells, broken at spaces, each after `indent`; at most `num_lines` where that is not 0.

    A width of None breaks nothing: what reads a pipe wants one line.
    """
    if width is None:
        return [indent + " ".join(text.split())]
    room, lines = max(8, width - cell_len(indent)), [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(joined) <= room:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        while cell_len(word) > room:
            head = set_cell_size(word, room).rstrip()
            lines[-1], word = head, word[len(head) :]
            lines.append("")
        lines[-1] = word
    if num_lines and len(lines) > num_lines:
        lines = [*lines[: num_lines - 1], cut(" ".join(lines[num_lines - 1 :]), room)]
    return [indent + line for line in lines]
