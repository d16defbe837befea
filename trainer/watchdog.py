"""The hang watchdog (law 13): a thread of each rank that beats, watches for progress, and ends a run that stands still.

A rank stands still when its main thread passes no mark for the timeout; the run hangs when every rank does. Then each
rank that can still run writes its stacks, the rank that is behind is named, and all end at once, non-zero. Nothing is
saved: the last complete checkpoint stands. What the marks mean is the loop's business, who is behind `hang.py`'s.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from trainer import hang
from trainer.beats import (
    ENDED,
    Beat,
    BeatFile,
    beat_path,
    group_name,
    place_of,
    read_beat,
    starting_path,
)
from trainer.hang import Others, Seen
from trainer.resilience import FAILED
from trainer.watchdog_config import WatchdogConfig
from trainer.work_meter import WorkMeter

STARTING = "start"  # the phase before the ranks have met
WARM_UP = "warm-up"  # the first step of an attempt, in which kernels are compiled and memory is taken
_STARTUP_PHASES = (STARTING, "load", WARM_UP)
# While a rank loads or saves it passes no mark for long; it is at work while bytes move.
_DISK_PHASES = (STARTING, "load", "save")

_TICK_SECONDS = 1.0
_MIN_LATE_SECONDS = 5.0
_GRACE_SECONDS = 30.0  # for the others' stacks; a shared file system may show a new file that late


@dataclass(frozen=True)
class Seat:
    """Which rank this process is, by what its launcher says."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> Seat:
        """As `start_ranks` reads it, before the ranks have met."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, world_size, local_rank = (int(environ.get(name, other)) for name, other in zip(names, "010", strict=True))
        return cls(rank=rank, world_size=world_size, local_rank=local_rank)

    @property
    def superiors(self) -> tuple[int, ...]:
        """Ranks that judge before this one does, as long as they live: one of each machine, and of all."""
        return tuple(sorted({0, self.rank - self.local_rank} - {self.rank}))


class Watchdog:
    """Watches this rank while it is entered, and judges all; the main thread tells it what it does."""

    def __init__(self, config: WatchdogConfig, *, run_folder: Path, seat: Seat) -> None:
        assert config.beat_seconds is not None, "the config resolves it"
        self._config, self._seat, self._run_folder = config, seat, run_folder
        self._beat_seconds = config.beat_seconds
        self._group = group_name()
        self._attempt = 0
        self._phase, self._marks = STARTING, 0
        self._moved = self._next_beat = time.monotonic()
        self._step: Callable[[], int] = lambda: -1
        self._number = 0
        self._file: BeatFile | None = None
        self._work = WorkMeter()
        self._others = Others()
        self._main_thread = threading.main_thread().ident or 0
        self._stop = threading.Event()
        self._io_lock = threading.Lock()  # the file changes when the folder is held
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        # An agent starts ranks again under the same name; what an earlier start found there is no finding of this one.
        shutil.rmtree(self._hang_folder(), ignore_errors=True)
        # One process needs no other to find it before it holds the folder, and another run may be at work there.
        if self._seat.world_size > 1:
            with contextlib.suppress(OSError):  # a folder that can't be made is told by who makes it
                self._file = BeatFile(starting_path(self._run_folder, self._seat.rank, group=self._group))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(timeout=_MIN_LATE_SECONDS)
        self._phase = ENDED
        if self._thread.is_alive():  # in a write to a disk that does not answer
            return
        with contextlib.suppress(OSError):
            self._write_beat(time.monotonic())
        if self._file is not None:
            self._file.close(remove=self._attempt == 0)

    def board(self, attempt: int) -> None:
        """The folder is held for attempt `attempt`: beat where everybody looks."""
        with self._io_lock:
            before, self._file = self._file, BeatFile(beat_path(self._run_folder, self._seat.rank))
            self._attempt = attempt
        self._write_beat(time.monotonic())
        if before is not None:
            before.close(remove=True)

    def follow(self, step: Callable[[], int]) -> None:
        """`step` says which step was finished last."""
        self._step = step

    def phase(self, name: str) -> None:
        """The main thread begins something else; "load", "warm-up", "step", "evaluate" or "save"."""
        self._phase = name
        self.mark()

    def mark(self) -> None:
        """The main thread passed a place that every rank passes; costs a microsecond."""
        self._marks += 1
        self._moved = time.monotonic()

    def end_if_hung(self) -> None:
        """Called with an error at hand: where it came from a hang that was found, this does not return."""
        limit = self._limit(self._phase)
        if limit == 0 or time.monotonic() - self._moved < limit / 2:
            return
        finding, deadline = self._hang_folder() / hang.FINDING_NAME, time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline:
            if finding.exists():
                time.sleep(2 * _GRACE_SECONDS)  # the thread writes this rank's stacks and ends the process
                os._exit(FAILED)
            time.sleep(0.2)

    def _watch(self) -> None:
        tick = min(_TICK_SECONDS, self._beat_seconds)
        before = time.monotonic()
        while not self._stop.wait(tick):
            now = time.monotonic()
            late = now - before - tick
            if late > max(_MIN_LATE_SECONDS, self._beat_seconds):
                self._moved += late  # the whole process was stopped for so long, or the machine slept
                self._others.forgive(late)
            with contextlib.suppress(OSError):  # the disk is full or away for a while; a later tick tells
                self._tick(now)
            before = time.monotonic()

    def _tick(self, now: float) -> None:
        if self._phase in _DISK_PHASES and self._work.has_moved():
            self._moved = now
        idle, limit = now - self._moved, self._limit(self._phase)
        if now >= self._next_beat:
            self._next_beat = now + self._beat_seconds
            self._write_beat(now)
            if limit:
                self._look_around(idle, limit=limit)
        if limit and idle >= limit / 2:
            if (self._hang_folder() / hang.FINDING_NAME).exists():
                self._end(awaited=())
            if idle >= limit and self._all_stand_still(limit):
                self._conclude(limit)

    def _limit(self, phase: str) -> float:
        """Seconds without progress that are a hang in a phase; 0: none are."""
        if self._config.timeout_seconds == 0 or phase == ENDED:
            return 0.0
        return self._config.startup_timeout_seconds if phase in _STARTUP_PHASES else self._config.timeout_seconds

    def _beat(self, now: float) -> Beat:
        place, is_waiting = place_of(self._main_thread)
        return Beat(
            rank=self._seat.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            group=self._group,
            attempt=self._attempt,
            phase=self._phase,
            step=self._step(),
            marks=self._marks,
            idle_seconds=round(now - self._moved, 2),
            number=self._number,
            stands_at=place,
            is_waiting=is_waiting,
        )

    def _write_beat(self, now: float) -> None:
        with self._io_lock:
            if self._file is not None:
                self._number += 1
                self._file.write(self._beat(now))

    def _look_around(self, idle: float, *, limit: float) -> None:
        """Read the beats that this rank is to judge: of all ranks, where none that judges before it is alive."""
        if idle < limit / 4:
            self._others.forget()
            return
        self._look_at(self._seat.superiors)
        if not self._is_judged_by_others():
            self._look_at(range(self._seat.world_size))

    def _is_judged_by_others(self) -> bool:
        now = time.monotonic()
        seen = (self._others.seen(rank, now=now) for rank in self._seat.superiors)
        return any(one.silent_seconds < 3 * self._beat_seconds and not one.has_ended for one in seen)

    def _look_at(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self._others.note(rank, self._beat_of(rank), now=time.monotonic())

    def _beat_of(self, rank: int) -> Beat | None:
        """The last beat of a rank of this start; wherever it beats."""
        held, starting = beat_path(self._run_folder, rank), starting_path(self._run_folder, rank, group=self._group)
        for path in (held, starting) if self._attempt else (starting, held):
            beat = read_beat(path)
            if beat is not None and beat.group == self._group and beat.attempt in (0, self._attempt or beat.attempt):
                return beat
        return None

    def _all_stand_still(self, limit: float) -> bool:
        """Whether no rank has made progress for as long as its phase may take; looks anew where it seems so."""
        if self._is_judged_by_others() or not self._seem_still(limit):
            return False
        self._look_at(range(self._seat.world_size))
        return self._seem_still(limit)

    def _seem_still(self, limit: float) -> bool:
        now = time.monotonic()
        others = (rank for rank in range(self._seat.world_size) if rank != self._seat.rank)
        return all(self._is_still(self._others.seen(rank, now=now), limit=limit) for rank in others)

    def _is_still(self, one: Seen, *, limit: float) -> bool:
        if one.has_ended:
            return True
        if one.beat is not None and one.silent_seconds < 3 * self._beat_seconds:
            limit = max(limit, self._limit(one.beat.phase))  # of a silent one the phase is no longer known
        return one.still_seconds >= limit

    def _hang_folder(self) -> Path:
        name = f"attempt-{self._attempt:04d}" if self._attempt else f"start-{self._group}"
        return self._run_folder / hang.HANGS_NAME / name

    def _conclude(self, limit: float) -> None:
        """Find who is behind, tell it once, and end."""
        now = time.monotonic()
        folder = self._hang_folder()
        if not hang.claim(folder):
            return  # another rank tells; the next tick finds what it found
        seen = [self._others.seen(rank, now=now) for rank in range(self._seat.world_size)]
        seen[self._seat.rank] = Seen(rank=self._seat.rank, beat=self._beat(now), silent_seconds=0.0)
        key = "watchdog.startup_timeout_seconds" if self._phase in _STARTUP_PHASES else "watchdog.timeout_seconds"
        finding = hang.find(seen, limit=limit, key=key, folder=folder)
        hang.tell(finding.reason)
        rank = self._seat.rank
        hang.record(finding, run_folder=self._run_folder, folder=folder, rank=rank, holder=seen[0].beat)
        self._end(awaited=[one.rank for one in seen if one.silent_seconds < limit / 2 and one.beat])

    def _end(self, *, awaited: Iterable[int]) -> None:
        """Write the stacks, wait a moment for those of `awaited` ranks, and end this process."""
        folder = self._hang_folder()
        with contextlib.suppress(OSError):
            hang.dump_stacks(folder, beat=self._beat(time.monotonic()))
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline and not all(hang.stacks_path(folder, rank).exists() for rank in awaited):
            time.sleep(0.2)
        os._exit(FAILED)
