"""What a job starts through srun, and what it refuses; that it works is tested on a real SLURM (tests/slurm)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.cluster import ClusterConfig, ContainerConfig
from launch.job import Job, Work, node_words, srun_words
from launch.node import parse
from tests.trainer.tiny_run import REPO, environment


def work(**changes: Any) -> Work:
    cluster = ClusterConfig(**{"cpu_ranks_per_node": 2, **changes})
    command = ("-m", "trainer", "my config.yaml", "run.name='x y'")
    return Work(Job("7", 0, ("n1", "n2")), cluster, Path("runs/it's"), command, held=set(), folders=(REPO / "tests",))


def test_one_task_a_node_with_all_cores_that_the_job_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    words = srun_words(work())
    assert words[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert "--cpu-bind=none" in words and "--kill-on-bad-exit=0" in words
    assert not [word for word in words if word.startswith("--cpus-per-task")]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "96")
    assert "--cpus-per-task=96" in srun_words(work())


def test_every_node_is_told_the_same_and_finds_its_own_place() -> None:
    words = node_words(work(), work().command, run_folder=Path("runs/it's"), reports=Path("r"), port=29500)
    assert words[:3] == [sys.executable, "-m", "launch.node"]
    node = parse(words[3:], {"SLURM_NODEID": "1"})
    assert (node.index, node.first_rank, node.world_size) == (1, 2, 4)
    assert (node.master, node.port, node.device, node.launcher) == ("n1", 29500, "cpu", "dure")
    assert node.command == (sys.executable, *work().command)
    assert node.run_folder == Path("runs/it's")


def test_in_a_container_its_own_python_runs_and_finds_the_runs_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    inside = work(container=ContainerConfig(kind="apptainer", image="/images/dure.sif"), gpus_per_node=8)
    words = srun_words(inside)
    assert words[words.index("apptainer") :][:3] == ["apptainer", "exec", "--nv"]
    assert str(REPO) in words
    told = node_words(inside, inside.command, run_folder=Path("r"), reports=Path("r"), port=1)
    assert told[0] == "python"
    node = parse(told[3:], {"SLURM_NODEID": "0"})
    assert (node.device, node.num_ranks, node.command[0]) == ("gpu", 8, "python")


def test_outside_of_a_job_it_says_what_makes_one() -> None:
    env = {name: value for name, value in environment().items() if not name.startswith("SLURM_")}
    command = [sys.executable, "-m", "launch.job", "configs/debug.yaml"]
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "SLURM_JOB_ID is not set, so this is no job; `dure submit CONFIG --cluster FILE`" in done.stderr


def test_no_thread_is_there_before_signals_are_held() -> None:
    """A thread that NumPy starts at its import would take a signal that the main thread holds back, and die of it."""
    code = "import os, launch.job, launch.node\nprint(len(os.listdir('/proc/self/task')))\n"
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, env=env, timeout=120)
    assert done.stdout == "1\n", done.stderr
