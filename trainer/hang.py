"""Which rank the others wait for, and what is kept of a hang: `hangs/attempt-0001/`. Judges beats; starts no thread.

hangs/attempt-0001/rank-00000.txt     the stacks of each rank that could still run
                   hang.json          the finding, written when exit.json stands
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.beats import ENDED, Beat
from trainer.checkpoint_marker import find_complete
from trainer.resilience import FAILED, ExitRecord
from trainer.run_folder import CHECKPOINTS_NAME, RunFolder
from trainer.run_lock import holder_of

HANGS_NAME = "hangs"
FINDING_NAME = "hang.json"
REASON_PREFIX = "hang: "  # of the reason in exit.json
_MAX_NAMED = 8


@dataclass(frozen=True)
class Seen:
    """What a watcher knows of one rank: its last beat (None: it never came), and how long there was no newer one."""

    rank: int
    beat: Beat | None
    silent_seconds: float

    @property
    def has_ended(self) -> bool:
        return self.beat is not None and self.beat.phase == ENDED

    @property
    def still_seconds(self) -> float:
        """How long the rank has made no progress that anyone knows of; by its own clock and the watcher's."""
        return self.silent_seconds + (self.beat.idle_seconds if self.beat is not None else 0.0)


class Others:
    """What a watcher has seen of the ranks. Silence is counted from the first sight of a beat, by one's own clock."""

    def __init__(self) -> None:
        self._first_sight: dict[int, tuple[Beat | None, float]] = {}

    def note(self, rank: int, beat: Beat | None, *, now: float) -> None:
        """`rank`'s last beat, as it stands at `now`."""
        before = self._first_sight.get(rank)
        if before is None or _number(before[0]) != _number(beat):
            self._first_sight[rank] = (beat, now)

    def seen(self, rank: int, *, now: float) -> Seen:
        beat, since = self._first_sight.get(rank, (None, now))
        return Seen(rank=rank, beat=beat, silent_seconds=now - since)

    def forgive(self, seconds: float) -> None:
        """Leave out time in which this process itself was stopped."""
        self._first_sight = {rank: (beat, since + seconds) for rank, (beat, since) in self._first_sight.items()}

    def forget(self) -> None:
        self._first_sight.clear()


def _number(beat: Beat | None) -> tuple[int, int, int]:
    return (-1, -1, -1) if beat is None else (beat.attempt, beat.pid, beat.number)


def behind(seen: Sequence[Seen], *, silence_seconds: float) -> list[Seen]:
    """The ranks that the others wait for; [] where nothing tells them apart.

    One that never came or whose beats stopped for `silence_seconds` (SIGSTOP, a dead node); else the one that passed
    the fewest places; else the one that is in no collective while others are.
    """
    here = [one for one in seen if not one.has_ended]
    if silent := [one for one in here if one.beat is None or one.silent_seconds >= silence_seconds]:
        return silent
    beats = [one.beat for one in here if one.beat is not None]
    for key in ([beat.marks for beat in beats], [int(beat.is_waiting) for beat in beats]):
        if len(set(key)) > 1:
            return [one for one, value in zip(here, key, strict=True) if value == min(key)]
    return []


def describe(late: Sequence[Seen], *, silence_seconds: float) -> str:
    """The ranks that are behind, as a person reads it."""
    if not late:
        return "no rank is behind another: all wait at the same place (a network or a device that does not answer?)"
    named = "; ".join(_describe_one(one, silence_seconds=silence_seconds) for one in late[:_MAX_NAMED])
    more = f"; and {len(late) - _MAX_NAMED:,} more" if len(late) > _MAX_NAMED else ""
    return f"behind (뒤처진 랭크): {named}{more}"


def _describe_one(one: Seen, *, silence_seconds: float) -> str:
    beat = one.beat
    if beat is None:
        return f"rank {one.rank}, which never arrived: no process of it has beaten"
    who = f"rank {one.rank} on {beat.host} (pid {beat.pid})"
    doing = f"phase {beat.phase!r}" + (f" after step {beat.step:,}" if beat.step >= 0 else "")
    if one.silent_seconds >= silence_seconds:
        how = _state_of(beat) or "stopped, cut off, or its node is dead"
        return f"{who}, silent for {one.silent_seconds:,.0f} s: {how}; last seen in {doing}, at {beat.stands_at}"
    return f"{who}, in {doing}, at {beat.stands_at}"


