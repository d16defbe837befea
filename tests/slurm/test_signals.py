"""Law 12 on a real SLURM of two nodes: a signal to any part of a job, in any phase, loses no finished step."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.signal_tries import PHASES, SECTIONS, Try
from tests.slurm.world import Case, World

pytestmark = pytest.mark.slurm

# Spread over the labs that run side by side. All of law 12's fifty: DURE_SIGNAL_TRIES=51 pytest -m slurm -n 3 \
# tests/slurm/test_signals.py
NUM_TRIES = int(os.environ.get("DURE_SIGNAL_TRIES", str(2 * len(PHASES))))
NUM_PARTS = 3
NUM_AT_ONCE = 2
# To the batch process alone (launch.job), or to all that srun started.
RECEIVERS = {"batch": ["--batch"], "tasks": []}


def try_once(world: World, case: Case, seed: int) -> str:
    """Stop a job in the phase, by the signal and by the way that the seed says; "" where no step was lost."""
    chosen, receiver = Try.of(seed), random.Random(seed).choice(list(RECEIVERS))
    case.submit()
    world.lab.wait_for_state(case.job_id, "RUNNING", seconds=600)
    case.wait_for_output("== job")  # before its script runs there is nothing to signal
    phases = chosen.wait(case.run, has_ended=lambda: case.job.has_ended)
    case.run.mkdir(exist_ok=True)
    (case.run / "cancelled").touch()  # it is enough to have stopped
    world.lab.run("scancel", f"--signal={chosen.name}", *RECEIVERS[receiver], case.job_id)
    job = world.lab.wait_for_end(case.job_id)
    print(f"{chosen}: to the {receiver}, the ranks were in {phases or 'nothing yet'}: {job.state} {job.exit_code}")
    lost = chosen.lost(case.run)
    if not lost and job.exit_code != 85:
        lost = f"{chosen}: {job.state} with exit code {job.exit_code}"
    return f"{lost} (to the {receiver}, in {phases})\n{case.output}" if lost else ""


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_law_12_no_signal_in_any_phase_of_a_job_loses_a_finished_step(world: World, part: int) -> None:
    seeds = range(part, NUM_TRIES, NUM_PARTS)
    cases = {seed: world.case(f"signal-{seed}", **SECTIONS) for seed in seeds}
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        lost = list(pool.map(lambda seed: try_once(world, cases[seed], seed), seeds))
    assert [line for line in lost if line] == []
