"""What each rank is doing, for the watchdog and for whoever looks on: `beats/rank-00000.json`, written over and over.

A beat is one small file that is overwritten in place: at 1,024 ranks no names change and nothing is searched.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

BEATS_NAME = "beats"
ENDED = "ended"  # the phase of a rank that left

_START_KEYS = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_STEP_ID",
)
_NUM_BYTES = 2048  # of a beat's file, at any content
_MAX_PLACE_CHARS = 160
_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")


@dataclass(frozen=True)
class Beat:
    """One rank at one moment.

    `marks` counts the places that every rank passes alike (a phase, a micro-batch, a token of an answer), so that
    fewer marks are less progress. `idle_seconds`: how long the rank has neither passed one nor, while it loads or
    saves, read or written. `number` counts the beats. `stands_at` is where the main thread is, `is_waiting` whether
    that is inside a collective. `group` tells one start of a run from another, `attempt` is 0 before the folder is
    held. `step` is the last finished one, -1 before the run is loaded; `time` is this host's clock.
    """

    rank: int
    host: str
    pid: int
    group: str
    attempt: int
    phase: str
    step: int
    marks: int
    idle_seconds: float
    number: int
    stands_at: str = ""
    is_waiting: bool = False
    time: float = field(default_factory=time.time)


class BeatFile:
    """The file that one rank beats in."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def write(self, beat: Beat) -> None:
        text = json.dumps({**asdict(beat), "stands_at": beat.stands_at[-_MAX_PLACE_CHARS:]})
        os.pwrite(self._descriptor, (text.ljust(_NUM_BYTES - 1) + "\n").encode(), 0)
        os.fsync(self._descriptor)  # over NFS nobody else sees it before

    def close(self, *, remove: bool = False) -> None:
        os.close(self._descriptor)
        if remove:
            self.path.unlink(missing_ok=True)


def beat_path(run_folder: Path, rank: int) -> Path:
    """Where a rank beats once its run holds the folder."""
    return run_folder / BEATS_NAME / f"rank-{rank:05d}.json"


def starting_path(run_folder: Path, rank: int, *, group: str) -> Path:
    """Where a rank beats before: another process may work in the folder."""
    return run_folder / BEATS_NAME / f"start-{group}-{rank:05d}.json"


def read_beat(path: Path) -> Beat | None:
    """The last beat in a file; None where there is none, or none that can be read."""
    for _ in range(2):  # a write may be under way
        try:
            return Beat(**json.loads(path.read_bytes()))
        except OSError:
            return None
        except (ValueError, TypeError):
            time.sleep(0.01)
    return None


def read_beats(run_folder: Path) -> dict[int, Beat]:
    """The last beat of each rank of a run's last attempt, by rank."""
    found = (read_beat(path) for path in sorted((run_folder / BEATS_NAME).glob("rank-*.json")))
    return {beat.rank: beat for beat in found if beat is not None}


def clear_beats(run_folder: Path, *, group: str) -> None:
    """Forget the ranks of earlier attempts and of other starts; for who holds the folder."""
    for path in (run_folder / BEATS_NAME).glob("*.json"):
        if not path.name.startswith(f"start-{group}-"):
            path.unlink(missing_ok=True)


def group_name(environ: Mapping[str, str] = os.environ) -> str:
    """A name for this start of all ranks, equal on each of them; from what their launcher says."""
    return hashlib.sha256("\0".join(environ.get(key, "") for key in _START_KEYS).encode()).hexdigest()[:8]


def place_of(thread_id: int) -> tuple[str, bool]:
    """Where a thread of this process stands ("trainer/step.py:50 in step"), and whether inside a collective."""
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return "", False
    code = frame.f_code
    place = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{frame.f_lineno} in {code.co_name}"
    return place, any(part in code.co_filename for part in _COLLECTIVES)
