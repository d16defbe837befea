"""The ranks of one machine: started, logged, signalled, waited for; all are ended when one fails.

No agent stands between: a signal goes to every rank's process, and no rank outlives this one. What stands on disk, and
what the ends of the ranks mean for a run, is not known here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.rank_log import RankLog, Tee, header, log_path
from launch.signals import wait_for
from trainer.resilience import DONE, REFUSED, STOPPED
from trainer.stop_flag import EXIT_INTERRUPTED

# What is passed on to the ranks, and as what. A terminal that is closed (SIGHUP) stops the run like SIGTERM.
PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
}


@dataclass
class Rank:
    """A started rank; `number` counts over all machines of the run, `name` is what a failure calls it."""

    number: int
    process: subprocess.Popen[bytes]
    tees: list[Tee]
    name: str

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Signal the rank, or its whole process group; nothing where it has been reaped."""
        if self.code is None or group:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.process.pid, number)


class RankWatch:
    """The started ranks, one an environment of `rank_environments` (RANK says which)."""

    def __init__(
        self, command: Sequence[str], rank_environments: Sequence[Mapping[str, str]], *, run_folder: Path
    ) -> None:
        self.ranks: list[Rank] = []
        headline = header(run_folder)
        try:
            for environment in rank_environments:
                number = int(environment["RANK"])
                log = RankLog(log_path(run_folder, number), headline=headline)
                self.ranks.append(_start(number, command, environment, log=log))
        except BaseException:
            self.kill_rest()
            raise

    def wait(self, held: set[signal.Signals], *, grace_seconds: float) -> Rank | None:
        """Return once all ranks ended; the first that failed, None where all ended well (0 or 85)."""
        failed: Rank | None = None
        deadline = float("inf")
        while any(rank.code is None for rank in self.ranks):
            if (received := wait_for(held, seconds=0.2)) is not None:
                self.send_all(PASSED_ON[received])
            if failed is None and (failed := self._first_failed()) is not None:
                deadline = time.monotonic() + (0 if failed.code == EXIT_INTERRUPTED else grace_seconds)
                self.send_all(signal.SIGTERM)
            if time.monotonic() > deadline:
                self.kill_rest()
        for tee in (tee for rank in self.ranks for tee in rank.tees):
            tee.join()
        return failed or self._first_failed()

    def _first_failed(self) -> Rank | None:
        return next((rank for rank in self.ranks if rank.code not in (None, DONE, STOPPED)), None)

    def send_all(self, number: signal.Signals) -> None:
        """Signal every rank that still runs."""
        for rank in self.ranks:
            rank.send(number)

    def kill_rest(self) -> None:
        """End what still runs, with what it started, and reap it."""
        for rank in self.ranks:
            rank.send(signal.SIGKILL, group=True)
        for rank in self.ranks:
            rank.process.wait()


def _start(number: int, command: Sequence[str], environment: Mapping[str, str], *, log: RankLog) -> Rank:
    """Start a rank: the first one speaks on the console, of the others only the warnings show, under their name."""
    if number == 0:
        outputs = [Tee(log, console=1), Tee(log, console=2)]
    else:
        outputs = [Tee(log, console=None), Tee(log, console=2, prefix=f"[rank {number}] ".encode())]
    # A process group of its own: Ctrl-C reaches the ranks from here only, once.
    process = subprocess.Popen(
        command,
        env={"PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=outputs[0].theirs,
        stderr=outputs[1].theirs,
        process_group=0,
    )
    for tee in outputs:
        tee.start()
    return Rank(number, process, outputs, name=f"rank {number}")


def describe_failure(failed: Rank, *, num_ranks: int, host: str = "") -> str:
    """How a rank ended, in words; "" where it has said so itself."""
    code = failed.code
    assert code is not None
    if code in (EXIT_INTERRUPTED, REFUSED):
        return ""
    how = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
    hint = "; was it out of memory (메모리 부족)? see dmesg" if code == -signal.SIGKILL else ""
    where = f" on {host}" if host else ""
    return f"{failed.name} of {num_ranks} (pid {failed.process.pid}{where}) {how}{hint}"


def exit_code(failed: Rank) -> int:
    """The exit code that a failed rank gives the whole; a signal as shells say it."""
    assert failed.code is not None
    return 128 - failed.code if failed.code < 0 else failed.code


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def tell(text: str, *, who: str = "dure train") -> None:
    """A line of the launcher's own on stderr, where somebody still reads it."""
    with contextlib.suppress(OSError):
        print(f"{who}: {text}", file=sys.stderr, flush=True)
