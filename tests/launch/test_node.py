"""The ranks of one node of a job: their places among all, what the node reports, and signals past an agent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.agent import agent_command
from launch.node import Node, arguments_for, parse
from tests.launch.test_local import RANK, wait_for
from tests.trainer.tiny_run import REPO, environment

SAYS = RANK + (
    "import json\n"
    "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')\n"
    "(folder / f'env-{rank}').write_text(json.dumps([os.environ[name] for name in names]))\n"
)


def node(folder: Path, code: str, *, launcher: str = "dure", **changes: Any) -> Node:
    fixed = {"index": 1, "num_nodes": 3, "num_ranks": 2, "master": "n1", "port": 2345, "device": "cpu"} | changes
    command = (sys.executable, "-c", code, str(folder))
    return Node(**fixed, launcher=launcher, run_folder=folder, reports=folder / "a b", command=command)


def start(node: Node) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch.node", *arguments_for(node)]
    env = environment(SLURM_NODEID=str(node.index))
    return subprocess.Popen(command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def report(node: Node) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((node.reports / f"node-{node.index:05d}.json").read_text())
    return tree


def test_what_a_node_is_told_survives_the_command_line(tmp_path: Path) -> None:
    told = node(tmp_path / "-x 'y'", "print(1)\n--help")
    assert parse(arguments_for(told), {"SLURM_NODEID": "1"}) == told


def test_each_rank_has_its_place_among_all_nodes(tmp_path: Path) -> None:
    second = node(tmp_path, SAYS + "finish(0, 'done')\n")
    process = start(second)
    output, errors = process.communicate(timeout=180)
    assert (process.returncode, output, errors) == (0, "", "")
    found = [json.loads((tmp_path / f"env-{rank}").read_text()) for rank in (2, 3)]
    assert found == [["2", "0", "6", "2", "n1", "2345"], ["3", "1", "6", "2", "n1", "2345"]]
    told = report(second)
    assert (told["state"], told["failed_code"], told["failure"]) == ("ended", None, "")
    assert told["launcher"] == "dure"
    assert [(rank, its["code"]) for rank, its in told["ranks"].items()] == [("2", 0), ("3", 0)]
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["rank-00002.log", "rank-00003.log"]


def test_a_signal_reaches_the_ranks_and_85_is_no_failure(tmp_path: Path) -> None:
    process = start(first := node(tmp_path, RANK + "ready()\nloop()\nfinish(85, stop.signal_name)\n", index=0))
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1", first.reports / "node-00000.json")
    assert report(first)["state"] == "started"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=180)
    assert process.returncode == 0
    assert [(tmp_path / f"ended-{rank}").read_text() for rank in (0, 1)] == ["SIGUSR1", "SIGUSR1"]
    assert [its["code"] for its in report(first)["ranks"].values()] == [85, 85]


def test_a_node_says_that_it_began_until_the_disk_has_it(tmp_path: Path) -> None:
    """The job passes no stop signal on before; a full disk or a dead file server must not keep it for ever."""
    process = start(first := node(tmp_path, RANK + "ready()\nloop()\nfinish(85, stop.signal_name)\n", index=0))
    first.reports.write_text("in the way of the folder")
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    first.reports.unlink()
    wait_for(first.reports / "node-00000.json")
    assert report(first)["state"] == "started"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=180)
    assert (process.returncode, report(first)["state"]) == (0, "ended")


def test_a_killed_rank_is_reported_by_number_and_host(tmp_path: Path) -> None:
    code = RANK + "ready()\nif rank == 3:\n    os.kill(os.getpid(), 9)\nloop()\nfinish(85, 'x')\n"
    process = start(second := node(tmp_path, code))
    _, errors = process.communicate(timeout=180)
    told = report(second)
    assert process.returncode == 137
    assert told["failed_code"] == -9
    assert told["failure"].startswith("rank 3 of 6 (pid ") and f" on {told['host']}) was killed by SIGKILL" in errors


def test_agents_are_told_their_node_and_the_port_by_address() -> None:
    words = agent_command(node(Path("run"), "x", launcher="torchrun"))
    assert words[1:3] == ["-m", "torch.distributed.run"]
    assert " ".join(words[3:-3]) == (
        "--nnodes 3 --nproc-per-node 2 --node-rank 1 --master-addr n1 --master-port 2345 --max-restarts 0"
    )
    words = agent_command(node(Path("run"), "x", launcher="accelerate"))
    assert words[1:3] == ["-m", "accelerate.commands.launch"]
    assert "--num_processes 6 --multi_gpu --num_machines 3 --machine_rank 1" in " ".join(words)
    assert "--main_process_ip n1 --main_process_port 2345 --rdzv_backend static" in " ".join(words)


@pytest.mark.stages
def test_a_signal_goes_past_torchrun_to_its_ranks(tmp_path: Path) -> None:
    """SIGUSR1 would kill the agent, and the ranks' 85 is its 1."""
    module = tmp_path / "rank_that_trains.py"
    module.write_text(RANK + "ready()\nloop()\nfinish(85, stop.signal_name)\n")
    port = psutil.Process().pid % 20000 + 20000
    alone = node(tmp_path, "", launcher="torchrun", index=0, num_nodes=1, master="127.0.0.1", port=port)
    alone = Node(**{**vars(alone), "command": (sys.executable, str(module), str(tmp_path))})
    process = start(alone)
    wait_for(tmp_path / "ready-0", tmp_path / "ready-1")
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert [(tmp_path / f"ended-{rank}").read_text() for rank in (0, 1)] == ["SIGUSR1", "SIGUSR1"]
    assert report(alone)["failure"] == ""


@pytest.mark.stages
def test_an_agent_whose_rank_died_has_failed_and_leaves_none_behind(tmp_path: Path) -> None:
    module = tmp_path / "rank_that_dies.py"
    module.write_text(RANK + "ready()\nif rank == 1:\n    time.sleep(1)\n    os._exit(3)\nloop()\nsys.exit(85)\n")
    port = psutil.Process().pid % 20000 + 20001
    alone = node(tmp_path, "", launcher="torchrun", index=0, num_nodes=1, master="127.0.0.1", port=port)
    alone = Node(**{**vars(alone), "command": (sys.executable, str(module), str(tmp_path))})
    process = start(alone)
    process.communicate(timeout=180)
    assert process.returncode == 1
    assert "torchrun with ranks 0-1 of 2 (pid " in report(alone)["failure"]
    for rank in (0, 1):
        assert not psutil.pid_exists(int((tmp_path / f"ready-{rank}").read_text()))
