"""`dure submit`: what does not fit is refused before the queue, a dry run writes nothing, and a job is written down."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import load
from data_pipeline.stage import StageError
from launch import cli, slurm
from launch.cluster import ClusterConfig, read_cluster
from launch.submission import _odd_shares, needed_signal_seconds, plan_run, submit_run, working_folder
from tests.launch.sbatch_jobs import HOSTILE, REPO
from tests.launch.test_sbatch import run_script, sbatch_options
from trainer.errors import RunError

CONFIG = str(REPO / "configs/debug.yaml")
CPU = str(REPO / "slurm/clusters/cpu-tiny.yaml")
A100 = str(REPO / "slurm/clusters/a100-modules.yaml")
GOLDEN = REPO / "tests/golden/sbatch"

# What a cluster without a cluster answers: sbatch keeps its script and gives ids from 41 on, squeue prints a file.
PROGRAMS = {
    "sbatch": 'cat "${@: -1}" > "$FAKE/submitted"; printf "%s\\n" "$@" > "$FAKE/args"; env > "$FAKE/environment"\n'
    'if [ -s "$FAKE/refusal" ]; then cat "$FAKE/refusal" >&2; exit 1; fi\n'
    'echo "$((41 + $(ls "$FAKE" | grep -c ^job-)));cluster"; touch "$FAKE/job-$$"',
    "squeue": 'printf "%s\\n" "$@" > "$FAKE/squeue-args"\n'
    'if [ -s "$FAKE/squeue-refusal" ]; then cat "$FAKE/squeue-refusal" >&2; exit 1; fi; cat "$FAKE/queue"',
    "scontrol": 'printf "%s\\n" "$@" >> "$FAKE/scontrol-args"\n'
    'if [ -s "$FAKE/away" ]; then head -n1 "$FAKE/away" >&2; sed -i 1d "$FAKE/away"; exit 1; fi\nprintf "n1\\nn2\\n"',
    "scancel": 'printf "%s\\n" "$@" > "$FAKE/scancel-args"',
    "sacct": 'cat "$FAKE/accounts" 2>/dev/null || { echo "Slurm accounting storage is disabled" >&2; exit 1; }',
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of what a fake SLURM was told and shall answer; its programs stand first on PATH."""
    folder = tmp_path / "fake slurm"
    (folder / "bin").mkdir(parents=True)
    for name, body in PROGRAMS.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setattr(slurm, "_TRY_AGAIN_SECONDS", 0.01)
    return folder


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """What makes a run of the debug config here: shards that are there, and its folder."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/manifest.json").write_text("{}")
    return [f"data.shards={json.dumps(str(tmp_path / 'shards'))}", f"run.folder={json.dumps(str(tmp_path / 'runs'))}"]


def queued(folder: Path, *jobs: Sequence[str]) -> None:
    """What squeue answers: id, state, reason, nodes, time left, restarts, start."""
    (folder / "queue").write_text("".join("".join(f"{field:<30}|" for field in job) + "\n" for job in jobs))


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def said_by(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a refused command line says."""
    assert cli.main(["submit", *words]) != 0
    return capsys.readouterr().err


