"""A link of a pipeline: a verb with its words, what its job asks of the cluster, and whether its result stands already.

Asks SLURM nothing and writes nothing. What the job does is launch/array.py's business, of a run launch/job.py's.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from data_pipeline.config import Config, ConfigError, load, validate
from data_pipeline.stage import MANIFEST_NAME, Stage, fingerprint
from launch import cli
from launch.cluster import ClusterConfig, in_container
from launch.verb_table import VERBS
from trainer.checkpoint_marker import find_complete, read_marker, step_of
from trainer.config import TrainConfig
from trainer.locate import Place, locate
from trainer.resilience import DONE
from trainer.run_folder import CHECKPOINTS_NAME, read_exit

Kind = Literal["train", "array", "stage", "verb"]

# Verb -> module, config class, stage class.
STAGES = {
    "corpus build": ("data_pipeline.corpus.build", "CorpusConfig", "CorpusBuild"),
    "tokenizer train": ("data_pipeline.tokenizer.train", "TokenizerConfig", "TokenizerTrain"),
    "shards build": ("data_pipeline.shards.build", "ShardsConfig", "ShardsBuild"),
}
SPREAD = ("corpus build", "shards build")  # the tasks of a tokenizer wait for each other, and use every core
WITH_GPU = ("evaluate", "generate", "export")
WITHOUT_GPU = ("shards verify", "report")
ALLOWED = (*STAGES, "train", *WITH_GPU, *WITHOUT_GPU)

DONE_NAME, BEGUN_NAME = "done.json", "begun.json"
# A run over a machine's own ranks; on a cluster the profile says how many there are.
_LOCAL_FLAGS = ("gpus", "cpu_ranks", "debug", "profile")
_NO_GPU: dict[str, Any] = {"nodes": 1, "gpus_per_node": 0, "gpu_kind": "", "exclusive": False}
_ONE_CORE = {**_NO_GPU, "cpus_per_task": 1, "memory": ""}
_AMOUNT = re.compile(r"(\d+)([KMGT]?)")


class LinkConfig(Config):
    """One stage of a pipeline: what you would type behind `dure`, and where it runs."""

    name: str = Field(pattern=r"^\w[\w-]*$")
    verb: str
    args: tuple[str, ...] = ()
    """What stands behind the verb: a list of words, or one text that is split as a shell does."""
    after: tuple[str, ...] | None = None
    """Links that must succeed first; None: the one before. []: none."""
    nodes: int | None = Field(default=None, ge=1)
    """Of a train link; None: as the profile says."""
    array: bool = True
    """Of corpus build and shards build: tasks as an array of jobs. false: one job, a process a core."""
    cluster: dict[str, Any] = Field(default_factory=dict)
    """Keys of the cluster profile that are otherwise for this link; of an array, for its tasks."""

    @field_validator("args", mode="before")
    @classmethod
    def _split(cls, args: Any) -> Any:
        return shlex.split(args) if isinstance(args, str) else args

    @field_validator("after", mode="before")
    @classmethod
    def _one_is_a_list(cls, after: Any) -> Any:
        return [after] if isinstance(after, str) else after

    @field_validator("verb")
    @classmethod
    def _verb_is_known(cls, verb: str) -> str:
        if verb not in ALLOWED:
            raise ValueError(f"{verb!r} is no stage of a pipeline; take one of {', '.join(ALLOWED)}")
        return verb

    @property
    def kind(self) -> Kind:
        if self.verb == "train":
            return "train"
        if self.verb in SPREAD and self.array:
            return "array"
        return "stage" if self.verb in STAGES else "verb"

    @property
    def signature(self) -> str:
        """What a job that waits for this link must have been made of, to be this link's."""
        return fingerprint(self.model_dump(mode="json", exclude={"name"}))


