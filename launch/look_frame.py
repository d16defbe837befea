"""One frame of `dure watch`: runs' figures, curves, ranks and events as lines that fit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from launch.look_curve import Point, bars, plot
from launch.look_events import Event
from launch.look_run import Look
from launch.look_screen import STYLES
from launch.look_words import NOTHING, clock, cut, cut_front, duration, figure, pad, rate, wrap
from trainer.beats import ENDED, Beat

_INDENT = "  "
_LEAST_CURVE, _MOST_CURVE = 4, 18
_MAX_LATE = 3
_BAR_WIDTH = 12
_LATE_SECONDS = 60.0
_BAD_EVENTS = frozenset({"failure", "hang", "skipped_step", "damaged_checkpoint"})


@dataclass(frozen=True)
class Shown:
    """What is known of a run; `rates` are the last speeds, `line` the last metrics, `best` the best evaluation."""

    look: Look
    losses: Sequence[Point]
    rates: Sequence[float]
    line: Mapping[str, Any]
    heldout: Mapping[str, Any]
    best: Mapping[str, Any]
    beats: Mapping[int, Beat]
    events: Sequence[Event]


def frame(shown: Sequence[Shown], *, width: int, height: int | None, footer: str = "") -> list[Text]:
    """All runs, one below the other; at most `height` lines where that is given."""
    room = None if height is None else max(1, (height - bool(footer)) // max(1, len(shown)))
    lines: list[Text] = []
    for one in shown:
        lines += [*([Text("")] if lines else []), *_panel(one, width=width, room=room)]
    if height is not None:
        lines = lines[: height - bool(footer)]
    return [*lines, *([Text(cut(footer, width), style="dim")] if footer else [])]


def _panel(shown: Shown, *, width: int, room: int | None) -> list[Text]:
    """A run: head, figures, curve, ranks, events; what is left of `room` is the curve's and the events'."""
    head = [_title(shown.look, width=width), *_about(shown.look, width=width)]
    figures = [Text(line) for line in _figures(shown, width=width)]
    ranks = _ranks(shown, width=width)
    used = len(head) + len(figures) + len(ranks) + 1  # a line between two runs
    free = 20 if room is None else room - used
    num_events = min(len(shown.events), 6 if room is None else max(1, free // 3))
    num_curve = min(_MOST_CURVE, free - num_events)
    curve = plot(shown.losses, width=width - len(_INDENT), height=num_curve) if num_curve >= _LEAST_CURVE else []
    body = [Text(_INDENT + line, style="cyan") for line in curve]
    events = [_event_line(event, now=shown.look.time, width=width) for event in list(shown.events)[-num_events:][::-1]]
    return [*head, *body, *figures, *ranks, *(events if num_events else [])]


def _title(look: Look, *, width: int) -> Text:
    """Name, state, progress and the time that is left."""
    right = _progress(look)
    room = width - cell_len(look.title) - cell_len(right) - 4
    name = cut_front(look.name, max(8, room))
    left = f"{name}  {look.title}"
    text = Text(cut(f"{pad(left, width - cell_len(right) - 2)}  {right}", width))
    text.stylize("bold", 0, len(name))
    text.stylize(STYLES[look.state], len(name) + 2, len(name) + 2 + len(look.title))
    return text


def _progress(look: Look) -> str:
    if look.max_steps is None:
        return f"step {look.step:,}"
    share = look.step / max(1, look.max_steps)
    full = min(_BAR_WIDTH, int(share * _BAR_WIDTH))
    left = f"  {duration(look.eta_seconds)} left" if look.eta_seconds and look.is_live else ""
    bar = "█" * full + "░" * (_BAR_WIDTH - full)
    return f"step {look.step:,}/{look.max_steps:,} {bar} {100 * share:.0f} %{left}"


def _about(look: Look, *, width: int) -> list[Text]:
    """Where it runs, and why it does not."""
    attempt = f"attempt {look.attempt}" if look.attempt > 1 else ""
    requeues = f"{look.num_requeues} requeue{'s' if look.num_requeues > 1 else ''}" if look.num_requeues else ""
    where = " · ".join(part for part in (look.where, attempt, requeues) if part)
    lines = wrap(where, width, indent=_INDENT, num_lines=2) if where else []
    lines += wrap(look.why, width, indent=_INDENT, num_lines=3) if look.why else []
    return [Text(line, style="dim") for line in lines]


def _figures(shown: Shown, *, width: int) -> list[str]:
    """Loss and held-out loss; speed with its last values; memory, gradient and learning rate."""
    line, heldout, best = shown.line, shown.heldout, shown.best
    losses = [f"loss {figure(line.get('loss'), '.4f')}"]
    if heldout:
        bits = f", {heldout['bits_per_byte']:.4f} bits a byte," if _is_number(heldout.get("bits_per_byte")) else ""
        at = f"held-out {figure(heldout.get('loss'), '.4f')}{bits} at step {heldout.get('step', 0):,}"
        is_best = best.get("step") == heldout.get("step")
        losses.append(at + (" (best)" if is_best else f" (best {figure(best.get('loss'), '.4f')})" if best else ""))
    speed = rate(line.get("tokens_per_second"))
    speeds = [f"{speed} tokens/s", f"{figure(line.get('seconds_per_step'), '.3g')} s a step"]
    if _is_number(line.get("mfu")):
        speeds.append(f"MFU {100 * line['mfu']:.1f} %")
    rest = [
        f"memory {figure(line.get('memory_gib'), '.1f')} GiB",
        f"grad {figure(line.get('grad_norm'), '.3f')}",
        f"lr {figure(line.get('lr'), '.2e')}",
    ]
    row = _INDENT + " · ".join(speeds)
    space = width - cell_len(row) - 2
    bar = bars(shown.rates, width=min(40, space)) if space >= 8 and speed != NOTHING else ""
    rows = [_INDENT + " · ".join(losses), f"{row}  {bar}".rstrip(), _INDENT + " · ".join(rest)]
    return [cut(row, width) for row in rows] if line else []


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _ranks(shown: Shown, *, width: int) -> list[Text]:
    """Whether all ranks beat, and which are late or silent."""
    look, now = shown.look, time.time()
    if not look.is_live or not shown.beats:
        return []
    beats = [beat for beat in shown.beats.values() if beat.phase != ENDED]
    limit = max(_LATE_SECONDS, 3 * look.beat_seconds)
    late = sorted((beat for beat in beats if _stillness(beat, now=now) > limit), key=lambda beat: beat.marks)
    total = look.ranks or len(shown.beats)
    oldest = max((now - beat.time for beat in beats), default=0.0)
    text = f"{len(beats)} of {total} ranks beat, the oldest beat is {duration(oldest)} old"
    lines = wrap(
        text if not late else f"{text}; late (지연): {_late(late, now=now)}", width, indent=_INDENT, num_lines=2
    )
    return [Text(line, style="bold red" if late or len(beats) < total else "dim") for line in lines]


def _stillness(beat: Beat, *, now: float) -> float:
    """Seconds since a rank's last progress, as far as its clock and ours agree."""
    return max(0.0, now - beat.time) + beat.idle_seconds


def _late(beats: Sequence[Beat], *, now: float) -> str:
    named = [f"rank {beat.rank} on {beat.host} for {duration(_stillness(beat, now=now))}" for beat in beats[:_MAX_LATE]]
    more = f" and {len(beats) - _MAX_LATE} more" if len(beats) > _MAX_LATE else ""
    return ", ".join(named) + more


def _event_line(event: Event, *, now: float, width: int) -> Text:
    line = cut(f"{_INDENT}{clock(event.time, now=now)}  {event.text}", width)
    return Text(line, style="red" if event.kind in _BAD_EVENTS else "")
