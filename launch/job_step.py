"""One srun over the nodes of a job: started, told to stop, waited for; and what its end means.

A stop signal of the batch process goes to the ranks as SIGUSR1 through srun, again and again until they end: srun drops
signals that come before its tasks run, so the first waits until every node has said that its ranks were started.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipeline import disk
from launch.node import ENDED, report_path
from launch.rank_watch import tell
from launch.signals import wait_for
from trainer.resilience import DONE, FAILED, REFUSED, STOPPED, ExitRecord

WHO = "dure job"
TELL_AGAIN_SECONDS = 5.0
LOOK_SECONDS = 1.0
LOOK_WHEN_RUNNING_SECONDS = 5.0
HANG_PREFIX = "hang: "  # as trainer.hang writes it
# A stop goes to an srun that has run for so long even where a node's report never came.
TELL_ANYWAY_SECONDS = 120.0
# How long a shared file system may take to show what a node on the other side said last.
LATE_SECONDS = 60.0
TIME_LIMIT = "time limit"

Kind = Literal["done", "stopped", "refused", "hang", "rank died", "node lost", "failed"]


@dataclass(frozen=True)
class StepResult:
    """How srun ended, what each node reported ({} where one did not), and the signal that asked for a stop, if any."""

    code: int
    reports: tuple[dict[str, Any], ...]
    stop: str = ""


@dataclass(frozen=True)
class Ending:
    """What the end of a step means for the run; `code` is the exit code that it gives the job."""

    kind: Kind
    code: int
    reason: str


def run_step(
    command: Sequence[str],
    *,
    held: set[signal.Signals],
    reports: Path,
    hosts: Sequence[str],
    grace_seconds: float,
    timeout_seconds: float = float("inf"),
    why_stop: Callable[[], str] = str,
) -> StepResult:
    """Run srun's `command` to its end, passing stop signals on; a node that fails ends the others after the grace.

    Args:
        why_stop: asked all the while; anything but "" stops the ranks as a signal does.
    """
    reports.mkdir(parents=True, exist_ok=True)
    force_at = time.monotonic() + timeout_seconds
    with _Srun(command, reports, hosts, grace_seconds=grace_seconds, force_at=force_at) as srun:
        while srun.process.poll() is None:
            if (received := wait_for(held, seconds=0.5)) is not None:
                srun.ask_to_stop(received.name)
            elif not srun.stop and (reason := why_stop()):
                tell(reason, who=WHO)
                srun.ask_to_stop(TIME_LIMIT)
            srun.look()
        return StepResult(code=srun.process.returncode, reports=tuple(srun.last_reports()), stop=srun.stop)


@dataclass
class _Srun:
    """The running srun."""

    command: Sequence[str]
    reports: Path
    hosts: Sequence[str]
    grace_seconds: float
    force_at: float
    stop: str = ""
    process: subprocess.Popen[bytes] = field(init=False)
    _next_look: float = 0.0
    _next_tell: float = 0.0
    _has_started: bool = False
    _has_failed: bool = False
    _begun: float = field(default_factory=time.monotonic)

    def __enter__(self) -> _Srun:
        # srun handles signals itself and needs them, and SIGCHLD, as a shell gives them.
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=let_signals_in,  # noqa: PLW1509  (no thread is there: launch.job imports none that starts one)
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def ask_to_stop(self, name: str) -> None:
        """Remember that the ranks are to save and end."""
        if not self.stop:
            self.stop = name
            tell(f"{name}: the ranks are told to stop after their step, with a checkpoint", who=WHO)

    def look(self) -> None:
        """Pass a stop on where the nodes can have it, and end by force what outlives a failed node."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + (LOOK_WHEN_RUNNING_SECONDS if self._has_started else LOOK_SECONDS)
            found = self.read_reports()
            self._has_started = all(found)
            if not self._has_failed and any(report.get("failure") for report in found):
                self._has_failed = True
                self.force_at = now + self.grace_seconds
        may_hear = self._has_started or now - self._begun > TELL_ANYWAY_SECONDS
        if self.stop and may_hear and now >= self._next_tell:
            self._next_tell = now + TELL_AGAIN_SECONDS
            self.process.send_signal(signal.SIGUSR1)
        if now >= self.force_at:
            self.force_at = now + self.grace_seconds
            self.process.send_signal(signal.SIGTERM)  # to srun that is: end all tasks, by force

    def last_reports(self) -> list[dict[str, Any]]:
        """What each node has said once srun ended; one that is not seen to have ended is waited for.

        Not where srun says that all is well, nor where no node said anything: then nothing was started.
        """
        deadline = time.monotonic() + LATE_SECONDS
        while any(found := self.read_reports()) and self.process.returncode and time.monotonic() < deadline:
            if all(report.get("state") == ENDED for report in found):
                break
            time.sleep(LOOK_SECONDS)
        return found

    def read_reports(self) -> list[dict[str, Any]]:
        """What each node has said, {} for one that has said nothing."""
        with contextlib.suppress(OSError):
            list(self.reports.iterdir())  # else a network file system may go on remembering which were missing
        return [disk.read_object(report_path(self.reports, index)) for index in range(len(self.hosts))]


def let_signals_in() -> None:
    """For a child: signals as a shell gives them."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def conclude(result: StepResult, record: ExitRecord | None, *, hosts: Sequence[str]) -> Ending:
    """What the end of a step means; `record` is the exit record that this step wrote, if any (laws 12 and 14)."""
    if record is not None and record.code == STOPPED:
        return Ending("stopped", STOPPED, record.reason)
    failures = [report["failure"] for report in result.reports if report.get("failure")]
    codes = [report.get("failed_code") for report in result.reports]
    if record is not None and record.reason.startswith(HANG_PREFIX):
        return Ending("hang", FAILED, record.reason.removeprefix(HANG_PREFIX))
    if REFUSED in codes or (record is not None and record.code == REFUSED):
        return Ending("refused", REFUSED, "the run was refused; the message is above")
    is_done = record is not None and record.code == DONE
    if any(map(_may_have_died, result.reports)) and not is_done:
        return Ending("rank died", FAILED, "; ".join(failures))
    if result.stop and not any(result.reports):
        return Ending("stopped", STOPPED, f"{result.stop}, before the ranks were started; nothing was begun")
    silent = [
        host
        for host, report in zip(hosts, result.reports, strict=True)
        if not report or (report["state"] != ENDED and result.code)
    ]
    if silent:
        return Ending("node lost", FAILED, f"{', '.join(silent)}: the node's launcher was lost (노드 유실)")
    if record is not None and record.code == DONE and result.code == 0:
        return Ending("done", DONE, record.reason)
    said = [*failures, *([record.reason] if record is not None else [])]
    return Ending("failed", FAILED, "; ".join(said) or f"srun ended with exit code {result.code}")


def _may_have_died(report: dict[str, Any]) -> bool:
    """Whether a rank of the node was killed. An agent (torchrun, accelerate) ends with 1 whatever ended its rank."""
    code = report.get("failed_code")
    return code is not None and (code < 0 or report.get("launcher", "dure") != "dure")
