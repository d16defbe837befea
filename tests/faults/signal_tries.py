"""Seeded tries of law 12 on whole processes: when a run is in the phase that a seed says, and what a signal there lost.

The phase is what the ranks' own beats say; the run's watchdog must beat often for it (SECTIONS).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.trainer.tiny_run import lines_of
from trainer import checkpoint
from trainer.beats import read_beats

# From argv on: the phase before any rank has met another.
PHASES = ("argv", "load", "warm-up", "step", "evaluate", "save")
_ONCE = ("load", "warm-up")  # on a busy machine a look may come too late for them
BEAT_SECONDS = 0.05
PATIENCE_SECONDS = 600.0
SECTIONS: dict[str, Any] = {
    "engine": {"kind": "deepspeed", "zero_stage": 2},
    "train": {"max_steps": 1_000_000},
    "checkpoint": {"every_steps": 4},
    "evaluation": {"every_steps": 3, "max_documents": 40},
    "watchdog": {"beat_seconds": BEAT_SECONDS},
}
# How long after the beginning of a phase a signal may come, at most.
_DELAYS = {"argv": 8.0, "load": 1.0}
_DELAY = 0.02


def checkpoint_folders(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("step-*"))


@dataclass(frozen=True)
class Try:
    """What a seed says: in which phase a signal comes, how long after its beginning, and which one."""

    seed: int
    phase: str
    first_step: int
    delay_seconds: float
    name: str

    @classmethod
    def of(cls, seed: int) -> Try:
        chance = random.Random(seed)
        phase = PHASES[seed % len(PHASES)]
        delay = chance.uniform(0, _DELAYS.get(phase, _DELAY))
        return cls(seed, phase, chance.randint(0, 6), delay, chance.choice(["TERM", "USR1"]))

    def wait(self, run: Path, *, has_ended: Callable[[], bool]) -> str:
        """Return in the phase, once some step was finished; what the beats of the ranks then say, "" for none."""
        next_look, deadline = time.monotonic() + 5, time.monotonic() + PATIENCE_SECONDS
        while self.phase != "argv" and not self._is_reached(run):
            if time.monotonic() > next_look:
                next_look = time.monotonic() + 5
                assert not has_ended() and time.monotonic() < deadline, f"{self}: it never came to that phase"
            time.sleep(0.002)
        time.sleep(self.delay_seconds)
        return ", ".join(sorted({beat.phase for beat in read_beats(run).values()}))

    def _is_reached(self, run: Path) -> bool:
        beats = list(read_beats(run).values())
        least = self.first_step if self.phase in ("step", "evaluate", "save") else -1
        phases = PHASES[PHASES.index(self.phase) :] if self.phase in _ONCE else (self.phase,)
        return any(beat.phase in phases and beat.step >= least for beat in beats) or self._leaves_its_mark(run)

    def _leaves_its_mark(self, run: Path) -> bool:
        """Whether the disk says so: a short phase may fall between two beats."""
        if self.phase == "evaluate":
            metrics = run / "metrics.jsonl"
            num_logged = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            return num_logged > self.first_step and num_logged % SECTIONS["evaluation"]["every_steps"] == 0
        if self.phase == "save":
            folders = checkpoint_folders(run)
            return any(not (folder / "COMPLETE").exists() for folder in folders)
        return False

    def lost(self, run: Path) -> str:
        """What it lost of the finished steps; "" for nothing."""
        metrics = lines_of(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
        logged = max((line["step"] for line in metrics), default=0)
        saved = checkpoint.find_complete(run / "checkpoints")
        newest = checkpoint.step_of(saved[0]) if saved else 0
        faults = checkpoint.verify(saved[0]) if saved else []
        record = json.loads((run / "exit.json").read_text()) if (run / "exit.json").exists() else {}
        told = (record.get("code"), record.get("step"))
        has_begun = (run / "attempts.jsonl").exists()
        if newest == logged and not faults and (told == (85, logged) or not has_begun):
            return ""
        return f"{self}: logged {logged}, saved {newest}, exit {record}, {faults}"
