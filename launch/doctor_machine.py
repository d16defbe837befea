"""The machine under the software: memory, shared memory, disks, limits, SLURM. Facts first, then what they mean.

The judges know nothing but the facts they are given.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.doctor_findings import Finding
from launch.doctor_slurm import judge_config
from launch.doctor_software import run_program

MACHINE, DISK, SLURM = "Machine", "Disk", "SLURM"
GIB = 1 << 30
# NCCL and gloo keep buffers of every pair of local ranks in shared memory; Docker's default is 64 MB.
MIN_SHM, GOOD_SHM = 256 << 20, 4 * GIB
# A shard is a mapped file, a rank maps all of them, and sockets come on top.
GOOD_FILES = 65536
MIN_FREE, GOOD_FREE = 2 * GIB, 50 * GIB
SLOW_MIB_PER_SECOND = 30.0
PROBE_BYTES = 32 << 20


@dataclass(frozen=True)
class DiskFacts:
    """One folder: what it is for, how much is free, how fast a synced write is (None: not writable)."""

    use: str
    path: Path
    free: int
    free_inodes: int
    kind: str
    mib_per_second: float | None
    error: str = ""
    locks_work: bool = True


def disk_facts(use: str, path: Path) -> DiskFacts:
    """Writes 32 MiB into `path` (or the nearest folder above it that exists) and removes them again."""
    there = next(folder for folder in (path, *path.parents) if folder.is_dir())
    found = os.statvfs(there)
    free = found.f_bavail * found.f_frsize
    speed, error, locks = None, "", True
    if free > 4 * PROBE_BYTES:
        try:
            speed, locks = _try_to_write(there)
        except OSError as fault:
            error = fault.strerror or str(fault)
    inodes = found.f_favail if found.f_files else -1
    return DiskFacts(use, path, free, inodes, file_system(there), speed, error, locks)


def _try_to_write(folder: Path) -> tuple[float, bool]:
    import fcntl

    with tempfile.TemporaryFile(dir=folder, prefix=".dure-doctor-") as file:
        started = time.perf_counter()
        file.write(os.urandom(1 << 20) * (PROBE_BYTES >> 20))
        file.flush()
        os.fsync(file.fileno())
        seconds = max(time.perf_counter() - started, 1e-6)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locks_work = True
        except OSError:
            locks_work = False
    return (PROBE_BYTES >> 20) / seconds, locks_work


def file_system(path: Path, mounts: str | None = None) -> str:
    """The kind of file system that holds `path` ("ext4", "nfs4", "lustre"); "" where /proc does not tell."""
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        inside = point == "/" or str(path.resolve()) == point or str(path.resolve()).startswith(f"{point}/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def judge_disk(facts: DiskFacts) -> Iterator[Finding]:
    """Space, inodes, speed of a synced write, locks."""
    speed = "" if facts.mib_per_second is None else f", {facts.mib_per_second:,.0f} MiB/s synced"
    value = f"{facts.path}: {_size(facts.free)} free, {facts.kind or 'file system unknown'}{speed}"
    if facts.free < MIN_FREE:
        advice = "a checkpoint or a build will fill it: make room, or point runs and caches at another disk"
        yield Finding(DISK, facts.use, value, "broken", advice)
    elif facts.error:
        advice = "give yourself the right to write there, or choose another folder (run.folder, TMPDIR, HF_HOME)"
        yield Finding(DISK, facts.use, f"{value}; can't be written: {facts.error}", "broken", advice)
    elif 0 <= facts.free_inodes < 10_000:
        advice = "many small files used them up (find . -xdev | wc -l); remove some, old checkpoints first"
        yield Finding(DISK, facts.use, f"{value}, {facts.free_inodes:,} inodes left", "broken", advice)
    elif not facts.locks_work:
        advice = "mount it with locks (NFS: without nolock; Lustre: -o flock)"
        is_for_runs = facts.use == "runs"
        advice += ": without them no run is submitted and no data is built there" if is_for_runs else ""
        yield Finding(DISK, facts.use, f"{value}; flock fails", "broken" if is_for_runs else "warn", advice)
    elif facts.free < GOOD_FREE:
        advice = "a checkpoint takes 12 to 16 bytes a parameter, and keep_last of them stay: 1B needs some 50 GB"
        yield Finding(DISK, facts.use, value, "warn", advice)
    elif facts.mib_per_second is not None and facts.mib_per_second < SLOW_MIB_PER_SECOND:
        advice = "a save of 10 GB takes minutes there: put run.folder on a faster disk, or save less often"
        yield Finding(DISK, facts.use, value, "warn", advice)
    else:
        yield Finding(DISK, facts.use, value)


@dataclass(frozen=True)
class MachineFacts:
    """Sizes in bytes; limits as numbers, -1 for unlimited. `shm` -1: there is no /dev/shm."""

    cores: int
    threads: str
    memory: int
    available: int
    cgroup_limit: int
    shm: int
    shm_free: int
    open_files: tuple[int, int]
    locked_memory: int
    processes: int
    max_map_count: int
    address_space: int
    has_infiniband: bool
    encoding: str


def machine_facts() -> MachineFacts:
    """Of this machine, in this process's limits."""
    memory = _meminfo()
    shm = Path("/dev/shm")
    total = free = -1
    if shm.is_dir():
        usage = shutil.disk_usage(shm)
        total, free = usage.total, usage.free
    return MachineFacts(
        cores=len(os.sched_getaffinity(0)),
        threads=os.environ.get("OMP_NUM_THREADS", ""),
        memory=memory.get("MemTotal", 0),
        available=memory.get("MemAvailable", 0),
        cgroup_limit=_cgroup_limit(),
        shm=total,
        shm_free=free,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        locked_memory=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        processes=resource.getrlimit(resource.RLIMIT_NPROC)[0],
        max_map_count=_number(Path("/proc/sys/vm/max_map_count")),
        address_space=resource.getrlimit(resource.RLIMIT_AS)[0],
        has_infiniband=any(Path("/sys/class/infiniband").glob("*")),
        encoding=sys.getfilesystemencoding(),
    )


