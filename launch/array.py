"""`python -m launch.array spread|verb FOLDER`: what a pipeline's job runs, in the folder of its link.

verb: the link's verb, here. spread: a data stage over the cluster. That job plans, submits the unfinished tasks of one
wave as an array, waits for it, plans again, and finishes, so that the next link waits for this job alone, whose id is
known beforehand. It holds nothing that the disk does not: killed anywhere, the next one waits for the array that still
runs, or submits what is not done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import disk
from launch.array_work import (
    ELEMENTS_NAME,
    FAILURES_NAME,
    LINK_NAME,
    LOCKS_NAME,
    PLAN_NAME,
    SPEC_NAME,
)
from launch.local import hold_signals
from trainer.resilience import STOPPED

ARRAYS_NAME, JOB_NAME, TASKS_CLUSTER_NAME, STATE_NAME = "arrays", "job", "tasks.yaml", "pipeline.json"
END_NAME = "ended.json"
WHO = "dure pipeline"
# How long the one who submitted may take to write this job's number down.
OWN_JOB_SECONDS = 60.0
NUM_SHOWN = 5
# Reasons for which an array waits in a busy cluster, and which pass.
_QUEUES = ("Priority", "Resources", "None", "BeginTime", "ReqNodeNotAvail", "Reservation", "Licenses")
# squeue's silence is borne so often in a row: at 15 s a look, longer than a controller takes to fail over.
NUM_SILENCES = 40


def main(argv: Sequence[str]) -> int:
    """Run the job of a link; returns its exit code."""
    held = hold_signals()
    from data_pipeline.config import ConfigError
    from data_pipeline.stage import StageError
    from trainer.errors import RunError

    what, folder = argv[0], Path(argv[1])
    code = 1
    try:
        check_own_job(folder)
        code = _run_verb(folder, held) if what == "verb" else _run_spread(folder, held)
    except _Stopped as stopped:
        _tell(folder, f"{stopped}: stopped (중단됨); what is done stays done")
    except (ConfigError, StageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
    if code != STOPPED:
        with contextlib.suppress(OSError):  # for `dure status`, when SLURM has forgotten the job
            disk.write_json(folder / END_NAME, {"job": os.environ.get("SLURM_JOB_ID"), "code": code})
    return code


class _Stopped(Exception):  # noqa: N818 - not an error: this job was asked to end
    """A signal of this name came."""


def _run_verb(folder: Path, held: set[signal.Signals]) -> int:
    """The verb in this node's container, or here."""
    return run_child(_work("verb", folder, target=folder), held=held)


def _run_spread(folder: Path, held: set[signal.Signals]) -> int:
    """The stage; this job goes back into the queue where its own time limit is near, of which arrays know nothing."""
    spreading = Spread(folder, json.loads((folder / LINK_NAME).read_text(encoding="utf-8")), held)
    try:
        return spreading.run()
    except _Stopped as stopped:
        if str(stopped) != signal.SIGUSR1.name:
            raise
        return _go_on(spreading, f"{stopped}: the time limit of this job is near")


def _go_on(spreading: Spread, reason: str) -> int:
    """Requeue this job, unless its array did nothing since the last time though the queue is not what holds it up."""
    from launch.cluster import read_cluster
    from launch.requeue import Requeue, decide, note_requeue, read_requeues
    from launch.slurm import requeue

    folder, policy = spreading.folder, read_cluster(spreading.folder / TASKS_CLUSTER_NAME).requeue
    if spreading.waits_for in _QUEUES:
        policy = policy.model_copy(update={"max_requeues_without_progress": policy.max_requeues + 1})
    job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    num_done, num_tasks = spreading.count()
    ended = Requeue(job=job, restart=restart, step=num_done, reason=reason, data=f"{num_done:,} of {num_tasks:,} tasks")
    verdict = decide(policy, ended, before=read_requeues(folder), is_cancelled=False)
    waits = f"; its array waits: {spreading.told}" if spreading.waits_for else ""
    _tell(folder, f"{reason}; {verdict.why}{waits}")
    if not verdict.requeue:
        return 1
    note_requeue(folder, ended)
    requeue(job)
    return STOPPED


def _tell(folder: Path, line: str) -> None:
    from launch.rank_watch import tell

    tell(f"{folder.name}: {line}", who=WHO)


def check_own_job(folder: Path, *, seconds: float = OWN_JOB_SECONDS) -> None:
    """Refuse where pipeline.json names another job for this link: one that its submitter, killed, never wrote down."""
    from trainer.errors import RunError

    ours, deadline = os.environ.get("SLURM_JOB_ID"), time.monotonic() + seconds
    state = folder.parent / STATE_NAME
    while (named := disk.read_object(state).get("links", {}).get(folder.name, {}).get("job")) != ours:
        if time.monotonic() > deadline:
            raise RunError(
                f"{state}: the job of {folder.name} is {named}, this is {ours}; nothing was done. "
                "Submit the pipeline again"
            )
        time.sleep(0.5)


