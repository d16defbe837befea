"""Which file holds what a run printed: the job's output where its last start was a job, else what rank 0 printed."""

from __future__ import annotations

from pathlib import Path

from launch.look_find import Found
from launch.look_lines import last_objects
from launch.rank_log import LOGS_NAME, log_path
from trainer.errors import RunError
from trainer.run_folder import ATTEMPTS_NAME


def rank_log(run: Found, rank: int) -> Path:
    """The log of one rank.

    Raises:
        RunError: there is none.
    """
    path = log_path(run.folder, rank)
    if path.is_file():
        return path
    known = ranks_with_logs(run.folder)
    if not known:
        raise RunError(f"{path}: not there; a rank's output is kept from its start on, under `dure train` and in jobs")
    raise RunError(f"{path}: not there; of this run there is that of the ranks {_ranges(known)}")


def ranks_with_logs(folder: Path) -> list[int]:
    """The ranks whose output was kept, in order."""
    paths = (folder / LOGS_NAME).glob("rank-*.log")
    return sorted(int(number) for path in paths if (number := path.stem.removeprefix("rank-")).isdecimal())


def _ranges(numbers: list[int]) -> str:
    """0-3, 7"""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def console_log(run: Found) -> Path | None:
    """What the run last showed on its console: the newest of the jobs' outputs and rank 0's log; None before any.

    A job's output has all that rank 0 printed, and the launcher's own words: it counts where both are of one start.
    """
    outputs = sorted((run.folder / LOGS_NAME).glob("slurm-*.out"), key=_changed)
    rank_0 = log_path(run.folder, 0)
    if not outputs or not rank_0.is_file():
        return outputs[-1] if outputs else rank_0 if rank_0.is_file() else None
    started = next(iter(last_objects(run.folder / ATTEMPTS_NAME, 1)), {})
    is_of_last_start = outputs[-1].name == f"slurm-{started.get('job')}.out"
    return outputs[-1] if is_of_last_start or _changed(outputs[-1]) > _changed(rank_0) else rank_0


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
