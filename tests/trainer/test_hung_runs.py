"""Law 13 on whole runs: a rank that stands still is named, all end non-zero, and the next start loses nothing.

The runs hang side by side, for nearly all that they do is to wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.trainer.tiny_run import REPO, environment, lines_of, losses_of, make_shards, start, tiny_config, write_config
from trainer import checkpoint
from trainer.beats import read_beats
from trainer.ledger import read_ledger

pytestmark = pytest.mark.stages

RANKS = 2
MAX_STEPS = 120
PATIENCE_SECONDS = 300
# A machine that others load must not look like a hang: the timeouts are many times what a step and a load take there.
WATCHDOG = {"timeout_seconds": 20, "startup_timeout_seconds": 60, "beat_seconds": 1}
# SIGUSR2 lets the main thread of a rank sleep for ever in Python, as a deadlock of a person's own code would.
SLEEPER = """
import signal, time
def fall_asleep(number, frame):
    while True:
        time.sleep(60)
signal.signal(signal.SIGUSR2, fall_asleep)
"""


def config_at(folder: Path, shards: Path, **sections: Any) -> Path:
    """A run of many short steps, with a save every 10 and a ledger."""
    folder.mkdir()
    sections = {
        "train": {"max_steps": MAX_STEPS},
        "checkpoint": {"every_steps": 10},
        "evaluation": {"every_steps": 1_000_000, "max_documents": 10},
        "logging": {"ledger": True},
        "watchdog": WATCHDOG,
    } | sections
    return write_config(folder / "config.yaml", tiny_config(folder, shards, **sections))


def wait_for(claim: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not claim():
        assert process.poll() is None and time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)


def rank_of(process: subprocess.Popen[str], rank: int) -> psutil.Process | None:
    """The process of a rank, once it stands: a descendant that says so in its environment and runs the trainer."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "trainer" in child.cmdline() and child.environ().get("RANK") == str(rank):
                return child
    return None