def _state_of(beat: Beat) -> str:
    """What the kernel says of a process of this host."""
    if beat.host != socket.gethostname():
        return ""
    try:
        state = Path(f"/proc/{beat.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        return "its process is gone"
    states = {
        "T": "its process is stopped (SIGSTOP)",
        "t": "a debugger holds its process",
        "D": "its process waits for a disk or a device",
        "Z": "its process is dead",
    }
    return states.get(state, "its process lives, but runs no Python thread")


@dataclass(frozen=True)
class Finding:
    """A hang: since when, and who is behind. `step`: the last that all ranks finished."""

    reason: str
    step: int
    behind: list[dict[str, Any]]


def find(seen: Sequence[Seen], *, limit: float, key: str, folder: Path) -> Finding:
    """The finding over what was seen of all ranks, none of which made progress for `limit` seconds."""
    silence = limit / 2
    late = behind(seen, silence_seconds=silence)
    beats = [one.beat for one in seen if one.beat is not None and not one.has_ended]
    still = min((one.still_seconds for one in seen if not one.has_ended), default=limit)
    step = max((beat.step for beat in beats), default=-1)
    reason = (
        f"{REASON_PREFIX}no progress of any rank for {still:,.0f} s, {key} is {limit:,.0f}; "
        f"{describe(late, silence_seconds=silence)}; stacks of the ranks that still run: {folder}"
    )
    told = [
        {"rank": one.rank, "silent_seconds": round(one.silent_seconds, 1)} | (asdict(one.beat) if one.beat else {})
        for one in late[:_MAX_NAMED]
    ]
    return Finding(reason=reason, step=step, behind=told)


def claim(folder: Path) -> bool:
    """Whether this rank is the one that tells of the hang; every later caller is not."""
    folder.parent.mkdir(exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def record(finding: Finding, *, run_folder: Path, folder: Path, rank: int, holder: Beat | None) -> None:
    """Write down a hang: an event, exit.json, and last `folder`/hang.json, at whose sight the other ranks end.

    `holder` is rank 0: where somebody else works in the run folder, the first two are not written.
    """
    run = RunFolder(run_folder, rank=rank)
    held = holder_of(run_folder)
    if held is None or (holder is not None and (held.host, held.pid) == (holder.host, holder.pid)):
        stands = next((path.name for path in find_complete(run_folder / CHECKPOINTS_NAME)), "")
        action = f"ended; the last complete checkpoint, {stands}, stands" if stands else "ended before a checkpoint"
        detail = {"reason": finding.reason, "behind": finding.behind}
        with contextlib.suppress(OSError):  # on a full disk exit.json may still find room
            run.append_event(kind="hang", step=finding.step, detail=detail, action=action)
        with contextlib.suppress(OSError):
            run.write_exit(ExitRecord(code=FAILED, reason=finding.reason, step=finding.step))
    partial = folder / f".{FINDING_NAME}"
    partial.write_text(json.dumps(asdict(finding), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / FINDING_NAME)


def dump_stacks(folder: Path, *, beat: Beat) -> None:
    """Write where every thread of this process stands to `folder`/rank-00000.txt."""
    partial = folder / f".rank-{beat.rank:05d}.txt"
    with partial.open("w", encoding="utf-8") as file:
        file.write(f"rank {beat.rank} on {beat.host} (pid {beat.pid}), {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.write(f"phase {beat.phase}, after step {beat.step}, {beat.marks} marks, idle {beat.idle_seconds:.0f} s\n")
        main = threading.main_thread()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        file.write(f"main thread 0x{main.ident or 0:016x} stands at {beat.stands_at}\n")
        file.writelines(f"thread 0x{ident or 0:016x} is {name}\n" for ident, name in names.items())
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
    partial.replace(stacks_path(folder, beat.rank))


def stacks_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.txt"


def tell(text: str) -> None:
    """Say it on the console, whatever holds Python's streams."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"error: {text}\n".encode())
