"""`dure status`: what a run does is told from its folder and its jobs, at any width, without reading much."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from launch import cli
from launch.look_find import all_runs, find_run, find_runs
from launch.look_jobs import ask
from launch.look_pipelines import note_pipeline
from launch.look_poll import Poll
from launch.look_run import Look, look_at
from launch.look_words import ago, cut, cut_front, duration, rate, wrap
from launch.verb_status import table
from tests.launch.look_runs import (
    NOW,
    append,
    beat,
    checkpoint,
    ended,
    event,
    hold,
    living,
    make_run,
    make_slurm,
    metrics,
    queued,
    read_bytes_so_far,
    submitted,
)
from trainer.errors import RunError


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs/` of an empty project, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "runs").mkdir()
    return Path("runs")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_slurm(tmp_path / "fake slurm")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    return folder


def look(folder: Path) -> Look:
    return look_at(find_run(str(folder)), ask([folder]), now=NOW)


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert cli.main(["status", "--json", *words]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_that_trains_tells_its_figures(runs: Path) -> None:
    run = make_run(runs / "한국어-1b")
    metrics(run, range(1, 13))
    event(run, "saved", step=10, detail={"seconds": 1.0}, at=NOW - 20)
    checkpoint(run, 10)
    with living(run):
        found = look(run)

    assert (found.name, found.state, found.step, found.max_steps) == ("한국어-1b", "running", 12, 100)
    assert (found.loss, found.tokens_per_second, found.eta_seconds) == (2.5, 412_345.6, 4000.0)
    assert (found.checkpoint_step, found.ranks, found.pid) == (10, 2, os.getpid())
    assert found.last_event is not None and found.last_event.text == "saved at step 10"
    assert found.why == ""


@pytest.mark.parametrize(
    ("phase", "state", "why"),
    [
        ("load", "starting", "loads model and data"),
        ("evaluate", "running", "evaluates"),
        ("save", "running", "saves a"),
    ],
)
def test_a_run_without_a_step_says_what_it_does(runs: Path, phase: str, state: str, why: str) -> None:
    run = make_run(runs / "a", started=NOW if phase == "load" else NOW - 60)
    append(run / "events.jsonl", *([{"time": NOW - 900, "kind": "started", "step": 0}] if phase == "load" else []))
    with living(run, phase=phase):
        found = look(run)

    assert found.state == state
    assert found.why.startswith(why)


def test_what_was_logged_after_a_beat_tells_more_than_it(runs: Path) -> None:
    run = make_run(runs / "a")
    with living(run, phase="save", time=time.time() - 30):
        metrics(run, [1])
        assert look(run).why == ""


@pytest.mark.parametrize(
    ("code", "reason", "state", "why"),
    [
        (0, "done", "done", "done, 30 s ago"),
        (85, "SIGTERM", "stopped", "SIGTERM, saved, 30 s ago; the same command goes on from step 12"),
        (1, "disk full", "failed", "30 s ago: disk full; `dure logs a` shows more, the same command goes on from step"),
        (2, "seq_len", "refused", "30 s ago: seq_len"),
        (1, "hang: rank 1 on n2 is behind", "hung", "30 s ago: rank 1 on n2 is behind; the same command goes on"),
    ],
)
def test_a_run_that_ended_says_why_and_how_it_goes_on(runs: Path, code: int, reason: str, state: str, why: str) -> None:
    run = make_run(runs / "a")
    checkpoint(run, 12)
    ended(run, code, reason)

    found = look(run)

    assert found.state == state
    assert found.why.startswith(why)


def test_a_cancelled_run_is_no_stopped_one_until_it_is_started_again(runs: Path) -> None:
    run = make_run(runs / "a")
    ended(run, 85, "SIGTERM")
    (run / "cancelled").touch()
    assert look(run).state == "cancelled"

    append(run / "attempts.jsonl", {"attempt": 2, "time": time.time() + 5, "ranks": 1, "host": "x", "job": None})
    assert look(run).state == "stopped"


def test_a_run_whose_process_is_gone_was_killed(runs: Path) -> None:
    run = make_run(runs / "a")
    hold(run)

    found = look(run)

    assert found.state == "killed"
    assert "kill -9, out of memory (메모리 부족)" in found.why
    assert "no checkpoint stands" in found.why


def test_a_run_on_a_host_that_beats_no_more_is_silent_and_one_that_beats_lives(runs: Path) -> None:
    run = make_run(runs / "a")
    hold(run, host="n7", machine="other", heartbeat=NOW - 600)
    silent = look(run)
    hold(run, host="n7", machine="other", heartbeat=time.time())

    assert silent.state == "silent"
    assert "on n7 has not beaten since 10 min ago" in silent.why
    assert look(run).state == "running"


def test_a_run_that_left_its_record_but_holds_on_is_ending(runs: Path) -> None:
    run = make_run(runs / "a")
    ended(run, 0, "done")
    with living(run):
        assert look(run).state == "ending"


def test_a_config_without_an_attempt_is_new(runs: Path) -> None:
    (runs / "a").mkdir()
    (runs / "a/config.yaml").write_text("train: {max_steps: 7}\n")

    assert (look(runs / "a").state, look(runs / "a").max_steps) == ("new", 7)


def test_a_job_that_waits_says_why_in_words_and_when_it_may_begin(runs: Path, fake: Path) -> None:
    submitted(runs / "a", "41")
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(NOW + 3600))
    queued(fake, ("41", "PENDING", "Resources", "", "2:00:00", "0", start))

    found = look(runs / "a")

    assert (found.state, found.job, found.where) == ("waiting", "41", "job 41")
    expected = time.strftime("%H:%M", time.localtime(NOW + 3600))
    assert found.why.startswith("waits for nodes to become free (자원 대기); expected to begin at ")
    assert expected in found.why


def test_a_requeued_job_that_waits_is_no_stopped_run(runs: Path, fake: Path) -> None:
    run = make_run(runs / "a", job="41")
    submitted(run, "41", at=NOW - 90)
    ended(run, 85, "SIGUSR1")
    queued(fake, ("41", "PENDING", "BeginTime", "", "2:00:00", "2", "N/A"))

    found = look(run)

    assert found.state == "waiting"
    assert found.why.startswith("back in the queue after 2 requeues: its time to begin has not come")


def test_a_job_that_runs_tells_its_nodes_and_its_time(runs: Path, fake: Path) -> None:
    run = make_run(runs / "a", job="41")
    submitted(run, "41", at=NOW - 90)
    queued(fake, ("41", "RUNNING", "None", "gpu[1-4]", "1-03:12:00", "0", "N/A"))
    starting = look(run)
    hold(run, host="gpu1", machine="other", heartbeat=time.time(), job="41")

    assert (starting.state, starting.why) == ("starting", "its nodes are looked at and its ranks started")
    assert (look(run).state, look(run).where) == ("running", "job 41 · 2 ranks on gpu[1-4] · 1 d 03 h left")


def test_a_dead_job_is_not_waited_for_though_its_heartbeat_is_young(runs: Path, fake: Path) -> None:
    run = make_run(runs / "a", job="41")
    submitted(run, "41", at=NOW - 90)
    hold(run, host="gpu1", machine="other", heartbeat=time.time(), job="41")
    queued(fake, ("41", "NODE_FAIL", "None", "gpu[1-4]", "0:00", "0", "N/A"))

    found = look(run)

    assert found.state == "killed"
    assert "job 41 is NODE_FAIL" in found.why


@pytest.mark.parametrize("remembers", [True, False])
def test_a_job_that_ended_before_its_ranks_is_a_failure(runs: Path, fake: Path, remembers: bool) -> None:
    submitted(runs / "a", "41", at=NOW - 90)
    if remembers:
        queued(fake, ("41", "FAILED", "NonZeroExitCode", "n1", "0:00", "0", "N/A"))
    else:
        (fake / "accounts").write_text("41|FAILED\n")

    found = look(runs / "a")

    assert found.state == "failed"
    assert found.why == "job 41 ended (FAILED), its ranks were never started; `dure logs a` shows what it said"


def test_an_older_job_does_not_speak_for_a_run_that_was_started_here_since(runs: Path, fake: Path) -> None:
    run = make_run(runs / "a")
    submitted(run, "41", at=NOW - 9000)
    ended(run, 0, "done")

    assert look(run).state == "done"


def test_a_persons_session_is_no_job_of_the_run(runs: Path, fake: Path) -> None:
    run = make_run(runs / "a", job="77")
    ended(run, 85, "SIGINT")
    queued(fake, ("77", "RUNNING", "None", "n1", "1:00:00", "0", "N/A"))
    (fake / "batch").write_text(f"{'77':<20}|0 |\n")
    session = look(run)
    (fake / "batch").write_text(f"{'77':<20}|1 |\n")

    assert session.state == "stopped"
    assert look(run).state == "starting"


def test_without_slurm_jobs_are_unknown_and_runs_are_shown(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(runs / "a", "41")
    ended(make_run(runs / "b"), 0, "done")
    monkeypatch.setenv("PATH", "/nowhere")

    assert cli.main(["status"]) == 0

    captured = capsys.readouterr()
    assert captured.err.startswith("warning: squeue: no such program on PATH")
    assert "unknown (알 수 없음)" in captured.out
    assert "done (완료)" in captured.out


def test_slurm_is_asked_once_for_all_and_not_at_all_without_a_job(
    runs: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended(make_run(runs / "here"), 0, "done")
    as_json(capsys)
    assert not (fake / "squeue-calls").exists()

    for number in range(5):
        submitted(runs / f"run-{number}", str(40 + number))
    queued(fake, *((str(40 + number), "PENDING", "Priority", "", "1:00", "0", "N/A") for number in range(5)))
    looks = as_json(capsys)

    assert [one["state"] for one in looks] == ["waiting"] * 5 + ["done"]
    (call,) = (fake / "squeue-calls").read_text().splitlines()
    assert "--jobs=40,41,42,43,44" in call


def test_json_is_one_array_with_every_fact(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(runs / "한국어")
    metrics(run, [5])
    ended(run, 0, "done")

    (found,) = as_json(capsys)

    assert (found["name"], found["folder"], found["state"]) == ("한국어", "runs/한국어", "done")
    assert (found["step"], found["max_steps"], found["memory_gib"]) == (5, 100, 71.25)
    assert found["last_event"]["kind"] == "started"


def test_a_line_of_a_huge_run_costs_its_end_alone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(runs / "a")
    metrics(run, range(1, 20_001))
    size = (run / "metrics.jsonl").stat().st_size
    as_json(capsys)
    before = read_bytes_so_far()

    (found,) = as_json(capsys)

    assert found["step"] == 20_000
    assert read_bytes_so_far() - before < 300_000 < size


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(runs: Path, width: int) -> None:
    run = make_run(runs / "아주-긴-이름의-한국어-사전학습-실행-2026-가을-두번째", max_steps=1_000_000)
    metrics(run, range(1, 13))
    event(run, "skipped_step", step=11, detail={"reason": "손실이 유한하지 않습니다 " * 30})
    other = make_run(runs / "b")
    ended(other, 1, "가나다라마바사아자차카타파하" * 20)
    with living(run):
        lines = table([look(run), look(other)], width=width)

    assert max(cell_len(line.plain) for line in lines) <= width
    assert lines[1].plain.startswith("…") == (width < 100)
    assert "두번째" in lines[1].plain  # the end of a name tells more
    assert "running (학습 중)" in lines[1].plain


def test_through_a_pipe_nothing_is_cut_wrapped_or_coloured(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "가나다라 마바사 " * 40
    name = "아주-긴-이름의-한국어-사전학습-실행-2026-가을-두번째-시도-세번째-설정"
    ended(make_run(runs / name), 1, reason)

    assert cli.main(["status"]) == 0

    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert name in text
    assert " ".join(reason.split()) in text


def test_what_lives_stands_first_then_what_needs_a_person(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(make_run(runs / "a"), 0, "done")
    ended(make_run(runs / "b"), 1, "x")
    with living(make_run(runs / "c")):
        assert [one["name"] for one in as_json(capsys)] == ["c", "b", "a"]


def test_runs_are_found_in_folders_of_runs_and_by_every_name(runs: Path, tmp_path: Path) -> None:
    make_run(runs / "demo/sft")
    step = checkpoint(make_run(runs / "a"), 5)
    make_run(tmp_path / "elsewhere/b")

    assert [run.name for run in all_runs()] == ["a", "demo/sft"]
    assert find_run("demo/sft").folder == Path("runs/demo/sft")
    assert find_run("runs/a").name == "a"
    assert find_run(str(step)).folder.resolve() == (runs / "a").resolve()
    assert [run.folder.name for run in find_runs([str(tmp_path / "elsewhere"), "a", "runs/a"])] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("demo/stf", "did you mean 'demo/sft'?"), ("zzz", "the runs here are demo/sft; or give the path")],
)
def test_an_unknown_run_is_refused_with_those_that_are_there(runs: Path, name: str, says: str) -> None:
    make_run(runs / "demo/sft")

    with pytest.raises(RunError, match="no run of that name") as caught:
        find_run(name)

    assert says in str(caught.value)


def test_a_project_without_runs_says_so(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status"]) == 0
    assert "no runs under runs/ (실행 없음)" in capsys.readouterr().out
    with pytest.raises(RunError, match="there are none under runs/ here"):
        find_run("a")


def test_a_pipeline_under_way_tells_its_links(runs: Path, fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "pipelines/demo").mkdir(parents=True)
    submitted(runs / "pipelines/demo", "41")
    links = {"corpus": {"job": "41"}, "shards": {"job": "42"}, "old": {"job": "7"}}
    (runs / "pipelines/demo/pipeline.json").write_text(json.dumps({"links": links}))
    done = ("41", "COMPLETED", "None", "n1", "0:00", "0", "N/A")
    queued(fake, done, ("42", "PENDING", "Dependency", "", "1:00:00", "0", "N/A"))

    cli.main(["status"])
    under_way = capsys.readouterr().out
    queued(fake, done)
    cli.main(["status"])

    assert "pipeline demo (파이프라인)" in under_way
    assert "pipelines/demo" not in under_way  # it is no run
    assert "    corpus  job 41  COMPLETED  n1\n" in under_way
    assert "    shards  job 42  PENDING  waits for another job to end (앞 작업 대기)\n" in under_way
    assert "pipeline" not in capsys.readouterr().out


def make_pipeline(folder: Path, *jobs: tuple[str, str]) -> Path:
    """As `dure submit --pipeline` leaves it: links and their jobs."""
    folder.mkdir(parents=True)
    (folder / "pipeline.json").write_text(json.dumps({"links": {name: {"job": job} for name, job in jobs}}))
    return folder


def link_ended(folder: Path, name: str, job: str, code: int) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "ended.json").write_text(json.dumps({"job": job, "code": code}))


def test_a_pipeline_that_failed_is_told_with_its_log_until_it_is_done(
    runs: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when SLURM has forgotten its jobs, some minutes after their end."""
    demo = make_pipeline(runs / "pipelines/demo", ("corpus", "41"), ("shards", "42"), ("page", "43"))
    link_ended(demo, "corpus", "41", 0)
    link_ended(demo, "shards", "42", 1)
    link_ended(demo, "page", "40", 0)  # of an earlier submission
    (fake / "accounts").write_text("43|CANCELLED by 1000\n")

    cli.main(["status"])

    told = capsys.readouterr().out
    assert [line.split()[-1] for line in told.splitlines() if "  job " in line] == ["COMPLETED", "FAILED", "CANCELLED"]
    assert "    shards failed (실패): runs/pipelines/demo/shards/logs/slurm-42.out" in told
    for name, job in (("shards", "42"), ("page", "43")):
        link_ended(demo, name, job, 0)
    (fake / "accounts").write_text("")
    cli.main(["status"])
    assert "pipeline demo" not in capsys.readouterr().out


