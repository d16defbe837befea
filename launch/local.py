"""Starts the ranks of this machine, forwards signals to them, and turns their exit record into an exit code.

Laws 12 and 14. No agent stands between: a signal goes to every rank's process, and no rank outlives the launcher.
Signals are never handled here, only waited for: blocked from `hold_signals` on, inherited blocked by the ranks until
they are ready (`trainer.stop_flag`), so that none is lost or fatal at any moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from trainer.resilience import DONE, FAILED, REFUSED, STOPPED
from trainer.run_folder import read_exit
from trainer.stop_flag import EXIT_INTERRUPTED, LAUNCHER_PID

Device = Literal["cpu", "gpu"]

# What is passed on to the ranks, and as what. A terminal that is closed (SIGHUP) stops the run like SIGTERM.
_PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
}
GRACE_SECONDS = 30.0


def hold_signals() -> set[signal.Signals]:
    """From here on stop signals wait until the ranks can have them; call it before anything that takes time.

    They are the caller's again when `start_ranks` is done. Returns what is held: all but those that the caller's
    parent ignores (nohup ignores SIGHUP).
    """
    held = {number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
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
            _tell(f"{min(pending).name}: stopped before the ranks were started; nothing was begun")
            return STOPPED
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
    record_before = read_exit(run_folder)
    watch = _Watch(command, rank_environments)
    try:
        code = watch.wait(held, grace_seconds=grace_seconds)
    finally:
        watch.kill_rest()
    if code != DONE:
        return code
    record = read_exit(run_folder)
    is_new = record is not None and record != record_before
    return _conclude(watch, record.code if record is not None and is_new else None, run_folder=run_folder)


def environments(num_ranks: int, *, device: Device, port: int, env: Mapping[str, str]) -> list[dict[str, str]]:
    """The variables of each rank, as torch.distributed and accelerate read them."""
    shared = dict(env)
    shared |= {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER_PID: str(os.getpid()),
    }
    shared.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // num_ranks)))
    # Else gloo takes the interface of the host's name, which may be a VPN or resolve to nothing.
    shared.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if device == "cpu":
        shared["CUDA_VISIBLE_DEVICES"] = ""
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port of this machine that nobody else is given during the block, though rank 0 can listen on it.

    Bound but not listening, with SO_REUSEADDR: the kernel hands it to no one who asks for any port, and lets a second
    socket with SO_REUSEADDR (torch's store sets it) bind and listen.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Signal the rank, or its whole process group; nothing where it has been reaped."""
        if self.code is None or group:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.process.pid, number)


class _Watch:
    """The started ranks: passes signals on, ends all when one fails."""

    def __init__(self, command: Sequence[str], rank_environments: Sequence[Mapping[str, str]]) -> None:
        self.ranks: list[_Rank] = []
        self._readers: list[threading.Thread] = []
        try:
            for number, environment in enumerate(rank_environments):
                self._start(number, command, environment)
        except BaseException:
            self.kill_rest()
            raise

    def _start(self, number: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        # A process group of its own: Ctrl-C reaches the ranks from here only, once.
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if number == 0 else subprocess.DEVNULL,
            stderr=None if number == 0 else subprocess.PIPE,
            process_group=0,
        )
        self.ranks.append(_Rank(number, process))
        if process.stderr is not None:
            reader = threading.Thread(target=_pass_on_lines, args=(process.stderr, number), daemon=True)
            reader.start()
            self._readers.append(reader)

    def wait(self, held: set[signal.Signals], *, grace_seconds: float) -> int:
        """0 once all ranks ended well (0 or 85), else the code that the first failure gives."""
        failed: _Rank | None = None
        deadline = float("inf")
        while any(rank.code is None for rank in self.ranks):
            received = signal.sigtimedwait({*held, signal.SIGCHLD}, 0.2)
            if received is not None and received.si_signo != signal.SIGCHLD:
                self._send_all(_PASSED_ON[signal.Signals(received.si_signo)])
            if failed is None and (failed := self._first_failed()) is not None:
                deadline = time.monotonic() + (0 if failed.code == EXIT_INTERRUPTED else grace_seconds)
                self._send_all(signal.SIGTERM)
            if time.monotonic() > deadline:
                self.kill_rest()
        for reader in self._readers:
            reader.join(timeout=5)
        failed = failed or self._first_failed()
        return DONE if failed is None else self._failure(failed)

    def _first_failed(self) -> _Rank | None:
        return next((rank for rank in self.ranks if rank.code not in (None, DONE, STOPPED)), None)

    def _send_all(self, number: signal.Signals) -> None:
        for rank in self.ranks:
            rank.send(number)

    def _failure(self, failed: _Rank) -> int:
        code = failed.code
        assert code is not None
        if code in (EXIT_INTERRUPTED, REFUSED):  # the rank has said why
            return code
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        hint = "; was it out of memory (메모리 부족)? see dmesg" if code == -signal.SIGKILL else ""
        _tell(
            f"rank {failed.number} of {len(self.ranks)} (pid {failed.process.pid}) {how}{hint}; the others were "
            "stopped. The last complete checkpoint stands: the same command goes on from it"
        )
        return 128 - code if code < 0 else code

    def kill_rest(self) -> None:
        """End what still runs, with what it started, and reap it."""
        for rank in self.ranks:
            rank.send(signal.SIGKILL, group=True)
        for rank in self.ranks:
            rank.process.wait()


def _conclude(watch: _Watch, recorded: int | None, *, run_folder: Path) -> int:
    """The exit code when no rank failed: 85 only where this start's exit record says so too."""
    if recorded == STOPPED:
        return STOPPED
    if recorded in (None, DONE) and all(rank.code == DONE for rank in watch.ranks):
        return DONE
    codes = ", ".join(str(rank.code) for rank in watch.ranks)
    says = "is missing" if recorded is None else f"says {recorded}"
    _tell(f"{run_folder}: the ranks ended with {codes}, but this start's exit.json {says}; taken as failed")
    return FAILED


def _pass_on_lines(stream: IO[bytes], number: int) -> None:
    """Print a rank's lines under its name until it ends."""
    with stream:
        for line in stream:
            with contextlib.suppress(OSError):  # our own reader is gone; the rank must not feel it
                os.write(2, f"[rank {number}] ".encode() + line.rstrip(b"\n") + b"\n")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"dure train: {text}", file=sys.stderr, flush=True)
