"""What the end of a step over the nodes means for the run (laws 12 and 14), and how a stop reaches its ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import disk
from launch.job_step import StepResult, _Srun, conclude
from tests.faults.network_view import NetworkPath
from trainer.resilience import ExitRecord

HOSTS = ("n1", "n2")


def report(**changes: Any) -> dict[str, Any]:
    return {"state": "ended", "failed_code": None, "failure": ""} | changes


def ending(
    *, code: int = 0, reports: tuple[dict[str, Any], ...] = (), stop: str = "", record: ExitRecord | None = None
) -> tuple[str, int, str]:
    found = conclude(StepResult(code, reports or (report(), report()), stop), record, hosts=HOSTS)
    return found.kind, found.code, found.reason


def test_done_needs_the_record_and_every_node() -> None:
    done = ExitRecord(code=0, reason="done", step=9)
    assert ending(record=done) == ("done", 0, "done")
    assert ending(record=None)[:2] == ("failed", 1)
    assert ending(record=done, code=1)[:2] == ("failed", 1)
    assert ending(record=done, code=1, reports=(report(), {})) == (
        "node lost",
        1,
        "n2: the node's launcher was lost (노드 유실)",
    )


def test_a_record_of_85_counts_whatever_srun_says() -> None:
    record = ExitRecord(code=85, reason="SIGUSR1", step=9)
    assert ending(record=record, code=137, reports=(report(), {}), stop="SIGUSR1") == ("stopped", 85, "SIGUSR1")


def test_a_stop_before_the_ranks_began_lost_nothing() -> None:
    kind, code, reason = ending(code=1, reports=({}, {}), stop="SIGTERM")
    assert (kind, code) == ("stopped", 85)
    assert reason == "SIGTERM, before the ranks were started; nothing was begun"
    assert ending(code=1, reports=({}, {}))[0] == "node lost"


def test_a_killed_rank_is_told_from_one_that_ended_by_itself() -> None:
    killed = report(failed_code=-9, failure="rank 1 of 2 (pid 5 on n2) was killed by SIGKILL")
    crashed = ExitRecord(code=1, reason="RuntimeError: connection closed", step=9)
    assert ending(code=1, reports=(report(failed_code=1, failure="x"), killed), record=crashed) == (
        "rank died",
        1,
        "x; rank 1 of 2 (pid 5 on n2) was killed by SIGKILL",
    )
    by_itself = report(failed_code=1, failure="rank 0 ended with exit code 1")
    own = ending(code=1, reports=(by_itself, report()), record=crashed)
    assert own == ("failed", 1, "rank 0 ended with exit code 1; RuntimeError: connection closed")


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_rank_that_died_below_an_agent_is_no_error_of_the_run(launcher: str) -> None:
    """The agent ends with 1 whatever ended its rank."""
    agent = report(failed_code=1, failure=f"{launcher} with ranks 0-1 ended with exit code 1", launcher=launcher)
    lost = ExitRecord(code=1, reason="RuntimeError: connection closed", step=9)
    for record in (None, lost):
        found = ending(code=1, reports=(report(launcher=launcher), agent), record=record)
        assert found == ("rank died", 1, f"{launcher} with ranks 0-1 ended with exit code 1")
    for code, kind in ((85, "stopped"), (2, "refused"), (0, "failed")):
        record = ExitRecord(code=code, reason="x", step=9)
        assert ending(code=1, reports=(agent, agent), record=record)[0] == kind
    hang = ExitRecord(code=1, reason="hang: rank 1 on n2 (pid 5)", step=9)
    assert ending(code=1, reports=(agent, agent), record=hang)[0] == "hang"


def test_a_refusal_is_no_failure_of_a_node() -> None:
    assert ending(code=2, reports=(report(failed_code=2), report(failed_code=2)))[:2] == ("refused", 2)
    assert ending(code=2, record=ExitRecord(code=2, reason="x", step=0))[:2] == ("refused", 2)


def test_a_named_hang_goes_before_what_it_does_to_the_ranks() -> None:
    record = ExitRecord(code=1, reason="hang: rank 1 on n2 (pid 5)", step=9)
    assert ending(code=137, reports=(report(failed_code=-9), report()), record=record) == (
        "hang",
        1,
        "rank 1 on n2 (pid 5)",
    )


# A stand-in for srun, the program of SLURM: on USR1 it notes that and ends after the second one, as the ranks would.
SRUN = """
import os, signal, sys, time
folder = sys.argv[1]
heard = 0
def hear(number, frame):
    global heard
    heard += 1
    open(f"{folder}/heard-{heard}", "w").close()
