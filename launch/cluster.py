"""ClusterConfig: what a cluster is like, from slurm/clusters/NAME.yaml. Knows no command of SLURM and runs nothing.

Every text in it reaches a shell or an #SBATCH line; there it is quoted (launch/sbatch.py). What no quote can carry, a
line break for one, is refused here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from data_pipeline.config import Config, ConfigError, load
from launch.preflight import PreflightConfig
from launch.requeue import RequeueConfig

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_FLAG = re.compile(r"--(?P<name>[a-z][a-z0-9-]*)(=.*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)$", re.IGNORECASE)
# Flags that the text has of its own, and what sets them.
_OWN_FLAGS = {
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "nodes": "nodes (or `dure submit --nodes`)",
    "gres": "gpus_per_node and gpu_kind",
    "gpus-per-node": "gpus_per_node and gpu_kind",
    "cpus-per-task": "cpus_per_task",
    "mem": "memory",
    "time": "time_limit",
    "exclusive": "exclusive",
    "constraint": "constraint",
    "reservation": "reservation",
    "exclude": "exclude",
    "signal": "signal_seconds",
    **dict.fromkeys(
        ("job-name", "output", "error", "open-mode", "chdir", "ntasks", "ntasks-per-node", "array", "dependency"), ""
    ),
    **dict.fromkeys(("kill-on-invalid-dep", "requeue", "no-requeue", "parsable", "wait", "wrap", "export"), ""),
}


def _one_line(text: str) -> str:
    broken = [character for character in text if ord(character) < 32 or character in "\x7f\x85\u2028\u2029"]
    if broken:
        raise ValueError(f"{text!r} holds {broken[0]!r}; it must be one line without control characters")
    return text


def _no_flag(text: str) -> str:
    if not text.strip() or text.startswith("-"):
        raise ValueError(f"{text!r} would be read as a flag or as nothing; give a name")
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Name = Annotated[Line, AfterValidator(_no_flag)]


class ContainerConfig(Config):
    """In which image the ranks run. The batch script and `launch.job` run outside of it, on the first node.

    `pyxis`: by flags of srun (enroot). `apptainer`: by `apptainer exec` before the command. A mount is `FOLDER` or
    `FOLDER:INSIDE` (`:ro` behind it allowed); the folders of the run, of the config and of this program are added.
    """

    kind: Literal["pyxis", "apptainer"]
    image: Name
    mounts: tuple[Name, ...] = ()

    @field_validator("mounts")
    @classmethod
    def _no_comma(cls, mounts: tuple[str, ...]) -> tuple[str, ...]:
        for mount in mounts:
            if "," in mount:
                raise ValueError(f"{mount!r} holds a comma, which parts mounts; give each as an item of its own")
        return mounts


class ClusterConfig(Config):
    """A cluster profile. An empty text: the flag is left out, and the cluster's own default holds."""

    account: Line = ""
    partition: Line = ""
    qos: Line = ""
    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=0, ge=0)
    """One rank a GPU. 0: CPU ranks."""
    gpu_kind: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$")
    """"a100" asks for --gres=gpu:a100:8."""
    cpu_ranks_per_node: int = Field(default=1, ge=1)
    """Read where gpus_per_node is 0."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Cores of the one task of a node, which its ranks share. None: the cluster's default."""
    memory: str = Field(default="", pattern=r"^(\d+[KMGT]?)?$")
    """Of a node: "480G"; "0" is all of it."""
    time_limit: str = "1-00:00:00"
    exclusive: bool = False
    constraint: Line = ""
    reservation: Line = ""
    exclude: tuple[Name, ...] = ()
    """Nodes, or expressions such as n[3-5], that are not wanted."""
    modules: tuple[Name, ...] = ()
    venv: Line = ""
    """A folder that holds bin/activate."""
    conda: Line = ""
    """A name or a folder for `conda activate`."""
    container: ContainerConfig | None = None
    network_interface: Line = ""
    """For NCCL and gloo between nodes (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)."""
    environment: dict[str, Line] = Field(default_factory=dict)
    """Variables of the job. Never a key or a token: those come from the shell that submits."""
    setup: tuple[Line, ...] = ()
    """Shell lines as they stand, run before the program, after modules, venv and conda."""
    launcher: Literal["dure", "torchrun", "accelerate"] = "dure"
    max_restarts: int = Field(default=1, ge=0)
    """How often a step is started again inside the job after a rank died."""
    preflight: PreflightConfig = PreflightConfig()
    requeue: RequeueConfig = RequeueConfig()
    signal_seconds: int | None = Field(default=None, ge=1, le=65535)
    """How long before the time limit the job is told to save. None: from the measured time of a save, at submit."""
    max_array_size: int = Field(default=1000, ge=1)
    max_running_tasks: int = Field(default=50, ge=1)
    extra_sbatch: tuple[Line, ...] = ()
    """More flags, each "--flag=value" or "--flag"."""

    @property
    def ranks_per_node(self) -> int:
        """One a GPU, or as many CPU ranks as the profile says."""
        return self.gpus_per_node or self.cpu_ranks_per_node

    @property
    def time_limit_seconds(self) -> int:
        return seconds_of(self.time_limit)

    @field_validator("time_limit")
    @classmethod
    def _time_is_sound(cls, text: str) -> str:
        if not seconds_of(text):
            raise ValueError(f"{text!r} is no time; write minutes, hours:minutes:seconds or days-hours:minutes:seconds")
        return text

    @field_validator("environment")
    @classmethod
    def _environment_is_sound(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a variable; letters, digits and _ only")
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} looks like a secret, and the profile is copied into run folders; export it in the shell "
                    "that calls `dure submit`, SLURM passes it on"
                )
        return environment

    @field_validator("extra_sbatch")
    @classmethod
    def _flags_are_sound(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        for flag in flags:
            match = _FLAG.fullmatch(flag)
            if match is None:
                raise ValueError(f"{flag!r} is not of the form --flag or --flag=value")
            if (key := _OWN_FLAGS.get(match["name"])) is not None:
                raise ValueError(f"{flag!r}: {f'set {key} instead' if key else 'dure sets this flag itself'}")
        return flags

    @model_validator(mode="after")
    def _parts_agree(self) -> ClusterConfig:
        if self.gpu_kind and not self.gpus_per_node:
            raise ValueError(f"gpu_kind is {self.gpu_kind!r}, but gpus_per_node 0; set both, or none")
        if self.venv and self.conda:
            raise ValueError(f"venv is {self.venv!r} and conda {self.conda!r}; one of them brings python, give one")
        return self


def seconds_of(time_limit: str) -> int:
    """The seconds of SLURM's forms M, M:S, H:M:S, D-H, D-H:M and D-H:M:S; 0 for another text."""
    match = _TIME.fullmatch(time_limit)
    if match is None:
        return 0
    parts = [int(part) for part in match.group("first", "second", "third") if part is not None]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def read_cluster(path: str | Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """The profile at `path`, complete: paths absolute, and the venv of this process where it names no python.

    Raises:
        ConfigError: every fault at once, by dotted path.
    """
    if not Path(path).is_file() and (known := sorted(Path("slurm/clusters").glob("*.yaml"))):
        raise ConfigError(f"--cluster: {path}: no such file; the profiles here are {', '.join(map(str, known))}")
    return completed(load(path, overrides, ClusterConfig))


def completed(cluster: ClusterConfig) -> ClusterConfig:
    """`cluster` as a job elsewhere can read it: nothing depends on the folder or the shell that it was typed in."""
    changes: dict[str, object] = {}
    if cluster.venv:
        changes["venv"] = str(Path(cluster.venv).expanduser().absolute())
    elif not cluster.conda and not cluster.setup and sys.prefix != sys.base_prefix:
        changes["venv"] = sys.prefix
    container = cluster.container
    if container is not None and container.kind == "apptainer" and "://" not in container.image:
        image = str(Path(container.image).expanduser().absolute())
        changes["container"] = container.model_copy(update={"image": image})
    return cluster.model_copy(update=changes)


def in_container(cluster: ClusterConfig, *, workdir: Path, folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Flags for srun, and words before the command, that put it into the profile's container; both empty without one.

    The command then starts with `python`, the image's own, in `workdir`; so the packages of a checkout are found there.
    `folders` (absolute, like `workdir`) are what it must find at the same paths inside: run folder, config, data.

    Raises:
        ConfigError: a folder whose name no mount can carry.
    """
    container = cluster.container
    if container is None:
        return [], []
    mounts = [*container.mounts, *_outermost([workdir, *folders])]
    if container.kind == "pyxis":
        pairs = [mount if ":" in mount else f"{mount}:{mount}" for mount in mounts]
        flags = [f"--container-image={container.image}", f"--container-mounts={','.join(pairs)}"]
        return [*flags, f"--container-workdir={workdir}"], []
    words = ["apptainer", "exec", *(["--nv"] if cluster.gpus_per_node else []), "--pwd", str(workdir)]
    return [], [*words, *(word for mount in mounts for word in ("--bind", mount)), container.image]


def _outermost(folders: Sequence[Path]) -> list[str]:
    """Each folder once, without those that lie in another."""
    unique = sorted(set(folders))
    kept = [str(folder) for folder in unique if not any(other in folder.parents for other in unique)]
    for folder in kept:
        if "," in folder or ":" in folder:
            raise ConfigError(f"container: {folder}: a comma or a colon parts mounts; give the folder another name")
    return kept
