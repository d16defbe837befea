"""Kills ranks at every operation of a save, and says what is left.

Ranks are forked after the imports, so that a kill point costs a tenth of a second. What is saved is a `Subject`: a few
small tensors here, a whole run where the engine is under test.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from data_pipeline import disk
from trainer.ranks import Ranks

Work = Callable[[Ranks], None]


class Subject(Protocol):
    """Something whose save is killed. Every rank calls `save` and `load`; made before the fork, used after it."""

    num_ranks: int

    def save(self, checkpoints: Path, *, step: int, ranks: Ranks) -> None:
        """Save the state of `step`, as a run does that came this far."""

    def check(self, folder: Path, *, step: int, ranks: Ranks) -> None:
        """Load a verified checkpoint, and raise AssertionError where it is not the state of `step`."""


@dataclass(frozen=True)
class KillPoint:
    """The `number`-th moment (before or after an operation) of a rank's save."""

    rank: int
    number: int


def lone_rank() -> Ranks:
    return Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def run_ranks(work: Work, *, num_ranks: int, scratch: Path, timeout_seconds: float = 300.0) -> list[int]:
    """Run `work` on forked ranks that share a gloo group; each rank's exit code, negative for a signal.

    Once a rank has died, the others have a few seconds to notice; who waits on after that is killed too.
    """
    store = scratch / f"store-{time.monotonic_ns()}"
    pids = [_fork(work, rank=rank, num_ranks=num_ranks, store=store) for rank in range(num_ranks)]
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout_seconds
    while len(codes) < num_ranks:
        for rank in set(range(num_ranks)) - set(codes):
            pid, status = os.waitpid(pids[rank], os.WNOHANG)
            if pid:
                codes[rank] = os.waitstatus_to_exitcode(status)
                if codes[rank] != 0:
                    deadline = min(deadline, time.monotonic() + 10)
        if time.monotonic() > deadline:
            for rank in set(range(num_ranks)) - set(codes):
                os.kill(pids[rank], signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.002)
    return [codes[rank] for rank in range(num_ranks)]


def _fork(work: Work, *, rank: int, num_ranks: int, store: Path) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        _forget_accelerators()
        _join(rank=rank, num_ranks=num_ranks, store=store)
        work(Ranks(rank=rank, world_size=num_ranks, local_rank=rank, device=torch.device("cpu")))
        code = 0
    except BaseException:
        _told(store.parent, rank).write_text(traceback.format_exc())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _forget_accelerators() -> None:
    """What accelerate keeps of a process: a Trainer of an earlier test would decide how many ranks there are here."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()


def _told(scratch: Path, rank: int) -> Path:
    """Where a rank that raised leaves why."""
    return scratch / f"traceback-{rank}.txt"


def _join(*, rank: int, num_ranks: int, store: Path) -> None:
    if num_ranks == 1:
        return
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(store), num_ranks),
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=120),  # of a machine that others load
    )


def count_moments(subject: Subject, checkpoints: Path, *, step: int, scratch: Path) -> list[int]:
    """How many moments each rank's save of `step` has; the save goes through."""

    def work(ranks: Ranks) -> None:
        moments = []
        disk.set_probe(lambda operation, moment, path: moments.append(f"{moment} {operation} {path.name}"))
        subject.save(checkpoints, step=step, ranks=ranks)
        (scratch / f"moments-{ranks.rank}").write_text("\n".join(moments))

    codes = run_ranks(work, num_ranks=subject.num_ranks, scratch=scratch)
    told = "\n".join(_told(scratch, rank).read_text() for rank, code in enumerate(codes) if code == 1)
    assert codes == [0] * subject.num_ranks, f"the save fails without any fault: exit codes {codes}\n{told}"
    return [len((scratch / f"moments-{rank}").read_text().splitlines()) for rank in range(subject.num_ranks)]


def save_killed(subject: Subject, checkpoints: Path, *, step: int, point: KillPoint, scratch: Path) -> list[int]:
    """Save `step` with one rank killed (SIGKILL) at `point`; the ranks' exit codes."""

    def work(ranks: Ranks) -> None:
        if ranks.rank == point.rank:
            disk.set_probe(_kill_at(point.number))
        subject.save(checkpoints, step=step, ranks=ranks)

    return run_ranks(work, num_ranks=subject.num_ranks, scratch=scratch)


def _kill_at(number: int) -> disk.Probe:
    passed = iter(range(number))

    def probe(operation: disk.Operation, moment: disk.Moment, path: Path) -> None:
        if next(passed, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    return probe


def fail_at(number: int, error: OSError) -> disk.Probe:
    """A probe that raises `error` from the `number`-th moment on, as a disk that is full stays full."""
    passed = iter(range(number))

    def probe(operation: disk.Operation, moment: disk.Moment, path: Path) -> None:
        if operation == "write" and next(passed, None) is None:
            raise error

    return probe


def flipped_bytes(folder: Path) -> Iterator[tuple[Path, int]]:
    """For each file in `folder` its path and one position: the first, the middle and the last byte in turn."""
    for turn, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        size = path.stat().st_size
        yield path, (0, size // 2, size - 1)[turn % 3]


def flip(path: Path, position: int) -> None:
    """Change one bit of a file in place."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def check_on_ranks(subject: Subject, folder: Path, *, step: int, scratch: Path) -> None:
    """Every rank loads `folder` and finds the state of `step`."""

    def work(ranks: Ranks) -> None:
        subject.check(folder, step=step, ranks=ranks)

    codes: Any = run_ranks(work, num_ranks=subject.num_ranks, scratch=scratch)
    assert codes == [0] * subject.num_ranks, f"{folder} does not load as step {step}: exit codes {codes}"