def num_steps(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


@dataclass
class Drill:
    """What stops a rank: a signal, once a claim about the run folder holds."""

    rank: int
    when: Callable[[Path], bool]
    signal: signal.Signals = signal.SIGSTOP
    variables: dict[str, str] = field(default_factory=dict)


@dataclass
class Hung:
    """What was left of it."""

    folder: Path
    pid: int
    code: int
    output: str
    seconds: float

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def json(self, name: str) -> dict[str, Any]:
        return json.loads((self.run / name).read_text())  # type: ignore[no-any-return]

    def stacks(self) -> list[str]:
        return sorted(path.name for path in self.run.glob("hangs/*/rank-*.txt"))


DRILLS = {
    "rank 0 is stopped in a step": Drill(0, lambda run: num_steps(run) >= 15),
    "rank 1 sleeps in Python": Drill(1, lambda run: num_steps(run) >= 15, signal.SIGUSR2),
    "rank 1 is stopped while it loads": Drill(1, lambda run: 1 in read_beats(run)),
    "rank 1 is stopped before it arrives": Drill(1, lambda run: True),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("hung") / "shards")


@contextlib.contextmanager
def stopped(folder: Path, shards: Path, drill: Drill) -> Iterator[tuple[subprocess.Popen[str], int, float]]:
    """The run with one rank stopped; its process, that rank's pid, and when it was stopped."""
    config = config_at(folder, shards)
    (folder / "hooks").mkdir()
    (folder / "hooks/sitecustomize.py").write_text(SLEEPER)
    env = environment()
    env["PYTHONPATH"] = f"{folder / 'hooks'}{os.pathsep}{env['PYTHONPATH']}"
    command = [sys.executable, "-m", "launch.cli", "train", str(config), "--cpu-ranks", str(RANKS)]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=REPO, env=env, text=True, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_for(lambda: rank_of(process, drill.rank) is not None and drill.when(folder / "run"), process)
        rank = rank_of(process, drill.rank)
        assert rank is not None
        rank.send_signal(drill.signal)
        yield process, rank.pid, time.monotonic()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def hung(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Hung]:
    """Each drill to its end. One after the other is brought to its stop; then they hang together."""
    root = tmp_path_factory.mktemp("drills")
    found = {}
    with contextlib.ExitStack() as stack:
        begun = {}
        for number, (name, drill) in enumerate(DRILLS.items()):
            begun[name] = (root / str(number), *stack.enter_context(stopped(root / str(number), shards, drill)))
        for name, (folder, process, pid, since) in begun.items():
            code = process.wait(timeout=PATIENCE_SECONDS)
            output = (folder / "output").read_text()
            found[name] = Hung(folder, pid, code, output, time.monotonic() - since)
    return found


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "undisturbed"
    assert start(config_at(folder, shards), ranks=RANKS).returncode == 0
    return folder / "run"


@pytest.mark.parametrize("name", DRILLS)
def test_law_13_a_rank_that_stands_still_is_named_and_all_end_non_zero(hung: dict[str, Hung], name: str) -> None:
    drill, outcome = DRILLS[name], hung[name]
    record = outcome.json("exit.json")

    assert outcome.code == 1, outcome.output
    assert record["code"] == 1
    assert record["reason"].startswith("hang: no progress of any rank for ")
    assert outcome.output.count("error: hang: ") == 1
    behind = record["reason"].partition("behind")[2]
    assert f"rank {drill.rank}" in behind and f"rank {1 - drill.rank}" not in behind
    assert not psutil.pid_exists(outcome.pid)


@pytest.mark.parametrize("name", [name for name in DRILLS if "step" in name or "Python" in name])
def test_law_13_the_record_of_a_hang_in_a_step(hung: dict[str, Hung], name: str) -> None:
    drill, outcome = DRILLS[name], hung[name]
    reason = outcome.json("exit.json")["reason"]
    (event,) = [line for line in lines_of(outcome.run / "events.jsonl") if line["kind"] == "hang"]
    newest = checkpoint.find_complete(outcome.run / "checkpoints")[0]
    can_run = [0, 1] if drill.signal == signal.SIGUSR2 else [1 - drill.rank]

    assert f"(pid {outcome.pid})" in reason
    assert ("its process is stopped (SIGSTOP)" in reason) == (drill.signal == signal.SIGSTOP)
    assert ("sitecustomize.py" in reason) == (drill.signal == signal.SIGUSR2)
    assert event["detail"]["behind"][0]["pid"] == outcome.pid
    assert event["action"] == f"ended; the last complete checkpoint, {newest.name}, stands"
    assert outcome.stacks() == [f"rank-{rank:05d}.txt" for rank in can_run]
    assert "in train" in (outcome.run / f"hangs/attempt-0001/rank-{can_run[-1]:05d}.txt").read_text()


def test_law_13_a_rank_that_never_came_is_named_too(hung: dict[str, Hung]) -> None:
    reason = hung["rank 1 is stopped before it arrives"].json("exit.json")["reason"]

    assert "rank 1, which never arrived" in reason
    assert "watchdog.startup_timeout_seconds is 60" in reason


def test_law_13_the_same_command_goes_on_to_the_losses_and_rows_of_an_undisturbed_run(
    hung: dict[str, Hung], undisturbed: Path
) -> None:
    outcome = hung["rank 0 is stopped in a step"]
    saved = checkpoint.step_of(checkpoint.find_complete(outcome.run / "checkpoints")[0])

    again = start(outcome.folder / "config.yaml", ranks=RANKS)

    assert again.returncode == 0, again.stdout + again.stderr
    began = [event["step"] for event in lines_of(outcome.run / "events.jsonl") if event["kind"] == "started"]
    assert began == [0, saved] and 10 <= saved < MAX_STEPS
    assert losses_of(outcome.run) == losses_of(undisturbed)
    assert read_ledger(outcome.run) == read_ledger(undisturbed)
    assert outcome.json("exit.json")["reason"] == "done"


def test_each_save_is_an_event_with_its_seconds(undisturbed: Path) -> None:
    saved = [line for line in lines_of(undisturbed / "events.jsonl") if line["kind"] == "saved"]

    assert [line["step"] for line in saved] == list(range(10, MAX_STEPS + 1, 10))
    assert all(line["rank"] == 0 and line["detail"]["seconds"] > 0 for line in saved)


def test_the_ledger_has_each_row_of_each_step_once(undisturbed: Path) -> None:
    ledger = read_ledger(undisturbed)

    assert list(ledger) == list(range(1, MAX_STEPS + 1))
    assert all(len(set(rows)) == len(rows) == 10 for rows in ledger.values())


def test_law_13_a_long_evaluation_that_goes_on_is_no_hang(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "many", num_heldout=3000)
    timeout, pause, num_pauses = 8, 2.0, 6
    evaluation = {"max_documents": 3000, "micro_batch_sequences": 1}
    watchdog = WATCHDOG | {"timeout_seconds": timeout, "beat_seconds": 0.2}
    config = config_at(tmp_path / "long", shards, train={"max_steps": 2}, evaluation=evaluation, watchdog=watchdog)
    command = [sys.executable, "-m", "launch.cli", "train", str(config), "--cpu-ranks", str(RANKS)]
    run = tmp_path / "long/run"
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=REPO, env=environment(), text=True, stdout=output, stderr=output)
    wait_for(lambda: num_steps(run) == 2, process)
    rank = rank_of(process, 1)
    assert rank is not None
    # Beyond its first batches, which import what they need; a step has 6 marks.
    wait_for(lambda: any(beat.phase == "evaluate" and beat.marks > 40 for beat in read_beats(run).values()), process)

    for _ in range(num_pauses):  # a slow device: each pause is short, all together are longer than the timeout
        rank.suspend()
        time.sleep(pause)
        rank.resume()
        time.sleep(0.3)

    assert process.wait(timeout=PATIENCE_SECONDS) == 0, (tmp_path / "output").read_text()
    (line,) = lines_of(run / "evaluations.jsonl")
    assert line["seconds"] > timeout
    assert not (run / "hangs").exists()
