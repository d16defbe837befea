"""`dure status`, `logs`, `watch` and `cancel` on a job of the real SLURM: from the queue to its save."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launch.sbatch_jobs import REPO
from tests.slurm.lab import Lab
from tests.slurm.world import World
from tests.trainer.tiny_run import lines_of, losses_of, tiny_config, write_config

pytestmark = pytest.mark.slurm

LONG = {
    "train": {"max_steps": 100_000},
    "checkpoint": {"every_steps": 1000},
    "evaluation": {"every_steps": 100_000},
    "run": {"name": "한국어"},
}


class Person:
    """Calls `dure` in a folder, as somebody at the cluster's login node."""

    def __init__(self, lab: Lab, home: Path) -> None:
        self.lab, self.home = lab, home
        self.env = {**lab.env, "PYTHONPATH": str(REPO), "PWD": str(home)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "launch.cli", *words]
        return subprocess.Popen(command, cwd=self.home, env=self.env, text=True, stdout=subprocess.PIPE, stderr=-1)

    def dure(self, *words: str) -> str:
        """What a command that succeeds prints."""
        process = self.start(*words)
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return out

    def status(self) -> dict[str, Any]:
        (found,) = json.loads(self.dure("status", "--json"))
        assert isinstance(found, dict)
        return found


def test_a_job_is_looked_at_from_the_queue_to_its_save(lab: Lab, world: World, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    person, run = Person(lab, tmp_path), tmp_path / "runs/한국어"
    write_config(tmp_path / "config.yaml", tiny_config(tmp_path / "runs", world.shards, **LONG))
    (tmp_path / "cluster.yaml").write_text("nodes: 2\ntime_limit: '30:00'\npreflight: {enabled: false}\n")
    others = lab.run("sbatch", "--parsable", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 900").strip()
    person.dure("submit", "config.yaml", "--cluster", "cluster.yaml")
    job = lines_of(run / "jobs.jsonl")[0]["job"]

    waiting = person.status()
    assert (waiting["name"], waiting["state"], waiting["job"]) == ("한국어", "waiting", job)
    assert any(words in waiting["why"] for words in ("(자원 대기)", "(우선순위 대기)", "(곧 배정)"))

    lab.run("scancel", others)
    lab.wait_for("three steps", lambda: (run / "metrics.jsonl").exists() and len(losses_of(run)) >= 3)
    running = person.status()
    assert (running["state"], running["job"], running["ranks"], running["step"] >= 3) == ("running", job, 2, True)
    assert f"job {job} · 2 ranks on n[1-2] · " in person.dure("status")
    assert "2 of 2 ranks beat" in person.dure("watch")
    assert f"== job {job} restart 0 on n[1-2]" in person.dure("logs", "한국어", "--lines", "0")

    following = person.start("logs", "한국어", "-f")
    told = person.dure("cancel", "한국어")
    out, errors = following.communicate(timeout=120)

    step = max(losses_of(run))
    assert f"한국어: cancelled (취소됨); step {step:,} stands (남은 단계): runs/한국어/checkpoints/" in told
    assert (following.returncode, "cancelled (취소됨)" in errors) == (0, True)
    assert "not requeued: cancelled stands in the run folder" in out
    ended = lab.job(job)
    assert (ended.state, ended.exit_code, ended.restarts) == ("FAILED", 85, 0)
    assert person.status()["state"] == "cancelled"
