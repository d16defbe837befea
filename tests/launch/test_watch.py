"""`dure watch`: frames that fit any terminal, curves of any length, and a terminal that is left as it was."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from launch import cli
from launch.look_curve import Curve, bars, plot
from launch.look_find import find_run
from launch.look_frame import frame
from launch.look_jobs import Jobs
from launch.look_run import look_at
from launch.look_watch import Watched
from tests.launch.look_runs import append, beat, ended, environment, event, living, make_run, metrics


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that has trained 300 of 1,000 steps, with two evaluations and some events."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    folder = make_run(Path("runs/한국어-사전학습-두번째"), max_steps=1000)
    metrics(folder, range(1, 301))
    append(folder / "evaluations.jsonl", {"step": 100, "loss": 2.1, "bits_per_byte": 1.2})
    append(folder / "evaluations.jsonl", {"step": 200, "loss": 2.2, "bits_per_byte": 1.3})
    for step in (100, 200, 300):
        event(folder, "saved", step=step, detail={"seconds": 2.0})
    event(folder, "skipped_step", step=250, detail={"reason": "손실이 유한하지 않음: loss nan"})
    return folder


def drawn(*folders: Path, width: int, height: int | None) -> list[str]:
    found = [find_run(str(folder)) for folder in folders]
    shown = [Watched(one).shown(look_at(one, Jobs())) for one in found]
    return [line.plain for line in frame(shown, width=width, height=height, footer="나가기 " * 40 if height else "")]


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (80, 60), (120, 40), (200, 12), (20, 3)])
@pytest.mark.parametrize("num_runs", [1, 3])
def test_a_frame_fits_its_terminal(run: Path, width: int, height: int, num_runs: int) -> None:
    others = [make_run(Path(f"runs/다른-실행-{number}")) for number in range(num_runs - 1)]
    for other in others:
        metrics(other, range(1, 50))
    with living(run):
        lines = drawn(run, *others, width=width, height=height)

    assert len(lines) <= height
    assert max(cell_len(line) for line in lines) <= width


def test_a_frame_tells_loss_speed_memory_ranks_and_events(run: Path) -> None:
    with living(run):
        text = "\n".join(drawn(run, width=100, height=40))

    assert re.search(
        r"^한국어-사전학습-두번째  running \(학습 중\) .* step 300/1,000 ███░+ 30 %  1 h 06 m left$", text, re.M
    )
    assert "loss 2.0200 · held-out 2.2000, 1.3000 bits a byte, at step 200 (best 2.1000)" in text
    assert "412k tokens/s · 1.25 s a step  ████" in text
    assert "memory 71.2 GiB · grad 0.500 · lr 3.00e-04" in text
    assert "2 of 2 ranks beat, the oldest beat is 0 s old" in text
    assert "update refused at step 250: 손실이 유한하지 않음: loss nan" in text
    assert text.index("update refused") < text.index("saved at step 300")  # the latest stands first


def test_a_rank_that_is_late_or_missing_is_named(run: Path) -> None:
    with living(run):
        beat(run, 1, idle_seconds=400.0, phase="save")
        late = "\n".join(drawn(run, width=120, height=40))
        (run / "beats/rank-00001.json").unlink()
        missing = "\n".join(drawn(run, width=120, height=40))

    assert re.search(r"2 of 2 ranks beat, .*; late \(지연\): rank 1 on n2 for 6 m \d\d s", late)
    assert "1 of 2 ranks beat, " in missing


def test_a_resume_takes_the_curve_back(run: Path) -> None:
    found = find_run(str(run))
    watched = Watched(found)
    before = watched.shown(look_at(found, Jobs()))
    partial = run / "partial"
    metrics(run.parent, [])
    with partial.open("w") as file:
        file.writelines((run / "metrics.jsonl").read_text().splitlines(keepends=True)[:100])
    partial.replace(run / "metrics.jsonl")
    after = watched.shown(look_at(found, Jobs()))

    assert (before.losses[-1][0], after.losses[-1][0], after.line["step"]) == (300, 100, 100)
    assert len(after.losses) == 100


def test_a_curve_falls_from_its_first_row_to_its_last() -> None:
    lines = plot([(step, 8.0 / step) for step in range(1, 101)], width=60, height=10)

    assert lines[0].startswith("8.000 ┤⠁") or lines[0].startswith("8.000 ┤⡀") or lines[0][7] != " "
    assert lines[8].startswith("0.080 ┤")
    assert lines[8][-1] not in " ┤"
    columns = [[at for at, cell in enumerate(line[7:]) if cell not in " ┤│"] for line in lines[:9]]
    assert [min(row) for row in columns] == sorted(min(row) for row in columns)
    assert lines[9].split() == ["step", "1", "log", "scale", "100"]


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, 2.0), (2.0, 2.0)], [(1.0, -3.0), (5.0, 0.0)]])
def test_any_points_can_be_drawn(points: list[tuple[float, float]]) -> None:
    lines = plot(points, width=40, height=6)

    assert len(lines) == (6 if points else 0)
    assert all(cell_len(line) <= 40 for line in lines)


def test_a_curve_of_a_million_steps_stays_small_and_true() -> None:
    curve = Curve()
    for step in range(1_000_000):
        curve.add(step, 5.0 if step < 500_000 else 3.0)
    curve.add(1, math.nan)
    curve.add(1, "nan")

    assert len(curve.points) <= 4097
    assert {round(y, 9) for x, y in curve.points if abs(x - 500_000) > 1000} == {5.0, 3.0}
    assert [x for x, _ in curve.points] == sorted(x for x, _ in curve.points)


def test_bars_begin_at_zero() -> None:
    assert bars([0.0, 50.0, 100.0], width=9) == "▁▅█"
    assert bars([1.0, 2.0, 3.0, 3.0], width=2) == "██"
    assert bars([], width=9) == bars([0.0], width=9) == ""


def test_through_a_pipe_one_frame_is_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with living(run):
        assert cli.main(["watch", run.name]) == 0

    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert text.count("running (학습 중)") == 1
    assert "Ctrl-C" not in text


def test_without_a_name_those_that_live_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(make_run(Path("runs/finished")), 0, "done")
    assert cli.main(["watch"]) == 2
    assert "no run lives here (실행 중인 것 없음)" in capsys.readouterr().err
    with living(run):
        assert cli.main(["watch"]) == 0
    assert "finished" not in capsys.readouterr().out


def in_terminal(run: Path, *, number: signal.Signals | None) -> tuple[int, str]:
    """`dure watch` in a terminal of 80 x 24, signalled once it has drawn; its exit code, and all that it wrote."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "launch.cli", "watch", str(run)]
    env = {
        name: value for name, value in environment(TERM="xterm-256color").items() if name not in ("COLUMNS", "LINES")
    }
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)
    text, deadline = b"", time.monotonic() + 60
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                text += os.read(ours, 65536)
            if number is not None and b"tokens/s" in text:
                process.send_signal(number)
                number = None
    process.kill() if time.monotonic() > deadline else None
    os.close(ours)
    return process.wait(), text.decode()


@pytest.mark.stages
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_leaving_gives_the_terminal_back_and_leaves_a_frame(run: Path, number: signal.Signals) -> None:
    with living(run):
        code, text = in_terminal(run, number=number)

    assert code == 0
    live, _, after = text.rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in live and "\x1b[?25l" in live
    assert "\x1b[?25h" in text[text.rfind("\x1b[?25l") :]
    assert "running (학습 중)" in after and "Ctrl-C" not in after
    assert "Traceback" not in text


@pytest.mark.stages
def test_the_view_ends_with_the_run(run: Path) -> None:
    ended(run, 0, "done")
    code, text = in_terminal(run, number=None)

    assert code == 0
    assert "done (완료)" in text.rpartition("\x1b[?1049l")[2]
