"""A bad node is named with what is wrong, both values; a good one is not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import preflight
from launch.cluster import ClusterConfig
from launch.job import Job, Work
from launch.local import environments, reserved_port
from launch.preflight import (
    DEVICE,
    NETWORK,
    Checked,
    Expected,
    PreflightConfig,
    Reduced,
    check_nodes,
    grouped,
    judge,
    judge_all_reduce,
    pair_shifts,
    resubmit_without,
    slow_links,
    tell_apart,
)
from launch.preflight_node import Group, group_of, look, parse_gpus
from launch.requeue import Requeue, RequeueConfig, decide, read_requeues
from tests.launch.look_runs import write_program
from tests.launch.test_submit import fake  # noqa: F401
from tests.trainer.tiny_run import REPO, environment

# ruff: noqa: F811  (`fake` is a fixture)

GPU = {"name": "NVIDIA A100-SXM4-80GB", "memory_mib": 81920, "errors": 0}
EXPECTED = Expected(("n1", "n2"), num_gpus=2, token="t", sent=100.0, received=110.0)


def answer(**changes: Any) -> dict[str, Any]:
    fine = {
        "gpus": [GPU, GPU],
        "driver": "550.54",
        "gpu_fault": "",
        "memory_gib": 500.0,
        "disk_gib": 90.0,
        "tmp_gib": 9.0,
        "folder": "/shared/run",
        "token": "t",
        "write_fault": "",
        "time": 105.0,
        "python": "3.11.7",
        "torch": "2.13.0",
        "deepspeed": "0.19.8",
        "transformers": "5.23.0",
    }
    return fine | changes


def faults(second: dict[str, Any] | None, **config: Any) -> dict[str, list[str]]:
    answers = {"n1": answer()} | ({} if second is None else {"n2": second})
    return judge(PreflightConfig(**config), answers, EXPECTED)


def test_equal_nodes_are_good() -> None:
    assert faults(answer()) == {}


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"gpus": [GPU]}, {}, "1 GPUs, the profile says gpus_per_node 2"),
        (
            {"gpus": [], "gpu_fault": "nvidia-smi hangs"},
            {},
            "0 GPUs, the profile says gpus_per_node 2: nvidia-smi hangs",
        ),
        ({"gpus": [GPU, GPU | {"errors": 3}]}, {}, "GPU NVIDIA A100-SXM4-80GB: 3 uncorrected memory errors"),
        ({"driver": "470.1"}, {}, "driver is '470.1', on n1 '550.54'; install the same on all nodes"),
        ({"torch": "2.12.0"}, {}, "torch is '2.12.0', on n1 '2.13.0'"),
        (
            {"token": "No such file or directory"},
            {},
            "does not see the run folder's files (공유 폴더): /shared/run holds",
        ),
        ({"write_fault": "Read-only file system"}, {}, "cannot write into the run folder: Read-only file system"),
        ({"memory_gib": 200.0}, {"min_memory_gib": 400}, "memory_gib is 200.0, preflight.min_memory_gib 400"),
        ({"disk_gib": 0.5}, {}, "disk_gib is 0.5, preflight.min_disk_gib 1"),
        ({"tmp_gib": 8.0}, {"min_tmp_gib": 9}, "tmp_gib is 8.0, preflight.min_tmp_gib 9"),
        ({"time": 150.0}, {}, "its clock is off by 40 s (시계), preflight.max_clock_skew_seconds is 30"),
        ({"time": 60.0}, {}, "its clock is off by 40 s"),
    ],
)
def test_a_bad_node_is_named(changes: dict[str, Any], config: dict[str, Any], message: str) -> None:
    found = faults(answer(**changes), **config)
    assert list(found) == ["n2"]
    assert message in found["n2"][0]


def test_a_node_that_does_not_answer_is_bad() -> None:
    assert faults(None) == {"n2": ["no answer within 300 s (응답 없음); see the job's log for what srun says"]}


def rank(**changes: Any) -> dict[str, Any]:
    return {"met": True, "stage": NETWORK, "fault": "", "link_gb_per_second": 20.0} | changes


def hosts_of(results: Sequence[Any]) -> tuple[str, ...]:
    return tuple(f"n{place + 1}" for place in range(len(results) // 2))


def judged(results: list[dict[str, Any] | None], **config: Any) -> Reduced:
    return judge_all_reduce(PreflightConfig(**config), results, hosts_of(results), ranks_per_node=2)


def test_ranks_that_never_came_are_named_and_not_those_that_waited_for_them() -> None:
    waited = rank(fault="timed out")
    assert judged([waited, waited, rank(), None, waited, waited]) == Reduced(
        {"n2": ["rank 3 did not reach the first node by the network (망)"]}
    )
    assert judged([rank()] * 4) == Reduced({})
    nobody = judged([None] * 4)
    assert nobody.faults == {} and len(nobody.unknown) == 4


def test_a_device_that_fails_goes_before_what_the_others_say_of_it() -> None:
    others = rank(fault="NCCL error: unhandled system error, remote process exited (CUDA error on a peer)")
    broken = rank(stage=DEVICE, fault="CUDA error: uncorrectable ECC error encountered")
    assert judged([others, others, others, broken]) == Reduced(
        {"n2": ["rank 3: its device: CUDA error: uncorrectable ECC error encountered"]}
    )
    late = rank(fault="CUDA error: an illegal memory access was encountered")
    assert list(judged([others, others, late, others]).faults) == ["n2"]


def test_a_failed_all_reduce_is_of_no_one_node() -> None:
    """It fails on all of them, whichever link is broken."""
    found = judged([rank(fault="NCCL error: unhandled system error")] * 4)
    assert found.faults == {}
    assert found.unknown[3] == "rank 3 on n2: the all-reduce: NCCL error: unhandled system error"


def measured(num_nodes: int, size: int, shift: int, *, bad: set[int], broken: set[int]) -> Any:
    """What the groups find where the nodes `bad` can't talk to others, and those `broken` not even to themselves."""
    results: list[dict[str, Any]] = [rank()] * (2 * num_nodes)
    for nodes in grouped(num_nodes, size=size, shift=shift):
        fails = broken & set(nodes) or (len(nodes) > 1 and bad & set(nodes))
        for node in nodes if fails else ():
            results[2 * node : 2 * node + 2] = [rank(fault="NCCL error")] * 2
    return size, shift, results


