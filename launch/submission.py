"""A run's config and a cluster profile, checked against each other: planned (nothing is written), then submitted.

What the job does is launch/job.py's business.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline import disk
from data_pipeline.config import load, to_yaml
from data_pipeline.stage import MANIFEST_NAME, StageError
from launch import slurm
from launch.cluster import ClusterConfig, read_cluster
from launch.look_lines import last_objects
from launch.sbatch import Job, sbatch_text
from trainer.config import TrainConfig, unread_keys
from trainer.errors import RunError
from trainer.run_folder import EVENTS_NAME, METRICS_NAME, read_lines, repair_lines
from trainer.run_lock import holder_of, seems_alive

JOBS_NAME = "jobs.jsonl"
SUBMIT_NAME = "submit"
CLUSTER_NAME = "cluster.yaml"
SCRIPT_NAME = "train.sbatch"
LOGS_NAME = "logs"
DEFAULT_SIGNAL_SECONDS = 300
# SLURM looks at its limits on a tick of 30 s; the signal may come so late, and one tick is left to spare.
_TICK_SECONDS = 60
_LONGEST_SIGNAL = 65535
_NUM_LOOKED_AT = 5000
# Of sbatch's input variables those that the profile spells otherwise.
_KEYS_OF_SBATCH = {
    "timelimit": "time_limit",
    "mem_per_node": "memory",
    "gres": "gpus_per_node",
    "gpus_per_node": "gpus_per_node",
}


@dataclass(frozen=True)
class RunJob:
    """A run as it will be submitted. `run_folder` is absolute; `cluster` is complete, nothing left to be decided."""

    name: str
    run_folder: Path
    profile: str
    cluster: ClusterConfig
    job: Job

    @property
    def num_ranks(self) -> int:
        return self.cluster.nodes * self.cluster.ranks_per_node


def plan_run(
    config_path: str,
    overrides: Sequence[str],
    *,
    profile: str,
    nodes: int | None = None,
    cluster_overrides: Sequence[str] = (),
    dependency: str = "",
    needs_data: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> RunJob:
    """What would be submitted. Writes nothing, asks SLURM nothing; `tell` hears what is odd but no fault.

    Args:
        needs_data: refuse where the shards are not there yet. False: an earlier job makes them.

    Raises:
        ConfigError: the config or the profile is faulty.
        RunError: they do not fit each other.
        StageError: there are no shards.
    """
    config = load(config_path, overrides, TrainConfig)
    cluster = read_cluster(profile, [*cluster_overrides, *([f"nodes={nodes}"] if nodes is not None else [])])
    _check_ranks(config, cluster, profile=profile)
    if needs_data:
        _check_data(config, tell=tell)
    for line in unread_keys(config):
        tell(f"{config_path}: {line}")
    if cluster.gpus_per_node and "cpu_ranks_per_node" in cluster.model_fields_set:
        tell(f"{profile}: cpu_ranks_per_node: {cluster.cpu_ranks_per_node} is not read: gpus_per_node is not 0")
    for line in _odd_shares(cluster, profile=profile):
        tell(line)
    workdir = working_folder()
    run_folder = workdir / config.run.folder / config.run.name
    cluster = cluster.model_copy(update={"signal_seconds": _signal_seconds(cluster, run_folder, tell=tell)})
    assert cluster.signal_seconds is not None
    words = [str(workdir / config_path), *overrides, "--cluster", str(run_folder / SUBMIT_NAME / CLUSTER_NAME)]
    job = Job(
        name=config.run.name,
        command=("python", "-m", "launch.job", *words),
        cluster=cluster,
        nodes=cluster.nodes,
        log=run_folder / LOGS_NAME / "slurm-%j.out",
        workdir=workdir,
        signal_seconds=cluster.signal_seconds,
        dependency=dependency,
    )
    return RunJob(name=config.run.name, run_folder=run_folder, profile=profile, cluster=cluster, job=job)


def _odd_shares(cluster: ClusterConfig, *, profile: str, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """What a person may have wanted otherwise: cores for the GPUs, and what sbatch would read from the shell."""
    if cluster.gpus_per_node > 1 and cluster.cpus_per_task is None and not cluster.exclusive:
        yield (
            f"{profile}: {cluster.gpus_per_node} ranks a node, but neither cpus_per_task nor exclusive is set: SLURM "
            "may give them one core together; set one of them"
        )
    for name, value in sorted(environ.items()):
        key = name.removeprefix("SBATCH_").lower()
        if name.startswith("SBATCH_") and not getattr(cluster, _KEYS_OF_SBATCH.get(key, key), ""):
            wanted = _KEYS_OF_SBATCH.get(key, key)
            where = f"{wanted}: {value}" if wanted in ClusterConfig.model_fields else "extra_sbatch, or its own key"
            yield f"{name}={value} is not passed on, the profile decides: set {where} in {profile}"


def working_folder() -> Path:
    """The folder that we are in, by the name that the shell knows: that which is mounted alike on all nodes."""
    named = os.environ.get("PWD", "")
    if named.startswith("/") and Path(named).is_dir() and Path(named).samefile("."):
        return Path(named)
    return Path.cwd()


def _check_ranks(config: TrainConfig, cluster: ClusterConfig, *, profile: str) -> None:
    """The ranks that the profile gives must be those that the config expects, and no more than a step has rows."""
    kind = "gpus_per_node" if cluster.gpus_per_node else "cpu_ranks_per_node"
    num_ranks = cluster.nodes * cluster.ranks_per_node
    what = f"{profile}: nodes {cluster.nodes} x {kind} {cluster.ranks_per_node} are {num_ranks} ranks"
    faults = []
    if config.run.expected_ranks not in (None, num_ranks):
        expected = config.run.expected_ranks
        faults.append(f"{what}, but run.expected_ranks says {expected}; change --nodes, the profile or the key")
    if (rows := config.train.global_batch_sequences) < num_ranks:
        faults.append(
            f"{what}, but a step has train.global_batch_sequences {rows}, so some would have none; take fewer nodes, "
            "or raise it"
        )
    if faults:
        raise RunError("\n".join(faults))


def _check_data(config: TrainConfig, *, tell: Callable[[str], None]) -> None:
    """Refuse now what a job would refuse after the queue. Shards of raw files may be made by the job itself."""
    if config.data.raw is not None:
        from data_pipeline.raw import find_shards

        try:
            find_shards(config.data.raw)
        except StageError as error:
            if "is not built yet" not in str(error):
                raise
            tell("data.raw: not made into shards yet; the job does that first, on one node (`--pipeline` on many)")
    elif not (Path(config.data.shards) / MANIFEST_NAME).is_file():
        raise StageError(
            f"data.shards: {config.data.shards}: no {MANIFEST_NAME} there, so no shards that a run can read; build "
            "them by `dure shards build`, or submit all stages by --pipeline"
        )


def _signal_seconds(cluster: ClusterConfig, run_folder: Path, *, tell: Callable[[str], None]) -> int:
    """How long before the time limit the job must be told, so that a step and a save are done before it."""
    limit = cluster.time_limit_seconds
    if (given := cluster.signal_seconds) is not None:
        if given >= limit:
            raise RunError(
                f"signal_seconds: {given} s before the time limit, but time_limit {cluster.time_limit} is {limit} s; "
                "make it a small part of that"
            )
        return given
    needed = needed_signal_seconds(run_folder)
    allowed = max(1, min(limit // 3, _LONGEST_SIGNAL))
    if needed > allowed:
        tell(
            f"signal_seconds: {needed} s are wanted for a step and a save, but time_limit {cluster.time_limit} leaves "
            f"a third, {allowed} s; raise time_limit if saves are late"
        )
    return min(needed, allowed)


def needed_signal_seconds(run_folder: Path) -> int:
    """What `measured_signal_seconds` says; 300 before any save."""
    measured = measured_signal_seconds(run_folder)
    return DEFAULT_SIGNAL_SECONDS if measured is None else measured


def measured_signal_seconds(run_folder: Path) -> int | None:
    """Twice the longest save that the run has measured, its longest step, and SLURM's tick; None before any save.

    Of a long run the latest thousands count.
    """
    events = last_objects(run_folder / EVENTS_NAME, _NUM_LOOKED_AT)
    saves = [_number(line.get("detail", {}), "seconds") for line in events if line.get("kind") == "saved"]
    if not saves:
        return None
    metrics = last_objects(run_folder / METRICS_NAME, _NUM_LOOKED_AT)
    steps = [_number(line, "seconds_per_step") for line in metrics]
    return math.ceil(2 * max(saves) + max(steps, default=0.0) + _TICK_SECONDS)


def _number(tree: object, key: str) -> float:
    value = tree.get(key) if isinstance(tree, dict) else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0.0


def submit_run(planned: RunJob) -> str:
    """Write `<run>/submit/`, submit, and note the job in `<run>/jobs.jsonl`; returns the job id.

    Raises:
        RunError: a job holds this run already or waits for it, or SLURM refuses.
    """
    text = sbatch_text(planned.job)
    folder = planned.run_folder / SUBMIT_NAME
    with disk.locked(folder / ".lock"):  # two people may submit one run at once
        check_no_job(planned.run_folder)
        (planned.run_folder / LOGS_NAME).mkdir(exist_ok=True)  # SLURM makes no folder, and tells nobody
        disk.write_bytes(folder / CLUSTER_NAME, to_yaml(planned.cluster).encode())
        disk.write_bytes(folder / SCRIPT_NAME, os.fsencode(text))
        job = slurm.submit(folder / SCRIPT_NAME)
        note_job(planned.run_folder, job, nodes=planned.job.nodes, profile=planned.profile, name=planned.name)
    return job


def note_job(run_folder: Path, job: str, *, nodes: int, profile: str, name: str, kind: str = "train") -> None:
    """Add a line to `<run>/jobs.jsonl`, which says what jobs the run was given to."""
    line = {"time": time.time(), "job": job, "nodes": nodes, "cluster": profile, "kind": kind, "name": name}
    repair_lines(run_folder / JOBS_NAME)
    disk.append_line(run_folder / JOBS_NAME, json.dumps(line, ensure_ascii=False).encode())


def submitted_at(run_folder: Path, job: str) -> float | None:
    """When the run was given to `job`, in seconds since 1970; None where that was not noted: a script by hand."""
    times = [line.get("time") for line in read_lines(run_folder / JOBS_NAME) if str(line.get("job")) == job]
    return next((float(told) for told in reversed(times) if isinstance(told, (int, float))), None)


def check_no_job(run_folder: Path) -> None:
    """Refuse a run that a job holds or waits for, or that some process trains without one."""
    jobs = [str(line["job"]) for line in read_lines(run_folder / JOBS_NAME) if "job" in line]
    states = slurm.job_states(jobs)
    for job, state in states.items():
        if state.is_over:
            continue
        where = f" on {state.nodes}" if state.nodes else f": {slurm.reason_in_words(state.reason)}"
        raise RunError(
            f"{run_folder}: job {job} has this run already, {state.state}{where}; `dure status` follows it, `dure "
            "cancel` ends it with a save, then submit again"
        )
    holder = holder_of(run_folder)
    if holder is None or not seems_alive(holder) or holder.job in states:  # of those jobs none is left
        return
    age = max(0.0, time.time() - holder.heartbeat)
    raise RunError(
        f"{run_folder}: pid {holder.pid} on {holder.host}{f', job {holder.job},' if holder.job else ''} works in this "
        f"run, heartbeat {age:.0f} s ago; `dure cancel` ends it with a save, then submit again"
    )
