"""Law 13 on processes that only keep house: what the watchdog takes for progress, and what for a hang.

Whole runs that hang are in test_hung_runs.py. All processes are started at once: nearly all of them wait.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.tiny_run import REPO
from trainer.beats import read_beats

pytestmark = pytest.mark.stages

# `board` makes it a rank whose run holds the folder.
RANK = """
import ctypes, json, os, sys, time
from pathlib import Path
from data_pipeline.config import validate
from trainer.watchdog import Seat, Watchdog
from trainer.watchdog_config import WatchdogConfig
folder, config = Path(sys.argv[1]), validate(json.loads(sys.argv[2]), WatchdogConfig, where="test")
with Watchdog(config, run_folder=folder, seat=Seat.of()) as watchdog:
    watchdog.board(1)
    watchdog.follow(lambda: 7)
    print("ready", flush=True)
BODY
print("through")
"""
HURRIED = {"timeout_seconds": 3, "startup_timeout_seconds": 60, "beat_seconds": 0.5}

SLEEP = "time.sleep(TIME)"
MARK = "[(watchdog.mark(), time.sleep(0.1)) for _ in range(10 * TIME)]"
WRITE = "[((folder / 'large').write_bytes(bytes(1 << 20)), time.sleep(0.1)) for _ in range(10 * TIME)]"
HOLD_THE_INTERPRETER = "ctypes.PyDLL(None).sleep(600)"


@dataclass
class Case:
    """A process a rank: the phase that it is in and what it does there; it is ended, or through."""

    phase: str
    bodies: list[str]
    is_hang: bool
    config: dict[str, Any] = field(default_factory=dict)


CASES = {
    "still in a step": Case("step", [SLEEP.replace("TIME", "600")], is_hang=True),
    "marks in a step": Case("step", [MARK.replace("TIME", "9")], is_hang=False),
    "still while it loads": Case("load", [SLEEP.replace("TIME", "9")], is_hang=False),
    "still in the first step": Case("warm-up", [SLEEP.replace("TIME", "9")], is_hang=False),
    "still at the start for longer": Case(
        "load", [SLEEP.replace("TIME", "600")], is_hang=True, config={"startup_timeout_seconds": 3}
    ),
    "writes while it saves": Case("save", [WRITE.replace("TIME", "9")], is_hang=False),
    "writes in a step": Case("step", [WRITE.replace("TIME", "600")], is_hang=True),
    "not watched": Case("step", [SLEEP.replace("TIME", "9")], is_hang=False, config={"timeout_seconds": 0}),
    # While another rank works on, one that waits for it is not hanging.
    "one waits for another": Case("step", [SLEEP.replace("TIME", "9"), MARK.replace("TIME", "9")], is_hang=False),
    "one holds the interpreter": Case("step", [SLEEP.replace("TIME", "600"), HOLD_THE_INTERPRETER], is_hang=True),
}


def start(folder: Path, case: Case, rank: int) -> subprocess.Popen[str]:
    body = f"    watchdog.phase({case.phase!r})\n    {case.bodies[rank]}"
    seat = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(case.bodies))}
    return subprocess.Popen(
        [sys.executable, "-c", RANK.replace("BODY", body), str(folder), json.dumps({**HURRIED, **case.config})],
        cwd=REPO,
        env={**os.environ, **seat, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass
class Outcome:
    folder: Path
    codes: list[int]
    output: list[str]
    errors: str


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    started = {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("watched")
        started[name] = (folder, [start(folder, case, rank) for rank in range(len(case.bodies))])
    found = {}
    for name, (folder, processes) in started.items():
        # A process that holds the interpreter ends by nobody's word but the kernel's.
        said = [
            process.communicate(timeout=120) for process in processes if HOLD_THE_INTERPRETER not in process.args[2]
        ]
        for process in processes:
            process.kill()
        codes = [process.wait() for process in processes]
        found[name] = Outcome(folder, codes, [out for out, _ in said], "".join(error for _, error in said))
    return found


@pytest.mark.parametrize("name", CASES)
def test_law_13_only_a_run_without_progress_is_ended(outcomes: dict[str, Outcome], name: str) -> None:
    case, outcome = CASES[name], outcomes[name]
    ended = "ready\n" if case.is_hang else "ready\nthrough\n"

    assert set(outcome.output) == {ended}, outcome.errors
    assert outcome.codes[0] == (1 if case.is_hang else 0)
    assert ("error: hang: no progress" in outcome.errors) == case.is_hang
    assert (outcome.folder / "exit.json").exists() == case.is_hang


def test_law_13_the_stacks_say_where_each_thread_stood(outcomes: dict[str, Outcome]) -> None:
    folder = outcomes["still in a step"].folder
    stacks = (folder / "hangs/attempt-0001/rank-00000.txt").read_text()

    assert f"rank 0 on {os.uname().nodename} (pid " in stacks
    assert "phase step, after step 7, 1 marks, idle " in stacks
    sleeps_at = RANK.split("\n").index("BODY") + 2  # behind the line that tells the phase; lines count from 1
    assert f'File "<string>", line {sleeps_at} in <module>' in stacks
    assert "is MainThread" in stacks and "is watchdog" in stacks


def test_law_13_a_rank_that_holds_the_interpreter_is_named_by_another(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["one holds the interpreter"]
    (named,) = json.loads((outcome.folder / "hangs/attempt-0001/hang.json").read_text())["behind"]

    assert named["rank"] == 1
    assert "its process lives, but runs no Python thread" in outcome.errors
    assert [path.name for path in (outcome.folder / "hangs/attempt-0001").glob("rank-*")] == ["rank-00000.txt"]


def test_a_rank_that_left_says_so_in_its_last_beat(outcomes: dict[str, Outcome]) -> None:
    beats = read_beats(outcomes["one waits for another"].folder)

    assert {rank: (beat.phase, beat.step) for rank, beat in beats.items()} == {0: ("ended", 7), 1: ("ended", 7)}
    assert not list(outcomes["one waits for another"].folder.glob("beats/start-*"))


def test_a_process_that_was_stopped_itself_counts_anew(tmp_path: Path) -> None:
    # What `scontrol suspend` does to a whole job, and a person to a lone process.
    config = {"timeout_seconds": 8, "beat_seconds": 0.5}
    process = start(tmp_path, Case("step", ["sys.stdin.read()"], is_hang=False, config=config), 0)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(16)  # twice the timeout
    process.send_signal(signal.SIGCONT)
    time.sleep(3)

    assert process.poll() is None
    process.kill()
    process.communicate()
