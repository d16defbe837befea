"""`dure submit --pipeline FILE`: stages as a chain of jobs, each after those that it needs (`afterok`).

The links, their jobs and the text of these. One job a link, so that every id that another waits for is known at submit;
where a data stage is spread over the cluster, that job submits the arrays itself (launch/array.py).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from data_pipeline.config import Config, ConfigError, load
from launch.array import tasks_job
from launch.cluster import ClusterConfig, read_cluster
from launch.link import (
    STAGES,
    LinkConfig,
    arguments_of,
    coordinator_overrides,
    is_done,
    profile_overrides,
    stage_config,
)
from launch.sbatch import Job, sbatch_text
from launch.submission import RunJob, plan_run, working_folder

# A job that spreads a stage is told so long before its time limit that it can requeue itself.
SIGNAL_SECONDS = 120


class PipelineConfig(Config):
    """Links in order; the state and the logs of their jobs lie in `folder`/`name`."""

    name: str = Field(pattern=r"^\w[\w-]*$")
    folder: str = "runs/pipelines"
    poll_seconds: float = Field(default=15.0, gt=0)
    """Between two looks at an array."""
    coordinator: dict[str, Any] = Field(default_factory=dict)
    """Keys of the cluster profile for the jobs of one core that submit arrays and wait for them."""
    links: tuple[LinkConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _links_agree(self) -> PipelineConfig:
        if faults := list(self._faults()):
            raise ValueError("; ".join(faults))
        return self

    def _faults(self) -> Iterator[str]:
        before: list[str] = []
        for link in self.links:
            if link.name in before:
                yield f"links: {link.name} stands twice; give each link a name of its own"
            for name in link.after or ():
                if name not in before:
                    known = ", ".join(before) or "none"
                    yield f"links: {link.name}: after {name!r}, but the links before it are {known}"
            if link.nodes is not None and link.verb != "train":
                yield f"links: {link.name}: nodes is {link.nodes}, but `{link.verb}` runs on one; leave it out"
            before.append(link.name)

    def before(self, link: LinkConfig) -> tuple[str, ...]:
        """The links that must succeed before `link` starts."""
        if link.after is not None:
            return link.after
        place = self.links.index(link)
        return (self.links[place - 1].name,) if place else ()


@dataclass(frozen=True)
class PlannedLink:
    """A link with its job. `run`: of a train link; `tasks`: the profile of the work itself (of an array, its tasks)."""

    link: LinkConfig
    folder: Path
    before: tuple[str, ...]
    is_done: bool
    job: Job
    tasks: ClusterConfig
    run: RunJob | None = None

    @property
    def tree(self) -> dict[str, Any]:
        """What link.json says."""
        return {"link": self.link.model_dump(mode="json"), "job_name": self.job.name, "workdir": str(self.job.workdir)}


def submit_pipeline(path: str, cluster: str, *, dry_run: bool) -> int:
    """Submit every link that is neither done nor in the queue, or print the scripts; returns the exit code.

    Raises:
        ConfigError, StageError, RunError: some link is faulty; then nothing was submitted.
    """
    pipeline = load(path, [], PipelineConfig)
    planned = plan_pipeline(pipeline, path=path, profile=cluster, tell=_warn)
    if dry_run:
        print("\n".join(_dry_texts(planned)), end="")
        return 0
    from launch.pipeline_queue import Submission

    Submission(pipeline, planned, profile=cluster).run()
    return 0


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def plan_pipeline(
    pipeline: PipelineConfig, *, path: str, profile: str, tell: Any = lambda line: None
) -> list[PlannedLink]:
    """The links, each with its job and whether it is done. Writes nothing, asks SLURM nothing."""
    faults, planned = [], []
    for link in pipeline.links:
        try:
            _check_words(link)
        except ConfigError as error:
            faults.append(f"{path}: {error}")
    if faults:
        raise ConfigError("\n".join(faults))
    done: set[str] = set()
    for link in pipeline.links:
        found = _plan_link(pipeline, link, profile=profile, done=done, tell=tell)
        planned.append(found)
        if found.is_done:
            done.add(link.name)
    return planned


def _check_words(link: LinkConfig) -> None:
    """Refuse now what a link's job would refuse after the queue."""
    arguments = arguments_of(link)
    if link.verb in STAGES:
        try:
            stage_config(link.verb, arguments)
        except ImportError:  # a login node need not have what the nodes have; `_is_done` says so
            return


def _plan_link(pipeline: PipelineConfig, link: LinkConfig, *, profile: str, done: set[str], tell: Any) -> PlannedLink:
    before = pipeline.before(link)
    workdir = working_folder()
    folder = workdir / pipeline.folder / pipeline.name / link.name
    tasks = read_cluster(profile, profile_overrides(link, read_cluster(profile)))
    # What stands now was made of what stood before; where that is made anew, it may be another's.
    finished = set(before) <= done and _is_done(link, folder, tell=tell)
    if link.kind == "train":
        run = _plan_run(link, profile, needs_data=set(before) <= done and not finished, tell=tell)
        return PlannedLink(link, folder, before, finished, run.job, run.cluster, run)
    what = "spread" if link.kind == "array" else "verb"
    here = tasks
    if link.kind == "array":
        here = read_cluster(profile, coordinator_overrides(link, pipeline.coordinator))
    job = Job(
        name=f"{pipeline.name}.{link.name}",
        command=("python", "-m", "launch.array", what, str(folder)),
        cluster=here,
        nodes=1,
        log=folder / "logs" / "slurm-%j.out",
        workdir=workdir,
        signal_seconds=min(SIGNAL_SECONDS, here.time_limit_seconds // 3) if link.kind == "array" else 0,
        uses_gpus=link.kind == "verb",
    )
    return PlannedLink(link, folder, before, finished, job, tasks)


def _is_done(link: LinkConfig, folder: Path, *, tell: Any) -> bool:
    try:
        return is_done(link, folder)
    except ImportError as error:
        tell(f"{link.name}: whether it is done is seen in its job: this machine has no {error.name}")
        return False


def _plan_run(link: LinkConfig, profile: str, *, needs_data: bool, tell: Any) -> RunJob:
    arguments = arguments_of(link)
    return plan_run(
        arguments.config,
        arguments.overrides,
        profile=profile,
        cluster_overrides=profile_overrides(link, read_cluster(profile)),
        needs_data=needs_data,
        tell=tell,
    )


def _dry_texts(planned: Sequence[PlannedLink]) -> Iterator[str]:
    """What would be submitted; jobs that have no number yet by their links' names."""
    done = {item.link.name for item in planned if item.is_done}
    for item in planned:
        title = f"# ==== {item.link.name}: {item.link.verb} {' '.join(item.link.args)}".rstrip()
        if item.is_done:
            yield f"{title}\n# done already (이미 완료): skipped\n"
            continue
        waits = [f"<{name}>" for name in item.before if name not in done]
        yield f"{title}\n{sbatch_text(depending(item.job, waits))}"
        if item.link.kind == "array":
            yield f"# ==== {item.link.name}: its tasks, by that job\n{sbatch_text(_tasks_example(item))}"


def _tasks_example(item: PlannedLink) -> Job:
    array = item.folder / "arrays" / "0001"
    job: Job = tasks_job(item.tree, item.folder, array, item.tasks, array_range=f"0-N%{item.tasks.max_running_tasks}")
    return job


def depending(job: Job, ids: Sequence[str]) -> Job:
    """The job, after those of these ids."""
    return dataclasses.replace(job, dependency=f"afterok:{':'.join(ids)}" if ids else "")
