"""A real SLURM of two nodes, n1 and n2, on this machine: started for tests, gone with them.

netns: a network namespace a node, with its own address, hostname and process numbers; a node can be powered off and its
cable pulled. Needs root. multi: two slurmd on addresses of the loopback device, where namespaces of networks are
forbidden; a cable can't be pulled there. Several labs may run side by side. Knows nothing of dure.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tests.slurm.installed import AS_USER, Mode, require_mode

T = TypeVar("T")

NODES = ("n1", "n2")
NUM_SLOTS = 16
PATIENCE_SECONDS = 180.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")

CONF = """\
ClusterName=lab{slot}
SlurmctldHost={hostname}({host_ip})
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={lab}/munge.socket,cred_expire=5
StateSaveLocation={lab}/state
SlurmdSpoolDir={lab}/spool/%n
SlurmctldPidFile={lab}/run/slurmctld.pid
SlurmdPidFile={lab}/run/slurmd.%n.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdLogFile={lab}/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={lab}/log/jobcomp.log
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0,max_switch_wait=0
SlurmdTimeout=15
SlurmctldTimeout=15
MessageTimeout=10
TCPTimeout=2
BatchStartTimeout=30
KillWait={kill_wait}
UnkillableStepTimeout=60
MinJobAge=3600
ReturnToService=2
JobRequeue=1
MaxArraySize=1001
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=90
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={name} NodeAddr={ip} Port={port} CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN"

# Process 1 of a node. slurmd comes back by itself unless the file `off` says that it is to stay dead.
BOOT = """
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
[ "$3" = multi ] || ip link set lo up
while :; do
    [ -e "$2/$1.off" ] || SLURM_CONF="$2/slurm.conf" slurmd -D -N "$1" -f "$2/slurm.conf" || true
    sleep 0.2
done
"""


