"""What `launch.preflight` runs on each node: a look at the node itself, and the ranks of an all-reduce.

`look FOLDER` prints one line on stdout, which comes back through srun; `all-reduce FOLDER MIB [SIZE SHIFT]` is one rank
and leaves its figures in FOLDER. Judges nothing.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch.preflight import ANSWER, DEVICE, NETWORK, TOKEN_NAME, grouped

GIB = 1 << 30
NVIDIA_SMI = [
    "nvidia-smi",
    "--query-gpu=name,memory.total,driver_version,ecc.errors.uncorrected.volatile.total",
    "--format=csv,noheader,nounits",
]
SMI_TIMEOUT_SECONDS = 60
REPEATS = 3
MEET_TIMEOUT = timedelta(seconds=120)


def look(folder: Path) -> dict[str, Any]:
    """This node as it is now: devices, memory, disks, clock, versions, and what it sees of `folder`."""
    now = time.time()
    gpus, driver, gpu_fault = look_at_gpus()
    return {
        "index": int(os.environ.get("SLURM_NODEID", "0")),
        "host": platform.node(),
        "time": now,
        "gpus": gpus,
        "driver": driver,
        "gpu_fault": gpu_fault,
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB,
        "disk_gib": _free_gib(folder),
        "tmp_gib": _free_gib(Path(tempfile.gettempdir())),
        "folder": str(folder),
        "token": _read_token(folder),
        "write_fault": _write_fault(folder),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "deepspeed", "transformers")},
    }


def look_at_gpus() -> tuple[list[dict[str, Any]], str, str]:
    """The GPUs of this node, their driver, and why they can't be asked ("" if they can)."""
    if shutil.which(NVIDIA_SMI[0]) is None:
        return [], "", "nvidia-smi is not on PATH"
    try:
        done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=SMI_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return [], "", f"nvidia-smi hangs ({SMI_TIMEOUT_SECONDS} s); the driver needs a reboot"
    if done.returncode:
        return [], "", " ".join((done.stderr or done.stdout).split()) or f"nvidia-smi: exit code {done.returncode}"
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> tuple[list[dict[str, Any]], str, str]:
    """nvidia-smi's lines; a GPU that keeps no count of memory errors has none.

    >>> parse_gpus("NVIDIA A100-SXM4-80GB, 81920, 550.54, 0\\nNVIDIA A100-SXM4-80GB, 81920, 550.54, [N/A]\\n")[1:]
    ('550.54', '')
    """
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    gpus = [
        {"name": name, "memory_mib": int(memory), "errors": int(errors) if errors.isdecimal() else 0}
        for name, memory, _, errors in rows
    ]
    return gpus, rows[0][2] if rows else "", ""