def apart(num_nodes: int, **which: set[int]) -> dict[str, list[str]]:
    wanted = [(1, 0), *((2, shift) for shift in pair_shifts(num_nodes))]
    passes = [
        measured(num_nodes, *one, bad=which.get("bad", set()), broken=which.get("broken", set())) for one in wanted
    ]
    return tell_apart(passes, tuple(f"n{node}" for node in range(num_nodes)), ranks_per_node=2)


@pytest.mark.parametrize("num_nodes", [3, 4, 5, 8, 9])
def test_pairs_of_neighbours_tell_a_bad_node_from_the_good_ones(num_nodes: int) -> None:
    for node in range(num_nodes):
        assert list(apart(num_nodes, bad={node})) == [f"n{node}"]
        assert list(apart(num_nodes, broken={node})) == [f"n{node}"]
    assert apart(num_nodes) == {}


def test_two_bad_neighbours_are_named_and_their_good_neighbours_are_not() -> None:
    found = apart(6, bad={2, 3})
    assert list(found) == ["n2", "n3"]
    assert found["n2"][0] == "an all-reduce together with n3 fails too: NCCL error"


def test_where_nothing_tells_the_nodes_apart_nobody_is_left_out() -> None:
    assert apart(2, bad={0}) == apart(2, bad={1}) == {}
    assert apart(4, bad={0, 1, 2, 3}) == apart(3, broken={0, 1, 2}) == {}
    assert list(apart(2, broken={1})) == ["n1"]
    assert list(apart(1, broken={0})) == ["n0"]