@dataclass(frozen=True)
class Job:
    """What `scontrol show job` says of a job."""

    fields: dict[str, str]

    @property
    def state(self) -> str:
        return self.fields["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.fields["Restarts"])

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def exit_code(self) -> int:
        return int(self.fields["ExitCode"].partition(":")[0])


@dataclass
class Lab:
    """The running cluster. `env` is what its clients need; `folder` is seen by every node, like all of this disk."""

    folder: Path
    mode: Mode
    slot: int
    kill_wait: int = 30
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _to_reboot: set[str] = field(default_factory=set)

    @property
    def env(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | {
            "SLURM_CONF": str(self.folder / "slurm.conf")
        }

    # Clients

    def run(self, *command: str, timeout: float = 60, cwd: Path | None = None) -> str:
        """What a client of SLURM prints; raises where it fails."""
        done = subprocess.run(command, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=timeout)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def submit(self, script: Path, *arguments: str, options: Sequence[str] = (), cwd: Path | None = None) -> str:
        """Submit a script; returns the job's id."""
        return self.run("sbatch", "--parsable", *options, str(script), *arguments, cwd=cwd).strip()

    def job(self, job_id: str) -> Job:
        words = self.run("scontrol", "show", "job", "-o", job_id).split()
        return Job(dict(word.split("=", 1) for word in words if "=" in word))

    def wait_for(self, what: str, condition: Callable[[], T | None], *, seconds: float = PATIENCE_SECONDS) -> T:
        """What `condition` returns once it is true; a failure tells what SLURM knows of everything."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"{what}: not within {seconds:.0f} s\n{self.describe()}", pytrace=True)
            time.sleep(0.2)
        return value

    def wait_for_state(self, job_id: str, *states: str, seconds: float = PATIENCE_SECONDS) -> Job:
        def reached() -> Job | None:
            job = self.job(job_id)
            if job.has_ended and job.state not in states:
                pytest.fail(f"job {job_id} ended as {job.state}, {' or '.join(states)} was expected\n{self.describe()}")
            return job if job.state in states else None

        return self.wait_for(f"job {job_id} {' or '.join(states)}", reached, seconds=seconds)

    def wait_for_end(self, job_id: str, *, seconds: float = 2 * PATIENCE_SECONDS) -> Job:
        return self.wait_for_state(job_id, *ENDED, seconds=seconds)

    def node_state(self, name: str) -> str:
        return self.run("sinfo", "-h", "-N", "-n", name, "-p", "main", "-o", "%T").strip()

    def wait_until_idle(self, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Both nodes are up and nothing runs."""
        self.wait_for("idle nodes", lambda: all(self.node_state(name) == "idle" for name in NODES), seconds=seconds)

    def describe(self) -> str:
        """Queue, nodes and the ends of the daemons' logs."""
        parts = []
        for command in (["squeue", "-a", "-o", "%i %j %T %r %S %N"], ["sinfo", "-N", "-l"]):
            with contextlib.suppress(Exception):
                parts.append(self.run(*command))
        for log in sorted((self.folder / "log").glob("*.log")):
            parts.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-12:]))
        return "\n".join(parts)

    # Faults

    def processes_of(self, name: str) -> list[psutil.Process]:
        """All that runs on a node, its process 1 first."""
        started = self._processes.get(name)
        if started is None or started.poll() is not None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(started.pid).children(recursive=True)
        return []

    def kill_slurmd(self, name: str, *, stays_dead: bool = False) -> None:
        """kill -9 of a node's daemon; what it had started lives on."""
        if stays_dead:
            (self.folder / f"{name}.off").touch()
        for process in self.processes_of(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == "slurmd":
                    process.kill()

    def power_off(self, name: str) -> None:
        """Every process of the node is gone at once, and its network."""
        if self.mode == "netns":
            self.cut_cable(name)
        started = self._processes.pop(name)
        started.kill()  # unshare --kill-child ends process 1, and with it the namespace
        started.wait()

    def power_on(self, name: str) -> None:
        """The node boots, with its cable in; a daemon that was to stay dead starts too."""
        (self.folder / f"{name}.off").unlink(missing_ok=True)
        if self.mode == "netns":
            self.mend_cable(name)
        if name not in self._processes:
            self._boot(name)

    def cut_cable(self, name: str) -> None:
        """Nothing reaches the node and nothing leaves it; what runs there goes on."""
        if self.mode != "netns":
            pytest.skip("a cable can't be pulled where the nodes share the machine's network (needs root and netns)")
        _root("ip", "link", "set", self._device(name), "down")

    def mend_cable(self, name: str) -> None:
        _root("ip", "link", "set", self._device(name), "up")

    def hide(self, name: str, folder: Path) -> None:
        """The node sees an empty folder of 1 MiB there, as if a disk were not mounted, until it boots again."""
        inside = str(self.processes_of(name)[0].pid)
        _root("nsenter", f"--target={inside}", "--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder))
        self._to_reboot.add(name)

    def restore(self) -> None:
        """Both nodes on, with cable and daemon, and no job left."""
        self.run("scancel", "--user", psutil.Process().username())
        for name in NODES:
            if name in self._to_reboot and name in self._processes:
                self.power_off(name)
            self.power_on(name)
        self._to_reboot.clear()
        for name in NODES:
            self.wait_for(f"node {name} back", lambda name=name: self._is_back(name))  # type: ignore[misc]

    def _is_back(self, name: str) -> bool:
        state = self.node_state(name)
        if state.startswith(("down", "drain")):
            with contextlib.suppress(RuntimeError):
                self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
        return state == "idle"

    # Start and stop

    def _device(self, name: str) -> str:
        return f"dl{self.slot}{name}"

    def _ip(self, name: str) -> str:
        number = {"host": 1, "n1": 11, "n2": 12}[name]
        return f"10.77.{self.slot}.{number}" if self.mode == "netns" else f"127.0.{self.slot + 1}.{number}"

    def start(self) -> None:
        for name in ("state", "spool", "run", "log"):
            (self.folder / name).mkdir(exist_ok=True)
        self.folder.chmod(0o711)  # munged refuses a socket that not everybody can reach
        self._write_files()
        if self.mode == "netns":
            self._plug()
        options = (f"--{name}={self.folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file"))
        key = f"--key-file={self.folder}/munge.key"
        self._processes["munged"] = self._daemon("munged", "--foreground", "--num-threads=2", key, *options)
        self.wait_for("munged", (self.folder / "munge.socket").exists, seconds=30)
        conf = str(self.folder / "slurm.conf")
        self._processes["slurmctld"] = self._daemon("slurmctld", "-D", "-f", conf)
        for name in NODES:
            self._boot(name)
        self.wait_for("slurmctld", self._answers, seconds=60)
        self.wait_until_idle(seconds=60)

    def _answers(self) -> bool:
        with contextlib.suppress(RuntimeError):
            return "UP" in self.run("scontrol", "ping")
        return False

    def _write_files(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        hosts = {"localhost": "127.0.0.1", socket.gethostname(): self._ip("host")}
        hosts |= {name: self._ip(name) for name in NODES}
        lines = [line for name, ip in hosts.items() for line in (f"{ip} {name}", f"::ffff:{ip} {name}")]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        ports = {name: 16818 if self.mode == "netns" else 17001 + 2 * self.slot + at for at, name in enumerate(NODES)}
        nodes = [NODE.format(name=name, ip=self._ip(name), port=ports[name]) for name in NODES]
        text = CONF.format(
            slot=self.slot,
            hostname=socket.gethostname(),
            host_ip=self._ip("host"),
            controller_port=16817 - self.slot,
            user=psutil.Process().username(),
            lab=self.folder,
            kill_wait=self.kill_wait,
            nodes="\n".join(nodes),
        )
        (self.folder / "slurm.conf").write_text(text)
        # Any two devices will do: nothing opens them.
        devices = "Name=gpu File=/dev/zero\nName=gpu File=/dev/full\n"
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\n{devices}")

    def _plug(self) -> None:
        """The bridge and a namespace with its cable for each node."""
        self._unplug()  # what a killed test has left
        bridge = f"dl{self.slot}br"
        _root("ip", "link", "add", bridge, "type", "bridge")
        _root("ip", "addr", "add", f"{self._ip('host')}/24", "dev", bridge)
        _root("ip", "link", "set", bridge, "up")
        for name in NODES:
            device = self._device(name)
            _root("ip", "netns", "add", device)
            _root("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", device)
            _root("ip", "link", "set", device, "master", bridge, "up")
            _root("ip", "-n", device, "addr", "add", f"{self._ip(name)}/24", "dev", "eth0")
            _root("ip", "-n", device, "link", "set", "eth0", "up")
            _root("ip", "-n", device, "link", "set", "lo", "up")

    def _unplug(self) -> None:
        for name in NODES:
            device = self._device(name)
            subprocess.run(["ip", "link", "del", device], capture_output=True)
            subprocess.run(["ip", "netns", "del", device], capture_output=True)
        subprocess.run(["ip", "link", "del", f"dl{self.slot}br"], capture_output=True)

    def _boot(self, name: str) -> None:
        enter = ["nsenter", f"--net=/run/netns/{self._device(name)}"] if self.mode == "netns" else []
        user = [] if os.geteuid() == 0 else AS_USER
        apart = ["unshare", *user, "--uts", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
        self._processes[name] = self._daemon(
            *enter, *apart, "bash", "-c", BOOT, "boot", name, str(self.folder), self.mode
        )

    def _daemon(self, *command: str) -> subprocess.Popen[bytes]:
        """Start what must not outlive this process, also where that is killed."""
        with (self.folder / "log" / "console.log").open("ab") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.run("scancel", "--user", psutil.Process().username(), timeout=20)
        for name in (*NODES, "slurmctld", "munged"):
            if (process := self._processes.pop(name, None)) is not None:
                process.send_signal(signal.SIGKILL if name in NODES else signal.SIGTERM)
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        if self.mode == "netns":
            self._unplug()


def _root(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def slurm_lab(*, kill_wait: int = 30, mode: Mode | None = None) -> Iterator[Lab]:
    """The cluster, for the length of the block."""
    mode = mode or require_mode()
    # A short path: a UNIX socket's has 107 bytes.
    with _free_slot() as slot, tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp") as folder:
        lab = Lab(Path(folder), mode, slot, kill_wait=kill_wait)
        try:
            lab.start()
            yield lab
        finally:
            lab.stop()


@contextlib.contextmanager
def _free_slot() -> Iterator[int]:
    """A number that no other lab of this machine has: its networks, ports and devices carry it."""
    for slot in range(NUM_SLOTS):
        try:
            descriptor = os.open(f"/tmp/dure-slurm-lab-{slot}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # another user's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield slot
            return
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    raise RuntimeError(f"{NUM_SLOTS} labs run already; their locks are /tmp/dure-slurm-lab-*.lock")
