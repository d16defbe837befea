"""The only module that calls SLURM: sbatch, squeue, scancel, scontrol, sacct; each by an argv list, with a timeout.

What a job does is not known here. A SLURM that is missing or does not answer is a RunError that says what to do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch.cluster import seconds_of
from launch.slurm_reasons import reason_in_words
from trainer.errors import RunError

__all__ = ["JobState", "cancel", "ended_states", "hostnames", "is_here", "job_states", "reason_in_words", "requeue"]
__all__ += ["batch_jobs", "clean_environment", "requeue_without", "submit", "submit_time"]

TIMEOUT_SECONDS = 60.0
REQUEUE_TRIES = 10
_TRY_AGAIN_SECONDS = 3.0

# States after which a job does not run again by itself (squeue's manual, "JOB STATE CODES", of 22.05 to 25.05).
OVER = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"}
    | {"TIMEOUT", "LAUNCH_FAILED", "RECONFIG_FAIL"}
)
# Of an array, the state of the element that is furthest from its end speaks for the whole.
_LIVELIEST = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "PENDING")
# Variables of a job that the submitting process may itself be in, of a launcher around it, and of sbatch: they would
# win over the script's own lines. SLURM_CONF says where the cluster is.
_FOREIGN_PREFIXES = ("SLURM", "SBATCH_", "SRUN_", "SQUEUE_", "SCANCEL_", "PMI", "OMPI_")
_FOREIGN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DURE_DEVICE"}
_KEPT = {"SLURM_CONF"}


@dataclass(frozen=True)
class JobState:
    """What SLURM says of a job: a state such as PENDING or RUNNING, and why it waits ("Resources", or "None").

    `nodes` is SLURM's expression ("n[1-2]"), "" before the start. `time_left` in seconds, `start` (the real or the
    expected one) in seconds since 1970; None where SLURM does not know. `restarts`: how often it was requeued.
    """

    state: str
    reason: str
    nodes: str
    time_left: int | None
    restarts: int
    start: float | None

    @property
    def is_over(self) -> bool:
        """Whether it does not run again by itself."""
        return self.state in OVER


def is_here() -> bool:
    """Whether SLURM's commands are installed; not whether a controller answers."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scontrol", "scancel"))


def submit(path: Path, args: Sequence[str] = ()) -> str:
    """Submit the script at `path`; `args` are more flags of sbatch. Returns the job id.

    The job gets this process's environment, without what belongs to a job or a launcher around it.
    """
    answer = _call(["sbatch", "--parsable", *args, str(path.absolute())])
    job = answer.strip().splitlines()[-1].partition(";")[0] if answer.strip() else ""
    if not job.isdecimal():
        raise RunError(
            f"sbatch: answered {answer!r} instead of a job id; look at `squeue --me` before submitting again"
        )
    return job


# Fields of squeue -O, and how wide: a field is cut at its width, not at the bar.
_FIELDS = {
    "JobArrayID": 200,
    "State": 30,
    "Reason": 120,
    "NodeList": 4000,
    "TimeLeft": 30,
    "RestartCnt": 12,
    "StartTime": 40,
}


def job_states(ids: Sequence[str]) -> dict[str, JobState]:
    """The jobs that the controller still knows, by id (an element of an array by "12_3", the array itself by "12").

    A job that is not in the result ended a while ago (MinJobAge) or never was.
    """
    if not ids:
        return {}
    form = ",".join(f"{name}:{width}|" for name, width in _FIELDS.items())
    command = ["squeue", "--noheader", "--states=all", f"--Format={form}", f"--jobs={','.join(ids)}"]
    try:
        lines = _call(command).splitlines()
    except RunError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    return _with_whole_arrays(dict(_parse_state(line) for line in lines if line.strip()))


def _parse_state(line: str) -> tuple[str, JobState]:
    job, state, reason, nodes, left, restarts, start = (field.strip() for field in line.split("|")[: len(_FIELDS)])
    return job, JobState(
        state=state,
        reason=reason,
        nodes="" if nodes.startswith("(") else nodes,
        time_left=_left_seconds(left),
        restarts=int(restarts) if restarts.isdecimal() else 0,
        start=_epoch(start),
    )


def _left_seconds(text: str) -> int | None:
    """squeue's time: seconds stand last whatever the form; "UNLIMITED", "INVALID" and "NOT_SET" are none."""
    if not text[:1].isdecimal():
        return None
    return seconds_of(text)


def _epoch(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _with_whole_arrays(states: dict[str, JobState]) -> dict[str, JobState]:
    """Add for each array its id alone, with the state of its liveliest element."""
    whole: dict[str, JobState] = {}
    for job, state in states.items():
        base, is_element, _ = job.partition("_")
        if is_element and (base not in whole or _liveliness(state) < _liveliness(whole[base])):
            whole[base] = state
    return {**whole, **states}


def _liveliness(state: JobState) -> int:
    return _LIVELIEST.index(state.state) if state.state in _LIVELIEST else len(_LIVELIEST) + state.is_over


def submit_time(job: str) -> float | None:
    """When a job was submitted or last requeued, in seconds since 1970; None where SLURM does not know it.

    Raises:
        RunError: SLURM does not answer.
    """
    try:
        answer = _call(["squeue", "--noheader", "--states=all", "--Format=SubmitTime:40", f"--jobs={job}"])
    except RunError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    return _epoch(answer.strip())


def batch_jobs(ids: Sequence[str]) -> set[str]:
    """Those of the jobs that a script runs, as far as the controller knows them; not a person's session (salloc)."""
    if not ids:
        return set()
    command = [
        "squeue",
        "--noheader",
        "--states=all",
        "--Format=JobArrayID:200|,BatchFlag:2|",
        f"--jobs={','.join(ids)}",
    ]
    rows = (line.split("|") for line in _call(command).splitlines() if line.strip())
    return {row[0].strip() for row in rows if row[1].strip() == "1"}


def ended_states(ids: Sequence[str]) -> dict[str, str]:
    """How jobs ended that the controller has forgotten, by sacct; {} on a cluster that keeps no accounts."""
    if not ids or shutil.which("sacct") is None:
        return {}
    command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(ids)}"]
    try:
        lines = _call(command).splitlines()
    except RunError as error:
        if "accounting storage is disabled" in str(error):
            return {}
        raise
    pairs = (line.split("|") for line in lines if "|" in line)
    return {job: state.partition(" ")[0] for job, state in pairs}  # "CANCELLED by 1000"