def test_a_dry_run_prints_the_script_and_writes_nothing(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no SLURM is needed for it
    before = entries(tmp_path)

    assert cli.main(["submit", CONFIG, "--cluster", CPU, "--dry-run", *overrides]) == 0

    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("#!/bin/bash\n")
    options = sbatch_options(captured.out)
    assert options[:2] == ["--job-name=debug", f"--output={tmp_path}/runs/debug/logs/slurm-%j.out"]
    assert entries(tmp_path) == before


def test_a_submitted_script_is_that_of_the_dry_run(
    tmp_path: Path, overrides: list[str], fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [CONFIG, "--cluster", CPU, *overrides, "train.max_steps=7"]
    cli.main(["submit", *words, "--dry-run"])
    dry = capsys.readouterr().out

    assert cli.main(["submit", *words]) == 0

    run = tmp_path / "runs/debug"
    assert (fake / "submitted").read_text() == (run / "submit/train.sbatch").read_text() == dry
    assert (fake / "args").read_text().splitlines() == ["--parsable", str(run / "submit/train.sbatch")]
    said = capsys.readouterr().out
    assert "job 41 submitted (제출됨): 2 x 1 CPU rank = 2 ranks, at most 30:00, told to save 300 s before" in said
    assert f"log     {run}/logs/slurm-41.out" in said
    assert (run / "logs").is_dir()


def test_a_job_is_written_down_with_its_resolved_profile(tmp_path: Path, overrides: list[str], fake: Path) -> None:
    assert cli.main(["submit", CONFIG, "--cluster", CPU, "--nodes", "3", *overrides]) == 0

    run = tmp_path / "runs/debug"
    (line,) = [json.loads(text) for text in (run / "jobs.jsonl").read_text().splitlines()]
    assert {**line, "time": 0} == {"time": 0, "job": "41", "nodes": 3, "cluster": CPU, "kind": "train", "name": "debug"}
    cluster = load(run / "submit/cluster.yaml", [], ClusterConfig)
    assert (cluster.nodes, cluster.signal_seconds, cluster.cpus_per_task) == (3, 300, 2)


def test_the_command_is_the_config_and_the_overrides_as_they_were_typed(
    tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "link")
    monkeypatch.setenv("PWD", str(tmp_path / "link"))
    Path("my config.yaml").write_text(f"extends: {json.dumps(CONFIG)}\n")
    overrides[1] = "run.folder=runs"

    planned = plan_run("my config.yaml", overrides, profile=CPU)

    here = tmp_path / "link"  # by the name that the shell knows, which is mounted alike on all nodes
    assert planned.job.workdir == here
    assert planned.job.command == (
        *("python", "-m", "launch.job", f"{here}/my config.yaml", *overrides),
        *("--cluster", f"{here}/runs/debug/submit/cluster.yaml"),
    )


def test_a_working_folder_that_pwd_does_not_name_is_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for stale in ("/", "relative", "/no/such/folder", ""):
        monkeypatch.setenv("PWD", stale)
        assert working_folder() == tmp_path


@pytest.mark.parametrize("name", [name for name in HOSTILE if "/" not in name and not name.startswith(".")])
def test_a_hostile_run_name_is_one_name_everywhere(name: str, tmp_path: Path, overrides: list[str], fake: Path) -> None:
    words = [*overrides, f"run.name={json.dumps(name)}"]

    job = submit_run(plan_run(CONFIG, words, profile=CPU))

    run = tmp_path / "runs" / name
    text = (run / "submit/train.sbatch").read_text()
    assert job == "41"
    assert sbatch_options(text)[0] == f"--job-name={name}"
    assert sbatch_options(text)[1] == f"--output={str(run).replace('%', '%%')}/logs/slurm-%j.out"
    (fake / "env").mkdir()
    text = text.replace(". /", ": /")  # the venv of this process would hide the python that tells its words
    told = run_script(text, fake / "env").stdout.decode().split("\0")[2:-1]
    assert told == ["-m", "launch.job", CONFIG, *words, "--cluster", f"{run}/submit/cluster.yaml"]
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--cluster: missing; give a cluster profile (here: slurm/clusters/a100-apptainer.yaml,"),
        (["--cluster", "no.yaml", CONFIG], "no.yaml: no such file; the profiles here are slurm/clusters/"),
        (["--cluster", CPU], "CONFIG is missing; give the config of a run, or --pipeline FILE"),
        (["--cluster", CPU, "--pipeline", "p.yaml", "--nodes", "3", CONFIG], f"got {CONFIG}, --nodes 3 too; leave"),
        (["--cluster", CPU, CONFIG, "train.max_stesp=1"], "train.max_stesp: unknown key; did you mean 'max_steps'?"),
        (
            ["--cluster", CPU, CONFIG, "run.expected_ranks=4", "train.global_batch_sequences=8"],
            f"{CPU}: nodes 2 x cpu_ranks_per_node 1 are 2 ranks, but run.expected_ranks says 4; change --nodes,",
        ),
        (
            ["--cluster", A100, "--nodes", "5", CONFIG],
            f"{A100}: nodes 5 x gpus_per_node 8 are 40 ranks, but a step has train.global_batch_sequences 16, so some",
        ),
        (
            ["--cluster", CPU, CONFIG, "data.shards=gone"],
            "data.shards: gone: no manifest.json there, so no shards",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_queue(
    words: list[str], says: str, fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"run.folder={json.dumps(str(tmp_path / 'runs'))}"
    extra = [folder] if CONFIG in words and "--pipeline" not in words else []

    assert says in said_by(capsys, *words, *extra)
    assert not (fake / "submitted").exists()
    assert not (tmp_path / "runs").exists()


def test_every_fault_of_the_ranks_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = said_by(capsys, "--cluster", A100, "--nodes", "5", CONFIG, "run.expected_ranks=8")

    assert "run.expected_ranks says 8" in said
    assert "train.global_batch_sequences 16" in said


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (("41", "RUNNING", "None", "n[1-2]", "10:00", "0", "N/A"), "job 41 has this run already, RUNNING on n[1-2];"),
        (
            ("41", "PENDING", "Resources", "", "30:00", "1", "N/A"),
            "PENDING: waits for nodes to become free (자원",
        ),
    ],
)
def test_a_run_that_a_job_has_is_refused(
    state: tuple[str, ...],
    says: str,
    tmp_path: Path,
    overrides: list[str],
    fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [CONFIG, "--cluster", CPU, *overrides]
    assert cli.main(["submit", *words]) == 0
    (fake / "submitted").unlink()
    queued(fake, state)

    assert says in said_by(capsys, *words)
    assert not (fake / "submitted").exists()

    queued(fake, ("41", "COMPLETED", "None", "n[1-2]", "0:00", "0", "N/A"))
    assert cli.main(["submit", *words]) == 0
    jobs = [json.loads(line)["job"] for line in (tmp_path / "runs/debug/jobs.jsonl").read_text().splitlines()]
    assert jobs == ["41", "42"]


def test_a_job_that_slurm_refuses_is_not_written_down(
    tmp_path: Path, overrides: list[str], fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake / "refusal").write_text("sbatch: error: invalid partition specified: gpu\n")

    said = said_by(capsys, CONFIG, "--cluster", CPU, *overrides)

    assert "sbatch: sbatch: error: invalid partition specified: gpu; `sinfo -s` lists the partitions" in said
    assert not (tmp_path / "runs/debug/jobs.jsonl").exists()


def write_run(folder: Path, *, saves: Sequence[float], steps: Sequence[float]) -> Path:
    """A run that has measured its saves and steps."""
    folder.mkdir(parents=True)
    events: list[dict[str, Any]] = [{"kind": "skipped_step", "step": 1, "detail": {"seconds": 9999}}]
    events += [{"kind": "saved", "step": 1, "detail": {"seconds": seconds}} for seconds in saves]
    lines = [{"step": 1, "seconds_per_step": seconds} for seconds in steps]
    for name, rows in (("events", events), ("metrics", lines)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("saves", "steps", "seconds"), [([], [5.0], 300), ([10.5, 40.25], [3.0, 7.2], 148), ([1.0], [], 62)]
)
def test_the_warning_leaves_time_for_a_step_and_two_saves(
    saves: list[float], steps: list[float], seconds: int, tmp_path: Path
) -> None:
    assert needed_signal_seconds(write_run(tmp_path / "run", saves=saves, steps=steps)) == seconds


def test_the_warning_comes_never_before_two_thirds_of_the_time(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs/debug", saves=[400.0], steps=[1.5])

    cli.main(["submit", CONFIG, "--cluster", CPU, "--dry-run", *overrides])

    captured = capsys.readouterr()
    assert "--signal=B:USR1@600" in sbatch_options(captured.out)
    assert "signal_seconds: 862 s are wanted for a step and a save, but time_limit 30:00 leaves a third, 600 s" in (
        captured.err
    )


def test_a_profile_may_say_when_the_warning_comes(tmp_path: Path, overrides: list[str]) -> None:
    write_run(tmp_path / "runs/debug", saves=[400.0], steps=[1.5])

    planned = plan_run(CONFIG, overrides, profile=CPU, cluster_overrides=["signal_seconds=900"])

    assert planned.job.signal_seconds == 900
    with pytest.raises(RunError, match=r"1800 s before the time limit, but time_limit 30:00 is 1800 s"):
        plan_run(CONFIG, overrides, profile=CPU, cluster_overrides=["signal_seconds=1800"])


def test_a_key_that_nothing_reads_is_told(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["submit", CONFIG, "--cluster", CPU, "--dry-run", *overrides, "engine.zero_stage=3"])

    assert "engine.zero_stage: 3 is not read" in capsys.readouterr().err


def test_a_key_of_the_profile_that_nothing_reads_is_told(overrides: list[str]) -> None:
    said: list[str] = []

    plan_run(CONFIG, overrides, profile=CPU, cluster_overrides=["gpus_per_node=1"], tell=said.append)

    assert said == [f"{CPU}: cpu_ranks_per_node: 1 is not read: gpus_per_node is not 0"]


def raw_overrides(folder: Path, inputs: str) -> list[str]:
    """The debug config over files instead of shards."""
    raw = {"inputs": [str(folder / inputs)], "cache": str(folder / "cache")}
    return ['data.shards=""', f"data.raw={json.dumps(raw)}"]


def test_files_that_are_no_shards_yet_are_left_to_the_job(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("두레는 마을 사람들이 함께 일하는 모임입니다.\n")
    said: list[str] = []

    plan_run(CONFIG, raw_overrides(tmp_path, "a.txt"), profile=CPU, tell=said.append)

    assert [line[:44] for line in said] == ["data.raw: not made into shards yet; the job "]
    assert not (tmp_path / "cache").exists()


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="gone"):
        plan_run(CONFIG, raw_overrides(tmp_path, "gone"), profile=CPU)


def test_jobs_are_read_from_squeue(fake: Path) -> None:
    queued(
        fake,
        ("7", "RUNNING", "None", "n[1-2]", "1-02:03:04", "2", "2026-11-21T10:00:00"),
        ("9_3", "PENDING", "JobArrayTaskLimit", "", "INVALID", "0", "N/A"),
        ("9_2", "RUNNING", "None", "n1", "4:05", "0", "N/A"),
        ("9_1", "COMPLETED", "None", "n1", "0:00", "0", "N/A"),
    )

    states = slurm.job_states(["7", "9"])

    assert "--jobs=7,9" in (fake / "squeue-args").read_text().splitlines()
    first = states["7"]
    assert (first.state, first.nodes, first.time_left, first.restarts) == ("RUNNING", "n[1-2]", 93784, 2)
    assert first.start is not None
    assert (states["9_3"].reason, states["9_3"].time_left, states["9_3"].start) == ("JobArrayTaskLimit", None, None)
    assert states["9"] == states["9_2"]
    assert [states[job].is_over for job in ("7", "9_3", "9_1")] == [False, False, True]
    assert slurm.job_states([]) == {}


def test_a_job_that_squeue_has_forgotten_is_none(fake: Path) -> None:
    (fake / "squeue-refusal").write_text("slurm_load_jobs error: Invalid job id specified\n")

    assert slurm.job_states(["7"]) == {}


def test_a_squeue_that_fails_is_an_error(fake: Path) -> None:
    (fake / "squeue-refusal").write_text("slurm_load_jobs error: Unable to contact slurm controller\n")

    with pytest.raises(RunError, match=r"squeue: slurm_load_jobs error: .*; the controller is away; `scontrol ping`"):
        slurm.job_states(["7"])


def test_how_jobs_ended_is_asked_of_the_accounts_where_there_are_any(fake: Path) -> None:
    assert slurm.ended_states(["7"]) == {}

    (fake / "accounts").write_text("7|CANCELLED by 1000\n8|TIMEOUT\n")

    assert slurm.ended_states(["7", "8"]) == {"7": "CANCELLED", "8": "TIMEOUT"}


def test_a_signal_goes_to_the_batch_process_alone(fake: Path) -> None:
    slurm.cancel("7", "USR1", batch=True)
    assert (fake / "scancel-args").read_text().split() == ["--signal=USR1", "--batch", "7"]

    slurm.cancel("7")
    assert (fake / "scancel-args").read_text().split() == ["7"]


def test_a_requeue_waits_for_a_controller_that_is_away(fake: Path) -> None:
    (fake / "away").write_text("slurm_requeue error: Unable to contact slurm controller\n" * 3)

    slurm.requeue("7")

    assert (fake / "scontrol-args").read_text().split() == ["requeue", "7"] * 4


@pytest.mark.parametrize(
    ("said", "tries"),
    [("Job/step already completing or completed\n", 1), ("Unable to contact slurm controller\n", slurm.REQUEUE_TRIES)],
)
def test_a_requeue_that_is_refused_is_an_error(fake: Path, said: str, tries: int) -> None:
    (fake / "away").write_text(said * 99)

    with pytest.raises(RunError, match=f"scontrol: {said.strip()}"):
        slurm.requeue("7")
    assert (fake / "scontrol-args").read_text().split() == ["requeue", "7"] * tries


def test_hostnames_are_asked_of_scontrol(fake: Path) -> None:
    assert slurm.hostnames("n[1-2]") == ["n1", "n2"]
    assert (fake / "scontrol-args").read_text().split() == ["show", "hostnames", "n[1-2]"]


def test_without_slurm_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert not slurm.is_here()
    with pytest.raises(RunError, match="squeue: no such program on PATH, so SLURM is not here; call this on the"):
        slurm.job_states(["7"])


def test_a_slurm_that_does_not_answer_is_an_error(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "TIMEOUT_SECONDS", 0.1)
    (fake / "bin/squeue").write_text("#!/bin/bash\nexec sleep 30\n")

    with pytest.raises(RunError, match=r"squeue: no answer in 0 s; is the controller up \(`scontrol ping`\)\?"):
        slurm.job_states(["7"])


def test_an_answer_that_is_no_job_is_an_error(fake: Path, tmp_path: Path) -> None:
    (fake / "bin/sbatch").write_text("#!/bin/bash\necho Submitted batch job 7\n")

    with pytest.raises(RunError, match=r"sbatch: answered 'Submitted batch job 7\\n' instead of a job id"):
        slurm.submit(tmp_path / "x")


def test_a_job_submitted_from_a_job_gets_nothing_of_it(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SBATCH_* would win over the script's lines; SLURM_MEM_PER_NODE and the like make the new job's srun fail.
    given = {"SLURM_JOB_ID": "3", "SLURM_MEM_PER_NODE": "9", "SBATCH_PARTITION": "x", "WORLD_SIZE": "8", "RANK": "1"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "WANDB_API_KEY": "secret", "HF_HOME": "/hf"}
    for name, value in {**given, **kept}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "x.sbatch").write_text("")

    slurm.submit(tmp_path / "x.sbatch")

    lines = (fake / "environment").read_text().splitlines()
    assert {f"{name}={value}" for name, value in kept.items()} <= set(lines)
    assert not {line.partition("=")[0] for line in lines} & set(given)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "other jobs have a higher priority (우선순위 대기)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n[1-2]",
            "nodes that it needs are down, drained or reserved (노드",
        ),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved", "nodes that it needs are down, drained or reserved"),
        ("QOSMaxGRESPerUser", "QOSMaxGRESPerUser: as much as its QoS (QoS 한도) allows is in use already"),
        ("AssocGrpGRES", "AssocGrpGRES: as much as its account (계정 한도) allows is in use already"),
        (
            "QOSMaxWallDurationPerJobLimit",
            "QOSMaxWallDurationPerJobLimit: it asks for more than its QoS (QoS 한도) gives one job, and never starts "
            "(작업당 한도 초과); lower time_limit",
        ),
        (
            "QOSMinGRES",
            "QOSMinGRES: it asks for less than its QoS (QoS 한도) demands, and never starts; raise gpus_per",
        ),
        ("MaxGRESPerAccount", "MaxGRESPerAccount: as much as the cluster (클러스터 한도) allows is in use already"),
        ("MaxMemPerLimit", "asks for more memory a node or a core than the cluster gives (메모리 한도)"),
        ("SomethingNew", "SomethingNew (SLURM)"),
        ("", "no reason given (SLURM)"),
    ],
)
def test_a_reason_is_said_in_words(reason: str, words: str) -> None:
    assert slurm.reason_in_words(reason).startswith(words)


@pytest.mark.parametrize(
    ("reason", "key"),
    [
        ("QOSMaxNodePerJobLimit", "nodes"),
        ("QOSMaxGRESPerJob", "gpus_per_node or nodes"),
        ("QOSMaxGRESPerNode", "gpus_per_node or nodes"),
        ("QOSTimeLimit", "time_limit"),
        ("AssociationTimeLimit", "time_limit"),
        ("AssocMaxWallDurationPerJobLimit", "time_limit"),
        ("AssocMaxCPUMinutesPerJobLimit", "time_limit or nodes"),
        ("QOSMaxCpuPerJobLimit", "cpus_per_task or nodes"),
        ("QOSMaxMemoryPerNode", "memory"),
    ],
)
def test_a_job_that_asks_for_too_much_is_not_told_to_wait(reason: str, key: str) -> None:
    told = slurm.reason_in_words(reason)

    assert "never starts" in told and told.endswith(f"; lower {key}")


@pytest.mark.parametrize(
    "reason", ["QOSMaxJobsPerUserLimit", "QOSGrpCPUMinutesLimit", "AssocGrpWallLimit", "QOSGrpGRES"]
)
def test_a_limit_on_all_of_somebodys_jobs_passes(reason: str) -> None:
    assert slurm.reason_in_words(reason).endswith("allows is in use already")


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "lower nodes or time",
        ),
        ("Invalid job array specification", "lower `max_array_size`"),
        ("Requested partition configuration not available now", "`sinfo -s` shows it: set another `partition`"),
        ("Memory specification can not be satisfied", "lower `memory`"),
        ("Invalid account or account/partition combination specified", "set `account` in the profile"),
    ],
)
def test_what_sbatch_refuses_is_told_with_what_to_do(fake: Path, tmp_path: Path, said: str, advice: str) -> None:
    (fake / "refusal").write_text(f"sbatch: error: Batch job submission failed: {said}\n")
    (tmp_path / "x.sbatch").write_text("")

    with pytest.raises(RunError) as refused:
        slurm.submit(tmp_path / "x.sbatch")

    assert said in str(refused.value) and advice in str(refused.value)


