"""`dure submit` and the scripts by hand on the real SLURM: hostile names, the states that are read back, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import slurm
from launch.cluster import ClusterConfig
from launch.sbatch import sbatch_text
from tests.launch.sbatch_jobs import CONTROLS, HOSTILE, REPO, WITH_BACKSLASH, make_job
from tests.slurm.lab import Lab
from tests.slurm.world import World
from tests.trainer.tiny_run import lines_of, losses_of, tiny_config, write_config
from trainer.errors import RunError

pytestmark = pytest.mark.slurm

SHOW = "import json, os, sys; print('WORDS', json.dumps([os.getcwd(), *sys.argv[1:]]), flush=True)"
WORDS = (*HOSTILE, *WITH_BACKSLASH, *CONTROLS)
SHORT = {"train": {"max_steps": 4}, "checkpoint": {"every_steps": 4}, "evaluation": {"every_steps": 4}}
# A name that is a folder's, a job's and a log's at once.
NAME = "두레 '\"`$(touch pwned)` #%j -x"


@pytest.fixture
def here(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The lab as this process's cluster."""
    monkeypatch.setenv("SLURM_CONF", lab.env["SLURM_CONF"])
    return lab


def dure(lab: Lab, *words: str, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cli", *words]
    env = {**lab.env, "PYTHONPATH": str(REPO), "PWD": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def job_name(lab: Lab, job: str) -> str:
    return lab.run("squeue", "--noheader", "--states=all", "--format=%j", f"--jobs={job}").removesuffix("\n")


def test_hostile_names_and_words_pass_a_real_slurm_as_they_are(here: Lab, tmp_path: Path) -> None:
    logs = {}
    for number, name in enumerate([*HOSTILE, *WITH_BACKSLASH]):
        work = tmp_path / str(number) / name
        log = (work if "\\" not in name else tmp_path) / "slurm-%j.out"  # SLURM replaces no %j beside a backslash
        work.mkdir(parents=True)
        cluster = ClusterConfig(time_limit="5", extra_sbatch=(f"--comment={name}",))
        command = (sys.executable, "-c", SHOW, *WORDS)
        job = make_job(name=name, command=command, workdir=work, log=log, nodes=1, cluster=cluster)
        script = tmp_path / f"{number}.sbatch"
        script.write_bytes(os.fsencode(sbatch_text(job)))
        logs[slurm.submit(script)] = (name, work, log)

    for job_id, (name, work, log) in logs.items():
        assert here.wait_for_end(job_id).state == "COMPLETED"
        assert job_name(here, job_id) == name
        told = log.with_name(f"slurm-{job_id}.out").read_text().partition("WORDS ")[2].splitlines()[0]
        assert json.loads(told) == [str(work), *WORDS]
    assert not list(tmp_path.rglob("pwned"))


def test_dure_submit_trains_on_two_nodes_under_a_hostile_name(here: Lab, world: World, tmp_path: Path) -> None:
    home = tmp_path / "my runs"
    home.mkdir()
    config = write_config(home / "my config.yaml", tiny_config(home, world.shards, **SHORT))
    profile = home / "two nodes.yaml"
    profile.write_text("nodes: 2\ntime_limit: '10:00'\npreflight: {enabled: false}\n")
    words = ["submit", config.name, "--cluster", profile.name, f"run.name={json.dumps(NAME)}"]
    dry = dure(here, *words, "--dry-run", cwd=home)

    done = dure(here, *words, cwd=home)

    assert done.returncode == 0, done.stderr
    run = home / NAME
    (line,) = lines_of(run / "jobs.jsonl")
    again = dure(here, *words, cwd=home)
    assert again.returncode == 2
    assert f"job {line['job']} has this run already" in again.stderr
    job = here.wait_for_end(line["job"])
    log = run / "logs" / f"slurm-{line['job']}.out"
    assert job.state == "COMPLETED", log.read_text()
    assert job_name(here, line["job"]) == NAME
    assert (run / "submit/train.sbatch").read_text() == dry.stdout
    assert [attempt["ranks"] for attempt in lines_of(run / "attempts.jsonl")] == [2]
    assert sorted(losses_of(run)) == [1, 2, 3, 4]
    assert not list(tmp_path.rglob("pwned"))


def test_the_script_by_hand_trains_on_two_nodes(here: Lab, world: World, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", tiny_config(tmp_path, world.shards, **SHORT))
    # A whole node would bring its GPUs along, which the script asks for and this machine has in name only.
    options = [
        "--nodes=2",
        "--gres=none",
        "--oversubscribe",
        "--time=10",
        f"--output={tmp_path}/slurm-%j.out",
        f"--chdir={REPO}",
    ]

    job_id = here.submit(REPO / "slurm/train.sbatch", str(config), "run.name=by hand", options=options)

    log = tmp_path / f"slurm-{job_id}.out"
    assert here.wait_for_end(job_id).state == "COMPLETED", log.read_text()
    assert [attempt["ranks"] for attempt in lines_of(tmp_path / "by hand/attempts.jsonl")] == [2]


def test_a_job_is_followed_from_the_queue_to_its_end(here: Lab, tmp_path: Path) -> None:
    text = sbatch_text(
        make_job(
            command=("sleep", "3"),
            workdir=tmp_path,
            log=tmp_path / "%A_%a.out",
            nodes=1,
            array="0-5%2",
            signal_seconds=0,
            cluster=ClusterConfig(time_limit="5"),
        )
    )
    (tmp_path / "array.sbatch").write_text(text)

    job_id = slurm.submit(tmp_path / "array.sbatch")

    running = here.wait_for("two elements", lambda: _running(slurm.job_states([job_id]), count=2))
    states = slurm.job_states([job_id])
    waiting = next(state for name, state in states.items() if name.startswith(f"{job_id}_["))
    assert all(0 < (state.time_left or 0) <= 300 and state.nodes in ("n1", "n2") for state in running)
    assert (waiting.state, waiting.reason) == ("PENDING", "JobArrayTaskLimit")
    assert states[job_id].state == "RUNNING"
    slurm.cancel(job_id)
    here.wait_for("the end", lambda: slurm.job_states([job_id])[job_id].is_over)
    assert slurm.job_states(["999999"]) == {}


def _running(states: dict[str, slurm.JobState], *, count: int) -> list[slurm.JobState]:
    found = [state for name, state in states.items() if "_" in name and state.state == "RUNNING"]
    return found if len(found) == count else []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"partition": "nope"}, r"invalid partition specified: nope.*; `sinfo -s` lists the partitions"),
        ({"memory": "900G"}, r"Requested node configuration is not available; no node has that much"),
        ({"gpus_per_node": 3}, r"Requested node configuration is not available; no node has that much"),
    ],
    ids=["partition", "memory", "gpus"],
)
def test_what_slurm_refuses_is_told_with_what_to_do(
    here: Lab, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    cluster = ClusterConfig(**changes)  # type: ignore[arg-type]
    (tmp_path / "x.sbatch").write_text(sbatch_text(make_job(cluster=cluster, log=tmp_path / "x.out", nodes=1)))

    with pytest.raises(RunError, match=says):
        slurm.submit(tmp_path / "x.sbatch")


def test_a_job_submitted_from_a_job_may_call_srun(here: Lab, tmp_path: Path) -> None:
    """SLURM_MEM_PER_NODE and the like of the outer job would make the inner one's srun fail."""
    inner, outer = tmp_path / "inner.sbatch", tmp_path / "outer.sbatch"
    cluster = ClusterConfig(cpus_per_task=2, memory="100M", venv=sys.prefix)
    inner.write_text(
        sbatch_text(
            make_job(command=("srun", "hostname"), workdir=tmp_path, log=tmp_path / "inner.out", cluster=cluster)
        )
    )
    program = f"from pathlib import Path; from launch import slurm; print(slurm.submit(Path({str(inner)!r})))"
    cluster = ClusterConfig(memory="200M")
    command = (sys.executable, "-c", program)
    outer.write_text(
        sbatch_text(make_job(command=command, workdir=REPO, log=tmp_path / "outer.out", cluster=cluster, nodes=1))
    )

    job_id = slurm.submit(outer)

    assert here.wait_for_end(job_id).state == "COMPLETED", (tmp_path / "outer.out").read_text()
    inner_id = (tmp_path / "outer.out").read_text().split()[-1]
    assert here.wait_for_end(inner_id).state == "COMPLETED", (tmp_path / "inner.out").read_text()
    assert (tmp_path / "inner.out").read_text().split()[-2:] in (["n1", "n2"], ["n2", "n1"])
