"""What `dure watch` knows of its runs, kept up to date by reading what is new in their files; nothing is read twice."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from launch.look_curve import Curve
from launch.look_events import Event, event_of
from launch.look_find import Found
from launch.look_frame import Shown
from launch.look_lines import Growth
from launch.look_run import Look
from trainer.beats import Beat, beat_path, read_beat, read_beats
from trainer.run_folder import EVALUATIONS_NAME, EVENTS_NAME, METRICS_NAME

_MAX_EVENTS = 50
_MAX_RATES = 80
_BEATS_SECONDS = 10.0  # a thousand small files


class Watched:
    """One run as it grows."""

    def __init__(self, run: Found) -> None:
        self.run = run
        self._metrics = Growth(run.folder / METRICS_NAME)
        self._evaluations = Growth(run.folder / EVALUATIONS_NAME)
        self._events_file = Growth(run.folder / EVENTS_NAME)
        self._losses = Curve()
        self._rates: deque[float] = deque(maxlen=_MAX_RATES)
        self._line: dict[str, Any] = {}
        self._heldout: dict[str, Any] = {}
        self._best: dict[str, Any] = {}
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._beats: dict[int, Beat] = {}
        self._next_beats = 0.0

    def shown(self, look: Look) -> Shown:
        """What there is to show, with what came since the last call."""
        self._read_metrics()
        self._read_evaluations()
        for line in self._events_file.new_objects():
            self._events.append(event_of(line))
        self._read_beats(look)
        return Shown(
            look=look,
            losses=self._losses.points,
            rates=tuple(self._rates),
            line=self._line,
            heldout=self._heldout,
            best=self._best,
            beats=self._beats,
            events=tuple(self._events),
        )

    def _read_metrics(self) -> None:
        while lines := self._metrics.new_objects():
            if self._metrics.was_rewritten:  # a resume went back to an earlier step
                self._losses.clear()
                self._rates.clear()
            for line in lines:
                self._losses.add(line.get("step"), line.get("loss"))
                if isinstance(speed := line.get("tokens_per_second"), (int, float)):
                    self._rates.append(speed)
            self._line = lines[-1]

    def _read_evaluations(self) -> None:
        lines = self._evaluations.new_objects()
        if self._evaluations.was_rewritten:
            self._heldout, self._best = {}, {}
        for line in lines:
            self._heldout = line
            if not self._best or _loss(line) < _loss(self._best):
                self._best = line

    def _read_beats(self, look: Look) -> None:
        if not look.is_live:
            self._beats = {}
        elif time.monotonic() >= self._next_beats:
            self._next_beats = time.monotonic() + _BEATS_SECONDS
            self._beats = read_beats(self.run.folder)
        elif (beat := read_beat(beat_path(self.run.folder, 0))) is not None:
            self._beats[0] = beat


def _loss(line: Mapping[str, Any]) -> float:
    value = line.get("loss")
    return float(value) if isinstance(value, (int, float)) else float("inf")
