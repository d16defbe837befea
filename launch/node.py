"""`python -m launch.node …`: the ranks of one node of a job, started once a node by srun from `launch.job`.

Says by <reports>/node-00000.json that its ranks were started and, at the end, how each ended: {host, pid, state, codes,
failure}. Its own exit code is 0 where no rank failed; whether the run is done is read from the exit record by the job.
Under torchrun and accelerate an agent starts the ranks, but signals go past it, to the ranks themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.agent import AgentWatch
from launch.local import GRACE_SECONDS, Place, environments, hold_signals
from launch.rank_watch import Rank, RankWatch, describe_failure, exit_code, tell

WHO = "launch.node"
STARTED, ENDED = "started", "ended"
SAY_AGAIN_SECONDS = 1.0
LAST_WORD_SECONDS = 20.0  # a disk that is full now may not be so when the ranks have ended


@dataclass(frozen=True)
class Node:
    """What `launch.job` asks of each node; `num_ranks` is per node."""

    index: int
    num_nodes: int
    num_ranks: int
    master: str
    port: int
    device: str
    launcher: str
    run_folder: Path
    reports: Path
    command: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.num_ranks

    @property
    def first_rank(self) -> int:
        return self.index * self.num_ranks


def arguments_for(node: Node) -> list[str]:
    """The words after `python -m launch.node`; each node knows its own index from SLURM."""
    return [
        f"--num-nodes={node.num_nodes}",
        f"--num-ranks={node.num_ranks}",
        f"--master={node.master}",
        f"--port={node.port}",
        f"--device={node.device}",
        f"--launcher={node.launcher}",
        f"--run-folder={node.run_folder}",
        f"--reports={node.reports}",
        "--",
        *node.command,
    ]


def parse(words: Sequence[str], environ: Mapping[str, str]) -> Node:
    """The node that `words` and SLURM's variables describe."""
    parser = argparse.ArgumentParser(prog="python -m launch.node", description="started by launch.job through srun")
    for name in ("num-nodes", "num-ranks", "port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("run-folder", "reports"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--master", required=True)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--launcher", choices=("dure", "torchrun", "accelerate"), required=True)
    parser.add_argument("command", nargs="+")
    found = vars(parser.parse_args(words))
    return Node(index=int(environ["SLURM_NODEID"]), **{**found, "command": tuple(found["command"])})


def report_path(reports: Path, index: int) -> Path:
    return reports / f"node-{index:05d}.json"


def run(node: Node, *, held: set[signal.Signals], grace_seconds: float = GRACE_SECONDS) -> int:
    """Start the ranks of this node and wait for them; 0 where none failed."""
    place = Place(first_rank=node.first_rank, world_size=node.world_size, master=node.master)
    device: Any = node.device
    ranks = environments(node.num_ranks, device=device, port=node.port, env=os.environ, place=place)
    watch: RankWatch | AgentWatch
    if node.launcher == "dure":
        watch = RankWatch(node.command, ranks, run_folder=node.run_folder)
    else:
        watch = AgentWatch(node, ranks[0])
    try:
        with _said(node, watch.ranks):
            failed = watch.wait(held, grace_seconds=grace_seconds)
    finally:
        watch.kill_rest()
    how = "" if failed is None else describe_failure(failed, num_ranks=node.world_size, host=socket.gethostname())
    if how:
        tell(f"{how}; the others of this node were stopped", who=WHO)
    deadline = time.monotonic() + LAST_WORD_SECONDS
    while not _report(node, state=ENDED, ranks=watch.ranks, failed=failed, failure=how):
        if time.monotonic() > deadline:  # the job then learns of it from srun's exit code
            break
        time.sleep(SAY_AGAIN_SECONDS)
    return 0 if failed is None else exit_code(failed)


@contextlib.contextmanager
def _said(node: Node, ranks: Sequence[Rank]) -> Iterator[None]:
    """The job is told that the ranks were started: until then it passes no stop signal on. Tried until it stands."""
    is_over = threading.Event()

    def say() -> None:
        while not _report(node, state=STARTED, ranks=ranks) and not is_over.wait(SAY_AGAIN_SECONDS):
            pass

    if _report(node, state=STARTED, ranks=ranks):
        yield
        return
    saying = threading.Thread(target=say, daemon=True)  # signals are blocked in it as here
    saying.start()
    try:
        yield
    finally:
        is_over.set()
        saying.join()


def _report(node: Node, *, state: str, ranks: Sequence[Rank], failed: Rank | None = None, failure: str = "") -> bool:
    """Write the node's report; False where the disk refused it."""
    from data_pipeline import disk

    tree = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
        "state": state,
        "launcher": node.launcher,
        "ranks": {rank.number: {"pid": rank.process.pid, "code": rank.code} for rank in ranks},
        "failed_code": None if failed is None else failed.code,
        "failure": failure,
    }
    try:
        node.reports.mkdir(parents=True, exist_ok=True)
        disk.write_json(report_path(node.reports, node.index), tree)
    except OSError:
        return False
    return True


def main(argv: Sequence[str]) -> int:
    """Hold signals first: srun's tasks begin with none blocked."""
    held = hold_signals()
    return run(parse(argv, os.environ), held=held)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
