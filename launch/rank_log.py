"""What a rank prints is kept in <run>/logs/rank-00000.log, attempt after attempt; some of it shows on the console too.

A log that can't be written is told once and given up: no rank ends for it.
"""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import sys
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path

LOGS_NAME = "logs"
_CHUNK_BYTES = 65536


def log_path(run_folder: Path, rank: int) -> Path:
    """Where the output of a rank is kept."""
    return run_folder / LOGS_NAME / f"rank-{rank:05d}.log"


def header(run_folder: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The line over what a start prints; told before its ranks begin."""
    from trainer.run_folder import ATTEMPTS_NAME

    attempts = run_folder / ATTEMPTS_NAME
    number = (attempts.read_bytes().count(b"\n") if attempts.exists() else 0) + 1
    job = environ.get("SLURM_JOB_ID", "none")
    now = time.strftime("%Y-%m-%d %H:%M:%S%z")
    return f"=== attempt {number} job {job} host {socket.gethostname()} {now}\n"


class RankLog:
    """The log of one rank, open for appending; `descriptor` is None where it can't be written."""

    def __init__(self, path: Path, *, headline: str) -> None:
        self.descriptor: int | None = None
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            size = os.fstat(self.descriptor).st_size
            is_torn = size > 0 and os.pread(self.descriptor, 1, size - 1) != b"\n"  # the last start was killed
            headline = "\n" * is_torn + headline
        except OSError as error:
            self._give_up(error)
        self.write(headline.encode())

    def write(self, data: bytes) -> None:
        with self._lock:
            try:
                while data and self.descriptor is not None:
                    data = data[os.write(self.descriptor, data) :]
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.close()
        with contextlib.suppress(OSError):
            print(f"warning: {self._path}: {error.strerror}; this rank's output is not kept", file=sys.stderr)

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Tee:
    """The reading side of a rank's stdout or stderr: to its log, and to a descriptor of ours where `console` is one.

    With a `prefix` whole lines are shown under it, else bytes as they come. On a terminal the rank gets one too, so
    that its progress bar lives; of what such a bar overwrites, the log keeps what stood last.
    """

    def __init__(self, log: RankLog, *, console: int | None, prefix: bytes = b"") -> None:
        self._log, self._console, self._prefix = log, console, prefix
        self._rest = b""
        is_raw_terminal = console is not None and not prefix and os.isatty(console)
        self._ours, self.theirs = _terminal_like(console) if is_raw_terminal and console is not None else os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True)

    def start(self) -> None:
        """Begin to read, once the rank has `theirs`."""
        os.close(self.theirs)
        self._thread.start()

    def join(self) -> None:
        """Wait for what was still under way; not for a child of the rank that holds its end open."""
        self._thread.join(timeout=5)

    def _copy(self) -> None:
        with contextlib.suppress(OSError):  # a terminal's other end says by EIO that it is gone
            while chunk := os.read(self._ours, _CHUNK_BYTES):
                if not self._prefix:
                    self._show(chunk)
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    self._keep(line)
        if self._rest:
            self._keep(self._rest)
        os.close(self._ours)

    def _keep(self, line: bytes) -> None:
        line = line.rstrip(b"\r").rpartition(b"\r")[2]
        self._log.write(line + b"\n")
        if self._prefix:
            self._show(self._prefix + line + b"\n")

    def _show(self, data: bytes) -> None:
        if self._console is not None:
            with contextlib.suppress(OSError):  # our own reader is gone; the rank must not feel it
                while data:
                    data = data[os.write(self._console, data) :]


def _terminal_like(console: int) -> tuple[int, int]:
    """Our end and the rank's end of a terminal with the size of `console`, which passes bytes on unchanged."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    with contextlib.suppress(OSError, termios.error):
        termios.tcsetwinsize(theirs, termios.tcgetwinsize(console))
    return ours, theirs
