"""Run folders as a run leaves them, and a SLURM of scripts that answers what a test wrote: for the verbs that look."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.beats import Beat, BeatFile, beat_path
from trainer.checkpoint_marker import FORMAT_VERSION, marker_text, step_name
from trainer.resilience import ExitRecord
from trainer.run_lock import Holder, held

REPO = Path(__file__).resolve().parents[2]
NOW = time.time()

# squeue prints a file, for its two forms one each; scancel writes down what it was told and does what a test wants.
PROGRAMS = {
    "squeue": 'echo "$*" >> "$FAKE/squeue-calls"\n'
    'if [ -s "$FAKE/refusal" ]; then cat "$FAKE/refusal" >&2; exit 1; fi\n'
    'case "$*" in *BatchFlag*) cat "$FAKE/batch"; exit;; esac\n'
    # As squeue does: of an array its elements too, and no job that was not asked for.
    'ids=$(sed "s/.*--jobs=//; s/ .*//" <<< "$*")\n'
    """awk -v ids=",$ids," '{split($1, id, "_"); if (index(ids, "," id[1] ",") || index(ids, "," $1 ",")) print}' """
    '"$FAKE/queue"',
    "scancel": 'echo "$*" >> "$FAKE/scancel-calls"\n[ ! -x "$FAKE/on-scancel" ] || "$FAKE/on-scancel" "$@"',
    "sbatch": "exit 1",
    "scontrol": "exit 1",
    "sacct": 'cat "$FAKE/accounts"',
}


def make_slurm(folder: Path) -> Path:
    """The folder of what SLURM shall answer; its programs are in `bin`."""
    (folder / "bin").mkdir(parents=True)
    for name, body in PROGRAMS.items():
        write_program(folder / "bin" / name, body)
    for name in ("queue", "batch", "accounts"):
        (folder / name).write_text("")
    return folder


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def queued(fake: Path, *jobs: Sequence[str]) -> None:
    """What squeue answers: id, state, reason, nodes, time left, restarts, start."""
    (fake / "queue").write_text("".join("".join(f"{field:<30}|" for field in job) + "\n" for job in jobs))


def make_run(folder: Path, *, max_steps: int = 100, job: str | None = None, started: float = NOW - 60) -> Path:
    """A run of two ranks that was started once, and trains."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"train:\n  max_steps: {max_steps}\nwatchdog:\n  beat_seconds: 10\n")
    attempt = {"attempt": 1, "time": started, "ranks": 2, "host": socket.gethostname(), "pid": 7, "job": job}
    append(folder / "attempts.jsonl", attempt)
    event(folder, "started", step=0, detail={"reason": "a new run"}, at=started + 5)
    return folder


def append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def event(folder: Path, kind: str, *, step: int, detail: object, at: float = NOW) -> None:
    line = {"time": at, "attempt": 1, "rank": 0, "step": step, "kind": kind, "detail": detail, "action": "done"}
    append(folder / "events.jsonl", line)


def metrics(folder: Path, steps: Sequence[int]) -> None:
    """A logged line for each step; the loss falls from 8 like 1/step."""
    lines = ({"step": step, "loss": 2 + 6 / step, "grad_norm": 0.5, "lr": 3e-4, **_SPEED} for step in steps)
    append(folder / "metrics.jsonl", *lines)


_SPEED = {"tokens_per_second": 412_345.6, "seconds_per_step": 1.25, "eta_seconds": 4000.0, "memory_gib": 71.25}


def submitted(folder: Path, job: str, *, at: float = NOW) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    line = {"time": at, "job": job, "nodes": 2, "cluster": "c.yaml", "kind": "train", "name": folder.name}
    append(folder / "jobs.jsonl", line)


def ended(folder: Path, code: int, reason: str, *, step: int = 12) -> None:
    (folder / "exit.json").write_text(json.dumps(asdict(ExitRecord(code, reason, step, time=NOW - 30))))


def checkpoint(folder: Path, step: int) -> Path:
    """A complete checkpoint without files."""
    path = folder / "checkpoints" / step_name(step)
    path.mkdir(parents=True)
    (path / "COMPLETE").write_text(marker_text({"format_version": FORMAT_VERSION, "step": step, "files": []}))
    return path


def hold(folder: Path, **changes: Any) -> Holder:
    """A lock as some other process left it; by default of a process of this machine that is gone."""
    process = subprocess.Popen(["true"])
    process.wait()
    tree = {**asdict(Holder.this_process()), "pid": process.pid, "start_time": 1, **changes}
    holder = Holder(**tree)
    (folder / "lock").write_bytes(holder.encode(holder.heartbeat))
    return holder


@contextmanager
def living(folder: Path, *, phase: str = "step", ranks: int = 2, **changes: Any) -> Iterator[None]:
    """This process works in the folder, and its ranks beat."""
    for rank in range(ranks):
        beat(folder, rank, phase=phase, **changes)
    with held(folder):
        yield


def beat(folder: Path, rank: int, *, phase: str = "step", **changes: Any) -> None:
    fields = {"group": "g", "attempt": 1, "step": 3, "marks": 9, "idle_seconds": 0.5, "number": 4, **changes}
    one = Beat(rank=rank, host=f"n{rank + 1}", pid=100 + rank, phase=phase, **fields)
    file = BeatFile(beat_path(folder, rank))
    file.write(one)
    file.close()


def read_bytes_so_far() -> int:
    """What this process has read from files since its start, in bytes."""
    line = Path("/proc/self/io").read_text().splitlines()[0]
    return int(line.partition(":")[2])


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO), **extra}
