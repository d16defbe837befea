"""What one run is doing, from its folder and from what SLURM says of its jobs. Writes nothing, waits for nothing."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.config import ConfigError, read_tree
from launch.look_events import Event, last_events
from launch.look_find import Found
from launch.look_jobs import Jobs
from launch.look_lines import last_objects
from launch.look_state import IN_KOREAN, LIVE, Facts, State, gather, judge
from launch.look_words import duration
from launch.requeue import REQUEUES_NAME
from trainer.run_folder import CONFIG_NAME, METRICS_NAME

_BEAT_SECONDS = 90.0  # of a run whose config says nothing


@dataclass(frozen=True)
class Look:
    """One run at one moment. `step` is the last logged one, or that of the checkpoint it starts from.

    `where` says on what it runs, `why` what it waits for or why it ended and what to do. `max_steps` and the figures
    are None where nothing says them; `checkpoint_step` is -1 where no complete checkpoint stands.
    """

    name: str
    folder: Path
    state: State
    step: int
    max_steps: int | None
    checkpoint_step: int
    where: str = ""
    why: str = ""
    phase: str = ""
    job: str = ""
    host: str = ""
    pid: int | None = None
    ranks: int | None = None
    attempt: int = 0
    num_requeues: int = 0
    loss: float | str | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    memory_gib: float | None = None
    last_event: Event | None = None
    beat_seconds: float = _BEAT_SECONDS
    time: float = field(default_factory=time.time)

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def title(self) -> str:
        """The state in English and Korean."""
        return f"{self.state} ({IN_KOREAN[self.state]})"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def look_at(run: Found, jobs: Jobs, *, now: float | None = None) -> Look:
    """What `run` is doing, as far as its folder and `jobs` tell."""
    facts = gather(run, jobs, now=time.time() if now is None else now)
    state, why = judge(facts)
    line = next(iter(last_objects(run.folder / METRICS_NAME, 1)), {})
    max_steps, beat_seconds = _from_config(run.folder)
    is_running = state == "running"
    holder = facts.holder if facts.lives else None
    return Look(
        name=run.name,
        folder=run.folder,
        state=state,
        step=max(line.get("step", 0), facts.checkpoint_step, 0),
        max_steps=max_steps,
        checkpoint_step=facts.checkpoint_step,
        where=_where(facts),
        why=why,
        phase=facts.phase if state in ("running", "starting") else "",
        job=facts.job,
        host=holder.host if holder else str(facts.attempt.get("host") or ""),
        pid=holder.pid if holder else None,
        ranks=facts.attempt.get("ranks"),
        attempt=int(facts.attempt.get("attempt", 0)),
        num_requeues=len(last_objects(run.folder / REQUEUES_NAME, 1000)),
        loss=line.get("loss"),
        tokens_per_second=line.get("tokens_per_second") if is_running else None,
        eta_seconds=line.get("eta_seconds") if is_running else None,
        memory_gib=line.get("memory_gib"),
        last_event=next(iter(last_events(run.folder, 1)), None),
        beat_seconds=beat_seconds,
        time=facts.now,
    )


def _where(facts: Facts) -> str:
    """On what it runs or waits, or last ran."""
    ranks = facts.attempt.get("ranks")
    told = f"{ranks} rank{'s' if ranks != 1 else ''}" if ranks else ""
    state = facts.job_state
    if state is not None:
        nodes = f"{told} on {state.nodes}".strip() if state.nodes else ""
        left = f"{duration(state.time_left)} left" if state.nodes and state.time_left is not None else ""
        return " · ".join(part for part in (f"job {facts.job}", nodes, left) if part)
    if facts.lives and facts.holder is not None:
        job = f"job {facts.holder.job}" if facts.holder.job else ""
        return " · ".join(part for part in (job, told, f"pid {facts.holder.pid} on {facts.holder.host}") if part)
    job = f"job {facts.attempt['job']}" if facts.attempt.get("job") else ""
    host = f"on {facts.attempt['host']}" if facts.attempt.get("host") else ""
    return " · ".join(part for part in (job, f"{told} {host}".strip()) if part)


def _from_config(folder: Path) -> tuple[int | None, float]:
    """`train.max_steps` and `watchdog.beat_seconds`, as far as the run's config says them."""
    try:
        tree = read_tree(folder / CONFIG_NAME, [])
    except (ConfigError, OSError):
        return None, _BEAT_SECONDS
    max_steps, beat = _at(tree, "train", "max_steps"), _at(tree, "watchdog", "beat_seconds")
    beat_seconds = float(beat) if isinstance(beat, (int, float)) else _BEAT_SECONDS
    return max_steps if isinstance(max_steps, int) else None, beat_seconds


def _at(tree: dict[str, Any], section: str, key: str) -> Any:
    inner = tree.get(section)
    return inner.get(key) if isinstance(inner, dict) else None
