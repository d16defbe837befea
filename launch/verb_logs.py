"""`dure logs`: what a run printed, and with `-f` what it prints on, through requeues and new jobs, until it ends."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.look_find import Found, find_run
from launch.look_lines import Growth
from launch.look_logs import console_log, rank_log
from launch.look_poll import Poll
from launch.look_run import Look
from trainer.errors import RunError

_TICK_SECONDS = 0.5


def logs(arguments: argparse.Namespace) -> int:
    """Print the log of the run's last start; returns 0, also where the run itself failed.

    Raises:
        RunError: nothing was printed yet, and `-f` was not given; or that rank has no log.
    """
    run = find_run(arguments.path)
    number = arguments.rank
    find: Callable[[], Path | None] = (lambda: console_log(run)) if number is None else (lambda: rank_log(run, number))
    if arguments.f:
        _follow(run, find, count=arguments.lines)
        return 0
    path = find()
    if path is None:
        raise RunError(f"{run.folder}: it has printed nothing yet; `dure status {run.name}` says what it waits for")
    growth = Growth(path)
    _print_last(growth, count=arguments.lines)
    _print_rest(growth)
    return 0


def _print_last(growth: Growth, *, count: int) -> None:
    """The last lines, or all of them, piece by piece; a person is told what was left out."""
    if count:
        lines = growth.last_lines(count)
        if len(lines) == count and sys.stdout.isatty():
            _say(f"{growth.path}: the last {count} lines; --lines 0 shows all")
        _write(lines)
        return
    while lines := growth.new_lines():
        _write(lines)


def _print_rest(growth: Growth) -> None:
    """A last line that was never ended."""
    if rest := growth.rest():
        _write([rest])


def _write(lines: Sequence[bytes]) -> None:
    sys.stdout.flush()
    for line in lines:
        sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _follow(run: Found, find: Callable[[], Path | None], *, count: int) -> None:
    """Print what is there and what comes, until the run has ended and all of it was printed."""
    poll = Poll([run])
    growth, path = Growth(Path()), None
    told = ""
    while True:
        (look,) = poll.looks()
        if (now := find()) != path and now is not None:
            if path is not None:
                _drain(growth)
                _say(f"--- {now}")
            growth, path = Growth(now), now
            _print_last(growth, count=count)
        came = _drain(growth) if path is not None else False
        if not look.is_live and not came:
            _print_rest(growth)
            _say(_farewell(look))
            return
        if look.state == "waiting" and look.why != told:
            told = look.why
            _say(f"{run.name} waits (대기 중): {look.why}")
        time.sleep(_TICK_SECONDS)


def _drain(growth: Growth) -> bool:
    """Print what came; whether anything did."""
    came = False
    while lines := growth.new_lines():
        came = True
        _write(lines)
    return came


def _farewell(look: Look) -> str:
    return f"{look.name}: {look.title}{f': {look.why}' if look.why else ''}"
