"""`dure submit`: a run, or a pipeline of stages, becomes a job in SLURM's queue."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_pipeline.config import ConfigError
from launch.sbatch import sbatch_text
from launch.submission import LOGS_NAME, SCRIPT_NAME, SUBMIT_NAME, RunJob, plan_run, submit_run


def submit(arguments: argparse.Namespace) -> int:
    """Check, write `<run>/submit/` and submit; with `--dry-run` only print the script."""
    if arguments.cluster is None:
        profiles = ", ".join(map(str, sorted(Path("slurm/clusters").glob("*.yaml")))) or "none"
        raise ConfigError(f"--cluster: missing; give a cluster profile (here: {profiles})")
    if arguments.pipeline is not None:
        return _submit_pipeline(arguments)
    if arguments.config is None:
        raise ConfigError("dure submit: CONFIG is missing; give the config of a run, or --pipeline FILE")
    planned = plan_run(
        arguments.config, arguments.overrides, profile=arguments.cluster, nodes=arguments.nodes, tell=_warn
    )
    if arguments.dry_run:
        print(sbatch_text(planned.job), end="")
        return 0
    job = submit_run(planned)
    print(_told(planned, job))
    return 0


def _submit_pipeline(arguments: argparse.Namespace) -> int:
    given = [arguments.config] if arguments.config else []
    given += [*arguments.overrides, *([f"--nodes {arguments.nodes}"] if arguments.nodes else [])]
    if given:
        raise ConfigError(f"--pipeline: the file says what its links are, got {', '.join(given)} too; leave that out")
    from launch.pipeline import submit_pipeline

    return submit_pipeline(arguments.pipeline, arguments.cluster, dry_run=arguments.dry_run)


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def _told(planned: RunJob, job: str) -> str:
    cluster = planned.cluster
    kind = "GPU" if cluster.gpus_per_node else "CPU rank"
    where = f" in {cluster.partition}" if cluster.partition else ""
    log = planned.run_folder / LOGS_NAME / f"slurm-{job}.out"
    return "\n".join(
        [
            f"job {job} submitted (제출됨){where}: {cluster.nodes} x {cluster.ranks_per_node} {kind} = "
            f"{planned.num_ranks} ranks, at most {cluster.time_limit}, told to save {cluster.signal_seconds} s before",
            f"  script  {planned.run_folder / SUBMIT_NAME / SCRIPT_NAME}",
            f"  log     {log}",
            f"  look    dure status · dure logs {planned.name} -f · dure cancel {planned.name}",
        ]
    )
