"""What state a run is in and why, judged from its folder and from what SLURM says of its jobs; in a person's words."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch.look_events import last_events
from launch.look_find import Found
from launch.look_jobs import Jobs, jobs_of
from launch.look_lines import last_objects
from launch.look_words import ago, clock
from launch.requeue import CANCELLED_NAME
from launch.slurm import JobState, reason_in_words
from launch.submission import JOBS_NAME
from trainer.beats import ENDED, Beat, beat_path, read_beat
from trainer.checkpoint_marker import find_complete, step_of
from trainer.hang import REASON_PREFIX
from trainer.resilience import DONE, REFUSED, STOPPED, ExitRecord
from trainer.run_folder import ATTEMPTS_NAME, CHECKPOINTS_NAME, METRICS_NAME, read_exit
from trainer.run_lock import Holder, holder_of, seems_alive

State = Literal[
    "running",
    "starting",
    "ending",
    "waiting",
    "done",
    "stopped",
    "cancelled",
    "failed",
    "refused",
    "hung",
    "killed",
    "silent",
    "unknown",
    "new",
]
IN_KOREAN: dict[State, str] = {
    "running": "학습 중",
    "starting": "준비 중",
    "ending": "마치는 중",
    "waiting": "대기 중",
    "done": "완료",
    "stopped": "저장 후 멈춤",
    "cancelled": "취소됨",
    "failed": "실패",
    "refused": "거부됨",
    "hung": "정지 감지",
    "killed": "강제 종료",
    "silent": "응답 없음",
    "unknown": "알 수 없음",
    "new": "시작 전",
}
LIVE: frozenset[State] = frozenset({"running", "starting", "ending", "waiting"})
_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_ENDING = frozenset({"COMPLETING", "STAGE_OUT", "SIGNALING"})
_NO_START = "its ranks were never started"


@dataclass(frozen=True)
class Facts:
    """What lies in the folder, and which of its jobs is the latest that SLURM has not ended."""

    run: Found
    jobs: Jobs
    holder: Holder | None
    lives: bool
    exit: ExitRecord | None
    attempt: dict[str, Any]
    noted: dict[str, Any]
    job: str
    job_state: JobState | None
    checkpoint_step: int
    beat: Beat | None
    logged_at: float
    now: float

    @property
    def advice(self) -> str:
        """How it goes on."""
        if self.checkpoint_step < 0:
            return "no checkpoint stands; the same command begins anew"
        return f"the same command goes on from step {self.checkpoint_step:,}"

    @property
    def has_started(self) -> bool:
        """Whether this attempt has loaded, and trains."""
        started = [event.time for event in last_events(self.run.folder, 50) if event.kind == "started"]
        return bool(started) and started[-1] >= float(self.attempt.get("time", 0))

    @property
    def phase(self) -> str:
        """What rank 0 does; beats are rare, so what was logged since tells more. "" where nothing tells."""
        if self.beat is not None and self.logged_at <= self.beat.time:
            return self.beat.phase if self.beat.phase != ENDED else ""
        return "step" if self.has_started else ""


def gather(run: Found, jobs: Jobs, *, now: float) -> Facts:
    """What can be known of a run at once."""
    folder = run.folder
    holder = holder_of(folder)
    states = [(job, state) for job in jobs_of(folder) if (state := jobs.states.get(job)) and not state.is_over]
    last = next(iter(last_objects(folder / ATTEMPTS_NAME, 1)), {})
    job, job_state = states[-1] if states else (str(last.get("job") or ""), None)
    is_over = holder is not None and bool(holder.job) and bool(jobs.ended(holder.job))
    found = find_complete(folder / CHECKPOINTS_NAME)
    return Facts(
        run=run,
        jobs=jobs,
        holder=holder,
        lives=holder is not None and not is_over and seems_alive(holder),
        exit=read_exit(folder),
        attempt=last,
        noted=next(iter(last_objects(folder / JOBS_NAME, 1)), {}),
        job=job,
        job_state=job_state,
        checkpoint_step=step_of(found[0]) if found else -1,
        beat=read_beat(beat_path(folder, 0)),
        logged_at=_changed(folder / METRICS_NAME),
        now=now,
    )


def judge(facts: Facts) -> tuple[State, str]:
    """The state, and the reason that a person needs with it."""
    if facts.lives:
        return _judge_living(facts)
    if facts.job_state is not None:
        return _judge_job(facts, facts.job_state)
    if (unseen := _unseen_job(facts)) is not None:
        return unseen
    if facts.exit is not None:
        return _judge_exit(facts, facts.exit)
    if not facts.attempt:
        return "new", "nothing has begun yet"
    return _judge_lost(facts)


def _judge_living(facts: Facts) -> tuple[State, str]:
    if facts.exit is not None:
        return "ending", f"has ended ({facts.exit.reason}), its ranks are leaving"
    if not facts.has_started:
        return "starting", "loads model and data" if facts.beat is not None else "its ranks are starting"
    words = {"warm-up": "its first step is under way", "evaluate": "evaluates", "save": "saves a checkpoint"}
    return "running", words.get(facts.phase, "")


def _judge_job(facts: Facts, state: JobState) -> tuple[State, str]:
    if state.state in _WAITING:
        begins = ""
        if state.start is not None and state.start > facts.now:
            begins = f"; expected to begin at {clock(state.start, now=facts.now)}"
        again = f"back in the queue after {_times(state.restarts)}: " if state.restarts else ""
        return "waiting", f"{again}{reason_in_words(state.reason)}{begins}"
    if state.state in _ENDING:
        return "ending", f"job {facts.job} is {state.state}"
    if state.state in ("SUSPENDED", "STOPPED"):
        return "waiting", f"job {facts.job} is {state.state}: SLURM holds it back (일시 정지)"
    return "starting", "its nodes are looked at and its ranks started"


def _times(count: int) -> str:
    return "a requeue" if count == 1 else f"{count} requeues"


def _unseen_job(facts: Facts) -> tuple[State, str] | None:
    """What became of the job that was submitted last, where it left no attempt in the folder."""
    job = str(facts.noted.get("job", ""))
    ended_at = max(float(facts.attempt.get("time", 0)), facts.exit.time if facts.exit is not None else 0)
    if not job or facts.attempt.get("job") == job or float(facts.noted.get("time", 0)) < ended_at:
        return None
    if facts.jobs.fault:
        return "unknown", f"job {job}: {facts.jobs.fault}"
    how = facts.jobs.ended(job)
    if _is_cancelled(facts) or how == "CANCELLED":
        return "cancelled", f"job {job} was cancelled before its ranks were started"
    told = f" ({how})" if how else ""
    return "failed", f"job {job} ended{told}, {_NO_START}; `dure logs {facts.run.name}` shows what it said"


def _judge_exit(facts: Facts, record: ExitRecord) -> tuple[State, str]:
    when = ago(record.time, now=facts.now)
    logs = f"`dure logs {facts.run.name}`"
    if record.code == DONE:
        return "done", f"{record.reason}, {when}"
    if record.code == STOPPED:
        if _is_cancelled(facts):
            return "cancelled", f"{record.reason}, saved, {when}; {facts.advice}"
        return "stopped", f"{record.reason}, saved, {when}; {facts.advice}"
    if record.code == REFUSED:
        return "refused", f"{when}: {record.reason}"
    if record.reason.startswith(REASON_PREFIX):
        return "hung", f"{when}: {record.reason.removeprefix(REASON_PREFIX)}; {facts.advice}"
    return "failed", f"{when}: {record.reason}; {logs} shows more, {facts.advice}"


def _judge_lost(facts: Facts) -> tuple[State, str]:
    """An attempt that left no word: its holder is gone, or can't be asked and beats no more."""
    holder = facts.holder
    job = str(facts.attempt.get("job") or "")
    ended = facts.jobs.ended(job) if job else ""
    if holder is not None and not ended and holder.host != socket.gethostname():
        return "silent", (
            f"pid {holder.pid} on {holder.host} has not beaten since {ago(holder.heartbeat, now=facts.now)}: the host "
            f"is down or cut off; {facts.advice}"
        )
    how = f", job {job} is {ended}" if ended else ": kill -9, out of memory (메모리 부족), or the power went"
    return "killed", f"ended without a word{how}; {facts.advice}"


def _is_cancelled(facts: Facts) -> bool:
    """Whether `dure cancel` was called on what ran or waited last."""
    marked_at = _changed(facts.run.folder / CANCELLED_NAME)
    return marked_at > max(float(facts.attempt.get("time", 0)), float(facts.noted.get("time", 0)))


def _changed(path: Path) -> float:
    """When a file was written last; 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
