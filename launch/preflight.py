"""Each node of a job is looked at before its ranks start: the bad one is named, and by policy gone without.

What is measured on a node is launch/preflight_node.py's business. The outcome stands in <run>/preflight/JOB.json:
{job, restart, time, nodes, all_reduce, faults {host: [...]}, unknown, left_out [host], resubmits}.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import statistics
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
# Where a rank of the all-reduce is, and so what a fault there is of: its own device, or the way to the others.
DEVICE, NETWORK = "its device", "the all-reduce"
# A link with less than this part of what the links have in the middle is told.
_SLOW_PART = 1 / 3
END_SECONDS = 15.0
_COMPARED = ("driver", "python", "torch", "deepspeed", "transformers")


class PreflightConfig(Config):
    """What a node must have. 0 asks for nothing: the figure is only noted."""

    enabled: bool = True
    on_bad_node: Literal["resubmit", "stop", "go_on"] = "stop"
    """resubmit: the job goes back into the queue, under the same id, and starts on the bad nodes no more."""
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
    unknown: list[str] = field(default_factory=list)
    """What is wrong between the nodes, where nothing says with which."""
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


Results = Sequence[Mapping[str, Any] | None]


@dataclass(frozen=True)
class Reduced:
    """What an all-reduce says: of which node, and of none in particular."""

    faults: dict[str, list[str]]
    unknown: list[str] = field(default_factory=list)


def judge_all_reduce(
    config: PreflightConfig, results: Results, hosts: Sequence[str], *, ranks_per_node: int
) -> Reduced:
    """What the all-reduce over all nodes says; `results` by rank, None for one that never began. Pure.

    Where some ranks never came, or a device failed, the others' faults only tell of that. Without such a one, a failed
    all-reduce is everybody's fault, and so of no one node in particular.
    """
    absent: dict[str, list[str]] = {}
    devices: dict[str, list[str]] = {}
    between = []
    for rank, result in enumerate(results):
        host = hosts[rank // ranks_per_node]
        if result is None or not result["met"]:
            absent.setdefault(host, []).append(f"rank {rank} did not reach the first node by the network (망)")
        elif fault := result["fault"]:
            if result["stage"] == DEVICE or ("CUDA error" in fault and "NCCL" not in fault):
                devices.setdefault(host, []).append(f"rank {rank}: {result['stage']}: {fault}")
            else:
                between.append(f"rank {rank} on {host}: {result['stage']}: {fault}")
    if devices:
        return Reduced(devices)
    if len(absent) == len(hosts) > 1:
        return Reduced({}, [line for lines in absent.values() for line in lines])
    return Reduced(absent) if absent else Reduced({}, between) if between else _judge_links(config, results, hosts)


def _judge_links(config: PreflightConfig, results: Results, hosts: Sequence[str]) -> Reduced:
    """A link is of both its nodes, so a node is slow where the links on both of its sides are; of two, neither is."""
    faults, least = {}, config.min_gb_per_second
    links = _links(results, hosts)
    for place, host in enumerate(hosts):
        inward, outward = links[place], links[(place + 1) % len(hosts)]
        if len(hosts) > 1 and max(inward, outward) < least:
            faults[host] = [
                f"its links carry {inward:.2f} and {outward:.2f} GB/s, preflight.min_gb_per_second is {least:g}"
            ]
    if len(faults) == len(hosts):
        return Reduced({}, [f"{host}: {line}" for host, lines in faults.items() for line in lines])
    return Reduced(faults)


def _links(results: Results, hosts: Sequence[str]) -> list[float]:
    """GB/s of the link that each node receives by."""
    first_ranks = results[:: len(results) // len(hosts)]
    return [result["link_gb_per_second"] for result in first_ranks if result is not None]


def slow_links(results: Results, hosts: Sequence[str]) -> list[str]:
    """A line for each link that is far slower than most, whatever the profile asks for; of three nodes or more."""
    links = _links(results, hosts)
    if len(hosts) < 3 or len(links) < len(hosts):
        return []
    middle = statistics.median(links)
    return [
        f"the link from {hosts[place - 1]} to {host} carries {links[place]:.2f} GB/s, most carry {middle:.2f}; look at "
        "its cable and its switch"
        for place, host in enumerate(hosts)
        if links[place] < middle * _SLOW_PART
    ]


def grouped(num_nodes: int, *, size: int, shift: int) -> list[tuple[int, ...]]:
    """The nodes of a ring in groups of `size`, the first from `shift` on; what is left over stands alone.

    >>> grouped(5, size=2, shift=1)
    [(1, 2), (3, 4), (0,)]
    """
    ring = [(shift + place) % num_nodes for place in range(num_nodes)]
    whole = num_nodes // size * size
    return [tuple(ring[at : at + size]) for at in range(0, whole, size)] + [(node,) for node in ring[whole:]]


def pair_shifts(num_nodes: int) -> list[int]:
    """Shifts that bring each node of a ring together with both its neighbours; [] where pairs tell nothing new."""
    if num_nodes < 3:
        return []
    return [0, 1] if num_nodes % 2 == 0 else [0, 1, num_nodes - 1]


def tell_apart(
    passes: Sequence[tuple[int, int, Results]], hosts: Sequence[str], *, ranks_per_node: int
) -> dict[str, list[str]]:
    """The nodes that fail in groups where others do not; {} where nothing tells them apart. Pure.

    Args:
        passes: (size, shift, results by rank) of each measurement over the groups of `grouped`.
    """
    good: set[int] = set()
    said: dict[int, list[str]] = {}
    for size, shift, results in passes:
        for nodes in grouped(len(hosts), size=size, shift=shift):
            if len(nodes) < size:
                continue
            faults = [fault for node in nodes if (fault := _first_fault(results, node, ranks_per_node))]
            if not faults and size > 1:
                good.update(nodes)
            for node in nodes if faults else ():
                with_whom = ", ".join(hosts[other] for other in nodes if other != node)
                what = f"together with {with_whom}" if with_whom else "of its own ranks alone"
                said.setdefault(node, []).append(f"an all-reduce {what} fails too: {faults[0]}")
        if size == 1 and said:
            break  # pairs would only fail with them
    bad = {hosts[node]: lines for node, lines in sorted(said.items()) if node not in good}
    return bad if len(bad) < len(hosts) or len(hosts) == 1 else {}


def _first_fault(results: Results, node: int, ranks_per_node: int) -> str:
    ours = results[node * ranks_per_node : (node + 1) * ranks_per_node]
    return next(
        (result["fault"] if result is not None else "a rank never came" for result in ours if not _is_well(result)), ""
    )


def _is_well(result: Mapping[str, Any] | None) -> bool:
    return result is not None and result["met"] and not result["fault"]


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
    earlier = disk.read_object(_record_path(work.run_folder, job.id))
    answers, expected = _ask(work, folder)
    faults = judge(config, answers, expected)
    num_ranks, reduced, unknown = len(job.hosts) * work.cluster.ranks_per_node, {}, []
    if not faults and config.all_reduce and num_ranks > 1 and not _stop_name(work):
        results = _all_reduce(work, folder)
        judged = judge_all_reduce(config, results, job.hosts, ranks_per_node=work.cluster.ranks_per_node)
        if judged.unknown and not all(map(_is_well, results)):
            judged = _look_closer(work, folder, judged)
        faults, unknown, reduced = judged.faults, judged.unknown, results[0] or {}
        for line in [] if faults or unknown else slow_links(results, job.hosts):
            tell(f"preflight: {line}", who=WHO)
    record = {
        "job": job.id,
        "restart": job.restart,
        "time": time.time(),
        "nodes": dict(answers),
        "all_reduce": reduced,
        "faults": faults,
        "unknown": unknown,
        "left_out": earlier.get("left_out", []),
        "resubmits": earlier.get("resubmits", 0),
    }
    disk.write_json(_record_path(work.run_folder, job.id), record)
    for line in unknown:
        tell(f"preflight: {line}", who=WHO)
    for host, lines in faults.items():
        for line in lines:
            tell(f"preflight: {host}: {line}", who=WHO)
    speed = f", all-reduce {reduced['gb_per_second']:.2f} GB/s" if reduced.get("gb_per_second") else ""
    verdict = f"bad: {', '.join(faults)} (on_bad_node: {config.on_bad_node})" if faults else "good"
    if unknown:
        verdict = f"bad together; nothing tells which of them, so none is left out (on_bad_node: {config.on_bad_node})"
    tell(f"preflight: {len(job.hosts)} nodes {verdict}{speed}, {time.monotonic() - started:.0f} s", who=WHO)
    stop = _stop_name(work)
    is_good = not faults and not unknown
    go_on = not stop and (is_good or config.on_bad_node == "go_on")
    return Checked(go_on=go_on, stop=stop, faults=faults, unknown=unknown, record=record)


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
        output = _end(process)  # what was said until then counts
    lines = output.decode(errors="replace").splitlines()
    answers = [json.loads(line.removeprefix(ANSWER)) for line in lines if line.startswith(ANSWER)]
    expected = Expected(work.job.hosts, work.cluster.gpus_per_node, token, sent, time.time())
    return {work.job.hosts[answer["index"]]: answer for answer in answers}, expected


def _end(process: subprocess.Popen[bytes]) -> bytes:
    """End srun and its tasks; returns what they have said. Killed at once it would leave them on their nodes."""
    for _ in range(2):  # the second one tells srun to wait for nobody
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=END_SECONDS)[0]
    process.kill()
    return process.communicate()[0]


def _look_closer(work: Work, folder: Path, judged: Reduced) -> Reduced:
    """The all-reduce again, of each node alone and then of neighbours, until some node is told from the others."""
    passes: list[tuple[int, int, Results]] = []
    ranks_per_node = work.cluster.ranks_per_node
    wanted = [(1, 0)] if ranks_per_node > 1 else []
    wanted += [(2, shift) for shift in pair_shifts(len(work.job.hosts))]
    for size, shift in wanted:
        if _stop_name(work):
            break
        inner = folder / f"groups-of-{size}-from-{shift}"
        inner.mkdir(exist_ok=True)
        passes.append((size, shift, _all_reduce(work, inner, size=size, shift=shift)))
        if size == 1 and (faults := tell_apart(passes, work.job.hosts, ranks_per_node=ranks_per_node)):
            return Reduced(faults)
    faults = tell_apart(passes, work.job.hosts, ranks_per_node=ranks_per_node) if len(passes) == len(wanted) else {}
    return Reduced(faults) if faults else judged


def _all_reduce(work: Work, folder: Path, *, size: int = 0, shift: int = 0) -> list[dict[str, Any] | None]:
    """What each rank measured, started like the run's own ranks; None for one that left nothing.

    Of `size` 0 over all of them, else over the groups of `grouped`.
    """
    from data_pipeline import disk
    from launch.job import node_words, srun_words
    from launch.job_step import run_step
    from launch.local import reserved_port
    from launch.preflight_node import result_path

    config = work.cluster.preflight
    figures = (str(config.all_reduce_mib), str(size), str(shift))
    measure = ("-m", "launch.preflight_node", "all-reduce", str(folder), *figures)
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
    list(folder.iterdir())  # a network file system then shows what other nodes wrote
    return [disk.read_object(result_path(folder, rank)) or None for rank in range(num_ranks)]


def resubmit_without(work: Work, checked: Checked) -> None:
    """Put the job back into the queue, never to start on the bad nodes again; says what was done, or why it was not.

    Under the same id, so that the links of a pipeline behind it go on waiting.
    """
    from data_pipeline import disk
    from launch import slurm
    from launch.job_step import WHO
    from launch.rank_watch import tell
    from launch.requeue import Requeue, note_requeue
    from trainer.errors import RunError

    if not checked.faults:
        return tell("preflight: not requeued: no node is known to be the bad one", who=WHO)
    job, record = work.job, checked.record
    excluded = sorted({*work.cluster.exclude, *checked.faults, *record["left_out"]})
    told = ",".join(excluded)
    if record["resubmits"] >= (most := work.cluster.preflight.max_resubmits):
        return tell(
            f"preflight: not requeued: that was done {record['resubmits']} times, preflight.max_resubmits is {most}; "
            f"submit it again with --exclude={told}",
            who=WHO,
        )
    tell(f"preflight: job {job.id} is requeued without {told}", who=WHO)
    now = {**record, "left_out": excluded, "resubmits": record["resubmits"] + 1}
    disk.write_json(_record_path(work.run_folder, job.id), now)
    reason = f"preflight: {', '.join(checked.faults)} bad"
    note_requeue(work.run_folder, Requeue(job.id, job.restart, work.step, reason, data=f"without {told}"))
    try:
        slurm.requeue_without(job.id, excluded)
    except RunError as error:
        tell(f"preflight: could not be requeued without them: {error}; submit it again with --exclude={told}", who=WHO)
    return None
