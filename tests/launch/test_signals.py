"""Law 12 from outside: a signal to any process of a job under way leaves a complete checkpoint of its last step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.trainer.tiny_run import REPO, environment, lines_of, make_shards, tiny_config, write_config
from trainer import checkpoint

pytestmark = pytest.mark.stages

STOPPED = 85
TIMEOUT_SECONDS = 120


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("signals") / "shards")


def endless_config(folder: Path, shards: Path) -> Path:
    """A run that only a signal ends, with no checkpoint of its own accord."""
    sections = {"train": {"max_steps": 1_000_000}, "checkpoint": {"every_steps": 1_000_000}}
    evaluation = {"every_steps": 1_000_000, "max_documents": 10}
    config = tiny_config(folder, shards, evaluation=evaluation, **sections)
    return write_config(folder / "config.yaml", config)


def start(command: list[str]) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=REPO, env=environment(), text=True, start_new_session=True, **pipes)


def wait_for_steps(run: Path, process: subprocess.Popen[str], count: int = 3) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before its first steps"
        time.sleep(0.05)


def rank_process(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of a rank: a descendant that says so in its environment and runs the trainer."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if "trainer" in child.cmdline() and child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no process of rank {rank} below {process.pid}")


def check_saved(run: Path, *, reason: str) -> None:
    last_step = lines_of(run / "metrics.jsonl")[-1]["step"]
    newest = checkpoint.find_complete(run / "checkpoints")[0]
    record = json.loads((run / "exit.json").read_text())

    assert (record["code"], record["reason"], record["step"]) == (STOPPED, reason, last_step)
    assert checkpoint.step_of(newest) == last_step
    assert checkpoint.verify(newest) == []


@pytest.mark.parametrize(
    ("receiver", "name"),
    [("launcher", "SIGTERM"), ("rank 0", "SIGUSR1"), ("rank 1", "SIGTERM"), ("everyone", "SIGINT")],
)
def test_law_12_a_signal_to_any_process_of_dure_train(shards: Path, tmp_path: Path, receiver: str, name: str) -> None:
    config = endless_config(tmp_path, shards)
    process = start([sys.executable, "-m", "launch.cli", "train", str(config), "--cpu-ranks", "2"])
    wait_for_steps(tmp_path / "run", process)

    number = getattr(signal, name)
    if receiver == "launcher":
        process.send_signal(number)
    elif receiver == "everyone":
        os.killpg(process.pid, number)  # Ctrl-C in a terminal
    else:
        rank_process(process, int(receiver[-1])).send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode == STOPPED, output
    check_saved(tmp_path / "run", reason=name)


@pytest.mark.parametrize(("name", "reason"), [("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGTERM")])
def test_law_12_a_signal_to_torchruns_agent(shards: Path, tmp_path: Path, name: str, reason: str) -> None:
    # SIGUSR1 kills the agent at once and leaves its workers alone: they hear of its death by SIGTERM.
    config = endless_config(tmp_path, shards)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start([*launcher, "-m", "trainer", str(config)])
    wait_for_steps(tmp_path / "run", process)
    workers = [rank_process(process, rank) for rank in range(2)]

    process.send_signal(getattr(signal, name))

    process.wait(timeout=TIMEOUT_SECONDS)
    psutil.wait_procs(workers, timeout=TIMEOUT_SECONDS)
    assert not any(worker.is_running() for worker in workers)
    check_saved(tmp_path / "run", reason=reason)


def test_law_14_a_rank_that_dies_ends_the_whole_job_non_zero(shards: Path, tmp_path: Path) -> None:
    config = endless_config(tmp_path, shards)
    process = start([sys.executable, "-m", "launch.cli", "train", str(config), "--cpu-ranks", "2"])
    wait_for_steps(tmp_path / "run", process)
    other = rank_process(process, 0)

    rank_process(process, 1).kill()
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode not in (0, STOPPED), output
    assert "rank 1" in output
    assert not other.is_running()


def test_a_second_process_on_a_live_run_folder_is_refused(shards: Path, tmp_path: Path) -> None:
    config = endless_config(tmp_path, shards)
    command = [sys.executable, "-m", "launch.cli", "train", str(config), "--cpu-ranks", "1"]
    first = start(command)
    wait_for_steps(tmp_path / "run", first)

    second = subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=120)

    assert second.returncode == 2
    assert second.stderr.count("another process works in this run folder") == 1
    assert first.poll() is None
    first.terminate()
    first.communicate(timeout=TIMEOUT_SECONDS)
    check_saved(tmp_path / "run", reason="SIGTERM")
