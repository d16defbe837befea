"""Whether a job that ended goes back into the queue: a pure decision, and the run's record of all such.

<run>/requeues.jsonl holds {time, job, restart, step, reason, data} a line: `restart` is the SLURM_RESTART_COUNT of the
execution that ended, `step` that of the checkpoint that stood, `data` how far the data was that the job made itself.
<run>/cancelled says that a person wants no more of it, and since when: it does not count for jobs submitted later.
"""

from __future__ import annotations

import json
import math
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
    on_dead_rank: bool = True
    """After ranks were killed more often than max_restarts allows in one execution."""
    on_failure: bool = True
    """After a rank ended with an error (a GPU's memory, the network), where a checkpoint was saved since the start."""


@dataclass(frozen=True)
class Requeue:
    """One execution of a job that was followed by another."""

    job: str
    restart: int
    step: int
    reason: str
    time: float = field(default_factory=time.time)
    data: str = ""
    """As far as it was made, "corpus: 3 of 9 tasks"; "" once the run trains, or where that was not told."""


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
    idle = _num_idle(mine, ended)
    if idle >= config.max_requeues_without_progress:
        data = f", data {ended.data}" if ended.data else ""
        return Verdict(
            False,
            f"not requeued: no progress since the last requeue, both at step {ended.step:,}{data} "
            f"(requeue.max_requeues_without_progress {config.max_requeues_without_progress}); look at events.jsonl and "
            "the time limit, then submit again",
        )
    return Verdict(True, f"requeued at step {ended.step:,}: {ended.reason}")


def _num_idle(mine: Sequence[Requeue], ended: Requeue) -> int:
    """How many of the latest requeues, in a row, were as far as `ended`."""
    count = 0
    for requeue in reversed(mine):
        if (requeue.step, requeue.data) != (ended.step, ended.data):
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


def cancelled_at(run_folder: Path) -> float | None:
    """When a person cancelled what runs here, in seconds since 1970; None where nobody did.

    That time stands in the file; in one that holds none, the file's own counts.
    """
    path = run_folder / CANCELLED_NAME
    try:
        changed = path.stat().st_mtime
    except FileNotFoundError:
        return None
    told = disk.read_object(path).get("time")
    return float(told) if isinstance(told, (int, float)) and math.isfinite(told) else changed


def is_cancelled(run_folder: Path, *, since: float = 0.0) -> bool:
    """Whether a person cancelled what runs here after `since`, when its job was submitted."""
    at = cancelled_at(run_folder)
    return at is not None and at >= since


def forget_cancelled(run_folder: Path, *, before: float) -> None:
    """Remove a mark that is older than `before`: it was meant for another job."""
    at = cancelled_at(run_folder)
    if at is not None and at < before:
        (run_folder / CANCELLED_NAME).unlink(missing_ok=True)
