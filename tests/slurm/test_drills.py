"""Never lose work, on a real SLURM of two nodes: interrupted runs' losses equal the undisturbed one's to the bit."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.lab import Lab
from tests.slurm.world import MAX_STEPS, SAVE_EVERY, Case, World, assert_equal_to_the_bit
from tests.trainer.tiny_run import REPO

pytestmark = pytest.mark.slurm


def test_a_stopped_job_saves_and_goes_on_in_the_queue_to_the_bit(world: World, undisturbed: Case) -> None:
    case = world.case("requeued", cluster={"preflight": {"enabled": True, "all_reduce_mib": 1}})
    case.submit()
    case.wait_for_step(3)
    with case.held_back(rank=0):
        world.lab.run("scancel", "--batch", "--signal=USR1", case.job_id)
    job = case.finish()

    stopped_at = case.started_at[1]
    assert 3 <= stopped_at < MAX_STEPS and stopped_at % SAVE_EVERY
    assert job.restarts == 1
    assert [(requeue.restart, requeue.step, requeue.reason) for requeue in case.requeues] == [
        (0, stopped_at, "stopped: SIGUSR1")
    ]
    assert [attempt["job"] for attempt in case.attempts] == [case.job_id] * 2
    assert_equal_to_the_bit(case, undisturbed)


@pytest.mark.parametrize(("signal_seconds", "reason"), [(0, "SIGTERM"), (60, "SIGUSR1")])
def test_a_preempted_job_saves_in_its_grace_time_and_goes_on(
    world: World, undisturbed: Case, signal_seconds: int, reason: str
) -> None:
    """Without --signal SLURM tells the ranks alone, by SIGTERM; with it the batch process, by that signal."""
    case = world.case(f"preempted-by-{reason}", cluster={"partition": "low"}, signal_seconds=signal_seconds)
    case.submit()
    case.wait_for_step(3)
    important = world.lab.run(
        "sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 1"
    )
    job = case.finish()

    assert world.lab.job(important.strip()).state == "COMPLETED"
    assert job.restarts == 1
    assert [requeue.reason for requeue in case.requeues] == [f"stopped: {reason}"]
    assert case.started_at[1] == case.requeues[0].step >= 3
    assert_equal_to_the_bit(case, undisturbed)


def test_a_job_at_its_time_limit_saves_and_goes_on(world: World, undisturbed: Case) -> None:
    case = world.case("time-limit", cluster={"time_limit": "0:02:00"}, signal_seconds=40)
    case.submit()
    case.wait_for_step(3)
    with case.held_back(rank=0):  # until SLURM's own signal comes, at its first look after 80 s
        case.wait_for_output("the ranks are told to stop")  # by SLURM's signal, or by the job's own look at the time
    case.wait_for_output("requeued at step")
    world.lab.run("scontrol", "update", f"JobId={case.job_id}", "TimeLimit=60")
    job = case.finish()

    assert job.restarts == 1
    assert case.started_at[1] == case.requeues[0].step >= 3
    assert_equal_to_the_bit(case, undisturbed)


def test_a_requeue_without_progress_is_the_last(world: World) -> None:
    case = world.case("no-progress", folder=world.folder / "no-progress")
    case.submit()
    for restart in range(2):
        world.lab.wait_for(
            "running", lambda restart=restart: (case.job.state, case.job.restarts) == ("RUNNING", restart)
        )
        case.wait_for_count("== job", restart + 1)
        world.lab.run("scancel", "--batch", "--signal=USR1", case.job_id)
        case.wait_for_count("no progress" if restart else "requeued at step 0", 1)
    job = world.lab.wait_for_end(case.job_id)

    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 85, 1)
    assert "not requeued: no progress since the last requeue, both at step 0" in case.output
    assert [requeue.step for requeue in case.requeues] == [0]


def test_a_cancelled_job_saves_and_stays_ended_until_somebody_starts_it(world: World, undisturbed: Case) -> None:
    case = world.case("cancelled")
    case.submit()
    case.wait_for_step(3)
    command = [sys.executable, "-m", "launch.cli", "cancel", str(case.run)]
    with case.held_back(rank=0):  # else it is done before the command has started
        cancel = subprocess.Popen(command, cwd=REPO, env=world.lab.env, stdout=subprocess.PIPE, text=True)
        case.wait_for_output("the ranks are told to stop")
    said, _ = cancel.communicate(timeout=300)
    job = world.lab.wait_for_end(case.job_id)

    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 85, 0)
    assert "not requeued: cancelled stands in the run folder" in case.output
    assert case.newest_step == case.exit["step"] == max(case.losses) >= 3
    assert cancel.returncode == 0 and f"step-{case.newest_step:08d}" in said, said
    case.submit()
    case.finish()
    assert not (case.run / "cancelled").exists()
    assert_equal_to_the_bit(case, undisturbed)


def test_scancel_saves_too_and_is_no_reason_to_requeue(world: World) -> None:
    case = world.case("scancel")
    case.submit()
    case.wait_for_step(3)
    world.lab.run("scancel", case.job_id)
    job = world.lab.wait_for_state(case.job_id, "CANCELLED")
    world.lab.wait_for("the end of its processes", lambda: not case.lab.run("squeue", "-h", "-j", case.job_id).strip())

    assert job.restarts == 0
    assert case.exit["code"] == 85
    assert case.newest_step == case.exit["step"] == max(case.losses) >= 3
    assert case.requeues == []


def test_a_killed_rank_is_started_again_inside_the_job(world: World, undisturbed: Case) -> None:
    """And on the way: slurmd dies and comes back unnoticed, another job on the same run folder is refused."""
    case = world.case("rank-dies")
    case.submit()
    case.wait_for_step(SAVE_EVERY + 2)
    rank = case.rank_process(1)
    with case.held_back(rank=0):
        for name in ("n1", "n2"):
            world.lab.kill_slurmd(name)
        second = world.scripted(case.run.parent, case.config, cluster={}, nodes=1)
        second.submit()
        refused = world.lab.wait_for_end(second.job_id)
        rank.kill()
    job = case.finish()

    assert (refused.state, refused.exit_code, refused.restarts) == ("FAILED", 2, 0)
    assert "another process works in this run folder" in second.output
    assert job.restarts == 0 and case.requeues == []
    assert re.search(r"rank 1 of 2 \(pid \d+ on n2\) was killed by SIGKILL", case.output)
    assert "(restart 1 of max_restarts 1 in this job)" in case.output
    assert case.started_at[1] % SAVE_EVERY == 0 and case.started_at[1] > 0
    assert_equal_to_the_bit(case, undisturbed)


def test_a_killed_rank_below_torchrun_is_started_again_inside_the_job(world: World, undisturbed: Case) -> None:
    """torchrun ends with 1 whatever ended its rank."""
    case = world.case("rank-dies-below-torchrun", cluster={"launcher": "torchrun"})
    case.submit()
    case.wait_for_step(SAVE_EVERY + 2)
    rank = case.rank_process(1)
    with case.held_back(rank=0):
        rank.kill()
    job = case.finish()

    assert job.restarts == 0 and case.requeues == []
    assert "torchrun with ranks 1-1 of 2 (pid " in case.output
    assert "(restart 1 of max_restarts 1 in this job)" in case.output
    assert case.started_at[1] % SAVE_EVERY == 0 and case.started_at[1] > 0
    assert_equal_to_the_bit(case, undisturbed)


@pytest.mark.parametrize("node", ["n2", "n1"])
def test_after_a_node_lost_its_power_the_job_goes_on_from_the_last_checkpoint(
    world: World, undisturbed: Case, calm: Path, node: str
) -> None:
    """n1 is the batch host: the job's own process dies with it."""
    case = world.case(f"power-{node}", cluster={"preflight": {"enabled": node == "n2", "all_reduce_mib": 1}})
    case.submit()
    case.wait_for_step(SAVE_EVERY + 2)
    world.lab.power_off(node)
    world.lab.wait_for(f"{node} is down", lambda: world.lab.node_state(node).startswith("down"))
    world.lab.power_on(node)
    assert_restarted_from_a_checkpoint(case, undisturbed)


