"""Looks at runs again and again, without asking more of the disk and the cluster than a person can notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from launch.look_find import Found
from launch.look_jobs import Jobs, ask
from launch.look_run import Look, look_at

LOOK_SECONDS = 2.0
ASK_SECONDS = 20.0  # a controller serves everybody


class Poll:
    """The looks at some runs, as old as `LOOK_SECONDS` at most; SLURM's answer is as old as `ASK_SECONDS` at most."""

    def __init__(self, runs: Sequence[Found], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs = runs
        self._clock = clock
        self._jobs = Jobs()
        self._looks: list[Look] = []
        self._next_look = self._next_ask = clock()

    @property
    def fault(self) -> str:
        """Why SLURM could not be asked; "" where it could, or need not be."""
        return self._jobs.fault

    def looks(self) -> list[Look]:
        """What the runs are doing, in their order. An end is told only after SLURM was asked anew."""
        now = self._clock()
        if now < self._next_look:
            return self._looks
        if now >= self._next_ask:
            self._ask(now)
        before, self._looks = self._looks, [look_at(run, self._jobs) for run in self._runs]
        if before and [look.is_live for look in before] != [look.is_live for look in self._looks]:
            self._ask(now)
            self._looks = [look_at(run, self._jobs) for run in self._runs]
        self._next_look = now + LOOK_SECONDS
        return self._looks

    def _ask(self, now: float) -> None:
        self._jobs = ask(run.folder for run in self._runs)
        self._next_ask = now + ASK_SECONDS
