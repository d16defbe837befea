"""`runs/<name>/`: made by rank 0; the same folder and the same config resume. Weights are checkpoint.py's business.

config.yaml  environment.json       the resolved tree; commit, package versions, devices
attempts.jsonl                      one line a start
metrics.jsonl  evaluations.jsonl    one line a logged step, one an evaluation; unique steps, also after a resume
events.jsonl                        what went wrong and what was done, from any rank; each checkpoint that was saved
exit.json  lock                     why the last attempt ended; who works here
beats/  hangs/                      what each rank is doing; the stacks of the ranks of a run that stood still
ledger/                             the rows of each step, where logging.ledger says so
base.json                           what model.from stood for at the first start
tokenizer/  template.yaml           what made the shards, copied from them
examples.json                       of examples: their classes, and the frame of their texts
checkpoints/                        step folders
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline import disk
from data_pipeline.config import Config, ConfigError, Tree, load, to_tree, to_yaml
from data_pipeline.shards.format import read_shards_manifest
from trainer.errors import RunError
from trainer.resilience import ExitRecord
from trainer.run_environment import describe_environment
from trainer.run_lock import LockTiming, held

CONFIG_NAME = "config.yaml"
ENVIRONMENT_NAME = "environment.json"
ATTEMPTS_NAME = "attempts.jsonl"
METRICS_NAME = "metrics.jsonl"
EVALUATIONS_NAME = "evaluations.jsonl"
EVENTS_NAME = "events.jsonl"
EXIT_NAME = "exit.json"
CHECKPOINTS_NAME = "checkpoints"
BASE_NAME = "base.json"
EXAMPLES_NAME = "examples.json"

# What may differ when a run goes on: it changes neither the rows nor the update of a step. A dot at the end: all below.
MAY_DIFFER = (
    "train.max_steps",
    "train.micro_batch_sequences",
    "evaluation.every_steps",
    "evaluation.every_epoch",
    "evaluation.at_start",
    "evaluation.max_documents",
    "evaluation.best_by",
    "evaluation.micro_batch_sequences",
    "evaluation.answers.",
    "ppo.num_shown",
    "ppo.generation_batch_sequences",
    "grpo.num_shown",
    "grpo.generation_batch_sequences",
    "gate.",
    "checkpoint.",
    "logging.",
    "watchdog.",
    "debug.",
    "run.name",
    "run.folder",
    "run.expected_ranks",
    "engine.zero_stage",  # which rank holds what
    "engine.offload_optimizer",
    "engine.bucket_mb",
    "data.shards",  # a path; what lies there is compared by its hash
    "data.raw.",  # what shards are made of
    "data.raw",
)

Changes = dict[str, list[Any]]  # dotted path -> [old value, new value]


class RunFolder:
    """The record of one run. Every rank may open it and append events; all else is rank 0's, inside `hold`."""

    def __init__(self, path: Path, *, rank: int) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS_NAME
        self._rank = rank

    @contextmanager
    def hold(self, config: Config, *, ranks: int, timing: LockTiming | None = None) -> Iterator[None]:
        """Work in the folder for the length of the block: a new attempt of the run that `config` describes.

        Raises:
            RunError: another process works here, or `config` is not that of the run that this folder holds.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path, timing=timing):
            self._begin_attempt(config, ranks=ranks)
            yield

    def _begin_attempt(self, config: Config, *, ranks: int) -> None:
        changes = self._changes(config)
        for name in (ATTEMPTS_NAME, METRICS_NAME, EVALUATIONS_NAME, EVENTS_NAME):
            repair_lines(self.path / name)
        # The record of the attempt before must not be taken for this one's, whatever happens from here on.
        (self.path / EXIT_NAME).unlink(missing_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        environment = describe_environment()
        attempt = {
            "attempt": self.attempt + 1,
            "time": time.time(),
            "ranks": ranks,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "commit": environment["commit"],
            "changes": changes,
        }
        self._append(ATTEMPTS_NAME, attempt)
        disk.write_json(self.path / ENVIRONMENT_NAME, environment)
        disk.write_bytes(self.path / CONFIG_NAME, to_yaml(config).encode())

    def _changes(self, config: Config) -> Changes:
        path = self.path / CONFIG_NAME
        if not path.exists():
            return {}
        if not has_begun(self.path):  # refused before its first step: nothing depends on the config yet
            try:
                return changed_keys(to_tree(load(path, [], type(config))), to_tree(config))
            except ConfigError:
                return {}
        return check_config(to_tree(load(path, [], type(config))), to_tree(config), where=self.path)

    @property
    def attempt(self) -> int:
        """The number of the latest attempt, from 1; 0 before the first."""
        path = self.path / ATTEMPTS_NAME
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add the figures of a logged step (`step` among them)."""
        self._append(METRICS_NAME, line)

    def append_evaluation(self, line: Mapping[str, Any]) -> None:
        """Add the figures of an evaluation (`step` among them)."""
        self._append(EVALUATIONS_NAME, line)

    def append_event(self, *, kind: str, step: int, detail: Any, action: str) -> None:
        """Note what went wrong and what was done about it; any rank may."""
        event = {"time": time.time(), "attempt": self.attempt, "rank": self._rank, "step": step}
        self._append(EVENTS_NAME, {**event, "kind": kind, "detail": detail, "action": action})

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        disk.append_line(self.path / name, json.dumps(_readable(line), ensure_ascii=False, allow_nan=False).encode())

    def rewind(self, *, step: int) -> None:
        """Forget metrics and evaluations of steps after `step`, from which the run goes on."""
        for name in (METRICS_NAME, EVALUATIONS_NAME):
            rewind_lines(self.path / name, step=step)

    def write_exit(self, record: ExitRecord) -> None:
        """Say why this attempt ended."""
        disk.write_json(self.path / EXIT_NAME, {**asdict(record), "attempt": self.attempt})

    def read_exit(self) -> ExitRecord | None:
        """Why the last attempt ended; None where it was killed, or still runs."""
        return read_exit(self.path)

    def bring_companions(self, shards: Path, *, facts: Mapping[str, Any] | None = None) -> None:
        """Copy the tokenizer and the template that made the shards, so that the run can be talked to without them.

        Of examples the classes and the frame too, which only the manifest tells, and `facts` of its objective.
        """
        manifest = read_shards_manifest(shards)
        if manifest.get("frame"):
            told: dict[str, Any] = {
                key: manifest[key] for key in ("frame", "num_sequences", "labels") if key in manifest
            }
            told |= {"num_texts": num_texts_of(manifest), **(facts or {})}
            disk.write_json(self.path / EXAMPLES_NAME, told)
        for entry in manifest.get("companions", []):
            data, target = (shards / entry["name"]).read_bytes(), self.path / entry["name"]
            if not target.is_file() or target.read_bytes() != data:
                target.parent.mkdir(exist_ok=True)
                disk.write_bytes(target, data)

    def checkpoint_files(self) -> dict[str, bytes]:
        """What lies beside the weights, so that a checkpoint can be read without its run folder."""
        names = (CONFIG_NAME, ENVIRONMENT_NAME, BASE_NAME, EXAMPLES_NAME)
        return {name: (self.path / name).read_bytes() for name in names if (self.path / name).is_file()}


