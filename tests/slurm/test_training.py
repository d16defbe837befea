"""One config, three ways of use, the same losses; and the launchers that a profile may name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.world import MAX_STEPS, Case, World, assert_equal_to_the_bit
from tests.trainer.tiny_run import REPO, environment

pytestmark = pytest.mark.slurm


# No dropout: its masks are drawn by rank. Otherwise the same run however many ranks share it.
ANY_RANKS = {
    "model": {"dropout": 0.0},
    "train": {"max_steps": 12},
    "checkpoint": {"every_steps": 12},
    "evaluation": {"every_steps": 12},
}
ONE = ["-m", "launch.cli", "train", "--cpu-ranks", "1"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "trainer"]


def losses_here(case: Case, command: list[str]) -> dict[int, float]:
    """Those of a run on this machine, without SLURM."""
    env = environment(ACCELERATE_USE_CPU="true", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    words = [sys.executable, *command, str(case.config)]
    done = subprocess.run(words, cwd=REPO, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return case.losses


def test_one_process_accelerate_on_a_node_and_sbatch_over_two_give_the_same_losses(world: World) -> None:
    """fp32, relative 1e-5: the order of the sums differs with the ranks. Two ranks agree to the bit, near or far."""
    two_nodes = world.case("three-ways/two-nodes", **ANY_RANKS)
    two_by_two = world.case("three-ways/two-by-two", cluster={"cpu_ranks_per_node": 2}, **ANY_RANKS)
    for case in (two_nodes, two_by_two):
        case.submit()
        assert world.lab.wait_for_end(case.job_id).state == "COMPLETED", case.output

    one = losses_here(world.case("three-ways/one", **ANY_RANKS), ONE)
    accelerate = losses_here(world.case("three-ways/accelerate", **ANY_RANKS), ACCELERATE)
    assert sorted(one) == list(range(1, 13))
    assert two_nodes.losses == accelerate
    assert two_nodes.losses == pytest.approx(one, rel=1e-5)
    assert two_by_two.losses == pytest.approx(one, rel=1e-5)
    assert [attempt["ranks"] for attempt in two_by_two.attempts] == [4]
    heads = [path.read_text().splitlines()[0] for path in sorted((two_by_two.run / "logs").iterdir())]
    hosts = [re.findall(rf"^=== attempt 1 job {two_by_two.job_id} host (\S+) ", head) for head in heads]
    assert hosts == [["n1"], ["n1"], ["n2"], ["n2"]]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_stop_signal_reaches_the_ranks_past_an_agent(world: World, undisturbed: Case, launcher: str) -> None:
    case = world.case(launcher, cluster={"launcher": launcher})
    case.submit()
    case.wait_for_step(3)
    with case.held_back(rank=0):
        world.lab.run("scancel", "--batch", "--signal=USR1", case.job_id)
    job = case.finish()
    assert job.restarts == 1
    assert [requeue.reason for requeue in case.requeues] == ["stopped: SIGUSR1"]
    assert 3 <= case.started_at[1] < MAX_STEPS
    assert_equal_to_the_bit(case, undisturbed)
