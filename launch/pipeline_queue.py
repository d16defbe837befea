"""The jobs of a pipeline that wait or run, and those that are submitted behind them.

<folder>/<name>/pipeline.json names the job of each link; the same call again submits what is neither done nor in the
queue, and cancels only a job of its own that waits for what is over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from typing import Any

from data_pipeline import disk
from data_pipeline.config import to_yaml
from launch import slurm
from launch.array import STATE_NAME, TASKS_CLUSTER_NAME
from launch.array_work import LINK_NAME
from launch.look_pipelines import note_pipeline
from launch.pipeline import PipelineConfig, PlannedLink, depending
from launch.sbatch import Job, sbatch_text
from launch.slurm import JobState
from launch.submission import JOBS_NAME, note_job, submit_run, working_folder
from trainer.errors import RunError
from trainer.run_folder import read_lines

CANCEL_SECONDS = 60.0
NEVER = "DependencyNeverSatisfied"


class Submission:
    """One call: what is in the queue stays, what is not done is submitted behind it."""

    def __init__(self, pipeline: PipelineConfig, planned: Sequence[PlannedLink], *, profile: str) -> None:
        self._pipeline, self._planned, self._profile = pipeline, planned, profile
        self._folder = working_folder() / pipeline.folder / pipeline.name
        self._jobs: dict[str, str] = {}  # link -> the job that links behind it wait for
        self._new: set[str] = set()

    def run(self) -> None:
        """Submit; each job is written down before the next one is submitted."""
        note_pipeline(self._folder)
        with disk.locked(self._folder / ".lock"):  # two people may submit one pipeline at once
            state = disk.read_object(self._folder / STATE_NAME).get("links", {})
            alive = {item.link.name: self._alive(item, state.get(item.link.name, {})) for item in self._planned}
            self._check(alive, state)
            for item in self._planned:
                self._bring(item, alive[item.link.name], state)

    def _alive(self, item: PlannedLink, ours: dict[str, Any]) -> tuple[str, JobState] | None:
        """The job that this link has in the queue; of a run, whoever submitted it."""
        jobs = [ours["job"]] if "job" in ours else []
        if item.run is not None:
            jobs += [str(line["job"]) for line in read_lines(item.run.run_folder / JOBS_NAME) if "job" in line]
        jobs = list(dict.fromkeys(jobs))
        states = slurm.job_states(jobs)
        waiting = [(job, states[job]) for job in jobs if job in states and not states[job].is_over]
        return waiting[-1] if waiting else None

    def _check(self, alive: dict[str, tuple[str, JobState] | None], state: dict[str, Any]) -> None:
        """Refuse, before anything is submitted, what would leave half a chain.

        Raises:
            RunError: a job in the queue was made of other words, or runs though what it waited for is made anew.
        """
        kept: set[str] = set()
        faults = []
        for item in self._planned:
            name, found = item.link.name, alive[item.link.name]
            is_fresh = all(before in kept for before in item.before)
            if found is not None:
                job, job_state = found
                if state.get(name, {}).get("job") == job and state[name]["signature"] != item.link.signature:
                    faults.append(f"{name}: job {job} ({job_state.state}) was submitted with other words")
                elif not is_fresh and job_state.state != "PENDING":
                    faults.append(f"{name}: job {job} is {job_state.state}, but what stands before it is not done")
            if item.is_done or (found is not None and is_fresh and found[1].reason != NEVER):
                kept.add(name)
        if faults:
            advice = "wait for it, or end it (`scancel JOB`) and submit the pipeline again"
            raise RunError("\n".join(f"{self._folder}: {fault}; {advice}" for fault in faults))

    def _bring(self, item: PlannedLink, found: tuple[str, JobState] | None, state: dict[str, Any]) -> None:
        name = item.link.name
        # What it waits for is over, or is submitted anew.
        is_stale = found is not None and (found[1].reason == NEVER or any(link in self._new for link in item.before))
        if found is not None and not is_stale:
            job, job_state = found
            self._jobs[name] = job
            why = f": {slurm.reason_in_words(job_state.reason)}" if job_state.state == "PENDING" else ""
            print(f"{name}: job {job} has it already, {job_state.state}{why}")
            return
        if item.is_done and found is None:
            print(f"{name}: done (이미 완료), skipped")
            return
        if found is not None:
            _end(found[0])
        waits = [self._jobs[before] for before in item.before if before in self._jobs]
        job = self._submit(item, waits, state)
        self._jobs[name] = job
        self._new.add(name)
        behind = f", after {', '.join(waits)}" if waits else ""
        print(f"{name}: job {job} submitted (제출됨){behind}; log {str(item.job.log).replace('%j', job)}")

    def _submit(self, item: PlannedLink, waits: Sequence[str], state: dict[str, Any]) -> str:
        job = depending(item.job, waits)
        if item.run is not None:
            number = submit_run(dataclasses.replace(item.run, job=job))
        else:
            number = self._submit_link(item, job)
        log = str(item.job.log).replace("%j", number)
        state[item.link.name] = {"job": number, "signature": item.link.signature, "time": time.time(), "log": log}
        if item.run is not None:
            state[item.link.name]["run"] = str(item.run.run_folder)
        tree = {"cluster": self._profile, "links": state}
        disk.write_json(self._folder / STATE_NAME, tree)
        return number

    def _submit_link(self, item: PlannedLink, job: Job) -> str:
        (item.folder / "logs").mkdir(parents=True, exist_ok=True)
        tree = {**item.tree, "poll_seconds": self._pipeline.poll_seconds}
        disk.write_bytes(item.folder / LINK_NAME, json.dumps(tree, ensure_ascii=False, indent=1).encode())
        disk.write_bytes(item.folder / TASKS_CLUSTER_NAME, to_yaml(item.tasks).encode())
        script = item.folder / "link.sbatch"
        disk.write_bytes(script, os.fsencode(sbatch_text(job)))
        number = slurm.submit(script)
        note_job(self._folder, number, nodes=1, profile=self._profile, name=job.name, kind=item.link.verb)
        return number


def _end(job: str) -> None:
    """Cancel a waiting job, and see it gone."""
    slurm.cancel(job)
    deadline = time.monotonic() + CANCEL_SECONDS
    while (state := slurm.job_states([job]).get(job)) is not None and not state.is_over:
        if time.monotonic() > deadline:
            raise RunError(f"job {job}: cancelled, but still {state.state}; submit the pipeline again when it is gone")
        time.sleep(0.5)
