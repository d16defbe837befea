"""`dure cancel`: whatever works on a run saves and ends, nothing of it comes back, and what stands is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import cli, look_cancel
from launch.submission import check_no_job
from tests.launch.look_runs import (
    append,
    checkpoint,
    ended,
    environment,
    hold,
    living,
    make_run,
    make_slurm,
    queued,
    submitted,
    write_program,
)
from tests.launch.test_local import LAUNCHER, RANK, is_running, ready_pids, wait_for
from trainer.errors import RunError

# Ranks that train until they are told to stop; rank 0 holds the folder, saves and writes why it ended.
TRAINS = (
    RANK
    + """
import json
from contextlib import ExitStack
from tests.launch.look_runs import checkpoint
from trainer.run_lock import held
with ExitStack() as stack:
    if rank == 0:
        stack.enter_context(held(folder))
        with (folder / "attempts.jsonl").open("a") as file:
            file.write(json.dumps({"attempt": 2, "time": time.time(), "ranks": 2, "host": "x", "job": None}) + "\\n")
    ready()
    loop()
    if rank == 0 and stop.requested and not (folder / "refuses").exists():
        checkpoint(folder, 40 + len(list((folder / "checkpoints").glob("step-*"))))
        RunFolder(folder, rank=0).write_exit(ExitRecord(code=85, reason=stop.signal_name, step=40))
sys.exit(85 if stop.requested else 0)
"""
)
# An elastic agent as far as its ranks can tell: it starts them again when they end non-zero.
AGENT = """
import os, subprocess, sys
for _ in range(5):
    if subprocess.run([sys.executable, "-c", sys.argv[1], sys.argv[2]]).returncode == 0:
        break
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a checkpoint of step 12, in a project folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    folder = make_run(Path("runs/a"))
    checkpoint(folder, 12)
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_slurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setattr(look_cancel, "_ASK_SECONDS", 0.1)
    return folder


