"""Whether a job goes on after its end, by a SLURM of scripts: a requeue that is due is never lost, nor made twice."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path

import pytest

from data_pipeline.config import load
from data_pipeline.raw import prepare_shards
from data_pipeline.stage import Stage, StageError
from launch import job as job_module
from launch.cluster import ClusterConfig
from launch.job import Begun, Job, Work, _go_on, submitted
from launch.job_step import Ending
from launch.requeue import RequeueConfig, read_requeues
from launch.submission import note_job
from launch.time_left import TimeWatch
from tests.launch.look_runs import append, checkpoint, write_program
from tests.launch.test_submit import fake, queued  # noqa: F401
from trainer.config import TrainConfig

# ruff: noqa: F811  (`fake` is a fixture)

STOPPED = Ending("stopped", 85, "SIGUSR1")
AWAY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
BEGUN = Begun(step=0, submitted=0.0)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "run").mkdir()
    cluster = ClusterConfig()
    return Work(Job("7", 0, ("n1", "n2")), cluster, tmp_path / "run", ("-m", "trainer", "config.yaml"), held=set())


def running(fake: Path, **changes: str) -> None:
    state = {"state": "RUNNING", "left": "1:00:00"} | changes
    queued(fake, ("7", state["state"], "None", "n[1-2]", state["left"], "0", "N/A"))


def was_requeued(fake: Path) -> bool:
    path = fake / "scontrol-args"
    return path.exists() and path.read_text().split() == ["requeue", "7"]


def stands(work: Work, step: int) -> None:
    (work.run_folder / "checkpoints").mkdir(exist_ok=True)
    checkpoint(work.run_folder, step)


def test_a_stopped_job_is_requeued_though_squeue_gives_no_answer_at_its_end(work: Work, fake: Path) -> None:
    (fake / "squeue-refusal").write_text(AWAY)

    assert _go_on(work, STOPPED, BEGUN) == 85

    assert was_requeued(fake)
    assert [requeue.reason for requeue in read_requeues(work.run_folder)] == ["stopped: SIGUSR1"]


def test_a_requeue_that_the_controller_misses_is_noted_and_asked_again(work: Work, fake: Path) -> None:
    running(fake)
    (fake / "away").write_text(AWAY * 2)

    _go_on(work, STOPPED, BEGUN)

    assert (fake / "scontrol-args").read_text().split() == ["requeue", "7"] * 3


def test_a_job_that_slurm_ends_or_requeues_by_itself_is_left_to_it(
    work: Work, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running(fake, state="COMPLETING")

    assert _go_on(work, STOPPED, BEGUN) == 85

    assert not (fake / "scontrol-args").exists()
    assert "job 7 is COMPLETING: SLURM ends or requeues it by itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ending", "before", "after", "goes_on"),
    [
        (Ending("failed", 1, "NCCL error: unhandled system error"), 10, 20, True),
        (Ending("failed", 1, "ValueError: x"), 10, 10, False),
        (Ending("failed", 1, "ValueError: x"), 0, 0, False),
        (Ending("rank died", 1, "rank 1 was killed by SIGKILL"), 10, 10, True),
        (Ending("refused", 2, "x"), 10, 20, False),
        (Ending("done", 0, "done"), 10, 20, False),
    ],
)
def test_an_error_after_progress_and_a_dead_rank_go_on(
    work: Work, fake: Path, ending: Ending, before: int, after: int, goes_on: bool
) -> None:
    """An Xid or ECC error is exit code 1 of a rank, and the same run goes on well on other nodes."""
    running(fake)
    if after:
        stands(work, after)

    assert _go_on(work, ending, Begun(step=before, submitted=0.0)) == ending.code

    assert was_requeued(fake) is goes_on


def test_the_profile_may_forbid_both(work: Work, fake: Path) -> None:
    running(fake)
    stands(work, 20)
    policy = RequeueConfig(on_failure=False, on_dead_rank=False)
    strict = Work(**{**vars(work), "cluster": ClusterConfig(requeue=policy)})
    _go_on(strict, Ending("failed", 1, "x"), BEGUN)
    _go_on(strict, Ending("rank died", 1, "x"), BEGUN)

    assert not (fake / "scontrol-args").exists()


def test_a_dead_rank_without_progress_is_not_requeued_for_ever(work: Work, fake: Path) -> None:
    running(fake)
    _go_on(work, Ending("rank died", 1, "x"), BEGUN)
    again = Work(**{**vars(work), "job": Job("7", 1, ("n1", "n2"))})
    _go_on(again, Ending("rank died", 1, "x"), BEGUN)

    assert was_requeued(fake)  # once
    assert len(read_requeues(work.run_folder)) == 1


def mark(work: Work, at: float) -> None:
    (work.run_folder / "cancelled").write_text(json.dumps({"time": at}))


def noted(work: Work, job: str = "7") -> float:
    note_job(work.run_folder, job, nodes=2, profile="p.yaml", name="run")
    return float(json.loads((work.run_folder / "jobs.jsonl").read_text().splitlines()[-1])["time"])


def test_a_job_that_was_cancelled_after_its_submission_is_not_requeued(work: Work, fake: Path) -> None:
    running(fake)
    mark(work, noted(work) + 1)

    _go_on(work, STOPPED, Begun(0, submitted(work)))

    assert not (fake / "scontrol-args").exists()


def test_the_mark_of_an_earlier_cancel_does_not_hold_a_job_that_was_submitted_later(work: Work, fake: Path) -> None:
    running(fake)
    mark(work, noted(work) - 1)

    _go_on(work, STOPPED, Begun(0, submitted(work)))

    assert was_requeued(fake)


@pytest.mark.parametrize("restart", [0, 1])
@pytest.mark.parametrize(("seconds", "is_ended"), [(1, True), (-1, False)])
def test_a_cancel_while_a_job_begins_ends_it_and_one_of_an_earlier_job_does_not(
    work: Work, fake: Path, restart: int, seconds: int, is_ended: bool
) -> None:
    """At the first execution too: the mark may come while its imports load."""
    running(fake)
    mark(work, noted(work) + seconds)
    write_program(fake / "bin/srun", 'touch "$FAKE/srun-called"; exit 1')
    cluster = ClusterConfig(preflight={"enabled": False})  # type: ignore[arg-type]
    begins = Work(**{**vars(work), "cluster": cluster, "job": Job("7", restart, ("n1", "n2"))})

    assert job_module.run(begins) == (85 if is_ended else 1)

    assert (fake / "srun-called").exists() is not is_ended
    assert (work.run_folder / "cancelled").exists() is is_ended


def test_of_a_script_by_hand_slurm_knows_when_it_was_submitted(work: Work, fake: Path) -> None:
    (fake / "queue").write_text("2026-11-21T10:00:00\n")
    told = time.mktime((2026, 11, 21, 10, 0, 0, 0, 0, -1))
    assert submitted(work) == told + 1  # to the second, and what was before in it does not count
    append(work.run_folder / "attempts.jsonl", {"attempt": 1, "job": "6", "time": 5.0}, {"job": "7", "time": 9.0})
    assert submitted(work) == 9.0  # the first attempt of this job, where SLURM tells the time of a requeue
    noted(work, "6")
    assert submitted(work) == 9.0


def test_where_nobody_knows_it_an_old_mark_does_not_hold_the_first_execution(work: Work, fake: Path) -> None:
    (fake / "squeue-refusal").write_text(AWAY)
    now = time.time()

    assert submitted(work) >= now
    again = Work(**{**vars(work), "job": Job("7", 1, ("n1",))})
    assert submitted(again) == 0.0


@pytest.mark.stages
def test_finished_parts_of_the_data_are_progress(work: Work, fake: Path, tmp_path: Path) -> None:
    """A job that makes its shards itself may need more than two time limits for them, all at step 0."""
    text = "두레 논에 물을 대고 벼를 심는다. " * 60
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": f"{n} {text}"}) for n in range(50)))
    raw = {"inputs": [str(tmp_path / "rows.jsonl")], "cache": str(tmp_path / "cache"), "vocab_size": 300}
    words = ("configs/debug.yaml", 'data.shards=""', f"data.raw={json.dumps(raw)}")
    config = load(words[0], words[1:], TrainConfig).data.raw
    assert config is not None
    running(fake)

    def run_a_task(stage: Stage, kind: str) -> None:
        stage.run(next(task for task in stage.plan() if not stage.is_task_done(task)))

    for restart in range(3):
        if restart < 2:  # the third execution comes no further
            with contextlib.suppress(StageError):
                prepare_shards(config, run=run_a_task)
        execution = Work(
            **{**vars(work), "job": Job("7", restart, ("n1",)), "raw": config, "command": ("-m", "trainer", *words)}
        )
        _go_on(execution, Ending("stopped", 85, "stopped while the data was prepared"), BEGUN)

    told = [requeue.data for requeue in read_requeues(work.run_folder)]
    assert re.fullmatch(r"corpus: 1 of \d tasks, corpus: 2 of \d tasks", ", ".join(told)), told
    assert (fake / "scontrol-args").read_text().split() == ["requeue", "7"] * 2


def saved(work: Work, *, save: float, step: float) -> None:
    append(work.run_folder / "events.jsonl", {"kind": "saved", "detail": {"seconds": save}})
    append(work.run_folder / "metrics.jsonl", {"step": 1, "seconds_per_step": step})


def watch(work: Work, *, limit: int = 86400) -> TimeWatch:
    return TimeWatch("7", work.run_folder, limit_seconds=limit)


def test_a_save_that_takes_longer_than_was_thought_at_submit_stops_the_run_in_time(work: Work, fake: Path) -> None:
    running(fake, left="20:00")
    watching = watch(work)
    assert watching.why_stop() == ""  # no save was measured: sbatch's own signal stands
    saved(work, save=600.0, step=30.0)
    watching._next_look = 0.0

    assert watching.why_stop() == "1200 s of the time limit are left, a step and a save want 1290 s"


def test_it_waits_while_there_is_time_and_looks_in_time(work: Work, fake: Path) -> None:
    running(fake, left="20:00")
    saved(work, save=565.0, step=0.0)  # 1,190 s of 1,200
    watching = watch(work)

    assert watching.why_stop() == ""
    assert 5 < watching._next_look - time.monotonic() <= 10
    assert watching.why_stop() == ""  # not asked before that
    assert watch(work, limit=1200).why_stop() == ""  # no more than a third of what the job was given


def test_slurm_is_asked_rarely_and_its_silence_stops_nothing(work: Work, fake: Path) -> None:
    saved(work, save=600.0, step=30.0)
    (fake / "squeue-refusal").write_text(AWAY)
    watching = watch(work)
    assert watching.why_stop() == ""
    (fake / "squeue-refusal").unlink()
    running(fake, left="UNLIMITED")
    watching._next_look = watching._next_ask = 0.0
    assert watching.why_stop() == ""
    (fake / "squeue-args").unlink()
    watching._next_look = 0.0
    assert watching.why_stop() == ""
    assert not (fake / "squeue-args").exists()
