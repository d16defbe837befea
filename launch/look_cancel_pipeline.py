"""Ending a pipeline: its runs with a save, its other jobs at once, from its last link on so that none behind starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from launch import slurm
from launch.array import STATE_NAME
from launch.look_cancel import Cancel
from launch.look_find import Found, is_run
from launch.look_pipelines import PIPELINES_ROOT
from trainer.errors import RunError
from trainer.locate import DEFAULT_ROOT


def pipeline_named(word: str) -> Path | None:
    """The folder of the pipeline that `word` names by its path or its name; None where it names a run, or none."""
    if any(is_run(folder) for folder in (Path(word), DEFAULT_ROOT / word)):
        return None
    return next((folder for folder in (Path(word), PIPELINES_ROOT / word) if (folder / STATE_NAME).is_file()), None)


def cancel_pipeline(folder: Path, *, tell: Callable[[str], None], now: bool = False) -> int:
    """End every job of the pipeline that waits or runs; returns how many there were. `now`: runs without a save, too.

    A job that spreads a data stage takes its array along.

    Raises:
        RunError: SLURM does not answer, or something can't be ended.
    """
    try:
        links = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))["links"]
    except (ValueError, KeyError) as error:
        raise RunError(f"{folder / STATE_NAME}: {error}; restore it, or end its jobs by `scancel JOB`") from None
    states = slurm.job_states([str(link["job"]) for link in links.values()])
    num_ended = 0
    for name, link in reversed(links.items()):
        job = str(link["job"])
        if (state := states.get(job)) is None or state.is_over:
            continue
        num_ended += 1
        if "run" in link and state.state != "PENDING":
            Cancel(Found(name, Path(str(link["run"]))), tell=tell, now=now).end()
        else:
            slurm.cancel(job)
        tell(f"{name}: job {job} ({state.state}): ended")
    return num_ended
