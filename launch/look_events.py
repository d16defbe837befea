"""The lines of a run's events.jsonl in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.look_lines import last_objects
from trainer.run_folder import EVENTS_NAME


@dataclass(frozen=True)
class Event:
    """A line of events.jsonl, in words."""

    time: float
    kind: str
    step: int
    text: str


def last_events(folder: Path, count: int) -> list[Event]:
    """The latest events of a run, oldest first."""
    return [event_of(line) for line in last_objects(folder / EVENTS_NAME, count)]


def event_of(line: dict[str, Any]) -> Event:
    """A line of events.jsonl in words."""
    kind, step, detail = str(line.get("kind", "event")), int(line.get("step", -1)), line.get("detail")
    reason = detail.get("reason", "") if isinstance(detail, dict) else detail
    at = f" at step {step:,}" if step >= 0 else ""
    texts = {
        "saved": f"saved{at}",
        "started": f"started from step {step:,}",
        "skipped_step": f"update refused{at}: {reason}",
        "damaged_checkpoint": f"damaged checkpoint set aside: {reason}",
    }
    text = texts.get(kind) or f"{kind}{at}{f': {reason}' if reason else ''}"
    return Event(time=float(line.get("time", 0)), kind=kind, step=step, text=" ".join(text.split()))
