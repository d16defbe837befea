"""A data stage over a cluster: its tasks shared out, done once, resumed after any end, and a failed one named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import load, to_yaml
from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.stage import StageError, read_manifest
from launch import array, array_work
from launch.array import Spread, check_own_job, spread
from launch.cluster import ClusterConfig
from launch.requeue import RequeueConfig
from launch.tasks import run_stage
from tests.launch.sbatch_jobs import REPO
from tests.launch.test_submit import fake, queued  # noqa: F401
from trainer.errors import RunError

# ruff: noqa: F811  (`fake` is a fixture)


@given(num_tasks=st.integers(1, 300), most=st.integers(1, 60))
def test_elements_hold_every_task_once_and_are_no_more_than_allowed(num_tasks: int, most: int) -> None:
    elements = spread(range(num_tasks), most=most)

    assert sorted(task for element in elements for task in element) == list(range(num_tasks))
    assert len(elements) == min(num_tasks, most)
    assert max(map(len, elements)) - min(map(len, elements)) <= 1


@pytest.fixture
def stage_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a link that builds a corpus of five files in five parts, as `dure submit` leaves it."""
    (tmp_path / "text").mkdir()
    for number in range(5):
        text = f"두레 {number}: 마을 사람들이 함께 일하는 모임입니다.\n" * 40
        (tmp_path / f"text/{number}.txt").write_text(text)
    folder = tmp_path / "pipelines/p/corpus"
    (folder / "logs").mkdir(parents=True)
    words = ["--input", str(tmp_path / "text"), "--output", str(tmp_path / "corpus"), "task_bytes=2000"]
    link = {"name": "corpus", "verb": "corpus build", "args": words}
    tree = {"link": link, "job_name": "p.corpus", "workdir": str(tmp_path), "poll_seconds": 0.05}
    (folder / "link.json").write_text(json.dumps(tree))
    (folder / "tasks.yaml").write_text(to_yaml(ClusterConfig(time_limit="5", max_array_size=2, max_running_tasks=2)))
    state = {"links": {"corpus": {"job": "7", "signature": ""}}}
    (folder.parent / "pipeline.json").write_text(json.dumps(state))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in array_work._THREADS:
        monkeypatch.setenv(name, "1")
    return folder


