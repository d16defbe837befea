"""`dure submit --pipeline`: the chain's text, what is refused before the queue, and what a second call does."""

# ruff: noqa: F401, F811  (`fake` is a fixture)

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import ConfigError, load
from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from launch import cli
from launch.cluster import ClusterConfig
from launch.link import (
    LinkConfig,
    arguments_of,
    in_place,
    is_done,
    profile_overrides,
    python_here,
    verb_inputs,
    was_cut_off_after_its_work,
)
from launch.pipeline import PipelineConfig, plan_pipeline
from launch.tasks import run_stage
from tests.launch.sbatch_jobs import REPO
from tests.launch.test_sbatch import sbatch_options
from tests.launch.test_submit import entries, fake, queued, said_by
from trainer.checkpoint_marker import marker_text

GOLDEN = REPO / "tests/golden/pipeline/chain.txt"
PROFILE = """\
nodes: 2
gpus_per_node: 8
gpu_kind: a100
cpus_per_task: 64
memory: 480G
exclusive: true
partition: gpu
time_limit: 1-00:00:00
venv: /venvs/dure
signal_seconds: 240
"""
LINKS = """\
name: chain
folder: here
poll_seconds: 1
coordinator: {time_limit: "2-00:00:00"}
links:
  - {name: corpus, verb: corpus build, args: --input text --output corpus}
  - {name: tokenizer, verb: tokenizer train, args: --corpus corpus --output tokenizer vocab_size=300}
  - name: shards
    verb: shards build
    args: [--corpus, corpus, --tokenizer, tokenizer, --output, shards]
    cluster: {partition: cpu, memory: 4G, environment: {LANG: C.UTF-8}}
  - {name: run, verb: train, args: run.yaml run.folder=runs, nodes: 1}
  - {name: scores, verb: evaluate, args: runs/run}
  - {name: page, verb: report, args: runs/run, after: [run, scores], cluster: {cpus_per_task: 2, memory: ""}}
"""
NAMES = ["corpus", "tokenizer", "shards", "run", "scores", "page"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with text, a run's config, a profile and a pipeline; the working folder."""
    folder = tmp_path / "my work"
    (folder / "text").mkdir(parents=True)
    for number in range(3):
        (folder / f"text/{number}.txt").write_text(f"두레 {number}: 마을 사람들이 함께 일하는 모임입니다.\n" * 3)
    (folder / "run.yaml").write_text(
        f"extends: {REPO}/configs/debug.yaml\nrun: {{name: run}}\ndata: {{shards: shards}}\n"
    )
    (folder / "cluster.yaml").write_text(PROFILE)
    (folder / "pipeline.yaml").write_text(LINKS)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PWD", str(folder))
    return folder


WORDS = ("submit", "--pipeline", "pipeline.yaml", "--cluster", "cluster.yaml")


def build_corpus(home: Path) -> None:
    config = load(None, [f"inputs={json.dumps([str(home / 'text')])}", f"output={home}/corpus"], CorpusConfig)
    run_stage(CorpusBuild(config), 1, label="corpus")


def jobs_of(home: Path) -> dict[str, str]:
    state = json.loads((home / "here/chain/pipeline.json").read_text())
    return {name: link["job"] for name, link in state["links"].items()}


def in_queue(fake: Path, jobs: dict[str, str], **states: str) -> None:
    """What squeue says: PENDING for its dependency, but for the links in `states`."""
    reasons = {"PENDING": "Dependency", "NEVER": "DependencyNeverSatisfied"}
    lines = []
    for name, job in jobs.items():
        state = states.get(name, "PENDING")
        lines.append((job, state.replace("NEVER", "PENDING"), reasons.get(state, "None"), "", "1:00", "0", "N/A"))
    queued(fake, *lines)
    answer = (
        "ids=$(printf '%s\\n' \"$@\" | sed -n 's/^--jobs=//p' | tr , '|')\ngrep -E \"^($ids) \" \"$FAKE/queue\" || true"
    )
    (fake / "bin/squeue").write_text(f"#!/bin/bash\n{answer}\n")


def dependency_of(script: Path) -> str:
    found = [option for option in sbatch_options(script.read_text()) if option.startswith("--dependency=")]
    return found[0].removeprefix("--dependency=") if found else ""


def scripts(home: Path) -> dict[str, Path]:
    places = {name: home / f"here/chain/{name}/link.sbatch" for name in NAMES}
    return places | {"run": home / "runs/run/submit/train.sbatch"}


def test_the_text_of_a_chain_is_its_golden_text(
    home: Path, capsys: pytest.CaptureFixture[str], rewrite_golden: bool
) -> None:
    build_corpus(home)

    assert cli.main([*WORDS, "--dry-run"]) == 0

    text = capsys.readouterr().out.replace(str(home), "/home/me/my work")
    if rewrite_golden:
        GOLDEN.parent.mkdir(parents=True, exist_ok=True)
        GOLDEN.write_text(text, encoding="utf-8")
    assert GOLDEN.is_file(), f"{GOLDEN} is missing; look at the text and run with --rewrite-golden"
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_a_dry_run_writes_nothing_and_needs_no_slurm(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    before = entries(home)

    assert cli.main([*WORDS, "--dry-run"]) == 0
    assert entries(home) == before


def test_every_link_waits_for_those_before_it(
    home: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*WORDS]) == 0

    jobs = jobs_of(home)
    assert list(jobs) == NAMES
    assert len(set(jobs.values())) == len(NAMES)
    waits = {name: dependency_of(script) for name, script in scripts(home).items()}
    behind = {after: f"afterok:{jobs[before]}" for before, after in zip(NAMES, NAMES[1:-1], strict=False)}
    assert waits == {"corpus": "", **behind, "page": f"afterok:{jobs['run']}:{jobs['scores']}"}
    assert all("--kill-on-invalid-dep=yes" in path.read_text() for name, path in scripts(home).items() if waits[name])
    assert f"shards: job {jobs['shards']} submitted (제출됨), after {jobs['tokenizer']}; log" in capsys.readouterr().out


def test_the_jobs_are_written_down_where_they_are_looked_for(home: Path, fake: Path) -> None:
    cli.main([*WORDS])

    lines = [json.loads(line) for line in (home / "here/chain/jobs.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [f"chain.{name}" for name in NAMES if name != "run"]
    (run,) = [json.loads(line) for line in (home / "runs/run/jobs.jsonl").read_text().splitlines()]
    assert (run["job"], run["kind"]) == (jobs_of(home)["run"], "train")


def test_a_second_call_submits_nothing_that_is_in_the_queue(
    home: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.main([*WORDS])
    jobs = jobs_of(home)
    in_queue(fake, jobs, corpus="RUNNING")
    capsys.readouterr()

    assert cli.main([*WORDS]) == 0

    assert jobs_of(home) == jobs
    said = capsys.readouterr().out
    assert f"corpus: job {jobs['corpus']} has it already, RUNNING\n" in said
    assert f"page: job {jobs['page']} has it already, PENDING: " in said


def test_after_a_failure_only_what_is_not_done_is_submitted_behind_it(
    home: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.main([*WORDS])
    before = jobs_of(home)
    build_corpus(home)
    in_queue(fake, before, **dict.fromkeys(NAMES, "CANCELLED") | {"corpus": "COMPLETED", "tokenizer": "FAILED"})
    capsys.readouterr()

    assert cli.main([*WORDS]) == 0

    after = jobs_of(home)
    assert "corpus: done (이미 완료), skipped" in capsys.readouterr().out
    assert after["corpus"] == before["corpus"]
    assert all(after[name] != before[name] for name in NAMES[1:])
    assert dependency_of(scripts(home)["tokenizer"]) == ""
    assert dependency_of(scripts(home)["shards"]) == f"afterok:{after['tokenizer']}"


@pytest.mark.parametrize("state", ["PENDING", "NEVER"])
@pytest.mark.parametrize("name", ["shards", "run"])
def test_a_job_that_waits_for_one_that_is_over_is_replaced(name: str, state: str, home: Path, fake: Path) -> None:
    """Also before the controller has seen that it can never start."""
    cli.main([*WORDS])
    before = jobs_of(home)
    in_queue(fake, {name: before[name]}, **{name: state})
    (fake / "bin/scancel").write_text('#!/bin/bash\necho "$@" >> "$FAKE/cancelled"; : > "$FAKE/queue"\n')

    assert cli.main([*WORDS]) == 0

    assert (fake / "cancelled").read_text().split() == [before[name]]
    assert jobs_of(home)[name] != before[name]


def test_a_link_of_other_words_is_not_taken_for_the_one_in_the_queue(
    home: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.main([*WORDS])
    jobs = jobs_of(home)
    in_queue(fake, jobs, corpus="RUNNING")
    (home / "pipeline.yaml").write_text(LINKS.replace("vocab_size=300", "vocab_size=400"))

    said = said_by(capsys, *WORDS[1:])

    assert f"tokenizer: job {jobs['tokenizer']} (PENDING) was submitted with other words; wait for it, or end" in said
    assert jobs_of(home) == jobs


def test_a_link_that_runs_while_what_it_read_is_made_anew_is_refused(
    home: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.main([*WORDS])
    jobs = jobs_of(home)
    in_queue(fake, {"tokenizer": jobs["tokenizer"]}, tokenizer="RUNNING")

    said = said_by(capsys, *WORDS[1:])

    assert f"tokenizer: job {jobs['tokenizer']} is RUNNING, but what stands before it is not done" in said
    assert jobs_of(home) == jobs


def test_a_run_that_another_submitted_is_waited_for(home: Path, fake: Path) -> None:
    cli.main([*WORDS])
    build_corpus(home)
    jobs = jobs_of(home)
    with (home / "runs/run/jobs.jsonl").open("a") as file:  # as preflight's resubmission writes it
        file.write(json.dumps({"job": "999", "kind": "train"}) + "\n")
    kept = {name: jobs[name] for name in ("tokenizer", "shards")}
    in_queue(fake, {**kept, "run": "999"}, tokenizer="RUNNING")

    assert cli.main([*WORDS]) == 0

    assert dependency_of(scripts(home)["scores"]) == "afterok:999"


def test_what_was_submitted_before_slurm_refused_is_gone_on_from(
    home: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sbatch = fake / "bin/sbatch"
    body = sbatch.read_text()
    sbatch.write_text(
        body.replace("\n", '\nif [ "$(ls "$FAKE" | grep -c ^job-)" = 2 ]; then echo no >&2; exit 1; fi\n', 1)
    )
    said_by(capsys, *WORDS[1:])
    first = jobs_of(home)
    sbatch.write_text(body)
    in_queue(fake, first)

    assert cli.main([*WORDS]) == 0

    assert list(first) == NAMES[:2]
    assert {name: jobs_of(home)[name] for name in first} == first
    assert dependency_of(scripts(home)["shards"]) == f"afterok:{first['tokenizer']}"


def test_nothing_is_skipped_behind_a_link_that_is_not_done(home: Path) -> None:
    build_corpus(home)
    (home / "text/3.txt").write_text("새 글.\n")
    plan = load("pipeline.yaml", [], PipelineConfig)
    write_finished_run(home)

    planned = plan_pipeline(plan, path="pipeline.yaml", profile="cluster.yaml")

    assert is_done(plan.links[3], home)
    assert [item.link.name for item in planned if item.is_done] == []


def write_finished_run(home: Path, *, step: int = 50, code: int = 0, weights: str = "one") -> None:
    """What `run` leaves at its end."""
    run = home / "runs/run"
    folder = run / f"checkpoints/step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("{}")
    marker = {"format_version": 1, "step": step, "files": [weights]}
    (folder / "COMPLETE").write_text(marker_text(marker))
    record = {"code": code, "reason": "done", "step": step}
    (run / "exit.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("step", "code", "done"), [(50, 0, True), (49, 0, False), (50, 85, False), (50, 1, False)])
def test_a_run_is_done_at_its_last_step_and_a_good_end(step: int, code: int, done: bool, home: Path) -> None:
    write_finished_run(home, step=step, code=code)
    train = load("pipeline.yaml", [], PipelineConfig).links[3]

    assert is_done(train, home / "here/chain/run") is done


def test_a_result_is_done_for_the_weights_it_was_made_of(home: Path) -> None:
    write_finished_run(home)
    scores = load("pipeline.yaml", [], PipelineConfig).links[4]
    folder = home / "here/chain/scores"
    folder.mkdir(parents=True)
    assert not is_done(scores, folder)
    inputs = verb_inputs(scores, arguments_of(scores))
    (folder / "done.json").write_text(json.dumps(inputs))

    assert is_done(scores, folder)
    assert not is_done(scores.model_copy(update={"args": ("runs/run", "--dtype", "bf16")}), folder)
    write_finished_run(home, weights="two")
    assert not is_done(scores, folder)


def test_a_finished_folder_is_ours_only_where_our_job_began_it_on_equal_inputs(home: Path) -> None:
    write_finished_run(home)
    export = a_link(verb="export", args="runs/run --output model")
    begun = json.dumps(verb_inputs(export, arguments_of(export)))
    (home / "begun.json").write_text(begun)
    assert not was_cut_off_after_its_work(export, home)
    (home / "model").mkdir()
    (home / "model/manifest.json").write_text("{}")

    assert was_cut_off_after_its_work(export, home)
    (home / "begun.json").write_text(begun.replace("model", "other"))
    assert not was_cut_off_after_its_work(export, home)


def a_link(**changes: Any) -> LinkConfig:
    return LinkConfig(**{"name": "a", "verb": "evaluate", "args": "runs/run", **changes})


def test_one_gpu_with_its_share_of_the_node_scores_a_model(home: Path) -> None:
    profile = load("cluster.yaml", [], ClusterConfig)

    changes = profile_overrides(a_link(), profile)

    assert changes == ["nodes=1", "gpus_per_node=1", "exclusive=false", "cpus_per_task=8", 'memory="60G"']
    assert profile_overrides(a_link(cluster={"memory": "200G"}), profile)[-1] == 'memory="200G"'
    assert profile_overrides(a_link(), ClusterConfig()) == profile_overrides(a_link(verb="report"), profile)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "pyxis",
            "srun --nodes=1 --ntasks=1 --container-image=dure.sqsh --container-mounts=/data:/data,/home/me:/home/me "
            "--container-workdir=/home/me python -m launch.array_work",
        ),
        (
            "apptainer",
            "apptainer exec --pwd /home/me --bind /data --bind /home/me dure.sqsh python -m launch.array_work",
        ),
    ],
)
def test_the_work_is_done_in_the_profiles_container(kind: str, words: str) -> None:
    container = {"kind": kind, "image": "dure.sqsh", "mounts": ["/data"]}
    cluster = ClusterConfig(container=container)  # type: ignore[arg-type]
    place = {"workdir": Path("/home/me"), "folder": Path("/home/me/runs/pipelines/p")}

    assert " ".join(in_place(cluster, ["-m", "launch.array_work"], **place)) == words
    assert python_here(cluster, ["-m", "launch.array_work"], **place) == words.split()
    assert python_here(ClusterConfig(), ["x.py"], **place) == [sys.executable, "x.py"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("verb: report", "verb: chat", "links.5.verb: 'chat' is no stage of a pipeline; take one of corpus build,"),
        ("name: shards", "name: corpus", "links: corpus stands twice; give each link a name of its own"),
        ("[run, scores]", "[run, later]", "links: page: after 'later', but the links before it are corpus, tokenizer,"),
        ("name: scores,", "name: scores, nodes: 2,", "links: scores: nodes is 2, but `evaluate` runs on one; leave"),
        ("--input text", "--inptu text", "link corpus: dure corpus build: unrecognized arguments: --inptu"),
        ("args: run.yaml", "args: --gpus 8 run.yaml", "link run: --gpus: the cluster profile says on what a run"),
        ("--input text", "--workers 4 --input text", "link corpus: --workers is of one machine, but its tasks become"),
        ("vocab_size=300", "vocab_sice=300", "vocab_sice: unknown key; did you mean 'vocab_size'?"),
        ("run.folder=runs", "train.max_stepz=1", "train.max_stepz: unknown key; did you mean 'max_steps'?"),
        ("{partition: cpu,", "{partitoin: cpu,", "partitoin: unknown key; did you mean 'partition'?"),
        ("--input text", "--input gone", "inputs.0.path: gone does not exist"),
        ("name: chain", "name: ../up", "name: string should match pattern"),
    ],
)
def test_a_faulty_link_is_refused_before_anything_is_submitted(
    old: str,
    new: str,
    says: str,
    home: Path,
    fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert LINKS.count(old) == 1
    (home / "pipeline.yaml").write_text(LINKS.replace(old, new))

    assert says in said_by(capsys, *WORDS[1:])
    assert not (fake / "submitted").exists()
    assert not (home / "here").exists()


def test_the_faulty_words_of_all_links_are_told_at_once(home: Path) -> None:
    text = LINKS.replace("--input text", "--inptu text").replace("args: run.yaml", "args: --gpus 8 run.yaml")
    (home / "pipeline.yaml").write_text(text)

    with pytest.raises(ConfigError, match=r"(?s)link corpus: .*link run: "):
        plan_pipeline(load("pipeline.yaml", [], PipelineConfig), path="pipeline.yaml", profile="cluster.yaml")


@pytest.mark.parametrize(
    ("name", "profile"), [("ko-1b", "a100-modules"), ("ko-1b", "a100-pyxis"), ("demo", "cpu-tiny")]
)
def test_the_pipelines_that_ship_fit_the_profiles_that_ship(
    name: str, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("configs", "slurm"):
        (tmp_path / folder).symlink_to(REPO / folder)
    for folder in ("data/aihub", "data/rows", "runs/demo/data/aihub", "runs/demo/data/rows"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jsonl").write_text('{"text": "t", "instruction": "q", "output": "a"}\n')
    monkeypatch.chdir(tmp_path)
    path = f"configs/pipelines/{name}.yaml"

    planned = plan_pipeline(load(path, [], PipelineConfig), path=path, profile=f"slurm/clusters/{profile}.yaml")

    assert len(planned) == 10
    assert not any(item.is_done for item in planned)
