"""A data stage runs in waves over processes; what ends it early leaves finished tasks finished and names the task."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data_pipeline.stage import read_manifest
from launch.tasks import TaskError, num_cores, run_stage
from tests.launch.copy_stage import CopyStage

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_task_is_run_once_and_the_manifest_comes_back(tmp_path: Path, num_workers: int) -> None:
    stage = CopyStage(tmp_path / "out")

    manifest = run_stage(stage, num_workers, label="copy")

    assert manifest == read_manifest(stage.output, kind="copy")
    assert sorted(name for name, *_ in stage.log()) == sorted(task.name for task in stage.plan())
    assert manifest["values"]["sum-0"] == 0 + 1 + 2 + 3 + 4 + 5


def test_a_wave_begins_when_the_one_before_it_is_done(tmp_path: Path) -> None:
    stage = CopyStage(tmp_path / "out")

    run_stage(stage, 3, label="copy")

    names = [name for name, *_ in stage.log()]
    assert {name.partition("-")[0] for name in names[:6]} == {"copy"}
    assert {name.partition("-")[0] for name in names[6:]} == {"sum"}


def test_one_worker_means_this_process(tmp_path: Path) -> None:
    stage = CopyStage(tmp_path / "out")

    run_stage(stage, 1, label="copy")

    assert {pid for _, pid, *_ in stage.log()} == {os.getpid()}


def test_no_more_processes_start_than_a_wave_has_tasks(tmp_path: Path) -> None:
    stage = CopyStage(tmp_path / "out", num_tasks=1)

    run_stage(stage, 8, label="copy")

    assert {pid for _, pid, *_ in stage.log()} == {os.getpid()}


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("bad input", 2, r"^copy: task copy-1: in/copy-1.zip: broken; download it again$"),
        ("full disk", 1, r"^copy: task copy-1: out/part: write failed: no space left; free space$"),
        (
            "bug",
            1,
            r"^copy: task copy-1: UnsendableError: 1 and 2; a fault of dure's own(?s:.*)raise UnsendableError\(1, 2\)",
        ),
    ],
)
def test_a_failure_names_its_task_and_leaves_out_what_had_not_begun(
    tmp_path: Path, num_workers: int, fault: str, code: int, says: str
) -> None:
    stage = CopyStage(tmp_path / "out", num_tasks=30, faults=(("copy-1", fault),))

    with pytest.raises(TaskError, match=says) as caught:
        run_stage(stage, num_workers, label="copy")

    assert caught.value.exit_code == code
    assert len(stage.log()) < 30
    assert not stage.is_done()


def test_a_killed_worker_is_explained_and_the_next_run_goes_on(tmp_path: Path) -> None:
    stage = CopyStage(tmp_path / "out", num_tasks=6, faults=(("copy-3", "killed"),))

    with pytest.raises(
        TaskError, match=r"copy: a worker process was killed .*copy-3.*; finished tasks stay: .*--workers"
    ):
        run_stage(stage, 2, label="copy")

    assert (stage.output / "copy-0").is_file()
    manifest = run_stage(CopyStage(tmp_path / "out"), 1, label="copy")
    assert manifest["values"]["sum-5"] == 15


def test_native_threads_are_shared_out_among_workers_and_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    stage = CopyStage(tmp_path / "out")

    run_stage(stage, 2, label="copy")

    assert {threads for *_, threads in stage.log()} == {str(max(1, num_cores() // 2))}
    assert "RAYON_NUM_THREADS" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_runner(tmp_path: Path, number: signal.Signals) -> None:
    stage = CopyStage(tmp_path / "out")
    command = [sys.executable, "-m", "tests.launch.run_copy_stage", str(stage.output), "slow"]
    runner = subprocess.Popen(command, cwd=REPO, stderr=subprocess.DEVNULL)
    wait_until(lambda: any(name == "copy-1" for name, *_ in stage.log()))

    runner.send_signal(number)

    assert runner.wait(timeout=20) != 0
    workers = {pid for _, pid, *_ in stage.log()}
    wait_until(lambda: not any(is_alive(pid) for pid in workers))


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(is_so: Callable[[], bool], timeout_seconds: float = 20) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