def the_link(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((folder / "link.json").read_text())
    return tree


def planned(folder: Path) -> list[list[str]]:
    assert array_work.main(["plan", str(folder)]) == 0
    return [[task["name"] for task in wave] for wave in json.loads((folder / "plan.json").read_text())["waves"]]


def make_array(folder: Path) -> Path:
    """The folder of an array of the first unfinished wave, not submitted."""
    plan = json.loads((folder / "plan.json").read_text())
    made = Spread(folder, the_link(folder), set())._new_folder()
    spec = {"verb": plan["verb"], "config": plan["config"], "locks": str(folder / "locks")}
    (made / "spec.json").write_text(json.dumps(spec))
    elements = spread(plan["waves"][0], most=2)
    (made / "elements.jsonl").write_text("".join(json.dumps(element) + "\n" for element in elements))
    return made


def run_element(made: Path, index: int, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
    return array_work.main(["run", str(made)])


def test_a_stage_in_arrays_makes_what_the_stage_makes_here(
    stage_link: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves = []
    while (left := planned(stage_link)) != []:
        waves.append(left[0])
        made = make_array(stage_link)
        assert [run_element(made, index, monkeypatch) for index in range(len(left[0][:2]))] == [0] * len(left[0][:2])
    assert array_work.main(["finish", str(stage_link)]) == 0

    inputs = f"inputs={json.dumps([str(tmp_path / 'text')])}"
    config = load(None, [inputs, f"output={tmp_path}/here", "task_bytes=2000"], CorpusConfig)
    here = run_stage(CorpusBuild(config), 1, label="corpus")
    assert [len(wave) for wave in waves] == [5, 1, 5]
    assert read_manifest(tmp_path / "corpus", kind="corpus")["files"] == here["files"]
    assert array_work.main(["plan", str(stage_link)]) == 0
    assert json.loads((stage_link / "plan.json").read_text())["is_done"]


def test_only_unfinished_tasks_are_planned(stage_link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(stage_link)[0]
    run_element(make_array(stage_link), 0, monkeypatch)

    assert planned(stage_link)[0] == before[1::2]


def test_a_task_that_two_arrays_have_is_done_once(
    stage_link: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(stage_link)
    first, second = make_array(stage_link), make_array(stage_link)
    run_element(first, 0, monkeypatch)
    capsys.readouterr()

    assert run_element(second, 0, monkeypatch) == 0

    assert capsys.readouterr().out.count("stands already") == 3


def test_a_failed_task_is_named_and_what_has_not_begun_is_left_out(
    stage_link: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(stage_link)
    made = make_array(stage_link)
    failure = {"task": "read-00001", "message": "corpus build: task read-00001: broken.zip: no zip; download it again"}
    (made / "failures/read-00001.json").write_text(json.dumps(failure))

    assert run_element(made, 0, monkeypatch) == 0

    assert "left out, as another task failed" in capsys.readouterr().out
    assert len(planned(stage_link)[0]) == 5
    with pytest.raises(StageError, match=r"(?s)broken.zip: no zip; download.*corpus: 1 tasks failed; tasks that are"):
        Spread(stage_link, the_link(stage_link), set())._raise_failures(made)


def test_a_task_that_fails_says_so_and_ends_its_element(
    stage_link: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(stage_link)
    made = make_array(stage_link)
    for path in (stage_link.parents[2] / "text").iterdir():
        path.unlink()

    code = run_element(made, 0, monkeypatch)

    assert code in (1, 2)
    (failure,) = [json.loads(path.read_text()) for path in (made / "failures").iterdir()]
    assert failure["task"] == "read-00000"
    assert "corpus build: task read-00000: " in failure["message"]
    assert failure["message"] in capsys.readouterr().err


def test_an_array_that_lost_its_job_number_never_begins(
    stage_link: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fake: Path
) -> None:
    planned(stage_link)
    lost = make_array(stage_link)

    Spread(stage_link, the_link(stage_link), set())._adopt()

    assert run_element(lost, 0, monkeypatch) == 0
    assert "superseded by another array; nothing was begun" in capsys.readouterr().out
    assert len(planned(stage_link)[0]) == 5


def test_an_array_that_still_runs_is_waited_for_before_anything_is_planned(stage_link: Path, fake: Path) -> None:
    planned(stage_link)
    made = make_array(stage_link)
    (made / "job").write_text(json.dumps({"job": "40"}))
    queued(fake, ("40_0", "RUNNING", "None", "n1", "1:00", "0", "N/A"))
    # The queue is empty at the third look.
    squeue = fake / "bin/squeue"
    squeue.write_text(
        '#!/bin/bash\necho look >> "$FAKE/looks"\n[ $(wc -l < "$FAKE/looks") -gt 2 ] || cat "$FAKE/queue"\n'
    )

    Spread(stage_link, the_link(stage_link), {signal.SIGUSR2})._adopt()

    assert (fake / "looks").read_text().count("look") == 3


def test_arrays_that_do_nothing_end_the_stage_instead_of_going_on_for_ever(
    stage_link: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = {signal.SIGUSR2}

    with pytest.raises(RunError, match=r"5 tasks are not done|11 tasks are not done, and the last array did none"):
        Spread(stage_link, the_link(stage_link), held).run()

    options = (fake / "submitted").read_text()
    assert "#SBATCH --array=0-1%2" in options
    assert "wave 0: 5 tasks in 2 elements as array 41, at most 2 at once; 11 of 11 tasks are left" in (
        capsys.readouterr().err
    )
    assert [path.name for path in (stage_link / "arrays").iterdir()] == ["0001"]


def test_a_controller_that_is_away_is_asked_again_and_not_for_ever(stage_link: Path, fake: Path) -> None:
    (fake / "squeue-refusal").write_text("slurm_load_jobs error: Unable to contact slurm controller\n")
    watching = Spread(stage_link, the_link(stage_link), set())

    told = [watching._state_of("40") for _ in range(array.NUM_SILENCES - 1)]

    assert all(line is not None and line.endswith("asked again") for line in told)
    with pytest.raises(RunError, match="the controller is away"):
        watching._state_of("40")


@pytest.mark.parametrize(("number", "cancelled"), [(signal.SIGTERM, True), (signal.SIGUSR1, False)])
def test_a_cancelled_stage_takes_its_array_along_and_one_at_its_time_limit_does_not(
    number: signal.Signals, cancelled: bool, stage_link: Path, fake: Path
) -> None:
    planned(stage_link)
    queued(fake, ("40_0", "RUNNING", "None", "n1", "1:00", "0", "N/A"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    signal.pthread_kill(threading.get_ident(), number)  # to no other thread of the tests

    with pytest.raises(array._Stopped, match=number.name):
        Spread(stage_link, the_link(stage_link), {number})._wait(make_array(stage_link), "40")

    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (fake / "scancel-args").exists() is cancelled


def at_the_time_limit(stage_link: Path) -> int:
    """The exit code of the job that spreads the stage, told so while it waits."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    code = array._run_spread(stage_link, {signal.SIGUSR1})
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return code


@pytest.mark.stages
def test_a_stage_goes_back_into_the_queue_as_long_as_its_array_gets_on(
    stage_link: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(stage_link)
    made = make_array(stage_link)
    (made / "job").write_text(json.dumps({"job": "40"}))
    queued(fake, ("40_0", "PENDING", "QOSMaxJobsPerUserLimit", "", "1:00", "0", "N/A"))

    assert at_the_time_limit(stage_link) == 85
    run_element(made, 0, monkeypatch)  # three tasks of eleven
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert at_the_time_limit(stage_link) == 85
    assert (fake / "scontrol-args").read_text().split() == ["requeue", "7"] * 2
    capsys.readouterr()

    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert at_the_time_limit(stage_link) == 1

    said = capsys.readouterr().err
    assert "not requeued: no progress since the last requeue, both at step 3, data 3 of 11 tasks" in said
    assert "its array waits: QOSMaxJobsPerUserLimit: as much as its QoS (QoS 한도) allows is in use already" in said
    assert "this job, which waits for it, counts too" in said
    assert (fake / "scontrol-args").read_text().split() == ["requeue", "7"] * 2


@pytest.mark.stages
def test_a_long_queue_is_waited_for_and_not_for_ever(
    stage_link: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = RequeueConfig(max_requeues=2)
    (stage_link / "tasks.yaml").write_text(to_yaml(ClusterConfig(time_limit="5", max_array_size=2, requeue=policy)))
    planned(stage_link)
    (make_array(stage_link) / "job").write_text(json.dumps({"job": "40"}))
    queued(fake, ("40_0", "PENDING", "Priority", "", "1:00", "0", "N/A"))

    codes = []
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        codes.append(at_the_time_limit(stage_link))

    assert codes == [85, 85, 1]


def test_a_job_that_nobody_wrote_down_does_nothing(stage_link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_own_job(stage_link, seconds=0)
    monkeypatch.setenv("SLURM_JOB_ID", "8")

    with pytest.raises(RunError, match=r"pipeline.json: the job of corpus is 7, this is 8; nothing was done"):
        check_own_job(stage_link, seconds=0)


@pytest.mark.stages
def test_how_a_links_job_ended_stands_on_the_disk(stage_link: Path, fake: Path) -> None:
    """For `dure status`: SLURM forgets a job some minutes after its end."""
    link = the_link(stage_link)
    gone = {"name": "corpus", "verb": "shards verify", "args": [str(stage_link / "gone")]}
    (stage_link / "link.json").write_text(json.dumps(link | {"link": gone}))

    done = subprocess.run([sys.executable, "-m", "launch.array", "verb", str(stage_link)], cwd=REPO, timeout=120)

    assert done.returncode != 0
    assert json.loads((stage_link / "ended.json").read_text()) == {"job": "7", "code": done.returncode}