def run_child(command: Sequence[str], *, held: set[signal.Signals]) -> int:
    """Run `command` to its end; a stop signal ends it, and raises _Stopped."""
    from launch.job_step import let_signals_in

    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=let_signals_in)  # noqa: PLW1509
    try:
        while process.poll() is None:
            received = signal.sigtimedwait({*held, signal.SIGCHLD}, 0.5)
            if received is not None and received.si_signo != signal.SIGCHLD:
                raise _Stopped(signal.Signals(received.si_signo).name)
        return process.returncode
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _work(what: str, folder: Path, *, target: Path) -> list[str]:
    """The command of a part of launch/array_work.py for the link in `folder`, in the container of its profile."""
    from launch.cluster import read_cluster
    from launch.link import python_here

    cluster = read_cluster(folder / TASKS_CLUSTER_NAME)
    words = ["-m", "launch.array_work", what, str(target)]
    return python_here(cluster, words, workdir=Path.cwd(), folder=folder.parent)


@dataclass
class Spread:
    """A data stage over the cluster; `link` is what link.json says."""

    folder: Path
    link: dict[str, Any]
    held: set[signal.Signals]
    silences: int = 0
    waits_for: str = ""
    """SLURM's reason for which the array waits; "" while it runs. `told` is that in words."""
    told: str = ""

    def count(self) -> tuple[int, int]:
        """How many tasks are done now, of how many; of the last plan where no new one is to be had."""
        from trainer.errors import RunError

        with contextlib.suppress(RunError):
            Spread(self.folder, self.link, held=set())._plan()
        plan = disk.read_object(self.folder / PLAN_NAME)
        num_tasks = int(plan.get("num_tasks", 0))
        return num_tasks - sum(map(len, plan.get("waves", []))), num_tasks

    def run(self) -> int:
        """Bring the stage to its end; returns 0.

        Raises:
            StageError: a task failed, is told by name, and the rest was left out.
            RunError: SLURM refuses, or arrays end without a task done.
        """
        self._adopt()
        before: int | None = None
        while True:
            plan = self._plan()
            if plan["is_done"]:
                self._tell("done (완료)")
                shutil.rmtree(self.folder / LOCKS_NAME, ignore_errors=True)
                return 0
            left = sum(map(len, plan["waves"]))
            if left == 0:
                self._part("finish")
                continue
            self._check_progress(left, before)
            before = left
            self._wait(*self._submit(plan, left))

    def _part(self, what: str) -> None:
        from trainer.errors import RunError

        if code := run_child(_work(what, self.folder, target=self.folder), held=self.held):
            raise RunError(f"{self.folder.name}: {what} ended with exit code {code}; its message stands above")

    def _plan(self) -> dict[str, Any]:
        self._part("plan")
        plan: dict[str, Any] = json.loads((self.folder / PLAN_NAME).read_text(encoding="utf-8"))
        return plan

    def _check_progress(self, left: int, before: int | None) -> None:
        from trainer.errors import RunError

        if before is not None and left >= before:
            raise RunError(
                f"{self.folder.name}: {left:,} tasks are not done, and the last array did none of them, though none "
                f"says that it failed: killed for memory or by the time limit? Its logs are {self._logs}; raise "
                "cluster.memory or cluster.time_limit of the link, then submit the pipeline again"
            )

    @property
    def _logs(self) -> str:
        return str(self.folder / "logs" / "tasks-*.out")

    def _adopt(self) -> None:
        """Wait for the array that a job before this one left. One that never got a number must not begin any more."""
        arrays = sorted((self.folder / ARRAYS_NAME).glob("*")) if (self.folder / ARRAYS_NAME).is_dir() else []
        for array in arrays:
            job = disk.read_object(array / JOB_NAME).get("job")
            if job is None:
                (array / ELEMENTS_NAME).unlink(missing_ok=True)
            elif array == arrays[-1] and self._is_alive(job):
                self._tell(f"array {job} of a job before this one still runs: waiting for it")
                self._wait(array, job)

    def _is_alive(self, job: str) -> bool:
        from launch.slurm import job_states

        state = job_states([job]).get(job)
        return state is not None and not state.is_over

    def _submit(self, plan: dict[str, Any], left: int) -> tuple[Path, str]:
        """Submit the first unfinished wave; returns the array's folder and its job."""
        from launch import slurm
        from launch.cluster import read_cluster
        from launch.sbatch import sbatch_text
        from launch.submission import note_job

        tasks = plan["waves"][0]
        cluster = read_cluster(self.folder / TASKS_CLUSTER_NAME)
        elements = spread(tasks, most=cluster.max_array_size)
        array = self._new_folder()
        spec = {"verb": plan["verb"], "config": plan["config"], "locks": str(self.folder / LOCKS_NAME)}
        disk.write_json(array / SPEC_NAME, spec)
        lines = (json.dumps(element, ensure_ascii=False) + "\n" for element in elements)
        disk.write_bytes(array / ELEMENTS_NAME, "".join(lines).encode())
        at_once = min(cluster.max_running_tasks, len(elements))
        job = tasks_job(self.link, self.folder, array, cluster, array_range=f"0-{len(elements) - 1}%{at_once}")
        script = array / "tasks.sbatch"
        disk.write_bytes(script, os.fsencode(sbatch_text(job)))
        number = slurm.submit(script)
        disk.write_json(array / JOB_NAME, {"job": number})
        note_job(self.folder.parent, number, nodes=1, profile="", name=job.name, kind=plan["verb"])
        self._tell(
            f"wave {tasks[0]['wave']}: {len(tasks):,} tasks in {len(elements):,} elements as array {number}, at most "
            f"{at_once} at once; {left:,} of {plan['num_tasks']:,} tasks are left"
        )
        return array, number

    def _new_folder(self) -> Path:
        arrays = self.folder / ARRAYS_NAME
        number = 1 + max((int(path.name) for path in arrays.glob("*")), default=0) if arrays.is_dir() else 1
        folder = arrays / f"{number:04d}"
        (folder / FAILURES_NAME).mkdir(parents=True)
        return folder

    def _wait(self, array: Path, job: str) -> None:
        """Until no element of the array runs or waits; a stop signal cancels it, but for that of the time limit."""
        from launch.slurm import cancel

        self.told = ""
        while (line := self._state_of(job)) is not None:
            if line != self.told:
                self._tell(f"array {job}: {line}")
            self.told = line
            received = signal.sigtimedwait(self.held, self.link["poll_seconds"])
            if received is not None:
                if received.si_signo != signal.SIGUSR1:
                    cancel(job)
                raise _Stopped(signal.Signals(received.si_signo).name)
        self._raise_failures(array)

    def _state_of(self, job: str) -> str | None:
        """How it is with an array, in words; None when it is over. A controller that is away is asked again."""
        from launch.slurm import job_states, reason_in_words
        from trainer.errors import RunError

        try:
            state, self.silences = job_states([job]).get(job), 0
        except RunError as error:
            self.silences += 1
            if self.silences >= NUM_SILENCES:
                raise
            return f"{error}; asked again"
        if state is None or state.is_over:
            return None
        # Between two elements an array that may run only so many at once waits for itself.
        is_waiting = state.state == "PENDING" and state.reason != "JobArrayTaskLimit"
        self.waits_for = state.reason.partition(",")[0] if is_waiting else ""
        counts_too = "; this job, which waits for it, counts too: have that limit raised, or set array: false"
        hint = counts_too if "MaxJobs" in self.waits_for or self.waits_for == "AssociationJobLimit" else ""
        return reason_in_words(state.reason) + hint if is_waiting else "running"

    def _raise_failures(self, array: Path) -> None:
        from data_pipeline.stage import StageError

        failures = [disk.read_object(path) for path in sorted((array / FAILURES_NAME).iterdir())]
        if not failures:
            return
        shown = [str(failure.get("message")) for failure in failures[:NUM_SHOWN]]
        more = [f"… and {len(failures) - NUM_SHOWN} more in {array / FAILURES_NAME}"] * (len(failures) > NUM_SHOWN)
        advice = "tasks that are done stay done: correct it and submit the pipeline again"
        raise StageError("\n".join([*shown, *more, f"{self.folder.name}: {len(failures)} tasks failed; {advice}"]))

    def _tell(self, line: str) -> None:
        _tell(self.folder, line)


def spread(tasks: Sequence[Any], *, most: int) -> list[list[Any]]:
    """`tasks` over at most `most` elements: each gets every n-th, so that neighbours of like size are shared out."""
    count = min(most, len(tasks))
    return [list(tasks[index::count]) for index in range(count)]


def tasks_job(link: dict[str, Any], folder: Path, array: Path, cluster: Any, *, array_range: str) -> Any:
    """The array job of `array`, a folder with elements."""
    from launch.link import in_place
    from launch.sbatch import Job

    workdir = Path(link["workdir"])
    words = ["-m", "launch.array_work", "run", str(array)]
    return Job(
        name=f"{link['job_name']}.tasks",
        command=in_place(cluster, words, workdir=workdir, folder=folder.parent),
        cluster=cluster,
        nodes=1,
        log=folder / "logs" / "tasks-%A_%a.out",
        workdir=workdir,
        signal_seconds=0,
        array=array_range,
        uses_gpus=False,
    )


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