def told_of(tmp_path: Path, profile: str, **environment: str) -> list[str]:
    path = tmp_path / "p.yaml"
    path.write_text(profile)
    return list(_odd_shares(read_cluster(path), profile="p.yaml", environ=environment))


def test_gpus_that_may_get_one_core_together_are_told_of(tmp_path: Path) -> None:
    (line,) = told_of(tmp_path, "gpus_per_node: 8\n")
    assert line.startswith("p.yaml: 8 ranks a node, but neither cpus_per_task nor exclusive is set")
    for profile in (
        "gpus_per_node: 1\n",
        "gpus_per_node: 8\nexclusive: true\n",
        "gpus_per_node: 8\ncpus_per_task: 64\n",
    ):
        assert told_of(tmp_path, profile) == []


def test_what_sbatch_would_read_from_the_shell_is_not_dropped_in_silence(tmp_path: Path) -> None:
    given = {"SBATCH_ACCOUNT": "lab7", "SBATCH_PARTITION": "gpu", "SBATCH_MEM_PER_GPU": "9G", "SBATCH_TIMELIMIT": "60"}
    assert told_of(tmp_path, "partition: cpu\n", **given, HOME="/root") == [
        "SBATCH_ACCOUNT=lab7 is not passed on, the profile decides: set account: lab7 in p.yaml",
        "SBATCH_MEM_PER_GPU=9G is not passed on, the profile decides: set extra_sbatch, or its own key in p.yaml",
    ]