@given(num_nodes=st.integers(1, 40), size=st.integers(1, 3), shift=st.integers(0, 39))
def test_each_rank_measures_in_one_group(num_nodes: int, size: int, shift: int) -> None:
    groups: dict[str, list[Group]] = {}
    for number in range(3 * num_nodes):
        environ = {"RANK": str(number), "WORLD_SIZE": str(3 * num_nodes), "LOCAL_WORLD_SIZE": "3"}
        group = group_of(environ, size=size, shift=shift)
        groups.setdefault(group.name, []).append(group)
    for members in groups.values():
        assert sorted(group.rank for group in members) == list(range(members[0].world_size))


def test_two_nodes_with_a_slow_link_are_not_both_bad() -> None:
    slow = rank(link_gb_per_second=1.0)
    found = judged([slow] * 4, min_gb_per_second=5)
    assert found.faults == {}
    assert found.unknown[0] == "n1: its links carry 1.00 and 1.00 GB/s, preflight.min_gb_per_second is 5"


def test_a_link_far_below_the_others_is_told_whatever_the_profile_asks_for() -> None:
    slow = rank(link_gb_per_second=2.0)
    results = [rank(), rank(), slow, rank(), rank(), rank()]
    assert slow_links(results, hosts_of(results)) == [
        "the link from n1 to n2 carries 2.00 GB/s, most carry 20.00; look at its cable and its switch"
    ]
    assert slow_links([rank()] * 6, hosts_of(results)) == slow_links([slow] * 6, hosts_of(results)) == []


def test_a_node_is_slow_where_both_of_its_links_are() -> None:
    slow = rank(link_gb_per_second=1.0)
    results = [rank(), rank(), slow, rank(), slow, rank(), rank(), rank()]  # into n2 and out of n2
    assert judged(list(results), min_gb_per_second=5) == Reduced(
        {"n2": ["its links carry 1.00 and 1.00 GB/s, preflight.min_gb_per_second is 5"]}
    )
    assert judged(list(results)) == Reduced({})


def test_a_look_at_this_machine(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    seen = look(tmp_path)
    assert (seen["token"], seen["write_fault"]) == ("abc", "")
    assert seen["disk_gib"] > 0 and seen["memory_gib"] > 0
    assert look(tmp_path / "gone")["token"] == look(tmp_path / "gone")["write_fault"] == "No such file or directory"


def test_what_nvidia_smi_says() -> None:
    gpus, driver, fault = parse_gpus("NVIDIA A100, 81920, 550.54, 0\nNVIDIA A100, 81920, 550.54, [N/A]\n")
    assert gpus == [{"name": "NVIDIA A100", "memory_mib": 81920, "errors": 0}] * 2
    assert (driver, fault) == ("550.54", "")
    assert parse_gpus("NVIDIA A100, 81920, 550.54, 7\n")[0][0]["errors"] == 7


def test_the_answer_of_a_node_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.preflight_node", "look", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [line[:10] for line in done.stdout.splitlines()] == ["PREFLIGHT "]


# As srun: it prints what one node says, and stays until it is told to end, twice; a kill would leave its tasks alive.
SRUN = """
exec {python} -c '
import signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
print(sys.argv[1], flush=True)
while len(heard) < 2:
    time.sleep(0.02)
open(sys.argv[2], "w").close()
' '{answer}' "$FAKE/ended-its-tasks"
"""


def test_a_look_that_takes_too_long_leaves_no_task_behind(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "END_SECONDS", 0.5)
    (tmp_path / "run").mkdir()
    first = answer(index=0, disk_gib=0.0)
    write_program(fake / "bin/srun", SRUN.format(python=sys.executable, answer="PREFLIGHT " + json.dumps(first)))
    cluster = ClusterConfig(preflight=PreflightConfig(timeout_seconds=1.0))

    checked = check_nodes(Work(Job("7", 0, ("n1", "n2")), cluster, tmp_path / "run", ("-m", "trainer"), held=set()))

    assert (fake / "ended-its-tasks").exists()
    assert not checked.go_on
    assert "does not see the run folder's files" in checked.faults["n1"][0]  # what was said until then counts
    assert checked.faults["n2"] == ["no answer within 1 s (응답 없음); see the job's log for what srun says"]


def all_reduced(folder: Path, *words: str, ranks: int, device: str = "cpu") -> list[dict[str, Any]]:
    """What so many ranks leave, as on nodes of one rank each."""
    with reserved_port() as port:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "launch.preflight_node", "all-reduce", str(folder), "1", *words],
                cwd=REPO,
                env=env | {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "DURE_DEVICE": device},
            )
            for env in environments(ranks, device="cpu", port=port, env=environment())
        ]
        assert [process.wait(timeout=120) for process in processes] == [int(device == "gpu")] * ranks
    return [json.loads((folder / f"all-reduce-{rank:05d}.json").read_text()) for rank in range(ranks)]


