"""Runs on the lab: a config, a profile and the sbatch text of each, submitted, watched and compared."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from data_pipeline.config import to_yaml, validate
from launch.cluster import ClusterConfig
from launch.requeue import Requeue, read_requeues
from launch.sbatch import Job as Script
from launch.sbatch import sbatch_text
from tests.slurm.lab import NODES, Job, Lab
from tests.trainer.tiny_run import REPO, lines_of, losses_of, tiny_config, write_config
from trainer import checkpoint

MAX_STEPS = 40
SAVE_EVERY = 10
ZERO_2 = {"kind": "deepspeed", "zero_stage": 2}


@dataclass
class Case:
    """One run and its job."""

    lab: Lab
    run: Path
    config: Path
    script: Path
    log: Path
    job_id: str = ""

    def submit(self, *options: str) -> str:
        self.job_id = self.lab.submit(self.script, options=options)
        return self.job_id

    @property
    def job(self) -> Job:
        return self.lab.job(self.job_id)

    @property
    def output(self) -> str:
        """What the job printed, all its executions one after the other."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def losses(self) -> dict[int, float]:
        return losses_of(self.run)

    @property
    def attempts(self) -> list[dict[str, Any]]:
        return lines_of(self.run / "attempts.jsonl")

    @property
    def exit(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.run / "exit.json").read_text())
        return record

    @property
    def requeues(self) -> list[Requeue]:
        return read_requeues(self.run)

    @property
    def newest_step(self) -> int:
        """The step of the newest complete checkpoint."""
        return checkpoint.step_of(checkpoint.find_complete(self.run / "checkpoints")[0])

    @property
    def started_at(self) -> list[int]:
        """From which step each attempt trained on."""
        return [event["step"] for event in lines_of(self.run / "events.jsonl") if event["kind"] == "started"]

    def wait_for_step(self, step: int) -> None:
        """The step is logged, and the run is not done."""

        def logged() -> bool:
            job = self.job
            assert not job.has_ended, f"{job.state} before step {step}\n{self.output}"
            metrics = self.run / "metrics.jsonl"
            return metrics.exists() and metrics.read_bytes().count(b"\n") >= step

        self.lab.wait_for(f"step {step} of {self.run.name}", logged)

    def wait_for_output(self, text: str) -> None:
        self.lab.wait_for(f"{text!r} in the log of {self.run.name}", lambda: text in self.output)

    def wait_for_count(self, text: str, count: int) -> None:
        """`text` stands `count` times in the job's log."""
        self.lab.wait_for(
            f"{text!r} for the {count}. time in the log of {self.run.name}", lambda: self.output.count(text) >= count
        )

    def rank_process(self, rank: int) -> psutil.Process:
        """The process of a rank of this run, on whatever node."""
        for process in (process for name in NODES for process in self.lab.processes_of(name)):
            with contextlib.suppress(psutil.NoSuchProcess):
                words, environ = process.cmdline(), process.environ()
                is_ours = environ.get("SLURM_JOB_ID") == self.job_id and environ.get("RANK") == str(rank)
                if is_ours and "trainer" in words[2:4]:  # no agent of ranks
                    return process
        raise AssertionError(f"no process of rank {rank} of job {self.job_id}")

    @contextlib.contextmanager
    def held_back(self, *, rank: int) -> Iterator[None]:
        """The rank stands still, and with it the run, for the length of the block."""
        process = self.rank_process(rank)
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def finish(self) -> Job:
        """Wait for the end, which must be a good one."""
        job = self.lab.wait_for_end(self.job_id)
        assert job.state == "COMPLETED", f"{job.state} {job.exit_code}\n{self.output}"
        assert self.exit["code"] == 0 and self.exit["step"] == MAX_STEPS
        return job


@dataclass
class World:
    """The lab and the shards that all cases share."""

    lab: Lab
    folder: Path
    shards: Path
    cases: list[Case] = field(default_factory=list)

    def case(
        self,
        name: str,
        *,
        cluster: dict[str, Any] | None = None,
        nodes: int = 2,
        folder: Path | None = None,
        signal_seconds: int = 60,
        **sections: Any,
    ) -> Case:
        """A run of MAX_STEPS steps under ZeRO-2, not submitted yet; `sections` go over the config."""
        home = folder or self.folder / name
        home.mkdir(parents=True)
        base: dict[str, Any] = {
            "run": {"name": "run", "folder": str(home)},
            "engine": ZERO_2,
            "train": {"max_steps": MAX_STEPS},
            "checkpoint": {"every_steps": SAVE_EVERY},
            "evaluation": {"every_steps": 20, "max_documents": 10},
        }
        merged = {key: base.get(key, {}) | sections.get(key, {}) for key in base | sections}
        config = write_config(home / "config.yaml", tiny_config(home, self.shards, **merged))
        return self.scripted(home, config, cluster=cluster or {}, nodes=nodes, signal_seconds=signal_seconds)

    def scripted(
        self, home: Path, config: Path, *, cluster: dict[str, Any], nodes: int, signal_seconds: int = 60
    ) -> Case:
        """The case of a config that stands already, in another job."""
        profile = validate({"preflight": {"enabled": False}} | cluster, ClusterConfig, where="test")
        number = len(self.cases)
        profile_path, script = home / f"cluster-{number}.yaml", home / f"job-{number}.sbatch"
        profile_path.write_text(to_yaml(profile))
        log = home / f"job-{number}.out"
        text = sbatch_text(
            Script(
                name=f"drill {number}",
                command=(sys.executable, "-m", "launch.job", str(config), "--cluster", str(profile_path)),
                cluster=profile,
                nodes=nodes,
                log=log,
                workdir=REPO,
                signal_seconds=signal_seconds,
            )
        )
        script.write_text(text)
        case = Case(self.lab, home / "run", config, script, log)
        self.cases.append(case)
        return case


def assert_equal_to_the_bit(case: Case, other: Case) -> None:
    assert case.losses == other.losses
    assert sorted(case.losses) == list(range(1, MAX_STEPS + 1))
