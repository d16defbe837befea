"""Whether this process reads or writes, by what the kernel counts: progress of a load or a save that tells of none."""

from __future__ import annotations

import threading
from pathlib import Path

_MIN_BYTES, _MIN_FAULTS = 1 << 16, 64  # between two calls a second apart; other threads' heartbeats move less


class WorkMeter:
    """Whether this process reads or writes: bytes through the kernel, pages of mapped files; without the caller's."""

    def __init__(self) -> None:
        self._last = (0, 0)

    def has_moved(self) -> bool:
        """Whether more moved since the last call than other threads' heartbeats do."""
        before, self._last = self._last, (_num_bytes(), _num_faults())
        return self._last[0] - before[0] >= _MIN_BYTES or self._last[1] - before[1] >= _MIN_FAULTS


def _num_bytes() -> int:
    """Read and written by this process, but for the calling thread; 0 where the kernel does not count."""
    own = Path(f"/proc/self/task/{threading.get_native_id()}/io")
    try:
        return _sum_of(Path("/proc/self/io")) - _sum_of(own)
    except (OSError, ValueError):
        return 0


def _sum_of(path: Path) -> int:
    counts = dict(line.split(": ") for line in path.read_text().splitlines())
    return int(counts["rchar"]) + int(counts["wchar"])


def _num_faults() -> int:
    """Pages that were waited for, of mapped files."""
    try:
        return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[9])
    except (OSError, ValueError, IndexError):
        return 0