signal.signal(signal.SIGUSR1, hear)
open(f"{folder}/up", "w").close()
while heard < 2:
    time.sleep(0.02)
"""
STEP = """
import sys, json
from pathlib import Path
from launch.local import hold_signals
held = hold_signals()
import launch.job_step as job_step
job_step.TELL_AGAIN_SECONDS = 0.2
job_step.TELL_ANYWAY_SECONDS = float(sys.argv[4])
why = Path(sys.argv[1]) / "why"
result = job_step.run_step(
    [sys.executable, "-c", sys.argv[2], sys.argv[1]], held=held, reports=Path(sys.argv[1]), hosts=("n1",),
    grace_seconds=float(sys.argv[3]), why_stop=lambda: why.read_text() if why.exists() else "",
)
print(json.dumps([result.code, result.stop, *[report.get("failure") for report in result.reports]]))
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def start(folder: Path, *, grace: float = 60, anyway: float = 60, srun: str = SRUN) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STEP, str(folder), srun, str(grace), str(anyway)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def test_a_stop_waits_until_the_nodes_can_have_it_and_is_told_again(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)  # long enough for a signal that does not wait
    assert not (tmp_path / "heard-1").exists()
    (tmp_path / "node-00000.json").write_text(json.dumps(report(state="started")))
    output, _ = process.communicate(timeout=60)
    assert json.loads(output) == [0, "SIGTERM", ""]
    assert (tmp_path / "heard-2").exists()


def test_a_stop_is_passed_on_though_a_node_never_said_that_it_began(tmp_path: Path) -> None:
    process = start(tmp_path, anyway=1.0)
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert json.loads(output) == [0, "SIGUSR1", None]


def test_too_little_time_left_stops_the_ranks_like_a_signal(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for(tmp_path / "up")
    (tmp_path / "node-00000.json").write_text(json.dumps(report(state="started")))
    (tmp_path / "why").write_text("40 s of the time limit are left")
    output, _ = process.communicate(timeout=60)
    assert json.loads(output) == [0, "time limit", ""]


# A node that says how it ended only after srun has: a report on its way through a shared file system.
LATE = """
import json, os, sys, time
path = f"{sys.argv[1]}/node-00000.json"
json.dump({"state": "started"}, open(path, "w"))
if os.fork() == 0:
    os.close(1)
    time.sleep(1.5)
    tree = {"state": "ended", "failed_code": 1, "failure": "rank 0 ended with exit code 1"}
    json.dump(tree, open(path + ".new", "w"))
    os.rename(path + ".new", path)
    os._exit(0)
os._exit(1)
"""


def test_a_late_report_tells_a_failure_from_a_lost_node(tmp_path: Path) -> None:
    output, _ = start(tmp_path, srun=LATE).communicate(timeout=60)
    assert json.loads(output) == [1, "", "rank 0 ended with exit code 1"]


def test_what_a_node_said_is_seen_though_its_report_was_looked_for_too_early(tmp_path: Path) -> None:
    """A client of a network file system remembers for a minute that a name was missing."""
    reports = NetworkPath(tmp_path)
    srun = _Srun(["true"], reports, ("n1",), grace_seconds=1.0, force_at=float("inf"))
    assert disk.read_object(reports / "node-00000.json") == {}
    (tmp_path / "node-00000.json").write_text(json.dumps(report()))
    assert disk.read_object(reports / "node-00000.json") == {}

    assert srun.read_reports() == [report()]


@pytest.mark.stages
def test_nodes_that_outlive_a_failed_one_are_ended(tmp_path: Path) -> None:
    process = start(tmp_path, grace=0.2)
    wait_for(tmp_path / "up")
    (tmp_path / "node-00000.json").write_text(json.dumps(report(failed_code=-9, failure="rank 0 was killed")))
    output, _ = process.communicate(timeout=60)
    assert json.loads(output) == [-signal.SIGTERM, "", "rank 0 was killed"]


def test_the_reason_of_a_hang_is_known_as_the_watchdog_writes_it() -> None:
    from launch.job_step import HANG_PREFIX
    from trainer.hang import REASON_PREFIX

    assert HANG_PREFIX == REASON_PREFIX
