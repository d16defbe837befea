"""`dure logs`: the right file of a run, its end, and with -f all that comes until the run has ended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import cli, look_poll
from tests.launch.look_runs import append, ended, living, make_run, make_slurm, queued, submitted


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(look_poll, "LOOK_SECONDS", 0.1)
    folder = make_run(Path("runs/a"))
    (folder / "logs").mkdir()
    return folder


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_slurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setattr(look_poll, "ASK_SECONDS", 0.1)
    return folder


def write(path: Path, *lines: str, age: float = 0) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    if age:
        os.utime(path, (time.time() - age, time.time() - age))


def printed(capsysbinary: pytest.CaptureFixture[bytes], *words: str) -> str:
    assert cli.main(["logs", *words]) == 0
    return capsysbinary.readouterr().out.decode()


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["logs", *words]) == 2
    return capsys.readouterr().err


def test_a_run_here_shows_what_rank_0_printed(run: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    write(run / "logs/rank-00000.log", "=== attempt 1", "손실 2.5")
    write(run / "logs/rank-00001.log", "rank 1 여기")

    assert printed(capsysbinary, "a") == "=== attempt 1\n손실 2.5\n"
    assert printed(capsysbinary, "a", "--rank", "1") == "rank 1 여기\n"


def test_a_last_line_that_was_never_ended_is_shown(run: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (run / "logs/rank-00000.log").write_bytes(b"one\nSegmentation fau")

    assert printed(capsysbinary, "a") == "one\nSegmentation fau\n"


@pytest.mark.parametrize(("lines", "first"), [("2", 999), ("0", 1), ("1000", 1)])
def test_the_last_lines_or_all(run: Path, capsysbinary: pytest.CaptureFixture[bytes], lines: str, first: int) -> None:
    write(run / "logs/rank-00000.log", *map(str, range(1, 1001)))

    assert printed(capsysbinary, "a", "--lines", lines) == "".join(f"{number}\n" for number in range(first, 1001))
    assert printed(capsysbinary, "a").count("\n") == 200


def test_a_rank_without_a_log_is_told_with_those_that_have_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a rank's output is kept from its start on" in refused(capsys, "a", "--rank", "0")
    for rank in (0, 1, 2, 7):
        write(run / f"logs/rank-{rank:05d}.log", "x")

    assert "of this run there is that of the ranks 0-2, 7" in refused(capsys, "a", "--rank", "5")


def test_a_run_that_printed_nothing_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "it has printed nothing yet; `dure status a` says what it waits for" in refused(capsys, "a")


@pytest.mark.parametrize(
    ("job", "ages", "shown"),
    [
        ("41", {"rank-00000.log": 5, "slurm-41.out": 9}, "slurm-41.out"),  # of one start: the job's output has all
        (None, {"rank-00000.log": 5, "slurm-41.out": 900}, "rank-00000.log"),  # started here after that job
        ("41", {"rank-00000.log": 900, "slurm-41.out": 901, "slurm-42.out": 5}, "slurm-42.out"),  # never got to a rank
        (None, {"slurm-41.out": 900, "slurm-42.out": 5}, "slurm-42.out"),
        ("99", {"rank-00000.log": 5, "slurm-41.out": 900}, "rank-00000.log"),  # a job that was submitted by hand
    ],
)
def test_what_the_last_start_showed_is_shown(
    run: Path, capsysbinary: pytest.CaptureFixture[bytes], job: str | None, ages: dict[str, float], shown: str
) -> None:
    append(run / "attempts.jsonl", {"attempt": 2, "time": time.time(), "ranks": 2, "host": "n1", "job": job})
    for name, age in ages.items():
        write(run / "logs" / name, name, age=age)

    assert printed(capsysbinary, "a") == f"{shown}\n"


def followed(capsysbinary: pytest.CaptureFixture[bytes], story: Callable[[], None]) -> tuple[str, str]:
    """What `-f` printed and told while `story` happened; it must end by itself."""
    teller = threading.Thread(target=story)
    teller.start()
    assert cli.main(["logs", "a", "-f"]) == 0
    teller.join()
    captured = capsysbinary.readouterr()
    return captured.out.decode(), captured.err.decode()


def test_following_prints_each_line_once_and_ends_with_the_run(
    run: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = run / "logs/rank-00000.log"
    write(log, "before")
    holding = living(run)
    holding.__enter__()

    def story() -> None:
        for number in range(20):
            write(log, f"line {number}")
            time.sleep(0.05)
        ended(run, 1, "disk full")
        write(log, "last")
        holding.__exit__(None, None, None)

    out, told = followed(capsysbinary, story)

    assert out == "before\n" + "".join(f"line {number}\n" for number in range(20)) + "last\n"
    assert told.startswith("a: failed (실패): ") and " ago: disk full" in told


def test_following_waits_for_the_queue_and_goes_over_to_a_new_job(
    run: Path, fake: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    submitted(run, "41")
    queued(fake, ("41", "PENDING", "Resources", "", "1:00:00", "0", "N/A"))

    def story() -> None:
        time.sleep(1)
        queued(fake, ("41", "RUNNING", "None", "n1", "1:00:00", "0", "N/A"))
        write(run / "logs/slurm-41.out", "n2 has no GPU", age=5)
        time.sleep(1)
        submitted(run, "42")
        queued(fake, ("42", "RUNNING", "None", "n1", "1:00:00", "0", "N/A"))
        write(run / "logs/slurm-41.out", "resubmitted as 42")
        write(run / "logs/slurm-42.out", "step 1")
        time.sleep(1)
        append(run / "attempts.jsonl", {"attempt": 2, "time": time.time(), "ranks": 2, "host": "n1", "job": "42"})
        ended(run, 0, "done")
        queued(fake)

    out, told = followed(capsysbinary, story)

    assert out == "n2 has no GPU\nresubmitted as 42\nstep 1\n"
    assert "a waits (대기 중): waits for nodes to become free (자원 대기)" in told
    assert "--- runs/a/logs/slurm-42.out" in told
    assert "a: done (완료): done, " in told.splitlines()[-1]
