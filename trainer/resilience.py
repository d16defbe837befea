"""What a run does about the unexpected: the stop flag, the record of why it ended, the refusal of a bad step (law 8).

Importable without torch; the flag itself is in stop_flag.py, which needs the standard library only.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from data_pipeline.config import Config
from trainer.errors import TrainingStopped
from trainer.stop_flag import StopFlag, die_with_parent, outlive_terminal

__all__ = [
    "DONE",
    "FAILED",
    "REFUSED",
    "STOPPED",
    "ExitRecord",
    "StepPolicy",
    "StepPolicyConfig",
    "StopFlag",
    "Verdict",
    "die_with_parent",
    "outlive_terminal",
]

DONE = 0
FAILED = 1
REFUSED = 2  # it could not start or go on as asked, and has said why
STOPPED = 85  # stopped by a signal with everything saved: start again (law 12)


@dataclass(frozen=True)
class ExitRecord:
    """Why an attempt ended: exit.json, from which the launcher makes its exit code. `attempt` 0: not yet known."""

    code: int
    reason: str
    step: int
    time: float = field(default_factory=time.time)
    attempt: int = 0


class StepPolicyConfig(Config):
    """When an update is refused. Not finite: always. A spike: where `refuse_spikes` says so.

    A spike is a gradient norm or a loss above its factor times the median over the last `spike_window` accepted
    steps; nothing counts as one before the window is full and `spike_warmup_steps` steps were accepted.
    """

    max_consecutive_skips: int = Field(default=10, ge=1)
    refuse_spikes: bool = False
    spike_grad_norm_factor: float = Field(default=10.0, gt=1)
    spike_loss_factor: float = Field(default=2.0, gt=1)
    spike_window: int = Field(default=128, ge=2)
    spike_warmup_steps: int = Field(default=500, ge=0)


@dataclass(frozen=True)
class Verdict:
    """Whether an update may touch the weights; `reason` says why not."""

    accepted: bool
    reason: str = ""


class StepPolicy:
    """Judges each step by its global loss and gradient norm: equal figures give equal verdicts on all ranks."""

    def __init__(self, config: StepPolicyConfig) -> None:
        self._config = config
        self._num_accepted = 0
        self._num_consecutive_skips = 0
        self._last_reason = ""
        self._losses: deque[float] = deque(maxlen=config.spike_window)
        self._grad_norms: deque[float] = deque(maxlen=config.spike_window)

    def accepts(self, loss: float, grad_norm: float) -> Verdict:
        """The verdict on one step, before its update; remembers the step."""
        reason = self._fault(loss, grad_norm)
        if reason:
            self.refuse(reason)
            return Verdict(accepted=False, reason=reason)
        self._num_consecutive_skips = 0
        self._num_accepted += 1
        if self._config.refuse_spikes:
            self._losses.append(loss)
            self._grad_norms.append(grad_norm)
        return Verdict(accepted=True)

    def refuse(self, reason: str) -> None:
        """Remember a step that was refused before there was a loss."""
        self._num_consecutive_skips += 1
        self._last_reason = reason

    def excuse(self) -> None:
        """The update that was just refused ends a step of which another one was applied: no step in a row is lost."""
        self._num_consecutive_skips = 0

    def begin_phase(self) -> None:
        """Other weights move from here on (new_rows.phases): the norms of those before say nothing of theirs."""
        self._grad_norms.clear()

    def _fault(self, loss: float, grad_norm: float) -> str:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"not finite: loss {loss:g}, grad_norm {grad_norm:g}"
        config = self._config
        return _spike("grad_norm", grad_norm, self._median(self._grad_norms), config.spike_grad_norm_factor) or _spike(
            "loss", loss, self._median(self._losses), config.spike_loss_factor
        )

    def _median(self, history: deque[float]) -> float:
        """The median of a full window after the warm-up, else infinity, above which nothing lies."""
        is_warm = self._num_accepted >= self._config.spike_warmup_steps
        return statistics.median(history) if is_warm and len(history) == history.maxlen else math.inf

    @property
    def is_exhausted(self) -> bool:
        """Whether more than `max_consecutive_skips` steps in a row were refused."""
        return self._num_consecutive_skips > self._config.max_consecutive_skips

    def check_consecutive(self) -> None:
        """Stop a run whose last steps were all refused.

        Raises:
            TrainingStopped: more than `max_consecutive_skips` refused steps in a row.
        """
        limit = self._config.max_consecutive_skips
        if self.is_exhausted:
            raise TrainingStopped(
                f"policy.max_consecutive_skips: {self._num_consecutive_skips} updates in a row were refused, the limit "
                f"is {limit}; the last: {self._last_reason}. The weights are those before them: look at the rows in "
                "events.jsonl, lower the learning rate, or raise the limit"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values; floats come back to the bit."""
        return {
            "num_accepted": self._num_accepted,
            "num_consecutive_skips": self._num_consecutive_skips,
            "last_reason": self._last_reason,
            "losses": list(self._losses),
            "grad_norms": list(self._grad_norms),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue after `saved`."""
        window = self._config.spike_window
        losses = deque((float(value) for value in saved["losses"]), maxlen=window)
        grad_norms = deque((float(value) for value in saved["grad_norms"]), maxlen=window)
        self._num_accepted = int(saved["num_accepted"])
        self._num_consecutive_skips = int(saved["num_consecutive_skips"])
        self._last_reason = str(saved["last_reason"])
        self._losses, self._grad_norms = losses, grad_norms


def _spike(name: str, value: float, median: float, factor: float) -> str:
    if value <= factor * median:
        return ""
    return f"spike: {name} {value:g} is more than {factor:g} x its median {median:g}"
