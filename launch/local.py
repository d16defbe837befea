"""Starts the ranks of this machine, forwards signals to them, and turns their exit record into an exit code.

Laws 12 and 14. Signals are never handled here, only waited for: blocked from `hold_signals` on, inherited blocked by
the ranks until they are ready (`trainer.stop_flag`), so that none is lost or fatal at any moment. The ranks of a
cluster's node are started by `launch.node`, with the same parts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.rank_watch import PASSED_ON, RankWatch, describe_failure, exit_code, tell
from launch.requeue import CANCELLED_NAME
from trainer.launch_environment import DEVICE_VARIABLE
from trainer.resilience import DONE, FAILED, STOPPED
from trainer.stop_flag import LAUNCHER_PID

Device = Literal["cpu", "gpu"]

LOOPBACK = "127.0.0.1"
GRACE_SECONDS = 30.0


def hold_signals() -> set[signal.Signals]:
    """From here on stop signals wait until the ranks can have them; call it before anything that takes time.

    They are the caller's again when `start_ranks` is done. Returns what is held: all but those that the caller's
    parent ignores (nohup ignores SIGHUP).
    """
    held = {number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, {*held, signal.SIGCHLD})
    return held


def start_ranks(
    command: Sequence[str],
    *,
    num_ranks: int,
    device: Device,
    run_folder: Path,
    env: Mapping[str, str] = os.environ,
    grace_seconds: float = GRACE_SECONDS,
) -> int:
    """Run `command` once a rank and wait for all; returns the exit code of the whole.

    0: every rank is done. 85: they were stopped by a signal, with everything saved, as the exit record of this start
    says. Else some rank failed: it is named, and the others are ended, by force after `grace_seconds`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    held = hold_signals()
    try:
        if pending := signal.sigpending() & held:
            tell(f"{min(pending).name}: stopped before the ranks were started; nothing was begun")
            return STOPPED
        (run_folder / CANCELLED_NAME).unlink(missing_ok=True)
        with reserved_port() as port:
            ranks = environments(num_ranks, device=device, port=port, env=env)
            code = _run(command, ranks, held=held, run_folder=run_folder, grace_seconds=grace_seconds)
        if code == DONE:  # else the caller ends too, and a signal that comes twice must not change its exit code
            before -= {*held, signal.SIGCHLD}
        return code
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(
    command: Sequence[str],
    rank_environments: Sequence[Mapping[str, str]],
    *,
    held: set[signal.Signals],
    run_folder: Path,
    grace_seconds: float,
) -> int:
    from trainer.run_folder import read_exit  # brings NumPy: its threads must find the signals blocked

    record_before = read_exit(run_folder)
    watch = RankWatch(command, rank_environments, run_folder=run_folder)
    try:
        failed = watch.wait(held, grace_seconds=grace_seconds)
    finally:
        watch.kill_rest()
    if failed is not None:
        if how := describe_failure(failed, num_ranks=len(watch.ranks)):
            advice = "The last complete checkpoint stands: the same command goes on from it"
            tell(f"{how}; the others were stopped. {advice}")
        return exit_code(failed)
    record = read_exit(run_folder)
    is_new = record is not None and record != record_before
    return _conclude(watch, record.code if record is not None and is_new else None, run_folder=run_folder)


@dataclass(frozen=True)
class Place:
    """Where the ranks of a machine stand among those of a run over several, and where rank 0 is met."""

    first_rank: int
    world_size: int
    master: str


def environments(
    num_ranks: int, *, device: Device, port: int, env: Mapping[str, str], place: Place | None = None
) -> list[dict[str, str]]:
    """The variables of each rank of this machine, as torch.distributed and accelerate read them.

    Without a `place` these are all ranks of the run.
    """
    place = place or Place(first_rank=0, world_size=num_ranks, master=LOOPBACK)
    shared = dict(env)
    shared |= {
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": place.master,
        "MASTER_PORT": str(port),
        LAUNCHER_PID: str(os.getpid()),
        DEVICE_VARIABLE: device,  # else ranks on a node whose driver is broken would train on its CPU
    }
    shared.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_ranks)))
    if place.master == LOOPBACK:
        # Else gloo takes the interface of the host's name, which may be a VPN or resolve to nothing.
        shared.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if device == "cpu":
        shared["CUDA_VISIBLE_DEVICES"] = ""
    return [{**shared, "RANK": str(place.first_rank + local), "LOCAL_RANK": str(local)} for local in range(num_ranks)]


@contextlib.contextmanager
def reserved_port(address: str = LOOPBACK) -> Iterator[int]:
    """A port of `address` ("": of all) that nobody else is given during the block, though rank 0 can listen on it.

    Bound but not listening, with SO_REUSEADDR: the kernel hands it to no one who asks for any port, and lets a second
    socket with SO_REUSEADDR (torch's store sets it) bind and listen.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((address, 0))
        yield reserved.getsockname()[1]


def _conclude(watch: RankWatch, recorded: int | None, *, run_folder: Path) -> int:
    """The exit code when no rank failed: 85 only where this start's exit record says so too."""
    if recorded == STOPPED:
        return STOPPED
    if recorded in (None, DONE) and all(rank.code == DONE for rank in watch.ranks):
        return DONE
    codes = ", ".join(str(rank.code) for rank in watch.ranks)
    says = "is missing" if recorded is None else f"says {recorded}"
    tell(f"{run_folder}: the ranks ended with {codes}, but this start's exit.json {says}; taken as failed")
    return FAILED
