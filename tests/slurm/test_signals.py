"""Law 12 on a real SLURM: a signal to any part of a job, in any phase, loses no finished step."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.slurm.world import Case, World
from tests.trainer.tiny_run import lines_of
from trainer import checkpoint

pytestmark = pytest.mark.slurm

# More of them: DURE_SIGNAL_TRIES=60 pytest -m slurm tests/slurm/test_signals.py
NUM_TRIES = int(os.environ.get("DURE_SIGNAL_TRIES", "20"))
NUM_AT_ONCE = 3
SECTIONS = {
    "engine": {"kind": "none"},
    "train": {"max_steps": 1_000_000},
    "checkpoint": {"every_steps": 4},
    "evaluation": {"every_steps": 3, "max_documents": 40},
}


def has_lines(path: Path, count: int = 1) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") >= count


def is_saving(run: Path) -> bool:
    folders = list((run / "checkpoints").iterdir()) if (run / "checkpoints").is_dir() else []
    return any(not (folder / "COMPLETE").exists() for folder in folders)


# Phase -> whether the run has come to it.
PHASES: dict[str, Callable[[Path, random.Random], bool]] = {
    "load": lambda run, chance: has_lines(run / "attempts.jsonl"),
    "warm-up": lambda run, chance: has_lines(run / "events.jsonl"),
    "step": lambda run, chance: has_lines(run / "metrics.jsonl", chance.randint(1, 7)),
    "evaluation": lambda run, chance: has_lines(run / "metrics.jsonl", 3 * chance.randint(1, 2)),
    "save": lambda run, chance: is_saving(run),
}
DELAYS = {"load": 2.0, "warm-up": 0.1, "step": 0.05, "evaluation": 0.05, "save": 0.0}
# To the batch process alone (launch.job), or to all that srun started.
RECEIVERS = {"batch": ["--batch"], "tasks": []}


def try_once(world: World, case: Case, seed: int) -> str:
    """Stop a job in the phase, by the signal and by the way that the seed says; "" where no step was lost."""
    chance = random.Random(seed)
    phase = list(PHASES)[seed % len(PHASES)]
    name, receiver = chance.choice(["TERM", "USR1"]), chance.choice(list(RECEIVERS))
    case.submit()
    next_look = time.monotonic() + 5
    while not PHASES[phase](case.run, random.Random(seed)):
        if time.monotonic() > next_look:
            next_look = time.monotonic() + 5
            assert not case.job.has_ended, f"{phase} never came\n{case.output}"
        time.sleep(0.005)
    time.sleep(chance.uniform(0, DELAYS[phase]))
    (case.run / "cancelled").touch()  # it is enough to have stopped
    world.lab.run("scancel", f"--signal={name}", *RECEIVERS[receiver], case.job_id)
    world.lab.wait_for_end(case.job_id)

    metrics = lines_of(case.run / "metrics.jsonl") if has_lines(case.run / "metrics.jsonl") else []
    logged = max((line["step"] for line in metrics), default=0)
    saved = checkpoint.find_complete(case.run / "checkpoints")
    newest = checkpoint.step_of(saved[0]) if saved else 0
    faults = checkpoint.verify(saved[0]) if saved else []
    what = f"try {seed}: SIG{name} to the {receiver} in {phase}"
    if (case.exit["code"], case.exit["step"]) == (85, logged) and newest == logged and not faults:
        return ""
    return f"{what}: logged {logged}, saved {newest}, exit {case.exit}, {faults}\n{case.output}"


def test_law_12_no_signal_in_any_phase_of_a_job_loses_a_finished_step(world: World) -> None:
    cases = [world.case(f"signal-{seed}", nodes=1, **SECTIONS) for seed in range(NUM_TRIES)]
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        lost = list(pool.map(lambda seed: try_once(world, cases[seed], seed), range(NUM_TRIES)))
    assert [line for line in lost if line] == []
