"""Whether a job that ended goes back into the queue: a pure decision, and the run's record of all such.

<run>/requeues.jsonl holds {time, job, restart, step, reason} a line: `restart` is the SLURM_RESTART_COUNT of the
execution that ended, `step` that of the checkpoint that stood. <run>/cancelled says that a person wants no more of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import Field

from data_pipeline import disk
from data_pipeline.config import Config

REQUEUES_NAME = "requeues.jsonl"
CANCELLED_NAME = "cancelled"
BY_SLURM = "requeued by SLURM (a node failed, or the job was preempted)"


class RequeueConfig(Config):
    """When a job asks SLURM to run it again. One that was stopped by a signal with everything saved always does."""

    max_requeues: int = Field(default=50, ge=0)
    """Of one job, SLURM's own among them."""
    max_requeues_without_progress: int = Field(default=1, ge=1)
    """In a row at one step. Raise it where jobs are preempted while they load."""
    on_hang: bool = True
    """After the watchdog named a hang: the next try may get better nodes."""
    on_node_failure: bool = True
    """After the launcher of a node was lost; SLURM requeues by itself where it sees the node go down."""


@dataclass(frozen=True)
class Requeue:
    """One execution of a job that was followed by another."""

    job: str
    restart: int
    step: int
    reason: str
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Verdict:
    """Whether the job is to be requeued, and why (not)."""

    requeue: bool
    why: str


def decide(config: RequeueConfig, ended: Requeue, *, before: Sequence[Requeue], is_cancelled: bool) -> Verdict:
    """Whether the execution `ended` is followed by another; `before` is the run's record so far."""
    if is_cancelled:
        return Verdict(False, f"not requeued: {CANCELLED_NAME} stands in the run folder (dure cancel)")
    mine = [requeue for requeue in before if requeue.job == ended.job and requeue.restart < ended.restart]
    if len(mine) >= config.max_requeues:
        return Verdict(
            False,
            f"not requeued: job {ended.job} was requeued {len(mine)} times, requeue.max_requeues is "
            f"{config.max_requeues}; submit again to go on from step {ended.step:,}",
        )
    idle = _num_idle(mine, step=ended.step)
    if idle >= config.max_requeues_without_progress:
        return Verdict(
            False,
            f"not requeued: no progress since the last requeue, both at step {ended.step:,} "
            f"(requeue.max_requeues_without_progress {config.max_requeues_without_progress}); look at events.jsonl and "
            "the time limit, then submit again",
        )
    return Verdict(True, f"requeued at step {ended.step:,}: {ended.reason}")


def _num_idle(mine: Sequence[Requeue], *, step: int) -> int:
    """How many of the latest requeues, in a row, were at `step`."""
    count = 0
    for requeue in reversed(mine):
        if requeue.step != step:
            break
        count += 1
    return count


def read_requeues(run_folder: Path) -> list[Requeue]:
    """The run's record, in order; a line that a kill tore is passed over."""
    from trainer.run_folder import read_lines

    return [Requeue(**line) for line in read_lines(run_folder / REQUEUES_NAME)]


def note_requeue(run_folder: Path, requeue: Requeue) -> None:
    """Add a line to the run's record."""
    from trainer.run_folder import repair_lines

    path = run_folder / REQUEUES_NAME
    run_folder.mkdir(parents=True, exist_ok=True)
    repair_lines(path)
    disk.append_line(path, json.dumps(asdict(requeue), ensure_ascii=False).encode())


def note_requeue_by_slurm(run_folder: Path, *, job: str, restart: int, step: int) -> None:
    """At a job's start: write down that SLURM ran it again by itself, where no line of ours says why."""
    is_told = any(requeue.job == job and requeue.restart == restart - 1 for requeue in read_requeues(run_folder))
    if restart > 0 and not is_told:
        note_requeue(run_folder, Requeue(job=job, restart=restart - 1, step=step, reason=BY_SLURM))


def is_cancelled(run_folder: Path) -> bool:
    """Whether a person cancelled what runs here; the next start by hand clears it."""
    return (run_folder / CANCELLED_NAME).exists()
