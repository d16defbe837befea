"""One process at a time in a run folder: a live holder refuses the next, a dead one is replaced by exactly one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.errors import RunError
from trainer.run_lock import Holder, LockTiming, RunLock, held, process_start_time

FAST = LockTiming(beat_seconds=0.05, timeout_seconds=2.0)

# At the time argv[2] tries to hold the folder argv[1]: prints "held" and holds it until
# its input ends, or prints why not.
STARTER = """
import sys, time
from pathlib import Path
from trainer.errors import RunError
from trainer.run_lock import LockTiming, held
while time.time() < float(sys.argv[2]):
    pass
try:
    with held(Path(sys.argv[1]), timing=LockTiming(beat_seconds=0.05, timeout_seconds=2.0)):
        print("held", flush=True)
        sys.stdin.read()
except RunError as error:
    print(error, flush=True)
"""


def start(folder: Path, *, at: float = 0.0, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder), str(at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def put_holder(folder: Path, **changes: object) -> Holder:
    """A lock file that another process left, or still holds."""
    holder = replace(Holder.this_process(), **changes)  # type: ignore[arg-type]
    (folder / "lock").write_bytes(holder.encode(holder.heartbeat))
    return holder


def read_holder(folder: Path) -> Holder:
    return Holder(**json.loads((folder / "lock").read_text()))


def test_a_live_holder_is_named_to_the_next_process(tmp_path: Path) -> None:
    holder = start(tmp_path, SLURM_JOB_ID="4711")
    assert first_line(holder) == "held"

    refusal, _ = start(tmp_path).communicate(timeout=20)

    assert f"another process works in this run folder: pid {holder.pid} on {os.uname().nodename}, job 4711" in refusal
    assert f"heartbeat 0 s ago; wait for it, stop it (kill {holder.pid} there), or give this run another" in refusal
    holder.communicate(timeout=20)


def test_a_lock_is_gone_after_its_holder_left(tmp_path: Path) -> None:
    with held(tmp_path, timing=FAST):
        assert read_holder(tmp_path).pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_is_replaced_at_once(tmp_path: Path) -> None:
    holder = start(tmp_path)
    assert first_line(holder) == "held"
    holder.kill()
    holder.wait()

    with held(tmp_path):  # with the usual timing: the kernel says that the process is gone
        assert read_holder(tmp_path).pid == os.getpid()


def test_a_killed_holder_that_nobody_reaped_is_dead(tmp_path: Path) -> None:
    holder = start(tmp_path)
    assert first_line(holder) == "held"
    holder.kill()
    time.sleep(0.2)
    assert process_start_time(holder.pid) is None
    with held(tmp_path):
        pass
    holder.wait()


def test_a_process_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    put_holder(tmp_path, start_time=(process_start_time(os.getpid()) or 0) - 1)
    with held(tmp_path):
        assert read_holder(tmp_path).start_time == process_start_time(os.getpid())


@pytest.mark.parametrize("dead", [True, False], ids=["taken over", "fresh"])
def test_of_many_starters_at_once_exactly_one_wins(tmp_path: Path, dead: bool) -> None:
    for _ in range(3):
        if dead:
            put_holder(tmp_path, start_time=1)
        starters = [start(tmp_path, at=time.time() + 0.8) for _ in range(6)]
        lines = [first_line(starter) for starter in starters]
        assert lines.count("held") == 1, lines
        assert all("another process works in this run folder" in line for line in lines if line != "held")
        winner = starters[lines.index("held")]
        assert read_holder(tmp_path).pid == winner.pid
        for starter in starters:
            starter.communicate(timeout=20)
        assert list(tmp_path.iterdir()) == []


def test_a_silent_holder_on_another_host_is_replaced_after_the_timeout(tmp_path: Path) -> None:
    put_holder(tmp_path, host="elsewhere")
    started = time.monotonic()
    with held(tmp_path, timing=FAST):
        assert FAST.timeout_seconds - 0.1 < time.monotonic() - started < 60
        assert read_holder(tmp_path).host == os.uname().nodename


@pytest.mark.parametrize("clock_error_seconds", [-3600.0, 0.0, 3600.0])
def test_a_beating_holder_on_another_host_is_alive_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock_error_seconds: float
) -> None:
    elsewhere = RunLock(tmp_path, timing=FAST)
    elsewhere._ours = replace(elsewhere._ours, host="elsewhere")
    real_encode = Holder.encode
    monkeypatch.setattr(Holder, "encode", lambda self, heartbeat: real_encode(self, heartbeat + clock_error_seconds))
    elsewhere.acquire()

    with pytest.raises(RunError, match="on elsewhere"), held(tmp_path, timing=FAST):
        pass
    elsewhere.release()


def test_an_unknown_process_space_on_the_same_host_is_asked_for_beats(tmp_path: Path) -> None:
    put_holder(tmp_path, machine="another boot", pid=2**22 - 1)
    started = time.monotonic()
    with held(tmp_path, timing=FAST):
        assert time.monotonic() - started > FAST.timeout_seconds - 0.1


def test_a_job_that_slurm_started_again_follows_itself_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_holder(tmp_path, host="elsewhere", job="4711", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    started = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - started < 60


def test_a_claim_left_by_a_killed_take_over_is_no_obstacle(tmp_path: Path) -> None:
    dead = put_holder(tmp_path, start_time=1)
    claim = replace(Holder.this_process(), start_time=2)
    (tmp_path / f"lock.claim-{dead.token}").write_bytes(claim.encode(0))
    with held(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_beat_moves_the_heartbeat_and_nothing_else(tmp_path: Path) -> None:
    with held(tmp_path, timing=FAST):
        first, size = read_holder(tmp_path), (tmp_path / "lock").stat().st_size
        time.sleep(0.3)
        second = read_holder(tmp_path)
        assert second.heartbeat > first.heartbeat
        assert replace(second, heartbeat=first.heartbeat) == first
        assert (tmp_path / "lock").stat().st_size == size


def test_a_holder_notices_that_another_took_over_and_does_not_free_its_lock(tmp_path: Path) -> None:
    lost: list[str] = []
    lock = RunLock(tmp_path, timing=FAST, on_lost=lost.append)
    lock.acquire()
    (tmp_path / "lock").unlink()
    other = put_holder(tmp_path, host="elsewhere", pid=77)
    time.sleep(0.3)

    assert len(lost) == 1
    assert f"this process ({os.getpid()}) lost its hold of the run folder: pid 77 on elsewhere holds it now" in lost[0]
    lock.release()
    assert read_holder(tmp_path).token == other.token


def test_a_process_that_lost_the_folder_ends_without_saving(tmp_path: Path) -> None:
    holder = start(tmp_path)
    assert first_line(holder) == "held"
    (tmp_path / "lock").unlink()
    _, errors = holder.communicate(input=None, timeout=20) if holder.wait(timeout=20) else ("", "")
    assert holder.returncode == 1
    assert "the file is gone; it ends without saving" in errors


def test_a_lock_file_that_is_none_is_not_guessed_about(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("")
    with pytest.raises(RunError, match="not a lock that this program wrote; if no process works in the folder, delete"):
        RunLock(tmp_path).acquire()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_program_name_with_brackets_and_spaces_does_not_hide_the_start_time(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to(sys.executable)
    process = subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert process_start_time(process.pid) >= (process_start_time(os.getpid()) or 0)  # type: ignore[operator]
    finally:
        process.communicate(timeout=20)
    assert process_start_time(process.pid) is None
