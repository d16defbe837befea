"""Two processes never write one output at once, and a dead one keeps nobody out."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from trainer.errors import RunError
from trainer.output_lock import only_writer


def test_the_second_is_told_who_the_first_is_and_does_not_wait(tmp_path: Path) -> None:
    said = rf"answers: pid {os.getpid()} on .* writes it now; wait for it, or give another --output"

    with only_writer(tmp_path / "answers"), pytest.raises(RunError, match=said), only_writer(tmp_path / "answers"):
        raise AssertionError("both are in")

    assert list(tmp_path.iterdir()) == []


def test_other_outputs_are_written_at_the_same_time(tmp_path: Path) -> None:
    with only_writer(tmp_path / "one"), only_writer(tmp_path / "new folder" / "one"):
        assert (tmp_path / "new folder").is_dir()


def test_what_a_killed_process_left_keeps_nobody_out(tmp_path: Path) -> None:
    if not (pid := os.fork()):
        with only_writer(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / ".out.lock").read_text().startswith(f"pid {pid} on ")

    with only_writer(tmp_path / "out"):
        assert (tmp_path / ".out.lock").read_text().startswith(f"pid {os.getpid()} on ")

    assert list(tmp_path.iterdir()) == []
