"""A requeue is bounded and asks for progress; what was decided is written down."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from launch.requeue import (
    BY_SLURM,
    Requeue,
    RequeueConfig,
    decide,
    forget_cancelled,
    is_cancelled,
    note_requeue,
    note_requeue_by_slurm,
    read_requeues,
)


def ended(restart: int, step: int, *, job: str = "7") -> Requeue:
    return Requeue(job=job, restart=restart, step=step, reason="stopped: SIGUSR1", time=1.0)


def verdict(before: list[Requeue], now: Requeue, *, is_cancelled: bool = False, **config: int) -> tuple[bool, str]:
    found = decide(RequeueConfig(**config), now, before=before, is_cancelled=is_cancelled)  # type: ignore[arg-type]
    return found.requeue, found.why


def test_a_job_that_got_further_is_requeued() -> None:
    assert verdict([], ended(0, 0)) == (True, "requeued at step 0: stopped: SIGUSR1")
    assert verdict([ended(0, 10)], ended(1, 11)) == (True, "requeued at step 11: stopped: SIGUSR1")


def test_no_progress_since_the_last_requeue_stops() -> None:
    requeue, why = verdict([ended(0, 5), ended(1, 10)], ended(2, 10))
    assert not requeue
    assert "no progress since the last requeue, both at step 10 (requeue.max_requeues_without_progress 1)" in why


def test_as_many_idle_requeues_as_the_profile_allows() -> None:
    before = [ended(0, 10), ended(1, 10)]
    assert verdict(before, ended(2, 10), max_requeues_without_progress=3)[0]
    assert not verdict(before, ended(2, 10), max_requeues_without_progress=2)[0]
    assert verdict([*before, ended(2, 20), ended(3, 10)], ended(4, 10), max_requeues_without_progress=2)[0]


def test_requeues_are_bounded_and_those_of_another_job_do_not_count() -> None:
    before = [ended(restart, restart) for restart in range(3)]
    requeue, why = verdict(before, ended(3, 100), max_requeues=3)
    assert not requeue
    assert "job 7 was requeued 3 times, requeue.max_requeues is 3; submit again to go on from step 100" in why
    assert verdict(before, ended(3, 100), max_requeues=4)[0]
    assert verdict(before, ended(0, 2, job="8"), max_requeues=1)[0]


def test_data_that_was_made_is_progress_at_one_step() -> None:
    before = [dataclasses.replace(ended(0, 0), data="corpus: 3 of 9 tasks")]
    assert verdict(before, dataclasses.replace(ended(1, 0), data="corpus: 5 of 9 tasks"))[0]
    assert verdict(before, ended(1, 0))[0]  # the run trains now
    requeue, why = verdict(before, dataclasses.replace(ended(1, 0), data="corpus: 3 of 9 tasks"))
    assert not requeue and "both at step 0, data corpus: 3 of 9 tasks (requeue.max_requeues_without" in why


def test_what_a_person_cancelled_is_not_requeued() -> None:
    requeue, why = verdict([], ended(0, 10), is_cancelled=True)
    assert not requeue and "cancelled stands in the run folder" in why


def test_a_requeue_is_written_down_and_a_torn_line_spoils_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    note_requeue(run, ended(0, 10))
    with (run / "requeues.jsonl").open("a") as file:
        file.write('{"job": "7", "rest')
    note_requeue(run, ended(1, 20))
    assert read_requeues(run) == [ended(0, 10), ended(1, 20)]


def test_slurms_own_requeues_are_noted_once_and_only_theirs(tmp_path: Path) -> None:
    note_requeue_by_slurm(tmp_path, job="7", restart=0, step=0)
    assert read_requeues(tmp_path) == []
    note_requeue(tmp_path, ended(0, 10))
    note_requeue_by_slurm(tmp_path, job="7", restart=1, step=10)
    note_requeue_by_slurm(tmp_path, job="7", restart=2, step=20)
    note_requeue_by_slurm(tmp_path, job="7", restart=2, step=20)
    found = [(requeue.restart, requeue.step, requeue.reason) for requeue in read_requeues(tmp_path)]
    assert found == [(0, 10, "stopped: SIGUSR1"), (1, 20, BY_SLURM)]


@pytest.mark.parametrize("stands", [True, False])
def test_the_mark_of_a_cancelled_run(tmp_path: Path, stands: bool) -> None:
    if stands:
        (tmp_path / "cancelled").touch()
    assert is_cancelled(tmp_path) is stands


@pytest.mark.parametrize("text", ['{"time": 100.0}', "", "{", '{"time": "x"}'])
def test_a_mark_counts_from_the_time_in_it_or_from_its_own(tmp_path: Path, text: str) -> None:
    (tmp_path / "cancelled").write_text(text)
    os.utime(tmp_path / "cancelled", (100.0, 100.0) if "100" not in text else (900.0, 900.0))

    assert is_cancelled(tmp_path, since=99.0) and not is_cancelled(tmp_path, since=101.0)
    forget_cancelled(tmp_path, before=100.0)
    assert (tmp_path / "cancelled").exists()
    forget_cancelled(tmp_path, before=101.0)
    assert not (tmp_path / "cancelled").exists()
    forget_cancelled(tmp_path, before=101.0)
