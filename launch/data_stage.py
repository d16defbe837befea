"""Around the stage of every data verb: skip what is done and say so, run, print what was made and what is next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from data_pipeline.stage import MANIFEST_NAME, Manifest, Stage, read_manifest
from launch.tasks import num_cores, run_stage


class Figure(NamedTuple):
    """One line of the closing table."""

    name: str
    value: int | float | str


def run_verb(
    stage: Stage,
    *,
    kind: str,
    num_workers: int | None = None,
    figures: Callable[[Manifest], Sequence[Figure]],
    next_command: str,
) -> int:
    """Bring the stage's output folder up to date; returns the exit code."""
    started = time.perf_counter()
    if stage.is_done():
        manifest = read_manifest(stage.output, kind=kind)
        print(f"{stage.output}: up to date (이미 완료): {MANIFEST_NAME} was made from equal inputs; nothing was done")
        rows = list(figures(manifest))
    else:
        manifest = run_stage(stage, num_workers or num_cores(), label=kind)
        seconds = time.perf_counter() - started
        print(f"{stage.output}: {kind} done (완료)")
        rows = [*figures(manifest), Figure("seconds", round(seconds, 1))]
    print("\n".join(table(rows)))
    print(f"next: {next_command}")
    return 0


def table(rows: Sequence[Figure]) -> list[str]:
    """Names on the left, figures on the right with thousands apart."""
    values = [row.value if isinstance(row.value, str) else f"{row.value:,}" for row in rows]
    width, value_width = max(len(row.name) for row in rows), max(len(value) for value in values)
    return [f"  {row.name:<{width}}  {value:>{value_width}}" for row, value in zip(rows, values, strict=True)]