def test_after_a_cut_cable_the_job_goes_on_from_the_last_checkpoint(
    world: World, undisturbed: Case, calm: Path
) -> None:
    case = world.case("cable")
    case.submit()
    case.wait_for_step(SAVE_EVERY + 2)
    world.lab.cut_cable("n2")
    world.lab.wait_for_state(case.job_id, "PENDING")  # SLURM gave the node up, and what hung on the other one is gone
    world.lab.mend_cable("n2")
    assert_restarted_from_a_checkpoint(case, undisturbed)


def test_after_slurmd_died_for_good_nothing_is_lost(world: World, undisturbed: Case, calm: Path) -> None:
    """The ranks live on, and are told to stop when SLURM gives the node up: they save."""
    case = world.case("slurmd")
    case.submit()
    case.wait_for_step(SAVE_EVERY + 2)
    case.rank_process(0).send_signal(signal.SIGSTOP)  # else they would be done before; SLURM's SIGCONT wakes it
    world.lab.kill_slurmd("n2", stays_dead=True)
    world.lab.wait_for("n2 is down", lambda: world.lab.node_state("n2").startswith("down"))
    world.lab.power_on("n2")
    assert_restarted(case, undisturbed)
    assert case.started_at[1] >= SAVE_EVERY + 2


def assert_restarted(case: Case, undisturbed: Case) -> None:
    job = case.finish()
    assert job.restarts == 1
    assert [requeue.restart for requeue in case.requeues] == [0]
    assert case.started_at[1] == case.requeues[0].step
    assert_equal_to_the_bit(case, undisturbed)


def assert_restarted_from_a_checkpoint(case: Case, undisturbed: Case) -> None:
    """A periodic one: on a lost peer nothing can be agreed and saved."""
    assert_restarted(case, undisturbed)
    assert case.started_at[1] % SAVE_EVERY == 0 and case.started_at[1] > 0


def test_a_node_that_stands_still_is_named_and_the_job_goes_on(
    world: World, lab: Lab, undisturbed: Case, calm: Path
) -> None:
    """Law 13: SIGSTOP to a rank; the watchdog names it, ends the job non-zero, and it goes back into the queue."""
    case = world.case("hang", watchdog={"timeout_seconds": 15})
    case.submit()
    case.wait_for_step(SAVE_EVERY + 2)
    case.rank_process(1).send_signal(signal.SIGSTOP)
    assert_restarted_from_a_checkpoint(case, undisturbed)

    assert case.requeues[0].reason.startswith("hang: ")
    assert "rank 1" in case.requeues[0].reason and "n2" in case.requeues[0].reason
    assert list((case.run / "hangs").glob("attempt-*/rank-00000.txt"))
