"""How long a job has until its time limit, and whether that still does for a step and a save.

sbatch's own signal comes at a time that was fixed at submit, before a new run had measured any save.
"""

from __future__ import annotations

import time
from pathlib import Path

from launch.submission import measured_signal_seconds
from trainer.errors import RunError

LOOK_SECONDS = 30.0
ASK_SECONDS = 600.0
ASK_AGAIN_SECONDS = 60.0  # where SLURM gave no answer


class TimeWatch:
    """Says once it is so that too little is left. SLURM is asked every ten minutes, as a limit may be changed."""

    def __init__(self, job: str, run_folder: Path, *, limit_seconds: int) -> None:
        self._job, self._run_folder = job, run_folder
        # No more than a third of what the job was given, as at submit: a short job must come to do something.
        self._most_seconds = limit_seconds // 3
        self._end: float | None = None
        self._next_look = self._next_ask = 0.0

    def why_stop(self) -> str:
        """Why the ranks must save now; "" while there is time, or where it is not known."""
        now = time.monotonic()
        if now < self._next_look:
            return ""
        self._next_look = now + LOOK_SECONDS
        if now >= self._next_ask:
            self._ask()
        measured = measured_signal_seconds(self._run_folder)
        if measured is None or self._end is None:
            return ""
        needed, left = min(measured, self._most_seconds), self._end - time.monotonic()
        if left >= needed:
            self._next_look = min(self._next_look, now + left - needed)
            return ""
        return f"{max(0.0, left):.0f} s of the time limit are left, a step and a save want {needed} s"

    def _ask(self) -> None:
        from launch.slurm import job_states

        try:
            state = job_states([self._job]).get(self._job)
        except RunError:
            self._next_ask = time.monotonic() + ASK_AGAIN_SECONDS
            return
        left = None if state is None else state.time_left
        self._end = None if left is None else time.monotonic() + left
        self._next_ask = time.monotonic() + ASK_SECONDS
