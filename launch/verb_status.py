"""`dure status`: what each run of this project is doing, here and on the cluster; one look, nothing is waited for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from launch.look_find import find_runs
from launch.look_jobs import ask
from launch.look_pipelines import lines_of, pipelines
from launch.look_run import Look, look_at
from launch.look_screen import STYLES, console, show, width_of
from launch.look_words import NOTHING, ago, cut, cut_front, duration, figure, pad, rate, wrap
from trainer.locate import DEFAULT_ROOT

_HEAD = ("RUN", "STATE", "STEP", "LOSS", "TOK/S", "ETA")
_RIGHT = (False, False, True, True, True, True)
_GAP = "  "
_INDENT = "    "
_WHY_LINES = 3
_LEAST_NAME = 8


def status(arguments: argparse.Namespace) -> int:
    """Print a table of the runs, and the pipelines that are not done; or one JSON array of both."""
    runs = find_runs(arguments.paths)
    jobs = ask(run.folder for run in runs)
    if jobs.fault:
        print(f"warning: {jobs.fault}; jobs are not looked at", file=sys.stderr)
    looks = sorted((look_at(run, jobs) for run in runs), key=_rank)
    if arguments.json:
        found = [*(look.as_dict() for look in looks), *([] if arguments.paths else pipelines())]
        print(json.dumps(found, ensure_ascii=False, indent=1, default=str))
        return 0
    screen = console()
    width = width_of(screen)
    lines = table(looks, width=width) if looks else [Text(_none_here())]
    for pipeline in [] if arguments.paths else pipelines():
        head, *links = (line if width is None else cut(line, width) for line in lines_of(pipeline))
        lines += [Text(head, style="bold"), *(Text(link) for link in links)]
    show(screen, lines)
    return 0


def _none_here() -> str:
    return (
        f"no runs under {DEFAULT_ROOT}/ (실행 없음); `dure train CONFIG` begins one, `dure status DIR` looks elsewhere"
    )


def _rank(look: Look) -> tuple[int, str]:
    """What lives stands first, then what needs a person, then the rest; each by name."""
    order = 0 if look.state == "running" else 1 if look.is_live else 2 if look.state not in ("done", "new") else 3
    return order, look.name


def table(looks: Sequence[Look], *, width: int | None) -> list[Text]:
    """A head, then for each run a line of figures and below it what a person has to know; no line beyond `width`."""
    rows = [_cells(look) for look in looks]
    widths = [max(cell_len(row[place]) for row in [_HEAD, *rows]) for place in range(len(_HEAD))]
    if width is not None:
        rest = sum(widths[1:]) + len(_GAP) * (len(_HEAD) - 1)
        widths[0] = min(widths[0], max(_LEAST_NAME, width - rest))
    lines = [Text(_line(_HEAD, widths, width=width), style="dim")]
    for look, row in zip(looks, rows, strict=True):
        line = Text(_line(row, widths, width=width))
        start = line.plain.find(look.title)
        if start >= 0:
            line.stylize(STYLES[look.state], start, start + len(look.title))
        lines += [line, *(Text(below, style="dim") for below in _below(look, width=width))]
    return lines


def _cells(look: Look) -> tuple[str, ...]:
    return (
        look.name,
        look.title,
        f"{look.step:,}/{look.max_steps:,}" if look.max_steps is not None else figure(look.step or None, ","),
        figure(look.loss, ".4f"),
        rate(look.tokens_per_second) if look.is_live else NOTHING,
        duration(look.eta_seconds) if look.is_live else NOTHING,
    )


def _line(row: Sequence[str], widths: Sequence[int], *, width: int | None) -> str:
    cells = [cut_front(row[0], widths[0]), *row[1:]]
    padded = [pad(cell, size, right=right) for cell, size, right in zip(cells, widths, _RIGHT, strict=True)]
    line = _GAP.join(padded).rstrip()
    return line if width is None else cut(line, width)


def _below(look: Look, *, width: int | None) -> list[str]:
    """Where it runs, why it does not, and what happened last."""
    lines: list[str] = []
    if look.state == "waiting":
        lines += wrap(f"{look.where}: {look.why}", width, indent=_INDENT, num_lines=_WHY_LINES)
    elif look.is_live and look.where:
        lines += wrap(look.where, width, indent=_INDENT, num_lines=2)
    if look.why and look.state != "waiting":
        lines += wrap(look.why, width, indent=_INDENT, num_lines=_WHY_LINES)
    if look.is_live and (event := look.last_event) is not None:
        lines += wrap(f"{event.text}, {ago(event.time, now=look.time)}", width, indent=_INDENT, num_lines=2)
    return lines