def num_texts_of(manifest: Mapping[str, Any]) -> int:
    """How many texts each row of train has; 0 where rows differ, or where the shards do not tell."""
    if manifest["record"] == "pair":
        return int(manifest["num_sequences"])
    train = manifest["splits"]["train"]
    return {0: 1, train["num_documents"]: 2}.get(train.get("num_two_texts"), 0)


def _readable(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they are written as text ("nan", "inf"), so that every reader can read on."""
    if isinstance(value, dict):
        return {key: _readable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_readable(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def read_exit(run_folder: Path) -> ExitRecord | None:
    """The exit record in a run folder; None if there is none that can be read."""
    try:
        return ExitRecord(**json.loads((run_folder / EXIT_NAME).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def has_begun(run_folder: Path) -> bool:
    """Whether a run has a step to lose: a complete checkpoint, or one that is damaged, or a logged step."""
    checkpoints = run_folder / CHECKPOINTS_NAME
    has_checkpoint = checkpoints.is_dir() and any(checkpoints.iterdir())
    return has_checkpoint or any(True for _ in read_lines(run_folder / METRICS_NAME))


def changed_keys(old: Tree, new: Tree) -> Changes:
    """What differs between two resolved trees."""
    before, after = _leaves(old), _leaves(new)
    return {key: [before.get(key), after.get(key)] for key in {**before, **after} if before.get(key) != after.get(key)}


def check_config(old: Tree, new: Tree, *, where: Path | str) -> Changes:
    """What differs between the config of a run and that of its resume.

    Raises:
        RunError: a line for each key that may not differ.
    """
    changed = changed_keys(old, new)
    faults = [
        f"{where}: {key}: this run began with {values[0]!r}, the config now says {values[1]!r}"
        for key, values in changed.items()
        if not _may_differ(key)
    ]
    if faults:
        advice = "set the old value again to resume, or give the new run another run.name"
        raise RunError("\n".join(f"{fault}; {advice}" for fault in faults))
    return changed


def _may_differ(key: str) -> bool:
    return any(key.startswith(allowed) if allowed.endswith(".") else key == allowed for allowed in MAY_DIFFER)


def _leaves(tree: Tree, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file; a line that a kill or a full disk tore is passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def repair_lines(path: Path) -> None:
    """Cut off a last line that a kill tore, so that the next one begins at a line's start."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        start, tail = end, b""
        while start > 0 and b"\n" not in tail:
            start = max(0, start - 65536)
            file.seek(start)
            tail = file.read(65536) + tail
        whole = start + tail.rfind(b"\n") + 1
        if whole < end:
            file.truncate(whole)


def rewind_lines(path: Path, *, step: int) -> None:
    """Keep the lines up to `step`, all at once; a file that has no other line stays as it is."""
    if all(line["step"] <= step for line in read_lines(path)):
        return
    with disk.durable_file(path) as file:
        for line in read_lines(path):
            if line["step"] <= step:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
