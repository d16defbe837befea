"""Each node of a job is looked at before its ranks start: the bad one is named, and by policy gone without.

What is measured on a node is launch/preflight_node.py's business. The outcome stands in <run>/preflight/JOB.json:
{job, restart, time, nodes, all_reduce, faults {host: [...]}, resubmitted_as}.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from data_pipeline.config import Config

if TYPE_CHECKING:
    from launch.job import Work

PREFLIGHT_NAME = "preflight"
TOKEN_NAME = "token"
ANSWER = "PREFLIGHT "
_COMPARED = ("driver", "python", "torch", "deepspeed", "transformers")


class PreflightConfig(Config):
    """What a node must have. 0 asks for nothing: the figure is only noted."""

    enabled: bool = True
    on_bad_node: Literal["resubmit", "stop", "go_on"] = "stop"
    """resubmit: another job without the bad nodes takes the place of this one (of a run that `dure submit` made)."""
    max_resubmits: int = Field(default=2, ge=0)
    timeout_seconds: float = Field(default=300.0, gt=0)
    """Of the look at the nodes, and of the all-reduce; a node that needs longer is bad."""
    min_memory_gib: float = Field(default=0.0, ge=0)
    min_disk_gib: float = Field(default=1.0, ge=0)
    """Free in the run folder."""
    min_tmp_gib: float = Field(default=0.0, ge=0)
    max_clock_skew_seconds: float = Field(default=30.0, gt=0)
    """Against the first node's clock; what srun takes to start is allowed for."""
    all_reduce: bool = True
    """Sum over all ranks, timed: NCCL on GPUs, gloo on CPUs."""
    all_reduce_mib: int = Field(default=64, ge=1)
    min_gb_per_second: float = Field(default=0.0, ge=0)
    """Of that all-reduce (bus bandwidth, as nccl-tests counts it), and of the links from node to node."""


@dataclass(frozen=True)
class Expected:
    """What the judge compares the nodes with."""

    hosts: tuple[str, ...]
    num_gpus: int
    token: str
    sent: float
    received: float


@dataclass
class Checked:
    """The outcome: whether the ranks may start, why not, and the signal that came in the meantime."""

    go_on: bool = True
    stop: str = ""
    faults: dict[str, list[str]] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def judge(
    config: PreflightConfig, answers: Mapping[str, Mapping[str, Any]], expected: Expected
) -> dict[str, list[str]]:
    """What is wrong with which node, by host; a node without an answer is bad. Pure."""
    faults = {host: _node_faults(config, answers.get(host), expected) for host in expected.hosts}
    first = answers.get(expected.hosts[0])
    for host in expected.hosts[1:]:
        answer = answers.get(host)
        if first is not None and answer is not None:
            faults[host] += [
                f"{name} is {answer[name]!r}, on {expected.hosts[0]} {first[name]!r}; install the same on all nodes"
                for name in _COMPARED
                if answer[name] != first[name]
            ]
    return {host: lines for host, lines in faults.items() if lines}


def _node_faults(config: PreflightConfig, answer: Mapping[str, Any] | None, expected: Expected) -> list[str]:
    if answer is None:
        return [f"no answer within {config.timeout_seconds:.0f} s (응답 없음); see the job's log for what srun says"]
    faults = []
    if len(answer["gpus"]) < expected.num_gpus:
        seen = f": {answer['gpu_fault']}" if answer["gpu_fault"] else ""
        faults.append(f"{len(answer['gpus'])} GPUs, the profile says gpus_per_node {expected.num_gpus}{seen}")
    faults += [
        f"GPU {gpu['name']}: {gpu['errors']} uncorrected memory errors" for gpu in answer["gpus"] if gpu["errors"]
    ]
    if not (sees_folder := answer["token"] == expected.token):
        faults.append(
            f"does not see the run folder's files (공유 폴더): {answer['folder']} holds {answer['token']!r} there; "
            "is the shared file system mounted?"
        )
    elif answer["write_fault"]:
        faults.append(f"cannot write into the run folder: {answer['write_fault']}")
    for name, least in (
        ("memory_gib", config.min_memory_gib),
        ("disk_gib", config.min_disk_gib),
        ("tmp_gib", config.min_tmp_gib),
    ):
        if answer[name] < least and (sees_folder or name != "disk_gib"):
            faults.append(f"{name} is {answer[name]:.1f}, preflight.min_{name} {least:g}")
    skew = max(expected.sent - answer["time"], answer["time"] - expected.received, 0.0)
    if skew > config.max_clock_skew_seconds:
        faults.append(
            f"its clock is off by {skew:.0f} s (시계), preflight.max_clock_skew_seconds is "
            f"{config.max_clock_skew_seconds:g}; start its time service"
        )
    return faults


