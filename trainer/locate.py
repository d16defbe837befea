"""What a name stands for on this disk: a run, one of its checkpoints, or a model folder. The one place that knows.

Names come from the command line and from `model.from`. Reads no weights, and needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.disk import PARTIAL_SUFFIX, read_object
from trainer.checkpoint_marker import COMPLETE_NAME, STATE_NAME, find_complete, step_of
from trainer.errors import RunError
from trainer.run_folder import CHECKPOINTS_NAME, CONFIG_NAME

DEFAULT_ROOT = Path("runs")
ADAPTER_CONFIG_NAME = "adapter_config.json"

BEST, LAST = "best", "last"

Kind = Literal["run", "checkpoint", "model"]


@dataclass(frozen=True)
class Place:
    """A folder by what is in it. `run_folder`: the run itself, or that of a checkpoint where it lies in one."""

    kind: Kind
    path: Path
    run_folder: Path | None

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint itself, or the newest complete one of a run; None where there is none."""
        if self.kind == "checkpoint":
            return self.path
        complete = find_complete(self.path / CHECKPOINTS_NAME) if self.kind == "run" else []
        return complete[0] if complete else None


@dataclass(frozen=True)
class Choice:
    """The checkpoint that stands for a run. `best_step`: by its evaluations, -1 before the first."""

    path: Path
    step: int
    last_step: int
    best_step: int
    has_best: bool
    """Whether the best one is kept."""


def choose_checkpoint(place: Place, wanted: str | None, *, prefers_best: bool = False) -> Choice | None:
    """Which checkpoint of a run is meant: "best", "last", or a step. None for what is no run, or one that has none yet.

    Args:
        wanted: None: the best where `prefers_best` and it is kept, else the newest.

    Raises:
        RunError: it is not there, or `place` leaves nothing to choose.
    """
    if place.kind != "run":
        if wanted in (None, LAST):
            return None
        what = "one checkpoint" if place.kind == "checkpoint" else "a model folder"
        raise RunError(f"--checkpoint: {wanted!r}, but {place.path} is {what}, with none to choose; leave it out")
    complete = find_complete(place.path / CHECKPOINTS_NAME)
    if not complete:
        return None
    steps: dict[int, Path] = {}
    for folder in complete:
        steps.setdefault(step_of(folder), folder)  # of one step what the run saved comes first
    last_step = step_of(complete[0])
    best_step = int(read_object(complete[0] / STATE_NAME).get("progress", {}).get("best_step", -1))
    step = last_step
    if wanted == BEST or (wanted is None and prefers_best and best_step in steps):
        step = best_step
    elif wanted not in (None, LAST):
        step = _step_in(wanted)
    if step in steps:
        return Choice(steps[step], step, last_step, best_step, has_best=best_step in steps)
    have = ", ".join(f"{step:,}" + (" (best)" if step == best_step else "") for step in sorted(steps))
    if wanted != BEST:
        raise RunError(f"--checkpoint: {place.path} has no complete checkpoint of step {step:,}; it has {have}")
    why = f"its best, step {step:,}, is not kept (checkpoint.keep_best)" if step >= 0 else "it has no evaluation yet"
    raise RunError(f"--checkpoint: best: {place.path} has no best checkpoint: {why}; it has {have}, or give last")


def _step_in(wanted: str | None) -> int:
    digits = (wanted or "").replace(",", "").replace("_", "")
    if not (digits.isascii() and digits.isdecimal()):
        raise RunError(f"--checkpoint: {wanted!r} is neither {BEST}, {LAST} nor the number of a step")
    return int(digits)


def locate(name: str | Path, *, roots: Sequence[Path] = (DEFAULT_ROOT,), besides: Path | None = None) -> Place | None:
    """The first that is there: a path of that name, then a run of that name in each of `roots`; None if nothing is.

    Args:
        besides: a run folder that a name below `roots` never means: a run's own, when it names its base.
    """
    if (place := _place(Path(name))) is not None:
        return place
    for root in roots:
        path = root / name
        is_shunned = besides is not None and path.resolve() == besides.resolve()
        if not is_shunned and (place := _place(path)) is not None:
            return place
    return None


def _place(path: Path) -> Place | None:
    if (path / COMPLETE_NAME).is_file():
        run_folder = path.resolve().parent.parent
        return Place("checkpoint", path, run_folder if (run_folder / CONFIG_NAME).is_file() else None)
    if (path / CONFIG_NAME).is_file():
        return Place("run", path, path)
    is_model = (path / "config.json").is_file() or (path / ADAPTER_CONFIG_NAME).is_file()
    # A folder of the suffix is an export that was killed.
    return Place("model", path, None) if is_model and path.suffix != PARTIAL_SUFFIX else None