def test_a_run_by_hand_has_its_nodes_for_itself() -> None:
    options = sbatch_options((REPO / "slurm/train.sbatch").read_text(encoding="utf-8"))
    assert {"--exclusive", "--mem=0", "--gres=gpu:8"} <= set(options)


# The first as 22.05 printed it; the others made after the manuals of later versions: more states, other empty fields.
LINES = {
    "22.05": "7     |FAILED        |NonZeroExitCode |n[1-2] |0:00    |1 |2026-11-21T10:00:00|",
    "23.11": "7     |LAUNCH_FAILED |None            |       |10:00   |0 |N/A                |",
    "24.05": "7     |RECONFIG_FAIL |None            |(null) |INVALID |0 |Unknown            |",
}


@pytest.mark.parametrize("version", LINES)
def test_a_job_that_ended_is_over_in_the_words_of_every_slurm(fake: Path, version: str) -> None:
    (fake / "queue").write_text(LINES[version] + "\n")

    state = slurm.job_states(["7"])["7"]

    assert state.is_over
    assert state.nodes in ("", "n[1-2]")


@pytest.mark.parametrize("state", ["POWER_UP_NODE", "SPECIAL_EXIT", "RESV_DEL_HOLD", "STAGE_OUT", "SIGNALING"])
def test_a_job_in_a_state_that_passes_is_not_over(fake: Path, state: str) -> None:
    queued(fake, ("7", state, "None", "n1", "1:00", "0", "N/A"))

    assert not slurm.job_states(["7"])["7"].is_over


def test_sacct_is_read_whatever_stands_behind_a_state(fake: Path) -> None:
    (fake / "accounts").write_text("7|CANCELLED by 1000\n8|NODE_FAIL\n9_[3-5]|LAUNCH_FAILED\n\n")

    assert slurm.ended_states(["7", "8", "9"]) == {"7": "CANCELLED", "8": "NODE_FAIL", "9_[3-5]": "LAUNCH_FAILED"}