def test_pipelines_stand_in_the_json_and_those_of_other_folders_are_found(
    runs: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = make_pipeline(Path("elsewhere/chain"), ("corpus", "41"))
    for _ in range(2):
        note_pipeline(there)
    note_pipeline(runs / "pipelines/here")
    queued(fake, ("41", "FAILED", "NonZeroExitCode", "n1", "0:00", "0", "N/A"))

    (found,) = as_json(capsys)

    assert (found["kind"], found["name"], found["folder"]) == ("pipeline", "chain", "elsewhere/chain")
    assert found["links"] == [{"name": "corpus", "job": "41", "state": "FAILED", "why": "n1"}]
    assert (found["failed"], found["log"]) == ("corpus", "elsewhere/chain/corpus/logs/slurm-41.out")
    assert (runs / "pipelines/elsewhere.jsonl").read_text().count("\n") == 1


def test_a_run_of_a_pipeline_is_told_by_its_exit_record(
    runs: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(runs / "a")
    ended(run, 1, "NaN")
    demo = make_pipeline(runs / "pipelines/demo", ("run", "41"))
    link = {"job": "41", "run": str(run), "time": 0.0, "log": "runs/a/logs/slurm-41.out"}
    (demo / "pipeline.json").write_text(json.dumps({"links": {"run": link}}))

    found = as_json(capsys)[-1]
    assert (found["failed"], found["log"]) == ("run", "runs/a/logs/slurm-41.out")
    (demo / "pipeline.json").write_text(json.dumps({"links": {"run": link | {"time": NOW + 1e6}}}))
    assert [one.get("kind") for one in as_json(capsys)] == [None]  # that record is of an earlier submission


def test_a_link_whose_array_waits_says_why(runs: Path, fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = make_pipeline(runs / "pipelines/demo", ("corpus", "41"))
    (demo / "corpus/arrays/0001").mkdir(parents=True)
    (demo / "corpus/arrays/0001/job").write_text(json.dumps({"job": "42"}))
    queued(
        fake,
        ("41", "RUNNING", "None", "n1", "1:00", "0", "N/A"),
        ("42_[0-9]", "PENDING", "AssocMaxJobsLimit", "", "1:00", "0", "N/A"),
    )

    (found,) = as_json(capsys)

    assert found["links"][0]["why"] == (
        "n1; its array 42: AssocMaxJobsLimit: as much as its account (계정 한도) allows is in use already"
    )


def test_an_end_is_told_only_after_slurm_was_asked_anew(runs: Path, fake: Path) -> None:
    run, now = make_run(runs / "a"), [0.0]
    poll = Poll([find_run("a")], clock=lambda: now[0])
    with living(run):
        assert poll.looks()[0].state == "running"
    ended(run, 85, "SIGTERM")
    submitted(run, "42", at=time.time())
    queued(fake, ("42", "PENDING", "Priority", "", "1:00:00", "0", "N/A"))
    now[0] += 3

    assert poll.looks()[0].state == "waiting"


def test_beats_of_a_rank_that_are_torn_do_not_matter(runs: Path) -> None:
    run = make_run(runs / "a")
    beat(run, 0)
    with living(run):
        (run / "beats/rank-00000.json").write_text("{")
        assert look(run).state == "running"


def test_figures_are_short_and_text_is_cut_by_its_cells() -> None:
    assert [rate(value) for value in (None, 853.2, 12_345, 412_345.6, 2_500_000)] == [
        "-",
        "853",
        "12.3k",
        "412k",
        "2.5M",
    ]
    assert [duration(value) for value in (45, 725, 12_000, 446_400)] == ["45 s", "12 m 05 s", "3 h 20 m", "5 d 04 h"]
    assert [ago(100 - age, now=100) for age in (-5, 45, 150, 7200, 200_000)] == [
        *("0 s ago", "45 s ago", "2 min ago", "2 h ago", "2 d ago")
    ]
    assert (cut("가나다라", 8), cut("가나다라", 7), cut("가나다라", 4)) == ("가나다라", "가나다…", "가…")
    assert (cut_front("가나다라", 8), cut_front("가나다라", 5)) == ("가나다라", "…다라")
    assert wrap("가나다라마 바사", 10, indent="  ") == ["  가나다라", "  마 바사"]
    assert wrap("one two three four", 9, num_lines=2) == ["one two", "three fo…"]
