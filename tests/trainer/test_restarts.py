"""`torchrun --max-restarts`: a rank that is killed ends its attempt, and the next one goes on inside the same job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.test_hung_runs import MAX_STEPS, config_at, num_steps, rank_of, wait_for
from tests.trainer.tiny_run import REPO, environment, lines_of, losses_of, make_shards
from trainer.ledger import read_ledger

pytestmark = pytest.mark.stages


def torchrun(config: Path, **options: Any) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = ["--max-restarts=3", "--monitor-interval=0.5", "-m", "trainer", str(config)]
    return subprocess.Popen([*launcher, *flags], cwd=REPO, env=environment(), text=True, **options)


def began(run: Path) -> list[int]:
    events = run / "events.jsonl"
    return [event["step"] for event in lines_of(events) if event["kind"] == "started"] if events.exists() else []


def kill_in_a_step(process: subprocess.Popen[str], run: Path, *, rank: int, attempt: int) -> None:
    """Kill a rank some 15 steps or more after its attempt began."""
    wait_for(lambda: len(began(run)) == attempt and num_steps(run) >= began(run)[-1] + 15, process)
    found = rank_of(process, rank)
    assert found is not None
    found.kill()


def test_a_run_goes_on_after_each_of_its_ranks_was_killed(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = torchrun(config_at(whole, shards), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert undisturbed.wait(timeout=300) == 0

    run = killed / "run"
    with (tmp_path / "output").open("w") as output:
        process = torchrun(config_at(killed, shards), stdout=output, stderr=output)
    kill_in_a_step(process, run, rank=1, attempt=1)
    kill_in_a_step(process, run, rank=0, attempt=2)  # rank 0 holds the folder: its lock is left behind
    code = process.wait(timeout=300)

    assert code == 0, (tmp_path / "output").read_text()
    steps = began(run)
    assert len(steps) == 3 and 0 < steps[1] <= steps[2] < MAX_STEPS
    assert losses_of(run) == losses_of(whole / "run")
    assert read_ledger(run) == read_ledger(whole / "run")
    assert json.loads((run / "exit.json").read_text())["reason"] == "done"
