"""Where a verb that looks writes: a console with colour on a terminal and without one in a pipe, and its width."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from launch.look_state import State

STYLES: dict[State, str] = {
    "running": "bold green",
    "starting": "green",
    "ending": "green",
    "waiting": "yellow",
    "done": "cyan",
    "stopped": "yellow",
    "cancelled": "yellow",
    "failed": "bold red",
    "refused": "bold red",
    "hung": "bold red",
    "killed": "bold red",
    "silent": "bold red",
    "unknown": "magenta",
    "new": "dim",
}


def console() -> Console:
    """The terminal or pipe that stdout is now. NO_COLOR and TERM=dumb are respected."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)


def width_of(screen: Console) -> int | None:
    """The cells of a line; None where no terminal cuts it."""
    return screen.width if screen.is_terminal else None


def show(screen: Console, lines: list[Text]) -> None:
    """Print lines that fit already."""
    for line in lines:
        screen.print(line, no_wrap=True, overflow="ignore", crop=False)