def arguments_of(link: LinkConfig) -> argparse.Namespace:
    """The words as the verb's function gets them.

    Raises:
        ConfigError: words that the verb does not take, or that mean nothing in a job of a cluster.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            arguments = cli.parse_words(VERBS[link.verb], list(link.args))
    except SystemExit:
        raise ConfigError(f"link {link.name}: {said.getvalue().strip().removeprefix('error: ')}") from None
    given = [f"--{name.replace('_', '-')}" for name in _LOCAL_FLAGS if getattr(arguments, name, None)]
    if link.verb == "train" and given:
        raise ConfigError(f"link {link.name}: {', '.join(given)}: the cluster profile says on what a run trains")
    if link.kind == "array" and arguments.workers is not None:
        raise ConfigError(
            f"link {link.name}: --workers is of one machine, but its tasks become an array; set "
            "cluster.max_running_tasks, or array: false"
        )
    return arguments


def stage_config(verb: str, arguments: argparse.Namespace) -> Config:
    """The config of a data verb, as the verb loads it."""
    module, config_class, _ = STAGES[verb]
    cls: type[Config] = getattr(importlib.import_module(module), config_class)
    return load(arguments.config, arguments.overrides, cls)


def stage_of(verb: str, config: Config | dict[str, Any]) -> Stage:
    """The stage of a data verb, from its config or from that as a tree."""
    module, config_class, stage_class = STAGES[verb]
    found = importlib.import_module(module)
    resolved = validate(config, getattr(found, config_class), where=verb) if isinstance(config, dict) else config
    stage: Stage = getattr(found, stage_class)(resolved)
    return stage


def is_done(link: LinkConfig, folder: Path) -> bool:
    """Whether the link's result stands, given that those of all links before it do. `folder` is the link's own.

    Raises:
        StageError: its output folder holds something else, or an input is not there.
        ImportError: a stage whose packages this machine lacks.
    """
    arguments = arguments_of(link)
    if link.verb == "train":
        return is_trained(load(arguments.config, arguments.overrides, TrainConfig))
    if link.verb in STAGES:
        return stage_of(link.verb, stage_config(link.verb, arguments)).is_done()
    if link.verb == "shards verify":  # bytes may rot after the last look
        return False
    now = verb_inputs(link, arguments)
    return now is not None and _record(folder / DONE_NAME) == now and _has_output(arguments)


def is_trained(config: TrainConfig) -> bool:
    """Whether the run ended well, at its last step."""
    run = Path(config.run.folder) / config.run.name
    record, complete = read_exit(run), find_complete(run / CHECKPOINTS_NAME)
    at_step = step_of(complete[0]) if complete else 0
    # A length in epochs is counted from rows; what a run wrote down as its last step is what it was.
    return record is not None and record.code == DONE and at_step >= (config.train.max_steps or record.step)


def was_cut_off_after_its_work(link: LinkConfig, folder: Path) -> bool:
    """Whether a job began the link on equal inputs, and left a finished folder but no record of its end."""
    arguments = arguments_of(link)
    output = getattr(arguments, "output", None)
    is_whole = output is not None and (Path(output) / MANIFEST_NAME).is_file()
    return is_whole and _record(folder / BEGUN_NAME) == verb_inputs(link, arguments)


def verb_inputs(link: LinkConfig, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What the result of a verb that is no stage depends on; None where that is not there yet."""
    names = getattr(arguments, "paths", None) or [arguments.path]
    inputs = [_identity(name) for name in [*names, getattr(arguments, "shards", None)] if name is not None]
    file = getattr(arguments, "input", None)
    if file is not None:
        inputs.append(_stamp(Path(file)))
    if None in inputs:
        return None
    return {"verb": link.verb, "args": list(link.args), "inputs": inputs}


def _identity(name: str) -> Any:
    """A run or a checkpoint by the hash of its newest weights, another folder by its manifest or its files."""
    place = locate(name)
    if place is not None and place.kind != "model":
        return _checkpoint_identity(place)
    folder = place.path if place is not None else Path(name)
    if (folder / MANIFEST_NAME).is_file():
        return json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8")).get("manifest_sha256")
    return [_stamp(path) for path in sorted(folder.iterdir())] if folder.is_dir() else None


def _checkpoint_identity(place: Place) -> str | None:
    if place.checkpoint is None:
        return None
    marker, fault = read_marker(place.checkpoint)
    return None if fault else marker["sha256"]


def _stamp(path: Path) -> list[Any] | None:
    if not path.exists():
        return None
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns]


def _record(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _has_output(arguments: argparse.Namespace) -> bool:
    output = getattr(arguments, "output", None)
    return output is None or Path(output).exists()


def profile_overrides(link: LinkConfig, profile: ClusterConfig) -> list[str]:
    """What the profile is to say for this link's job (of an array, for its tasks), as overrides."""
    if link.kind == "array":
        base = _ONE_CORE
    elif link.kind == "train":
        base = {} if link.nodes is None else {"nodes": link.nodes}
    elif link.verb in WITH_GPU and profile.gpus_per_node:
        base = _share_of_one_gpu(profile)
    else:
        base = _NO_GPU
    return as_overrides({**base, **link.cluster})


def coordinator_overrides(link: LinkConfig, coordinator: dict[str, Any]) -> list[str]:
    """The same for the job that plans an array, waits for it and finishes: one core."""
    return as_overrides({**link.cluster, **_ONE_CORE, **coordinator})


def _share_of_one_gpu(profile: ClusterConfig) -> dict[str, Any]:
    """One GPU of a node, with its part of the cores and of the memory."""
    share: dict[str, Any] = {"nodes": 1, "gpus_per_node": 1, "exclusive": False}
    if profile.cpus_per_task is not None:
        share["cpus_per_task"] = max(1, profile.cpus_per_task // profile.gpus_per_node)
    if (match := _AMOUNT.fullmatch(profile.memory)) is not None:
        amount = int(match[1]) // profile.gpus_per_node
        share["memory"] = f"{amount}{match[2]}" if amount else ""
    return share


def as_overrides(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """`key.sub=value` for each leaf; JSON is YAML that needs no guess about quotes."""
    words = []
    for key, value in tree.items():
        if isinstance(value, dict):
            words += as_overrides(value, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={json.dumps(value, ensure_ascii=False)}")
    return words


def in_place(cluster: ClusterConfig, words: Sequence[str], *, workdir: Path, folder: Path) -> tuple[str, ...]:
    """`words` behind a Python, in the profile's container where it has one."""
    flags, inside = in_container(cluster, workdir=workdir, folders=[folder])
    step = ["srun", "--nodes=1", "--ntasks=1", *flags] if flags else []
    return (*step, *inside, "python", *words)


def python_here(cluster: ClusterConfig, words: Sequence[str], *, workdir: Path, folder: Path) -> list[str]:
    """As `in_place`, for a process that runs already: without a container by its own Python."""
    if cluster.container is None:
        return [sys.executable, *words]
    return list(in_place(cluster, words, workdir=workdir, folder=folder))