@pytest.mark.stages
def test_groups_measure_side_by_side_and_on_what_the_profile_asks_for(tmp_path: Path) -> None:
    together = all_reduced(tmp_path, ranks=3)
    assert [(result["fault"], result["backend"]) for result in together] == [("", "gloo")] * 3
    pairs = all_reduced(tmp_path, "2", "1", ranks=3)
    assert [result["fault"] for result in pairs] == [""] * 3
    assert [result["link_gb_per_second"] > 0 for result in pairs] == [False, True, True]

    without = all_reduced(tmp_path, ranks=1, device="gpu")
    assert "the launcher started this rank for a GPU, but torch finds none here" in without[0]["fault"]
    assert judge_all_reduce(PreflightConfig(), without, ("n1",), ranks_per_node=1).faults["n1"]


def bad_job(tmp_path: Path, **record: Any) -> tuple[Work, Checked]:
    (tmp_path / "run/preflight").mkdir(parents=True)
    cluster = ClusterConfig(exclude=("n9",), preflight=PreflightConfig(on_bad_node="resubmit"))
    work = Work(Job("7", 0, ("n1", "n2")), cluster, tmp_path / "run", ("-m", "trainer"), held=set())
    checked = Checked(go_on=False, faults={"n2": ["x"]}, record={"left_out": [], "resubmits": 0} | record)
    return work, checked


def test_a_job_is_requeued_under_its_id_without_the_bad_nodes(tmp_path: Path, fake: Path) -> None:
    work, checked = bad_job(tmp_path, left_out=["n5"], resubmits=1)

    resubmit_without(work, checked)

    calls = " ".join((fake / "scontrol-args").read_text().split())
    assert calls == "requeuehold 7 update JobId=7 ExcNodeList=n2,n5,n9 release 7"
    record = json.loads((tmp_path / "run/preflight/7.json").read_text())
    assert (record["left_out"], record["resubmits"]) == (["n2", "n5", "n9"], 2)
    (requeue,) = read_requeues(tmp_path / "run")
    assert (requeue.reason, requeue.step) == ("preflight: n2 bad", 0)
    stopped = Requeue(job="7", restart=1, step=0, reason="stopped: SIGUSR1")
    assert decide(RequeueConfig(), stopped, before=[requeue], is_cancelled=False).requeue  # it ran for the first time


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resubmits": 2}, "that was done 2 times, preflight.max_resubmits is 2; submit it again with --exclude=n2,n9"),
        ({}, "no node is known to be the bad one"),
    ],
)
def test_a_job_on_bad_nodes_is_not_requeued_for_ever_nor_without_knowing_them(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, int], said: str
) -> None:
    work, checked = bad_job(tmp_path, **changes)
    checked.faults = checked.faults if changes else {}

    resubmit_without(work, checked)

    assert said in capsys.readouterr().err
    assert not (fake / "scontrol-args").exists()


def test_a_job_whose_nodes_slurm_will_not_change_is_let_go_all_the_same(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_program(fake / "bin/scontrol", 'echo "$1" >> "$FAKE/calls"; [ "$1" != update ] || { echo no >&2; exit 1; }')

    resubmit_without(*bad_job(tmp_path))

    assert (fake / "calls").read_text().split() == ["requeuehold", "update", "release"]
    assert "could not be requeued without them: scontrol: no" in capsys.readouterr().err
