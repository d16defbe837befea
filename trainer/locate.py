"""What a name stands for on this disk: a run, one of its checkpoints, or a model folder. The one place that knows.

Names come from the command line and from `model.from`. Reads no weights, and needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.disk import PARTIAL_SUFFIX
from trainer.checkpoint_marker import COMPLETE_NAME, find_complete
from trainer.run_folder import CHECKPOINTS_NAME, CONFIG_NAME

DEFAULT_ROOT = Path("runs")
ADAPTER_CONFIG_NAME = "adapter_config.json"

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