def _meminfo() -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
        return {fields[0].rstrip(":"): int(fields[1]) * 1024 for fields in lines}
    return {}


def _cgroup_limit() -> int:
    """Of version 2 or 1; -1 for none."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if 0 < (limit := _number(Path(name))) < 1 << 60:
            return limit
    return -1


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return -1


def judge_machine(facts: MachineFacts) -> Iterator[Finding]:
    """Cores, memory, shared memory, limits."""
    yield from _judge_memory(facts)
    yield from _judge_shm(facts)
    yield from _judge_limits(facts)
    if facts.encoding.lower().replace("-", "") != "utf8":
        advice = "export LANG=C.UTF-8: Korean file names can't be opened otherwise"
        yield Finding(MACHINE, "file names", facts.encoding, "broken", advice)


def _judge_memory(facts: MachineFacts) -> Iterator[Finding]:
    if facts.threads.isdecimal() and int(facts.threads) > facts.cores:
        value = f"{facts.cores}, but OMP_NUM_THREADS is {facts.threads}"
        yield Finding(MACHINE, "cores", value, "warn", "unset it: threads that wait for cores slow each other down")
    else:
        yield Finding(MACHINE, "cores", f"{facts.cores}")
    value = f"{_size(facts.available)} of {_size(facts.memory)} available"
    if 0 < facts.cgroup_limit < facts.memory:
        value += f"; this container or job may use {_size(facts.cgroup_limit)}"
    if 0 < facts.available < 2 * GIB:
        advice = "importing torch and a small model takes 1 GiB a rank: end other processes (ps aux --sort -rss)"
        yield Finding(MACHINE, "memory", value, "warn", advice)
    else:
        yield Finding(MACHINE, "memory", value)


def _judge_shm(facts: MachineFacts) -> Iterator[Finding]:
    if facts.shm < 0:
        yield Finding(
            MACHINE, "/dev/shm", "missing", "broken", "mount a tmpfs there; ranks of one node exchange through it"
        )
        return
    value = f"{_size(facts.shm_free)} free of {_size(facts.shm)}"
    container = "docker run --shm-size=16g (or --ipc=host); Kubernetes: an emptyDir of medium Memory"
    if facts.shm_free < MIN_SHM:
        advice = f"NCCL and gloo end with a bus error there: {container}; or remove what ended processes left in it"
        yield Finding(MACHINE, "/dev/shm", value, "broken", advice)
    elif facts.shm < GOOD_SHM:
        yield Finding(MACHINE, "/dev/shm", value, "warn", f"several ranks may fill it: {container}")
    else:
        yield Finding(MACHINE, "/dev/shm", value)


def _judge_limits(facts: MachineFacts) -> Iterator[Finding]:
    soft, hard = facts.open_files
    if 0 <= soft < 1024:
        advice = "ulimit -n 65536; shards and sockets need one each"
        yield Finding(MACHINE, "open files", f"{soft:,}", "broken", advice)
    elif 0 <= soft < GOOD_FILES:
        can = f"ulimit -n {hard}" if not 0 <= hard < GOOD_FILES else "nofile in /etc/security/limits.conf"
        advice = (
            f"enough for {soft // 2:,} shards a rank; for more: {can} before the start (SLURM: PropagateResourceLimits)"
        )
        yield Finding(MACHINE, "open files", f"{soft:,} of at most {_limit(hard)}", "note", advice)
    else:
        yield Finding(MACHINE, "open files", _limit(soft))
    if facts.address_space >= 0:
        value = f"limited to {_size(facts.address_space)}"
        advice = "ulimit -v unlimited: CUDA and mapped shards reserve far more address space than they use"
        yield Finding(MACHINE, "address space", value, "broken", advice)
    if 0 <= facts.processes < 2048:
        value, advice = f"{facts.processes:,}", "ulimit -u 16384: every rank starts dozens of threads"
        yield Finding(MACHINE, "processes", value, "warn", advice)
    if 0 <= facts.max_map_count < 65530:
        advice = "sysctl -w vm.max_map_count=1048576: every shard is a mapping of each rank"
        yield Finding(MACHINE, "mappings", f"{facts.max_map_count:,}", "warn", advice)
    if facts.has_infiniband and facts.locked_memory >= 0:
        value = f"{_size(facts.locked_memory)}, with InfiniBand cards"
        advice = (
            "ulimit -l unlimited (SLURM: PropagateResourceLimitsExcept=MEMLOCK): RDMA registers memory, else NCCL fails"
        )
        yield Finding(MACHINE, "locked memory", value, "broken", advice)


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else f"{value:,}"


def _size(size: int) -> str:
    if size < 0:
        return "unlimited"
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / 2**20:,.0f} MiB"


def slurm_findings(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Whether there is SLURM, and whether it answers."""
    if shutil.which("sbatch", path=environ.get("PATH")) is None:
        yield Finding(SLURM, "sbatch", "not on PATH; `dure train` needs none, `dure submit` does", "note")
        return
    env = dict(environ)
    told, version = run_program("sbatch", "--version", env=env)
    if told != 0:
        advice = "no slurm.conf is found, so this machine belongs to no cluster: set SLURM_CONF, or use a login node"
        yield Finding(SLURM, "sbatch", (version.splitlines() or [f"exit code {told}"])[-1], "warn", advice)
        return
    code, output = run_program("sinfo", "--noheader", "--format=%P %a %D %G %l", env=env, timeout=15)
    yield from judge_slurm(version, code=code, output=output, job=environ.get("SLURM_JOB_ID", ""))
    if code == 0:
        told, config = run_program("scontrol", "show", "config", env=env, timeout=15)
        yield from judge_config(config if told == 0 else "")


def judge_slurm(version: str, *, code: int, output: str, job: str) -> Iterator[Finding]:
    """`output`: of `sinfo --format="%P %a %D %G %l"`, a line a partition."""
    yield Finding(SLURM, "sbatch", version + (f", inside job {job}" if job else ""))
    if code != 0:
        lines = output.splitlines() or [f"exit code {code}"]
        is_munge = "munge" in output.lower() or "authentication" in output.lower()
        advice = (
            "munged is not running, or its key is another one: systemctl status munge"
            if is_munge
            else "slurmctld does not answer: `scontrol ping`; ask the cluster's administrators"
        )
        yield Finding(SLURM, "controller", lines[-1], "broken", advice)
        return
    partitions = [line.split() for line in output.splitlines() if line.split()]
    up = [fields[0] for fields in partitions if len(fields) > 1 and fields[1] == "up"]
    told = ", ".join(f"{fields[0]} {fields[2]} nodes {fields[3]}" for fields in partitions[:6] if len(fields) > 3)
    if up:
        yield Finding(SLURM, "partitions", told)
    else:
        advice = "no partition takes jobs now: `sinfo -R` says why"
        yield Finding(SLURM, "partitions", told or "none", "broken", advice)
