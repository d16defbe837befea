"""A bad node of a real SLURM is named before any rank starts, and by policy gone without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.world import MAX_STEPS, Case, World, assert_equal_to_the_bit

pytestmark = pytest.mark.slurm


def record_of(case: Case) -> dict[str, object]:
    record: dict[str, object] = json.loads((case.run / "preflight" / f"{case.job_id}.json").read_text())
    return record


def test_good_nodes_are_measured_and_trained_on(world: World, undisturbed: Case) -> None:
    case = world.case("preflight", cluster={"preflight": {"enabled": True, "all_reduce_mib": 4}})
    case.submit()
    case.finish()
    record = record_of(case)
    assert record["faults"] == {}
    nodes, reduced = record["nodes"], record["all_reduce"]
    assert isinstance(nodes, dict) and sorted(nodes) == ["n1", "n2"]
    assert isinstance(reduced, dict) and reduced["backend"] == "gloo" and reduced["gb_per_second"] > 0
    assert "dure job: preflight: 2 nodes good, all-reduce " in case.output
    assert_equal_to_the_bit(case, undisturbed)


def test_a_node_without_the_shared_folder_is_named_and_nothing_is_started(world: World, calm: Path) -> None:
    case = world.case("unseen", cluster={"preflight": {"enabled": True}})
    case.run.mkdir()
    world.lab.hide("n2", case.run)
    case.submit()
    job = world.lab.wait_for_end(case.job_id)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", 1, 0)
    assert "preflight: n2: does not see the run folder's files (공유 폴더)" in case.output
    assert "preflight: 2 nodes bad: n2 (on_bad_node: stop)" in case.output
    assert not (case.run / "attempts.jsonl").exists()


def test_a_job_on_a_bad_node_takes_another(world: World, calm: Path) -> None:
    """Under the same id, which what waits for it knows."""
    scratch = world.folder / "scratch"
    scratch.mkdir()
    profile = {
        "preflight": {"enabled": True, "on_bad_node": "resubmit", "min_tmp_gib": 0.1},
        "environment": {"TMPDIR": str(scratch)},
    }
    case = world.case("resubmit", cluster=profile, nodes=1, engine={"kind": "none"})
    world.lab.hide("n1", scratch)
    other = world.lab.run("sbatch", "--parsable", "--nodelist=n2", "--exclusive", "-o/dev/null", "--wrap=sleep 900")
    world.lab.wait_for_state(other.strip(), "RUNNING")
    case.submit()
    behind = world.lab.run(
        "sbatch", "--parsable", f"--dependency=afterok:{case.job_id}", "-o/dev/null", "--wrap=true"
    ).strip()
    case.wait_for_output("is requeued without n1")
    world.lab.run("scancel", other.strip())
    job = case.finish()
    assert (job.restarts, job.fields["NodeList"], job.fields["ExcNodeList"]) == (1, "n2", "n1")
    assert "preflight: n1: tmp_gib is 0.0, preflight.min_tmp_gib 0.1" in case.output
    assert case.exit["step"] == MAX_STEPS
    assert (record_of(case)["left_out"], record_of(case)["resubmits"]) == (["n1"], 1)
    assert [requeue.reason for requeue in case.requeues] == ["preflight: n1 bad"]
    assert world.lab.wait_for_end(behind).state == "COMPLETED"