def judge_all_reduce(
    config: PreflightConfig, results: Sequence[Mapping[str, Any] | None], hosts: Sequence[str], *, ranks_per_node: int
) -> dict[str, list[str]]:
    """What the all-reduce says of which node; `results` by rank, None for one that never began. Pure.

    A link is named after both its nodes, so a node is slow where the links on both of its sides are.
    """
    faults: dict[str, list[str]] = {}
    for rank, result in enumerate(results):
        host = hosts[rank // ranks_per_node]
        if result is None or not result["met"]:
            faults.setdefault(host, []).append(f"rank {rank} did not reach the first node by the network (망)")
        elif result["fault"]:
            faults.setdefault(host, []).append(f"rank {rank}: all-reduce: {result['fault']}")
    if faults or not config.min_gb_per_second:
        return _without_echoes(faults, hosts)
    # links[n] is the one that node n receives by.
    links = [result["link_gb_per_second"] for result in results[::ranks_per_node] if result is not None]
    for place, host in enumerate(hosts):
        inward, outward = links[place], links[(place + 1) % len(hosts)]
        if len(hosts) > 1 and max(inward, outward) < config.min_gb_per_second:
            faults[host] = [
                f"its links carry {inward:.2f} and {outward:.2f} GB/s, preflight.min_gb_per_second is "
                f"{config.min_gb_per_second:g}"
            ]
    return faults


def _without_echoes(faults: dict[str, list[str]], hosts: Sequence[str]) -> dict[str, list[str]]:
    """Where some ranks never came, the others' faults only tell of that."""
    absent = {host: lines for host, lines in faults.items() if any("did not reach" in line for line in lines)}
    return absent if 0 < len(absent) < len(hosts) else faults


def check_nodes(work: Work) -> Checked:
    """Look at all nodes, write the record, and say what is wrong; nothing where the profile turns it off."""
    from data_pipeline import disk
    from launch.job_step import WHO
    from launch.rank_watch import tell

    config, job = work.cluster.preflight, work.job
    if not config.enabled:
        return Checked()
    started = time.monotonic()
    folder = work.run_folder / PREFLIGHT_NAME / f"{job.id}-{job.restart}"
    answers, expected = _ask(work, folder)
    faults = judge(config, answers, expected)
    num_ranks, reduced = len(job.hosts) * work.cluster.ranks_per_node, {}
    if not faults and config.all_reduce and num_ranks > 1 and not _stop_name(work):
        results = _all_reduce(work, folder)
        faults = judge_all_reduce(config, results, job.hosts, ranks_per_node=work.cluster.ranks_per_node)
        reduced = results[0] or {}
    record = {
        "job": job.id,
        "restart": job.restart,
        "time": time.time(),
        "nodes": dict(answers),
        "all_reduce": reduced,
        "faults": faults,
    }
    disk.write_json(_record_path(work.run_folder, job.id), record)
    for host, lines in faults.items():
        for line in lines:
            tell(f"preflight: {host}: {line}", who=WHO)
    speed = f", all-reduce {reduced['gb_per_second']:.2f} GB/s" if reduced.get("gb_per_second") else ""
    verdict = f"bad: {', '.join(faults)} (on_bad_node: {config.on_bad_node})" if faults else "good"
    tell(f"preflight: {len(job.hosts)} nodes {verdict}{speed}, {time.monotonic() - started:.0f} s", who=WHO)
    stop = _stop_name(work)
    return Checked(
        go_on=not stop and (not faults or config.on_bad_node == "go_on"), stop=stop, faults=faults, record=record
    )


def _record_path(run_folder: Path, job: str) -> Path:
    return run_folder / PREFLIGHT_NAME / f"{job}.json"


def _stop_name(work: Work) -> str:
    pending = signal.sigpending() & work.held
    return min(pending).name if pending else ""


def _ask(work: Work, folder: Path) -> tuple[dict[str, dict[str, Any]], Expected]:
    """What each node says of itself, by host; told through srun, not through the folder that is asked for."""
    from data_pipeline import disk
    from launch.job import python_of, srun_words
    from launch.job_step import let_signals_in

    folder.mkdir(parents=True, exist_ok=True)
    token, sent = secrets.token_hex(8), time.time()
    disk.write_bytes(folder / TOKEN_NAME, token.encode())
    command = [*srun_words(work), python_of(work), "-m", "launch.preflight_node", "look", str(folder)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        process_group=0,
        preexec_fn=let_signals_in,  # noqa: PLW1509
    )
    try:
        output, _ = process.communicate(timeout=work.cluster.preflight.timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # srun's tasks end with it; what was said until then counts
        output, _ = process.communicate()
    lines = output.decode(errors="replace").splitlines()
    answers = [json.loads(line.removeprefix(ANSWER)) for line in lines if line.startswith(ANSWER)]
    expected = Expected(work.job.hosts, work.cluster.gpus_per_node, token, sent, time.time())
    return {work.job.hosts[answer["index"]]: answer for answer in answers}, expected


def _all_reduce(work: Work, folder: Path) -> list[dict[str, Any] | None]:
    """What each rank measured, started like the run's own ranks; None for one that left nothing."""
    from data_pipeline import disk
    from launch.job import node_words, srun_words
    from launch.job_step import run_step
    from launch.local import reserved_port
    from launch.preflight_node import result_path

    config = work.cluster.preflight
    measure = ("-m", "launch.preflight_node", "all-reduce", str(folder), str(config.all_reduce_mib))
    with reserved_port("") as port:
        words = node_words(work, measure, run_folder=folder, reports=folder, port=port, launcher="dure")
        run_step(
            [*srun_words(work), *words],
            held=set(),  # a stop waits until this is done
            reports=folder,
            hosts=work.job.hosts,
            grace_seconds=5.0,
            timeout_seconds=config.timeout_seconds,
        )
    num_ranks = len(work.job.hosts) * work.cluster.ranks_per_node
    return [disk.read_object(result_path(folder, rank)) or None for rank in range(num_ranks)]


def resubmit_without(work: Work, checked: Checked, environ: Mapping[str, str] = os.environ) -> None:
    """Submit the run's script once more, without the bad nodes; says what was done, or why it was not."""
    from data_pipeline import disk
    from launch import slurm
    from launch.job_step import WHO
    from launch.rank_watch import tell
    from launch.submission import SCRIPT_NAME, SUBMIT_NAME, note_job
    from trainer.errors import RunError

    script = work.run_folder / SUBMIT_NAME / SCRIPT_NAME
    before = _chain(work.run_folder, work.job.id)
    excluded = sorted(
        {*work.cluster.exclude, *checked.faults, *(host for record in before for host in record["faults"])}
    )
    flag = f"--exclude={','.join(excluded)}"
    if not script.is_file():
        return tell(f"preflight: only what `dure submit` made is submitted again; do it by hand with {flag}", who=WHO)
    if len(before) >= (most := work.cluster.preflight.max_resubmits):
        return tell(
            f"preflight: not submitted again: that was done {len(before)} times, preflight.max_resubmits is {most}; "
            f"nodes left out so far: {', '.join(excluded)}",
            who=WHO,
        )
    try:
        job = slurm.submit(script.absolute(), [flag])
    except RunError as error:
        return tell(f"preflight: could not be submitted again: {error}", who=WHO)
    name = environ.get("SLURM_JOB_NAME", work.run_folder.name)
    note_job(work.run_folder, job, nodes=len(work.job.hosts), profile="", name=name)
    disk.write_json(_record_path(work.run_folder, work.job.id), {**checked.record, "resubmitted_as": job})
    tell(f"preflight: submitted again as job {job} with {flag}", who=WHO)
    return None


def _chain(run_folder: Path, job: str) -> list[dict[str, Any]]:
    """The records of the jobs in whose place, one after the other, `job` was submitted."""
    from data_pipeline import disk

    records = [disk.read_object(path) for path in (run_folder / PREFLIGHT_NAME).glob("*.json")]
    by_successor = {str(record["resubmitted_as"]): record for record in records if record.get("resubmitted_as")}
    chain = []
    while (record := by_successor.pop(job, None)) is not None:
        chain.append(record)
        job = str(record["job"])
    return chain
