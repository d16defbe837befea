"""A real small stage for the runner's tests: tasks that copy bytes, in two waves, and some that misbehave on request.

A module of its own: worker processes import it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import disk, stage
from data_pipeline.stage import Manifest, StageError, Task


class UnsendableError(Exception):
    """An exception that does not survive pickling, as pydantic's and many others do not."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@dataclass(frozen=True)
class CopyStage:
    """Wave 0 writes `copy-i`, wave 1 writes `sum-i` of all of them. `faults`: task name -> what goes wrong in it."""

    output: Path
    num_tasks: int = 6
    num_bytes: int = 1000
    faults: tuple[tuple[str, str], ...] = ()

    def is_done(self) -> bool:
        return (self.output / stage.MANIFEST_NAME).is_file()

    def plan(self) -> list[Task]:
        self.output.mkdir(parents=True, exist_ok=True)
        second = [Task(f"sum-{number}", 1, {"number": number}, self.num_bytes) for number in range(self.num_tasks)]
        first = [Task(f"copy-{number}", 0, {"number": number}, self.num_bytes) for number in range(self.num_tasks)]
        return [*second, *first]

    def is_task_done(self, task: Task) -> bool:
        return (self.output / task.name).is_file()

    def run(self, task: Task) -> None:
        line = [task.name, os.getpid(), os.environ.get("RAYON_NUM_THREADS")]
        disk.append_line(self.output / "log.jsonl", json.dumps(line).encode())
        self._misbehave(dict(self.faults).get(task.name, ""), task)
        if not (self.output / task.name).is_file():
            number = task.spec["number"] if task.wave == 0 else self._sum()
            disk.write_bytes(self.output / task.name, str(number).encode())

    def finish(self) -> Manifest:
        values = {task.name: int((self.output / task.name).read_text()) for task in self.plan()}
        return stage.write_manifest(self.output, {"kind": "copy", "files": [], "values": values})

    def log(self) -> list[list[Any]]:
        """[task name, pid, RAYON_NUM_THREADS] of each call of `run`."""
        path = self.output / "log.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []

    def _sum(self) -> int:
        return sum(int((self.output / f"copy-{number}").read_text()) for number in range(self.num_tasks))

    def _misbehave(self, how: str, task: Task) -> None:
        match how:
            case "bad input":
                raise StageError(f"in/{task.name}.zip: broken; download it again")
            case "full disk":
                raise disk.DiskError(28, "out/part: write failed: no space left; free space")
            case "bug":
                raise UnsendableError(1, 2)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "slow":
                time.sleep(60)
