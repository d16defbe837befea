"""Ends what works on a run, wherever it does: tells it to save, and looks until nothing of it lives or waits.

A process of this machine gets SIGTERM, by its launcher; a job that runs gets SIGUSR1 by its batch script, one that
waits is taken out of the queue. What restarts by itself meanwhile (a requeue, an elastic agent) is ended too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from data_pipeline import disk
from launch import slurm
from launch.look_find import Found
from launch.look_jobs import Jobs, ask, jobs_of
from launch.look_processes import Launched, launched_of
from launch.look_words import duration
from launch.requeue import CANCELLED_NAME
from launch.slurm import JobState
from trainer.errors import RunError
from trainer.run_lock import Holder, holder_of, is_here, seems_alive

_TICK_SECONDS = 0.25
_ASK_SECONDS = 3.0
_TELL_AGAIN_SECONDS = 20.0  # a signal is lost on a job whose script has not begun
_REMIND_SECONDS = 30.0
_PATIENCE_SECONDS = 3600.0
_MAX_REFUSALS = 3
_NOT_BEGUN = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "SUSPENDED", "STOPPED"})


@dataclass
class Cancel:
    """One cancelling of one run. `tell` hears what is done and waited for; `now`: by force, without a save."""

    run: Found
    tell: Callable[[str], None]
    now: bool = False
    found_ranks: bool = field(default=False, init=False)
    """Whether ranks were at work, so that there was something to save."""
    _jobs: Jobs = field(default_factory=Jobs)
    _states: dict[str, JobState] = field(default_factory=dict)
    _next_ask: float = 0.0
    _next_tell: dict[object, float] = field(default_factory=dict)
    _num_refusals: int = 0
    _launched: dict[str, Launched] = field(default_factory=dict)

    def end(self) -> bool:
        """End all that works on the run; False where there was nothing.

        Raises:
            RunError: it can't be ended from here, or did not end.
        """
        if not self._living():
            return False
        # Keeps the job out of the queue (launch.requeue); the next start takes the mark away.
        disk.write_bytes(self.run.folder / CANCELLED_NAME, (json.dumps({"time": time.time()}) + "\n").encode())
        begun = time.monotonic()
        remind_at = begun + _REMIND_SECONDS
        while living := self._living():
            for what in living:
                self._stop(what)
            now = time.monotonic()
            if now > begun + _PATIENCE_SECONDS:
                raise RunError(
                    f"{self.run.folder}: {_named(living)} did not end in an hour; `dure cancel {self.run.name} "
                    "--now` ends it without a save"
                )
            if now > remind_at:
                remind_at = now + _REMIND_SECONDS
                self.tell(f"{_named(living)}: not ended after {duration(now - begun)} (Ctrl-C: it ends by itself)")
            time.sleep(_TICK_SECONDS)
        return True

    def _living(self) -> list[Holder | Launched | str]:
        """The jobs that SLURM has not ended, who holds the folder without one, and who would start that again."""
        if time.monotonic() >= self._next_ask:
            self._next_ask = time.monotonic() + _ASK_SECONDS
            self._states = self._ask()
        living: list[Holder | Launched | str] = list(self._states)
        holder = holder_of(self.run.folder)
        if holder is not None and self._lives(holder):
            self.found_ranks = True
            if holder.job not in self._states:
                return [*living, holder]
        return [*living, *(launched for launched in self._launched.values() if launched.may_start_again)]

    def _lives(self, holder: Holder) -> bool:
        """Whether it does; that a job is over is known before its ranks' heartbeats have grown old."""
        return seems_alive(holder) and not (holder.job and self._jobs.ended(holder.job))

    def _ask(self) -> dict[str, JobState]:
        """The jobs that are not over; as they were where SLURM is away for a while."""
        found = ask([self.run.folder])
        if not found.fault:
            self._jobs = found
            return {job: state for job, state in found.states.items() if not state.is_over and "_" not in job}
        holder = holder_of(self.run.folder)
        if self._next_tell or (holder is not None and not holder.job):
            return self._states
        raise RunError(f"{self.run.folder}: jobs {', '.join(jobs_of(self.run.folder))}: {found.fault}")

    def _stop(self, what: Holder | Launched | str) -> None:
        if isinstance(what, Launched):
            if self._is_due((what.pid, "agent")):
                what.end()
        elif isinstance(what, Holder):
            if what.token not in self._next_tell:
                self._next_tell[what.token] = 0.0
                self._stop_process(what)
        else:
            self._stop_job(what, self._states[what])

    def _is_due(self, occasion: object) -> bool:
        """Whether to tell (again), and remember that it was."""
        now = time.monotonic()
        if now < self._next_tell.get(occasion, 0.0):
            return False
        self._next_tell[occasion] = now + _TELL_AGAIN_SECONDS
        return True

    def _stop_job(self, job: str, state: JobState) -> None:
        is_plain = self.now or state.state in _NOT_BEGUN
        occasion = (job, state.restarts, is_plain)
        is_first = occasion not in self._next_tell
        if state.state == "COMPLETING" or not self._is_due(occasion):
            return
        try:
            slurm.cancel(job) if is_plain else slurm.cancel(job, "USR1", batch=True)
        except RunError:  # it may have ended in this moment: look anew
            self._num_refusals += 1
            if self._num_refusals >= _MAX_REFUSALS:
                raise
            self._next_ask, self._next_tell[occasion] = 0.0, time.monotonic() + _ASK_SECONDS
            return
        if is_first:
            where = f" on {state.nodes}" if state.nodes else ""
            how = "taken out of the queue" if not state.nodes else "ended" if is_plain else "told to save and end"
            self.tell(f"job {job} ({state.state}{where}): {how}")

    def _stop_process(self, holder: Holder) -> None:
        if not is_here(holder):
            job = f" in job {holder.job}" if holder.job else ""
            raise RunError(
                f"{self.run.folder}: pid {holder.pid} on {holder.host}{job} works in it, which can't be reached from "
                f"here; there, `dure cancel {self.run.name}` or `kill {holder.pid}` ends it with a save"
            )
        launched = launched_of(holder)
        if launched is None:  # it ended in this moment
            return
        self._launched[holder.token] = launched
        if self.now:
            launched.kill()
        else:
            launched.tell_to_stop()
        self.tell(f"{launched}: {'killed' if self.now else 'told to save and end'}")


def _named(living: Sequence[Holder | Launched | str]) -> str:
    names = [f"job {what}" if isinstance(what, str) else f"pid {what.pid}" for what in living]
    return ", ".join(names)
