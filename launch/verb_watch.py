"""`dure watch`: a live view of runs in a terminal; through a pipe one frame of it. The runs never notice."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from launch.look_find import Found, all_runs, find_runs
from launch.look_frame import frame
from launch.look_poll import Poll
from launch.look_screen import console, show
from launch.look_watch import Watched
from trainer.errors import RunError

_TICK_SECONDS = 1.0
_FOOTER = "Ctrl-C leaves, the run goes on (나가도 학습은 계속됩니다)"


def watch(arguments: argparse.Namespace) -> int:
    """Show the runs until none of them lives any more, or the person leaves; 0 either way.

    Raises:
        RunError: a word names no run, or none was named and none lives.
    """
    runs = find_runs(arguments.paths) if arguments.paths else _living()
    view = _View(runs)
    screen = console()
    if screen.is_terminal:
        with contextlib.suppress(KeyboardInterrupt), _ended_by_signals():
            _watch(view, screen)
    show(screen, view.lines(width=screen.width, height=None))
    return 0


def _living() -> list[Found]:
    """The runs here that live."""
    runs = all_runs()
    found = [run for run, look in zip(runs, Poll(runs).looks(), strict=True) if look.is_live]
    if not found:
        raise RunError(
            "dure watch: no run lives here (실행 중인 것 없음); `dure status` lists all, `dure watch RUN` shows one"
        )
    return found


class _View:
    """The runs and what is known of them."""

    def __init__(self, runs: Sequence[Found]) -> None:
        self._watched = [Watched(run) for run in runs]
        self._poll = Poll(runs)

    @property
    def has_ended(self) -> bool:
        return not any(look.is_live for look in self._poll.looks())

    def lines(self, *, width: int, height: int | None) -> list[Text]:
        """The frame of this moment."""
        looks = self._poll.looks()
        shown = [watched.shown(look) for watched, look in zip(self._watched, looks, strict=True)]
        fault = f" · {self._poll.fault}" if self._poll.fault else ""
        footer = f"{time.strftime('%H:%M:%S')}  {_FOOTER}{fault}" if height is not None else ""
        return frame(shown, width=width, height=height, footer=footer)


def _watch(view: _View, screen: Console) -> None:
    """Draw until the runs have ended. The screen is as before afterwards."""
    with Live(console=screen, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            lines = view.lines(width=screen.width, height=screen.height)
            live.update(Group(*lines), refresh=True)
            if view.has_ended:
                return
            time.sleep(_TICK_SECONDS)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave the view like Ctrl-C, so that the terminal is left as it was."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.stdout.flush()
