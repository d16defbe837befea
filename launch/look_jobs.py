"""What SLURM says of the jobs of runs: asked once for all of them, and nothing where no run has a job."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch import slurm
from launch.look_lines import last_objects
from launch.slurm import JobState
from launch.submission import JOBS_NAME
from trainer.errors import RunError
from trainer.run_folder import ATTEMPTS_NAME
from trainer.run_lock import holder_of

_JOB = re.compile(r"\d+(_\d+)?")
_ASKED_A_RUN = 16  # of a run that was submitted more often, the latest


@dataclass
class Jobs:
    """The states of jobs by id; `fault` says why SLURM could not be asked, "" where it was."""

    states: Mapping[str, JobState] = field(default_factory=dict)
    fault: str = ""
    _ended: dict[str, str] = field(default_factory=dict)

    def ended(self, job: str) -> str:
        """How a job ended ("FAILED"); "" where nothing knows."""
        if (state := self.states.get(job)) is not None:
            return state.state if state.is_over else ""
        if job not in self._ended and not self.fault:
            how = ""
            with contextlib.suppress(RunError):
                how = slurm.ended_states([job]).get(job, "")
            self._ended[job] = how if how in slurm.OVER else ""
        return self._ended.get(job, "")


def jobs_of(folder: Path) -> list[str]:
    """The jobs that a run was given to, oldest first: those submitted, that of its last start, and of its holder."""
    return list(dict.fromkeys([*_submitted(folder), *_seen(folder)]))


def _submitted(folder: Path) -> list[str]:
    return _names(line.get("job") for line in last_objects(folder / JOBS_NAME, _ASKED_A_RUN))


def _seen(folder: Path) -> list[str]:
    """Jobs in which the run was found; a job that was submitted by hand, or a session in which a person called us."""
    holder = holder_of(folder)
    started = [line.get("job") for line in last_objects(folder / ATTEMPTS_NAME, 1)]
    return _names([*started, holder.job if holder is not None else ""])


def _names(jobs: Iterable[object]) -> list[str]:
    return [str(job) for job in jobs if _JOB.fullmatch(str(job))]


def ask(folders: Iterable[Path]) -> Jobs:
    """One call of squeue for the jobs of all `folders`; a second one where a run was found in a job not noted.

    A person's session is none of a run's jobs: it lives on when the run has ended.
    """
    submitted, seen = set(), set()
    for folder in folders:
        submitted.update(_submitted(folder))
        seen.update(_seen(folder))
    if not submitted | seen:
        return Jobs()
    try:
        states = slurm.job_states(sorted(submitted | seen))
        by_hand = [job for job in sorted(seen - submitted) if job in states and not states[job].is_over]
        sessions = set(by_hand) - slurm.batch_jobs(by_hand)
    except RunError as error:
        return Jobs(fault=str(error))
    return Jobs({job: state for job, state in states.items() if job not in sessions})
