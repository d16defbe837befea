"""When a run that stands still is a hang; what the watchdog does about it is in watchdog.py."""

from __future__ import annotations

from pydantic import Field, model_validator

from data_pipeline.config import Config

_MIN_BEAT_SECONDS = 10.0


class WatchdogConfig(Config):
    """When a run that stands still is ended. `timeout_seconds: 0` watches nothing (for a debugger)."""

    timeout_seconds: float = Field(default=1800, ge=0)
    """Without any progress of any rank: no micro-batch, no batch of an evaluation, no byte of a save."""
    startup_timeout_seconds: float = Field(default=3600, gt=0)
    """The same until the first step is done: what is compiled or waited for there shows no progress."""
    beat_seconds: float | None = Field(default=None, gt=0)
    """How often each rank writes its beat. None: a twentieth of the timeout, but 10 s or more; filled in."""

    @model_validator(mode="after")
    def _resolve(self) -> WatchdogConfig:
        limits = [limit for limit in (self.timeout_seconds, self.startup_timeout_seconds) if limit]
        longest = min(limits) / 4
        if self.beat_seconds is None:
            ideal = max(_MIN_BEAT_SECONDS, self.timeout_seconds / 20)
            object.__setattr__(self, "beat_seconds", min(ideal, longest))
        elif self.beat_seconds > longest:
            raise ValueError(
                f"beat_seconds is {self.beat_seconds:g}, but the shortest timeout is {min(limits):g}; a rank that is "
                f"silent for several beats is taken for dead, so make it {longest:g} or less"
            )
        return self