def _free_gib(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free / GIB
    except OSError:
        return 0.0


def _read_token(folder: Path) -> str:
    try:
        return (folder / TOKEN_NAME).read_text()
    except OSError as error:
        return error.strerror or type(error).__name__


def _write_fault(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def result_path(folder: Path, rank: int) -> Path:
    """Where a rank of the all-reduce leaves its figures."""
    return folder / f"all-reduce-{rank:05d}.json"


@dataclass(frozen=True)
class Group:
    """The ranks of some nodes in a row, which measure together; `rank` is this one's place among `world_size`."""

    name: str
    rank: int
    world_size: int


def group_of(environ: Mapping[str, str], *, size: int, shift: int) -> Group:
    """This rank's group: all ranks where `size` is 0, else those of its nodes in `grouped`."""
    rank, world_size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    if size == 0:
        return Group("all", rank, world_size)
    per_node = int(environ["LOCAL_WORLD_SIZE"])
    node = rank // per_node
    nodes = next(nodes for nodes in grouped(world_size // per_node, size=size, shift=shift) if node in nodes)
    return Group(f"from-{nodes[0]}", nodes.index(node) * per_node + rank % per_node, len(nodes) * per_node)


def all_reduce(folder: Path, *, mib: int, size: int = 0, shift: int = 0) -> int:
    """Sum `mib` MiB over the ranks of a group, timed, and send as much to the next node; 0 where it was right.

    What is known so far is written down before anything that may end this process: NCCL's watchdog leaves no word.
    """
    from data_pipeline import disk

    path = result_path(folder, int(os.environ["RANK"]))
    result: dict[str, Any] = {"host": platform.node(), "met": False, "stage": "meet", "gb_per_second": 0.0}

    def at(stage: str) -> None:
        result.update(met=True, stage=stage, fault=f"ended in silence in {stage}")
        disk.write_json(path, result)

    try:
        result |= _measure(mib, group=group_of(os.environ, size=size, shift=shift), at=at)
        result["fault"] = ""
    except Exception as error:  # whatever torch raises, the judge wants to read it
        result["fault"] = " ".join(str(error).split())[:500] or type(error).__name__
    disk.write_json(path, result)
    return 1 if result["fault"] and not size else 0  # a group that fails must not end the others


def _measure(mib: int, *, group: Group, at: Callable[[str], None]) -> dict[str, Any]:
    import torch.distributed as dist

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=rank == 0,
        timeout=MEET_TIMEOUT,
        wait_for_workers=False,
    )
    store.set(f"met-{rank}", "yes")
    try:
        return _measure_in(store, mib, group=group, at=at)
    finally:
        _leave(store, rank, world_size)


def _leave(store: Any, rank: int, world_size: int) -> None:
    """Rank 0 goes last: its process holds the store that other groups may still meet by."""
    with contextlib.suppress(Exception):
        store.set(f"left-{rank}", "yes")
        if rank == 0:
            store.wait([f"left-{other}" for other in range(world_size)], MEET_TIMEOUT)


def _measure_in(store: Any, mib: int, *, group: Group, at: Callable[[str], None]) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from trainer.launch_environment import wants_gpu

    at(DEVICE)
    use_gpu = wants_gpu(num_devices=torch.cuda.device_count())
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_gpu else torch.device("cpu")
    values = torch.ones(mib * (1 << 20) // 4, device=device)
    if (total := float(values.sum(dtype=torch.float64))) != values.numel():
        raise RuntimeError(f"{device}: the sum of {values.numel():,} ones is {total:,.0f}")
    at(NETWORK)
    rank, world_size = group.rank, group.world_size
    dist.init_process_group(
        "nccl" if use_gpu else "gloo",
        store=dist.PrefixStore(group.name, store),
        rank=rank,
        world_size=world_size,
        timeout=MEET_TIMEOUT,
    )
    seconds = _timed(lambda: dist.all_reduce(values), device=device)
    if not bool((values == float(world_size) ** (REPEATS + 1)).all()):
        raise RuntimeError(f"the sum over {world_size} ranks is wrong: {values.min():g} to {values.max():g}")
    gb = values.numel() * 4 / 1e9
    link_seconds = _timed(lambda: _shift(values), device=device) if world_size > 1 else 0.0
    dist.barrier()
    dist.destroy_process_group()
    return {
        "backend": "nccl" if use_gpu else "gloo",
        "mib": mib,
        "seconds": seconds,
        "gb_per_second": 2 * (world_size - 1) / world_size * gb / seconds,
        "link_gb_per_second": gb / link_seconds if link_seconds else 0.0,
    }


def _shift(values: Any) -> None:
    """Every rank sends to the rank of the same place on the next node, all at once."""
    import torch
    import torch.distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    step = int(os.environ["LOCAL_WORLD_SIZE"]) % world_size or 1
    received = torch.empty_like(values)
    to, source = (rank + step) % world_size, (rank - step) % world_size
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, values, to), dist.P2POp(dist.irecv, received, source)]):
        work.wait()


def _timed(action: Callable[[], Any], *, device: Any) -> float:
    """Seconds of one `action`, after one to warm up; the fastest of REPEATS."""
    import torch

    def once() -> float:
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(REPEATS))


def main(argv: Sequence[str]) -> int:
    """`look FOLDER` or `all-reduce FOLDER MIB [SIZE SHIFT]`."""
    if argv[0] == "look":
        print(ANSWER + json.dumps(look(Path(argv[1])), ensure_ascii=False), flush=True)
        return 0
    # The job asks again once this is done: a stop signal of now must not look like a broken node.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    size, shift = (int(word) for word in argv[3:5] or ("0", "0"))
    return all_reduce(Path(argv[1]), mib=int(argv[2]), size=size, shift=shift)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