def cancel(job: str, signal: str = "", *, batch: bool = False) -> None:
    """End a job; with `signal` ("USR1") only send that, with `batch` to the batch script's own process alone."""
    flags = [f"--signal={signal}"] if signal else []
    _call(["scancel", *flags, *(["--batch"] if batch else []), job])


def requeue(job: str) -> None:
    """Put a running job back into the queue under the same id; asked again while the controller is away."""
    _call_again(["scontrol", "requeue", job])


def requeue_without(job: str, hosts: Sequence[str]) -> None:
    """Put a running job back into the queue under the same id, so that it starts on none of `hosts` any more.

    SLURM changes the nodes of a waiting job only, so it is held meanwhile. A job that does this to itself must hold
    SIGTERM back: it has the seconds of KillWait for it. What waits for the job (afterok) goes on waiting.

    Raises:
        RunError: SLURM refuses. The job is then requeued as it was, or not at all.
    """
    _call_again(["scontrol", "requeuehold", job])
    try:
        _call_again(["scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(hosts)}"])
    finally:
        _call_again(["scontrol", "release", job])


def _call_again(command: Sequence[str]) -> None:
    """Call it until the controller is there to hear it."""
    for last in [False] * (REQUEUE_TRIES - 1) + [True]:
        try:
            _call(command)
            return
        except RunError as error:
            if last or not _is_passing(str(error)):
                raise
        time.sleep(_TRY_AGAIN_SECONDS)


def _is_passing(message: str) -> bool:
    """Whether the controller was away or busy, which passes."""
    signs = ("contact slurm controller", "timed out", "no answer in", "Connection refused", "temporarily")
    return any(sign in message for sign in signs)


def hostnames(nodelist: str) -> list[str]:
    """The names in an expression such as "n[1-2,7]", in SLURM's order."""
    return _call(["scontrol", "show", "hostnames", nodelist]).split()


def _call(command: Sequence[str]) -> str:
    """What a command of SLURM prints; raises RunError where it is missing, fails or does not answer."""
    name = command[0]
    if shutil.which(name) is None:
        raise RunError(
            f"{name}: no such program on PATH, so SLURM is not here; call this on the cluster's login node, or train "
            "on this machine by `dure train`"
        )
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TIMEOUT_SECONDS, env=clean_environment(os.environ), check=False
        )
    except subprocess.TimeoutExpired:
        raise RunError(
            f"{name}: no answer in {TIMEOUT_SECONDS:.0f} s; is the controller up (`scontrol ping`)? Then try again"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split()) or f"exit code {done.returncode}"
        raise RunError(f"{name}: {said}; {_advice(said)}")
    return done.stdout.decode(errors="replace")


def _advice(said: str) -> str:
    for sign, advice in _ADVICE.items():
        if sign in said:
            return advice
    return "correct the cluster profile, or ask whoever runs the cluster"


_ADVICE = {  # the first that is found counts
    "accounting/QOS policy": "a limit of your account or QoS, on jobs at once, size or time; `sacctmgr show assoc "
    "user=$USER` and `sacctmgr show qos` list them: lower nodes or time_limit, end other jobs, or set another qos",
    "establish": "this machine belongs to no cluster; call it on a login node, or set SLURM_CONF",
    "contact slurm controller": "the controller is away; `scontrol ping` asks it, then try again",
    "nvalid partition": "`sinfo -s` lists the partitions; set `partition` in the profile",
    "nvalid account": "`sacctmgr show assoc user=$USER` lists accounts; set `account` in the profile",
    "nvalid qos": "`sacctmgr show qos` lists them; set `qos` in the profile",
    "configuration is not available": "no node has that much; `scontrol show node` says what they have: lower nodes, "
    "gpus_per_node, cpus_per_task or memory",
    "Invalid generic resource": "`sinfo -o '%P %G'` lists the GPUs; set gpus_per_node and gpu_kind in the profile",
    "time limit": "`sinfo -o '%P %l'` lists the limits; lower `time_limit` in the profile",
    "nvalid job array": "`scontrol show config | grep MaxArraySize` says the most; lower `max_array_size`",
    "partition configuration not available": "the partition is down, or gives no job so much; `sinfo -s` shows it: set "
    "another `partition`, or lower nodes",
    "Memory specification": "no node has that much memory; `sinfo -o '%n %m'` lists it in MB: lower `memory`",
    "nvalid job id": "it ended a while ago, or never was; `squeue --me` lists yours",
}


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without the variables of a job or a launcher around this process."""
    return {
        name: value
        for name, value in environ.items()
        if name in _KEPT or (name not in _FOREIGN and not name.startswith(_FOREIGN_PREFIXES))
    }
