"""torchrun or accelerate as the starter of a node's ranks, behind the same calls as RankWatch.

Signals go past the agent to the ranks: SIGUSR1 kills it and leaves them orphaned, and of SIGTERM it makes an end by
force after 30 s. The agent turns a rank's exit code 85 into 1, so what it meant is read from the run's exit record.
What the ranks of a node print stands together in the log of its first one.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from launch.rank_watch import Rank, RankWatch
from trainer.resilience import STOPPED, ExitRecord
from trainer.stop_flag import LAUNCHER_PID

if TYPE_CHECKING:
    from launch.node import Node

# How long a shared file system may take to show the other node's exit record.
RECORD_SECONDS = 20.0
# What the agent says to its ranks itself.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LAUNCHER_PID)


@dataclass
class AgentWatch:
    """The agent of one node, and through it the ranks."""

    node: Node
    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        from trainer.run_folder import read_exit

        self._read_exit = read_exit
        self._record_before = read_exit(self.node.run_folder)
        environment = {name: value for name, value in self.environment.items() if name not in _OF_RANKS}
        if self.node.device == "cpu":
            environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        first, last = self.node.first_rank, self.node.first_rank + self.node.num_ranks - 1
        self._watch = _Agent(
            agent_command(self.node),
            [{**environment, "RANK": str(first)}],
            run_folder=self.node.run_folder,
            name=f"{self.node.launcher} with ranks {first}-{last}",
        )

    @property
    def ranks(self) -> Sequence[Rank]:
        return self._watch.ranks

    def wait(self, held: set[signal.Signals], *, grace_seconds: float) -> Rank | None:
        """Return once the agent ended; the agent where its ranks failed, None where they ended well (0 or 85)."""
        failed = self._watch.wait(held, grace_seconds=grace_seconds)
        return None if failed is None or self._was_stopped() else failed

    def _was_stopped(self) -> bool:
        deadline = time.monotonic() + RECORD_SECONDS
        while (record := self._new_record()) is None and time.monotonic() < deadline:
            time.sleep(0.2)
        return record is not None and record.code == STOPPED

    def _new_record(self) -> ExitRecord | None:
        record = self._read_exit(self.node.run_folder)
        return None if record == self._record_before else record

    def kill_rest(self) -> None:
        self._watch.kill_rest()


class _Agent(RankWatch):
    """A watch over one process, the agent; signals and the end by force reach the ranks below it."""

    def __init__(
        self, command: Sequence[str], environments: Sequence[Mapping[str, str]], *, run_folder: Path, name: str
    ) -> None:
        super().__init__(command, environments, run_folder=run_folder)
        self.ranks[0].name = name

    def send_all(self, number: signal.Signals) -> None:
        for process in self._ranks_below():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill_rest(self) -> None:
        below = list(self._ranks_below()) if self.ranks else []
        super().kill_rest()
        for process in below:  # in sessions of their own, which the agent's end leaves alone
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _ranks_below(self) -> Iterator[psutil.Process]:
        if self.ranks[0].code is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.ranks[0].process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if "LOCAL_RANK" in process.environ():
                        yield process


def agent_command(node: Node) -> list[str]:
    """The agent's argv; `node.command` is [python, -m, trainer, …]."""
    python, *words = node.command
    master, port = node.master, str(node.port)
    if node.launcher == "torchrun":
        # The static rendezvous: node 0 of the job serves, no node elects another.
        agent = ["torch.distributed.run", "--nnodes", str(node.num_nodes), "--nproc-per-node", str(node.num_ranks)]
        agent += ["--node-rank", str(node.index), "--master-addr", master, "--master-port", port]
        return [python, "-m", *agent, "--max-restarts", "0", *words]
    agent = ["accelerate.commands.launch", "--num_processes", str(node.world_size)]
    agent += ["--multi_gpu"] if node.world_size > 1 else []
    agent += ["--num_machines", str(node.num_nodes), "--machine_rank", str(node.index)]
    agent += ["--main_process_ip", master, "--main_process_port", port, "--rdzv_backend", "static"]
    return [python, "-m", *agent, "--mixed_precision", "no", "--dynamo_backend", "no", *words]
