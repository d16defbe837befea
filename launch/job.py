"""`python -m launch.job CONFIG [key.sub=value …] [--cluster FILE]`: one execution of a SLURM job, on its first node.

What an sbatch script ends in. The nodes are looked at (launch/preflight.py), their ranks are started through srun
(launch/node.py), and what their end means is turned into this process's exit code, and into a requeue of the same job
where the run is to go on (laws 12 and 14). Signals wait from the first line on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.local import GRACE_SECONDS, hold_signals, reserved_port

if TYPE_CHECKING:
    from data_pipeline.raw_config import RawDataConfig
    from launch.cluster import ClusterConfig
    from launch.job_step import Ending
    from launch.preflight import Checked
    from trainer.config import TrainConfig

LAUNCH_NAME = "launch"
RUNNING = ("RUNNING", "CONFIGURING")


@dataclass(frozen=True)
class Begun:
    """What was so when this execution began: the step that stood, and when its job was submitted (since 1970)."""

    step: int
    submitted: float


@dataclass(frozen=True)
class Job:
    """This execution of a job, as SLURM describes it; `hosts` in SLURM's order, the batch host first."""

    id: str
    restart: int
    hosts: tuple[str, ...]

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> Job:
        """Raises RunError outside of a job."""
        from launch.slurm import hostnames
        from trainer.errors import RunError

        if "SLURM_JOB_ID" not in environ or "SLURM_JOB_NODELIST" not in environ:
            raise RunError(
                "launch.job: SLURM_JOB_ID is not set, so this is no job; `dure submit CONFIG --cluster FILE` or "
                "`sbatch -N 2 slurm/train.sbatch CONFIG` make one, `dure train CONFIG` trains on this machine"
            )
        restart = int(environ.get("SLURM_RESTART_COUNT", "0"))
        return cls(environ["SLURM_JOB_ID"], restart, tuple(hostnames(environ["SLURM_JOB_NODELIST"])))


@dataclass(frozen=True)
class Work:
    """What the job trains, and where."""

    job: Job
    cluster: ClusterConfig
    run_folder: Path
    command: tuple[str, ...]
    held: set[signal.Signals]
    raw: RawDataConfig | None = None
    folders: tuple[Path, ...] = ()
    """What a container must see beside the working folder, absolute."""

    @property
    def step(self) -> int:
        """The step of the checkpoint that stands; 0 without one."""
        from trainer.checkpoint_marker import find_complete, step_of
        from trainer.run_folder import CHECKPOINTS_NAME

        found = find_complete(self.run_folder / CHECKPOINTS_NAME)
        return step_of(found[0]) if found else 0


