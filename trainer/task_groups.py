"""What a word of `dure evaluate --tasks` means: a group of configs/evaluate/, a YAML file, or a name of lm-eval's.

Knows no lm-eval; what the names stand for there is its business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from data_pipeline.config import Config, load
from trainer.errors import RunError


class TaskGroupConfig(Config):
    """A YAML file of configs/evaluate/. `tasks`: names of lm-eval's tasks or groups. `metric`: the one that counts.

    `overrides`: keys of lm-eval's tasks to be set otherwise, such as `dataset_kwargs: {revision: …}`; only where
    `tasks` names tasks, no groups.
    """

    tasks: list[str] = Field(min_length=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    metric: str = ""
    overrides: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class TaskGroup:
    """What one word of --tasks means. `specs`: names of lm-eval, or the path of a task's file."""

    name: str
    specs: tuple[Any, ...]
    num_fewshot: int | None = None
    metric: str = ""


def find_groups(names: Sequence[str], *, folders: Sequence[Path]) -> list[TaskGroup]:
    """What each word means: a YAML file of ours or of lm-eval, a group in one of `folders`, or a name of lm-eval's.

    Raises:
        RunError, ConfigError: no such file, or one that is neither.
    """
    return [_find(name, folders) for name in names]


def _find(name: str, folders: Sequence[Path]) -> TaskGroup:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise RunError(f"--tasks: {name}: no such file; name a YAML file, or a task of lm-eval")
        text = path.read_text(encoding="utf-8")
        if re.search(r"^tasks\s*:", text, re.MULTILINE):
            return _ours(path)
        if re.search(r"^(task|group)\s*:", text, re.MULTILINE):
            return TaskGroup(path.stem, (str(path.resolve()),))
        raise RunError(
            f"--tasks: {name}: neither a group of ours (tasks: [NAME, …]) nor a task of lm-eval (task: NAME); see "
            "docs/evaluate.md"
        )
    found = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    return _ours(found) if found else TaskGroup(name, (name,))


def _ours(path: Path) -> TaskGroup:
    config = load(path, [], TaskGroupConfig)
    specs = tuple({"task": task, **config.overrides} if config.overrides else task for task in config.tasks)
    return TaskGroup(path.stem, specs, config.num_fewshot, config.metric)
