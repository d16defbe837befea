"""A bad node is named with what is wrong, both values; a good one is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.preflight import Expected, PreflightConfig, judge, judge_all_reduce
from launch.preflight_node import look, parse_gpus
from tests.trainer.tiny_run import REPO

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
    return {"met": True, "fault": "", "link_gb_per_second": 20.0} | changes


def judged(results: list[dict[str, Any] | None], **config: Any) -> dict[str, list[str]]:
    hosts = tuple(f"n{place + 1}" for place in range(len(results) // 2))
    return judge_all_reduce(PreflightConfig(**config), results, hosts, ranks_per_node=2)


def test_ranks_that_never_came_are_named_and_not_those_that_waited_for_them() -> None:
    waited = rank(fault="timed out")
    assert judged([waited, waited, rank(), None, waited, waited]) == {
        "n2": ["rank 3 did not reach the first node by the network (망)"]
    }
    assert list(judged([waited, rank(), rank(), waited])) == ["n1", "n2"]
    assert judged([rank()] * 4) == {}


def test_a_node_is_slow_where_both_of_its_links_are() -> None:
    slow = rank(link_gb_per_second=1.0)
    results = [rank(), rank(), slow, rank(), slow, rank(), rank(), rank()]  # into n2 and out of n2
    assert judged(list(results), min_gb_per_second=5) == {
        "n2": ["its links carry 1.00 and 1.00 GB/s, preflight.min_gb_per_second is 5"]
    }
    assert judged(list(results)) == {}


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
