"""Signals become a flag that the loop asks for, so that no finished step is lost (law 12).

Standard library only: `python -m trainer` installs the flag before the heavy imports, which take seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, TextIO

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
LAUNCHER_PID = "DURE_LAUNCHER_PID"

# Ctrl-C reaches torchrun's workers twice, from the terminal and from the agent; a person's second press comes later.
SAME_PRESS_SECONDS = 1.0
SECOND_PRESS_SECONDS = 10.0

_PR_SET_PDEATHSIG = 1
# Variables that only an agent sets; a process that a person starts by hand may outlive its shell (nohup).
_AGENT_VARIABLES = (LAUNCHER_PID, "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")


class StopFlag:
    """Whether this process was asked to stop, by which signal first, and when."""

    def __init__(self) -> None:
        self.signal_name = ""
        self.time = 0.0
        self._last_interrupt = 0.0

    @property
    def requested(self) -> bool:
        return self.signal_name != ""

    def install(self) -> None:
        """Take SIGTERM, SIGUSR1 and SIGINT from now on, with those that the launcher held back since the start."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.time()
        is_first = not self.requested
        if is_first:
            self.signal_name, self.time = signal.Signals(number).name, now
        if number == signal.SIGINT:
            self._interrupt(now)
        elif is_first:
            _tell_from_handler(f"{self.signal_name}: stopping after this step, with a checkpoint\n")

    def _interrupt(self, now: float) -> None:
        since, self._last_interrupt = now - self._last_interrupt, now
        if since < SAME_PRESS_SECONDS:
            return
        if since <= SECOND_PRESS_SECONDS:
            _tell_from_handler("Ctrl-C again: stopped at once, nothing saved; the last complete checkpoint stands\n")
            os._exit(EXIT_INTERRUPTED)
        window = f"{SECOND_PRESS_SECONDS:.0f} s"
        _tell_from_handler(
            f"Ctrl-C: stopping after this step, with a checkpoint; once more within {window}: at once, without\n"
        )


def _tell_from_handler(text: str) -> None:
    # Python's buffered streams refuse to be entered again from a handler; only one rank speaks.
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, text.encode())


def die_with_parent(environ: Mapping[str, str] = os.environ) -> None:
    """Get SIGTERM when the agent that started this process dies, so that an orphaned rank saves and ends.

    SIGUSR1 kills torchrun's agent and leaves its workers behind; kill -9 does the same to any launcher. A process
    without an agent is left alone: its shell may go away. Linux only, nothing elsewhere.
    """
    if not sys.platform.startswith("linux") or not any(name in environ for name in _AGENT_VARIABLES):
        return
    parent = int(environ.get(LAUNCHER_PID, os.getppid()))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call above
        os.kill(os.getpid(), signal.SIGTERM)


class LastingStream:
    """A text stream whose reader may go away (`| tee`, a closed terminal) without ending the run that writes to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Pass `text` on, or drop it where nobody reads any more."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_terminal() -> None:
    """Let this process print on without a fault when its terminal or pipe is gone; metrics.jsonl is the record."""
    sys.stdout = LastingStream(sys.stdout)  # type: ignore[assignment]
    sys.stderr = LastingStream(sys.stderr)  # type: ignore[assignment]