def main(argv: Sequence[str]) -> int:
    """Run this execution of the job; 0 done, 85 stopped with everything saved (and requeued), else a failure."""
    held = hold_signals()
    from data_pipeline.config import ConfigError
    from data_pipeline.stage import StageError
    from trainer.errors import RunError
    from trainer.resilience import REFUSED

    try:
        return run(prepare(argv, held=held))
    except (ConfigError, StageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return REFUSED


def prepare(argv: Sequence[str], *, held: set[signal.Signals]) -> Work:
    """Read the config and the profile.

    Raises:
        ConfigError, StageError, RunError: refused.
    """
    from data_pipeline.config import load
    from trainer.config import TrainConfig

    job = Job.here()
    parser = argparse.ArgumentParser(prog="python -m launch.job", description="what an sbatch script ends in")
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", metavar="key.sub=value", nargs="*")
    parser.add_argument("--cluster", metavar="FILE")
    arguments = parser.parse_intermixed_args(argv)
    config = load(arguments.config, arguments.overrides, TrainConfig)
    cluster = _cluster(arguments.cluster)
    run_folder = Path(config.run.folder) / config.run.name
    if cluster.container is not None:
        run_folder.mkdir(parents=True, exist_ok=True)  # a mount needs it
    return Work(
        job=job,
        cluster=cluster,
        run_folder=run_folder,
        command=("-m", "trainer", arguments.config, *arguments.overrides),
        held=held,
        raw=config.data.raw,
        folders=_folders(config, arguments.config, run_folder),
    )


def _folders(config: TrainConfig, config_path: str, run_folder: Path) -> tuple[Path, ...]:
    """Where the config, the run, the shards and the base model lie."""
    places = [Path(config_path).parent, run_folder, Path(config.data.shards), Path(config.model.source or ".")]
    return tuple(place.absolute() for place in places if place.is_dir())


def _cluster(path: str | None, environ: Mapping[str, str] = os.environ) -> ClusterConfig:
    """The profile; without one, a rank for each GPU that SLURM gave this node, or one on its CPU."""
    from launch.cluster import ClusterConfig, read_cluster

    if path is not None:
        return read_cluster(path)
    return ClusterConfig(gpus_per_node=int(environ.get("SLURM_GPUS_ON_NODE", "0")))


def run(work: Work) -> int:
    """Look at the nodes, train, and decide how it goes on."""
    from launch.job_step import WHO, Ending
    from launch.preflight import check_nodes
    from launch.rank_watch import tell
    from launch.raw_stages import prepare as prepare_data
    from launch.requeue import forget_cancelled, is_cancelled, note_requeue_by_slurm
    from trainer.resilience import STOPPED

    job = work.job
    begun = Begun(step=work.step, submitted=submitted(work))
    if is_cancelled(work.run_folder, since=begun.submitted):
        tell(f"{work.run_folder}: cancelled while it waited; nothing was started", who=WHO)
        return STOPPED
    forget_cancelled(work.run_folder, before=begun.submitted)
    note_requeue_by_slurm(work.run_folder, job=job.id, restart=job.restart, step=begun.step)
    if (code := prepare_data(work.raw, work.command[2:], held=work.held)) == STOPPED:
        return _go_on(work, Ending("stopped", STOPPED, "stopped while the data was prepared"), begun)
    if code:
        return code
    checked = check_nodes(work)
    if not checked.go_on:
        return _after_bad_nodes(work, checked, begun)
    ending = _train(work)
    tell(f"job {job.id}: {ending.kind}: {ending.reason}", who=WHO)
    return _go_on(work, ending, begun)


def submitted(work: Work) -> float:
    """When this job was submitted: a mark of `dure cancel` that is older was meant for another one.

    Of a script that somebody submitted by hand nobody noted it. SLURM knows it to the second, and after a requeue the
    time of that instead; then the job's first attempt tells.
    """
    from launch.slurm import submit_time
    from launch.submission import submitted_at
    from trainer.errors import RunError
    from trainer.run_folder import ATTEMPTS_NAME, read_lines

    job = work.job.id
    if (noted := submitted_at(work.run_folder, job)) is not None:
        return noted
    attempts = read_lines(work.run_folder / ATTEMPTS_NAME)
    times = [float(attempt["time"]) for attempt in attempts if str(attempt.get("job")) == job]
    try:
        told = submit_time(job)
    except RunError:
        told = None
    if told is not None:
        times.append(told + 1)
    elif not times and work.job.restart == 0:
        times.append(time.time())
    return min(times, default=0.0)


def _after_bad_nodes(work: Work, checked: Checked, begun: Begun) -> int:
    """End the job; it goes back into the queue without the bad nodes where the profile says so."""
    from launch.preflight import resubmit_without

    if checked.stop:  # a signal came in the meantime: nothing was begun
        from launch.job_step import Ending
        from trainer.resilience import STOPPED

        return _go_on(work, Ending("stopped", STOPPED, f"{checked.stop}, before the ranks were started"), begun)
    if work.cluster.preflight.on_bad_node == "resubmit":
        resubmit_without(work, checked)
    return 1


def _train(work: Work) -> Ending:
    """Start the ranks, again where one died and the profile allows it."""
    from launch.job_step import WHO
    from launch.rank_watch import tell

    for number in range(work.cluster.max_restarts + 1):
        ending, stop = _step(work, number)
        if ending.kind != "rank died" or stop:
            break
        if number < work.cluster.max_restarts:
            tell(
                f"{ending.reason}; started again from the checkpoint of step {work.step:,} (restart {number + 1} of "
                f"max_restarts {work.cluster.max_restarts} in this job)",
                who=WHO,
            )
    return ending


def _step(work: Work, number: int) -> tuple[Ending, str]:
    """One srun over all nodes; what its end means, and the signal that asked for it, if any."""
    from launch.job_step import conclude, run_step
    from launch.time_left import TimeWatch
    from trainer.run_folder import read_exit

    job = work.job
    reports = work.run_folder / LAUNCH_NAME / f"{job.id}-{job.restart}-{number}"
    before = read_exit(work.run_folder)
    with reserved_port("") as port:
        words = node_words(work, work.command, run_folder=work.run_folder, reports=reports, port=port)
        command = [*srun_words(work), *words]
        result = run_step(
            command,
            held=work.held,
            reports=reports,
            hosts=job.hosts,
            grace_seconds=GRACE_SECONDS,
            why_stop=TimeWatch(job.id, work.run_folder, limit_seconds=work.cluster.time_limit_seconds).why_stop,
        )
    record = read_exit(work.run_folder)
    return conclude(result, None if record == before else record, hosts=job.hosts), result.stop


def srun_words(work: Work) -> list[str]:
    """srun with one task a node, which has all that the job has there, in the profile's container."""
    from launch.cluster import in_container

    num_nodes = str(len(work.job.hosts))
    words = ["srun", f"--nodes={num_nodes}", f"--ntasks={num_nodes}", "--ntasks-per-node=1", "--export=ALL"]
    words += ["--kill-on-bad-exit=0", "--wait=0", "--input=none", "--mpi=none", "--cpu-bind=none"]
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # srun takes it over from sbatch no more since 22.05
        words.append(f"--cpus-per-task={cpus}")
    flags, inside = in_container(work.cluster, workdir=Path.cwd(), folders=work.folders)
    return [*words, *flags, *inside]


def python_of(work: Work) -> str:
    """The Python that the nodes run: this one, or in a container the image's own."""
    return sys.executable if work.cluster.container is None else "python"


def node_words(
    work: Work, command: Sequence[str], *, run_folder: Path, reports: Path, port: int, launcher: str = ""
) -> list[str]:
    """What srun starts on each node so that `command`, arguments of Python, runs once a rank."""
    from launch.node import Node, arguments_for

    python = python_of(work)
    node = Node(
        index=0,
        num_nodes=len(work.job.hosts),
        num_ranks=work.cluster.ranks_per_node,
        master=work.job.hosts[0],
        port=port,
        device="gpu" if work.cluster.gpus_per_node else "cpu",
        launcher=launcher or work.cluster.launcher,
        run_folder=run_folder,
        reports=reports,
        command=(python, *command),
    )
    return [python, "-m", "launch.node", *arguments_for(node)]


def _go_on(work: Work, ending: Ending, begun: Begun) -> int:
    """Requeue the job where the run is to go on; returns the job's exit code."""
    from launch.job_step import WHO
    from launch.rank_watch import tell
    from launch.raw_stages import progress
    from launch.requeue import Requeue, decide, is_cancelled, note_requeue, read_requeues
    from launch.slurm import requeue
    from trainer.errors import RunError

    policy, job, step = work.cluster.requeue, work.job, work.step
    wanted = {
        "stopped": True,
        "hang": policy.on_hang,
        "node lost": policy.on_node_failure,
        "rank died": policy.on_dead_rank,
        "failed": policy.on_failure and step > begun.step,
    }
    if not wanted.get(ending.kind, False):
        return ending.code
    if state := _other_state(job):
        tell(f"job {job.id} is {state}: SLURM ends or requeues it by itself", who=WHO)
        return ending.code
    reason, data = f"{ending.kind}: {ending.reason}", "" if step else progress(work.raw, work.command[2:])
    ended = Requeue(job=job.id, restart=job.restart, step=step, reason=reason, data=data)
    cancelled = is_cancelled(work.run_folder, since=begun.submitted)
    verdict = decide(policy, ended, before=read_requeues(work.run_folder), is_cancelled=cancelled)
    tell(f"job {job.id}: {verdict.why}", who=WHO)
    if verdict.requeue:
        note_requeue(work.run_folder, ended)
        try:
            requeue(job.id)
        except RunError as error:
            tell(f"job {job.id} could not be requeued: {error}; submit it again to go on", who=WHO)
    return ending.code


def _other_state(job: Job) -> str:
    """The job's state where it is not a running one; "" where it is, or where SLURM does not say."""
    from launch.slurm import job_states
    from trainer.errors import RunError

    try:
        state = job_states([job.id]).get(job.id)
    except RunError:  # a controller that is away comes back, and `requeue` asks it for half a minute
        return ""
    return "" if state is None or state.state in RUNNING else state.state


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
