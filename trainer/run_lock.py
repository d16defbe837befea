"""One process at a time works in a run folder: the file `lock` says who, and beats while that process lives.

Made for shared file systems: no lock call of the kernel is needed, only that link and rename are atomic. Knows nothing
of what is in the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import RunError

LOCK_NAME = "lock"


@dataclass(frozen=True)
class LockTiming:
    """A holder beats every `beat_seconds`; one that can't be asked and misses beats for `timeout_seconds` is dead."""

    beat_seconds: float = 10.0
    timeout_seconds: float = 120.0


@dataclass(frozen=True)
class Holder:
    """Who holds a folder. `machine` tells process numbers apart: boot id and pid namespace, "" where unknown."""

    host: str
    pid: int
    start_time: int
    job: str
    restart: int
    machine: str
    token: str
    heartbeat: float

    @classmethod
    def this_process(cls) -> Holder:
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            start_time=process_start_time(os.getpid()) or 0,
            job=os.environ.get("SLURM_JOB_ID", ""),
            restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            machine=_machine(),
            token=secrets.token_hex(8),
            heartbeat=time.time(),
        )

    def encode(self, heartbeat: float) -> bytes:
        """The file's content; of one length at any heartbeat, so that a beat overwrites the last one in place."""
        tree = {**asdict(self), "heartbeat": round(heartbeat, 2)}
        return (json.dumps(tree, indent=1).ljust(1023) + "\n").encode()


def process_start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since the boot; None if there is none, or only its zombie."""
    try:
        # Field 2 is the program's name in brackets and may hold anything; the state is field 3, the time field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class RunLock:
    """The lock of one folder, held by this process from `acquire` to `release`."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str = LOCK_NAME,
        timing: LockTiming | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.path = folder / name
        self._timing = timing or LockTiming()
        self._on_lost = on_lost or _end_process
        self._ours = Holder.this_process()
        self._descriptor = -1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Hold the folder, taking it over from a dead holder.

        Raises:
            RunError: another process holds it, or wins the take-over.
        """
        partial = self.path.with_name(f"{self.path.name}.{self._ours.token}")
        self._descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(self._descriptor, self._ours.encode(time.time()))
            os.fsync(self._descriptor)
            while not self._try_to_take(partial):
                pass
        except BaseException:
            os.close(self._descriptor)
            raise
        finally:
            partial.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._beat_until_released, name="run-lock", daemon=True)
        self._thread.start()

    def _try_to_take(self, partial: Path) -> bool:
        """Put `partial` in the lock's place if it is free or its holder dead; False where it must be looked at anew."""
        with contextlib.suppress(FileExistsError):
            os.link(partial, self.path)
        if self.is_held():  # asked of the disk: over NFS a link may succeed and still report that the file exists
            return True
        holder = _read(self.path)
        if holder is None:
            return False
        is_alive = self._is_alive(holder)
        if (now := _read(self.path)) is None or now.token != holder.token:
            return False
        if is_alive:
            raise RunError(_refusal(self.path, now))
        # Only who holds the claim on this very holder may replace it; who comes second finds another holder here.
        claim = RunLock(self.path.parent, name=f"{LOCK_NAME}.claim-{holder.token}", timing=self._timing)
        claim.acquire()
        try:
            if (now := _read(self.path)) is None or now.token != holder.token:
                return False
            partial.replace(self.path)
            return True
        finally:
            claim.release()

    def _is_alive(self, holder: Holder) -> bool:
        """Whether the holder lives: asked of the kernel where it can know, else of the next beat."""
        if holder.machine and (holder.host, holder.machine) == (self._ours.host, self._ours.machine):
            return process_start_time(holder.pid) == holder.start_time
        if holder.job and holder.job == self._ours.job and holder.restart < self._ours.restart:
            return False  # SLURM started this job again, so it ended the earlier one
        return self._beats(holder)

    def _beats(self, holder: Holder) -> bool:
        """Watch the file until it changes (alive), or until it has been still for the timeout (dead)."""
        still_seconds = max(0.0, time.time() - holder.heartbeat)
        # Clocks of two hosts may differ, so some beats are waited for whatever the age says.
        wait_seconds = max(self._timing.timeout_seconds - still_seconds, 3 * self._timing.beat_seconds)
        deadline = time.monotonic() + wait_seconds
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._timing.beat_seconds))
            now = _read(self.path)
            if now is None or now.heartbeat != holder.heartbeat:
                return True
        return False

    def _beat_until_released(self) -> None:
        while not self._stop.wait(self._timing.beat_seconds):
            with contextlib.suppress(OSError):  # a disk that is full or away for a while; the next beat tells
                os.pwrite(self._descriptor, self._ours.encode(time.time()), 0)
                os.fsync(self._descriptor)
            if not self.is_held():
                if not self._stop.is_set():
                    self._on_lost(_loss(self.path))
                return

    def is_held(self) -> bool:
        """Whether the file is still the one that this process put there."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False
        except OSError:
            return True  # the file system is away; a beat after its return tells

    def release(self) -> None:
        """Give the folder back; does nothing where the lock was lost."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self.is_held():
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)


@contextlib.contextmanager
def held(folder: Path, *, timing: LockTiming | None = None) -> Iterator[RunLock]:
    """Hold the run folder for the length of the block."""
    lock = RunLock(folder, timing=timing)
    lock.acquire()
    try:
        yield lock
    finally:
        lock.release()


def holder_of(folder: Path) -> Holder | None:
    """Who holds the run folder, dead or alive; None if nobody does."""
    try:
        return _read(folder / LOCK_NAME)
    except RunError:
        return None


def is_here(holder: Holder) -> bool:
    """Whether a holder's process number is one of this machine's, so that it can be asked and signalled here."""
    return bool(holder.machine) and (holder.host, holder.machine) == (socket.gethostname(), _machine())


def seems_alive(holder: Holder, *, timing: LockTiming | None = None) -> bool:
    """Whether a holder lives, by one look: the kernel knows it of this machine, elsewhere the last beat's age tells."""
    if is_here(holder):
        return process_start_time(holder.pid) == holder.start_time
    return time.time() - holder.heartbeat < (timing or LockTiming()).timeout_seconds


def _read(path: Path) -> Holder | None:
    """Who holds the lock; None if nobody does.

    Raises:
        RunError: the file holds something else, and not only for the moment in which a beat overwrites it.
    """
    for _ in range(20):
        try:
            return Holder(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            time.sleep(0.05)
    raise RunError(f"{path}: not a lock that this program wrote; if no process works in the folder, delete it")


def _refusal(path: Path, holder: Holder) -> str:
    job = f", job {holder.job}" if holder.job else ""
    age = max(0.0, time.time() - holder.heartbeat)
    return (
        f"{path}: another process works in this run folder: pid {holder.pid} on {holder.host}{job}, heartbeat "
        f"{age:.0f} s ago; wait for it, stop it (kill {holder.pid} there), or give this run another run.name"
    )


def _loss(path: Path) -> str:
    holder = _read(path)
    who = f"pid {holder.pid} on {holder.host} holds it now" if holder else "the file is gone"
    return f"{path}: this process ({os.getpid()}) lost its hold of the run folder: {who}; it ends without saving"


def _end_process(message: str) -> None:
    # Saving now would write into a folder that another process works in.
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"error: {message}\n".encode())
    os._exit(1)