def start(*words: str, **extra: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", *words], env=environment(**extra), stderr=subprocess.DEVNULL)


@pytest.mark.stages
def test_ranks_of_this_machine_save_and_end_by_their_launcher(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = start(LAUNCHER, str(run), "2", "20", TRAINS)
    ready_pids(run)
    wait_for(run / "lock")

    assert cli.main(["cancel", "a"]) == 0

    captured = capsys.readouterr()
    assert train.wait(timeout=30) == 85
    assert captured.err == f"dure train (pid {train.pid}): told to save and end\n"
    assert captured.out == (
        "a: cancelled (취소됨); step 41 stands (남은 단계): runs/a/checkpoints/step-00000041; the same command goes on "
        "from it\n"
    )


@pytest.mark.stages
def test_by_force_nothing_is_saved_and_nobody_is_left(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = start(LAUNCHER, str(run), "2", "20", TRAINS)
    pids = ready_pids(run)
    wait_for(run / "lock")

    assert cli.main(["cancel", "a", "--now"]) == 0

    assert train.wait(timeout=30) == -signal.SIGKILL
    assert not any(is_running(pid) for pid in pids)
    assert "step 12 stands (남은 단계)" in capsys.readouterr().out


@pytest.mark.stages
def test_an_agent_that_starts_ranks_again_is_ended_after_their_save(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = start(AGENT, TRAINS, str(run), "torchrun", TORCHELASTIC_RUN_ID="1", RANK="0")
    ready_pids(run, 1)
    wait_for(run / "lock")

    assert cli.main(["cancel", "a"]) == 0

    assert agent.wait(timeout=30) == -signal.SIGTERM
    assert "rank 0 (pid " in capsys.readouterr().err
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] >= "step-00000041"
    assert json.loads((run / "exit.json").read_text())["code"] == 85


@pytest.mark.stages
def test_an_orphaned_rank_is_ended_and_init_is_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Its agent was killed: what took it in (init, or a session's own) has nothing to do with it.
    orphan = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]])"
    start(orphan, TRAINS, str(run), TORCHELASTIC_RUN_ID="1", RANK="0").wait(timeout=30)
    ready_pids(run, 1)
    wait_for(run / "lock")

    assert cli.main(["cancel", "a"]) == 0

    assert "rank 0 (pid " in capsys.readouterr().err
    assert json.loads((run / "exit.json").read_text())["code"] == 85


@pytest.mark.stages
def test_an_end_without_a_save_is_told_and_is_a_failure(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "refuses").touch()
    train = start(LAUNCHER, str(run), "1", "20", TRAINS)
    ready_pids(run, 1)
    wait_for(run / "lock")

    assert cli.main(["cancel", "a"]) == 1

    train.wait(timeout=30)
    captured = capsys.readouterr()
    assert "step 12 stands" in captured.out
    assert "a: ended without a save: ended without a word" in captured.err


def test_a_job_that_runs_is_told_by_its_batch_script_and_kept_out_of_the_queue(
    run: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(run, "41", at=0)
    append(run / "attempts.jsonl", {"attempt": 2, "time": time.time() - 9, "ranks": 16, "host": "n1", "job": "41"})
    queued(fake, ("41", "RUNNING", "None", "n[1-2]", "1:00:00", "0", "N/A"))
    # The job saves, as its ranks do, and ends; the marker must stand before it is told.
    record = '{"code": 85, "reason": "SIGUSR1", "step": 37}'
    script = f"[ -e runs/a/cancelled ] && echo '{record}' > runs/a/exit.json; : > \"$FAKE/queue\""
    write_program(fake / "on-scancel", script)

    assert cli.main(["cancel", "a"]) == 0

    captured = capsys.readouterr()
    assert (fake / "scancel-calls").read_text() == "--signal=USR1 --batch 41\n"
    assert captured.err == "job 41 (RUNNING on n[1-2]): told to save and end\n"
    assert captured.out.startswith("a: cancelled (취소됨); step 12 stands")


def test_a_job_that_waits_is_taken_out_of_the_queue(run: Path, fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(run, "41")
    queued(fake, ("41", "PENDING", "Priority", "", "1:00:00", "0", "N/A"))
    write_program(fake / "on-scancel", ': > "$FAKE/queue"')

    assert cli.main(["cancel", "a"]) == 0

    captured = capsys.readouterr()
    assert (fake / "scancel-calls").read_text() == "41\n"
    assert captured.err == "job 41 (PENDING): taken out of the queue\n"
    assert captured.out.startswith("a: cancelled (취소됨); step 12 stands")


def test_a_job_that_was_requeued_in_between_is_taken_out_too(run: Path, fake: Path) -> None:
    submitted(run, "41", at=0)
    queued(fake, ("41", "RUNNING", "None", "n1", "1:00:00", "0", "N/A"))
    waiting = "".join(f"{field:<30}|" for field in ("41", "PENDING", "BeginTime", "", "1:00:00", "1", "N/A"))
    script = f'case "$*" in *USR1*) echo "{waiting}" > "$FAKE/queue";; *) : > "$FAKE/queue";; esac'
    write_program(fake / "on-scancel", script)
    ended(run, 85, "SIGUSR1")

    assert cli.main(["cancel", "a"]) == 0

    assert (fake / "scancel-calls").read_text().splitlines() == ["--signal=USR1 --batch 41", "41"]


def test_a_signal_that_was_lost_is_sent_again(run: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_cancel, "_TELL_AGAIN_SECONDS", 0.5)
    submitted(run, "41", at=0)
    queued(fake, ("41", "RUNNING", "None", "n1", "1:00:00", "0", "N/A"))
    script = '[ "$(wc -l < "$FAKE/scancel-calls")" -lt 3 ] || : > "$FAKE/queue"'
    write_program(fake / "on-scancel", script)
    ended(run, 85, "SIGUSR1")

    assert cli.main(["cancel", "a"]) == 0

    assert (fake / "scancel-calls").read_text() == "--signal=USR1 --batch 41\n" * 3


def test_a_job_that_slurm_will_not_signal_is_an_error(
    run: Path, fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_cancel, "_ASK_SECONDS", 0.05)
    submitted(run, "41")
    queued(fake, ("41", "RUNNING", "None", "n1", "1:00:00", "0", "N/A"))
    write_program(fake / "on-scancel", "echo 'Access/permission denied' >&2; exit 1")

    assert cli.main(["cancel", "a"]) == 2

    assert "scancel: Access/permission denied" in capsys.readouterr().err


def test_a_holder_on_another_machine_is_told_with_what_to_do_there(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(run, host="n7", machine="other", pid=77, heartbeat=time.time())

    assert cli.main(["cancel", "a"]) == 2

    assert "pid 77 on n7 works in it, which can't be reached from here; there, `dure cancel a` or `kill 77`" in (
        capsys.readouterr().err
    )


def test_a_job_is_never_taken_for_ended_because_slurm_is_away(
    run: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(run, "41")
    (fake / "refusal").write_text("slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")

    assert cli.main(["cancel", "a"]) == 2

    assert "runs/a: jobs 41: squeue: slurm_load_jobs error" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 85])
def test_a_run_that_has_ended_is_left_as_it_is(run: Path, capsys: pytest.CaptureFixture[str], code: int) -> None:
    ended(run, code, "done")
    before = sorted(path.name for path in run.iterdir())

    assert cli.main(["cancel", "a"]) == 0

    assert capsys.readouterr().out.startswith("a: nothing to cancel (취소할 것 없음): ")
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_run_that_a_process_holds_is_refused_at_submit(run: Path, fake: Path) -> None:
    with living(run), pytest.raises(RunError, match=rf"runs/a: pid {os.getpid()} on .* works in this run"):
        check_no_job(run)
    hold(run)
    check_no_job(run)  # the holder is dead
    hold(run, host="gpu1", machine="other", heartbeat=time.time(), job="41")
    with pytest.raises(RunError, match=r"on gpu1, job 41, works in this run, heartbeat 0 s ago"):
        check_no_job(run)
    submitted(run, "41")
    queued(fake, ("41", "FAILED", "None", "gpu1", "0:00", "0", "N/A"))
    check_no_job(run)  # that job is over


def test_a_pipeline_is_ended_from_its_last_link_on_and_its_run_with_a_save(
    run: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = Path("runs/pipelines/demo")
    demo.mkdir(parents=True)
    links = {
        "corpus": {"job": "41"},
        "run": {"job": "42", "run": str(run)},
        "shards": {"job": "43"},
        "page": {"job": "44"},
    }
    (demo / "pipeline.json").write_text(json.dumps({"links": links}))
    submitted(run, "42")
    over = ("41", "COMPLETED", "None", "n1", "0:00", "0", "N/A")
    trains = ("42", "RUNNING", "None", "n1", "1:00:00", "0", "N/A")
    spreads = ("43", "RUNNING", "None", "n2", "1:00:00", "0", "N/A")
    queued(fake, over, trains, spreads, ("44", "PENDING", "Dependency", "", "1:00:00", "0", "N/A"))
    write_program(fake / "on-scancel", 'case "$*" in *USR1*) sed -i "/^42/s/RUNNING  /COMPLETED/" "$FAKE/queue";; esac')

    assert cli.main(["cancel", "demo"]) == 0

    assert (fake / "scancel-calls").read_text().splitlines() == ["44", "43", "--signal=USR1 --batch 42"]
    assert (run / "cancelled").exists()
    assert "runs/pipelines/demo: 3 jobs ended; what is done stays done" in capsys.readouterr().out
    queued(fake, over)
    cli.main(["cancel", str(demo)])
    assert "nothing to cancel (취소할 것 없음): none of its jobs waits or runs" in capsys.readouterr().out
