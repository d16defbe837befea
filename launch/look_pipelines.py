"""The pipelines that were submitted here: how each link's last job stands, until all of them are done.

SLURM forgets a job minutes after its end; then what the job left on the disk tells, and the accounts where there are
any.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from data_pipeline import disk
from launch import slurm
from launch.array import ARRAYS_NAME, END_NAME, JOB_NAME, STATE_NAME
from launch.slurm import JobState, reason_in_words
from trainer.errors import RunError
from trainer.locate import DEFAULT_ROOT
from trainer.resilience import DONE
from trainer.run_folder import read_exit, read_lines

PIPELINES_ROOT = DEFAULT_ROOT / "pipelines"
KNOWN_NAME = "elsewhere.jsonl"
UNKNOWN = "UNKNOWN"
COMPLETED, FAILED, CANCELLED = "COMPLETED", "FAILED", "CANCELLED"


def note_pipeline(folder: Path, root: Path = PIPELINES_ROOT) -> None:
    """Write down where the pipeline lies whose `folder` is not below `root`, so that it is found again."""
    path = root / KNOWN_NAME
    known = {line.get("folder") for line in read_lines(path)}
    if not folder.absolute().is_relative_to(root.absolute()) and str(folder) not in known:
        root.mkdir(parents=True, exist_ok=True)
        disk.append_line(path, json.dumps({"folder": str(folder)}, ensure_ascii=False).encode())


def pipelines(root: Path = PIPELINES_ROOT) -> list[dict[str, Any]]:
    """Each pipeline whose last submission is not done: {kind, name, folder, links, failed, log}.

    links: [{name, job, state, why}], the state as SLURM names it or UNKNOWN. failed: the first link that is ended
    without success, and `log` that of its job; "" where there is none.
    """
    elsewhere = (Path(str(line["folder"])) for line in read_lines(root / KNOWN_NAME) if "folder" in line)
    states_at = [*sorted(root.glob(f"*/{STATE_NAME}")), *(folder / STATE_NAME for folder in elsewhere)]
    found = []
    for path in dict.fromkeys(states_at):
        try:
            links = json.loads(path.read_text(encoding="utf-8"))["links"]
            looked = [_look(path.parent, name, link) for name, link in _with_states(links).items()]
        except (OSError, ValueError, KeyError, TypeError, RunError):  # that SLURM is away is told by the runs' side
            continue
        if all(link["state"] in (COMPLETED, UNKNOWN) for link in looked):
            continue
        over = (link for link in looked if link["state"] in slurm.OVER - {COMPLETED})
        failed = min(over, key=lambda link: bool(link["state"] == CANCELLED), default=None)
        found.append(
            {
                "kind": "pipeline",
                "name": path.parent.name,
                "folder": str(path.parent),
                "links": [{key: link[key] for key in ("name", "job", "state", "why")} for link in looked],
                "failed": failed["name"] if failed else "",
                "log": failed["log"] if failed else "",
            }
        )
    return found


def _with_states(links: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The links with what SLURM says of their jobs: asked once for those that it knows, then of its accounts."""
    jobs = [str(link["job"]) for link in links.values()]
    states = slurm.job_states(jobs)
    accounts: dict[str, str] = {}
    if forgotten := [job for job in jobs if job not in states]:
        with contextlib.suppress(RunError):
            accounts = slurm.ended_states(forgotten)
    return {
        name: {**link, "known": states.get(str(link["job"])), "account": accounts.get(str(link["job"]), "")}
        for name, link in links.items()
    }


def _look(folder: Path, name: str, link: dict[str, Any]) -> dict[str, Any]:
    job, known = str(link["job"]), link["known"]
    state = known.state if known is not None else _end_on_disk(folder / name, link) or link["account"] or UNKNOWN
    why = "" if known is None else _why(folder / name, known)
    log = str(link.get("log") or folder / name / "logs" / f"slurm-{job}.out")
    return {"name": name, "job": job, "state": state, "why": why, "log": log}


def _end_on_disk(folder: Path, link: dict[str, Any]) -> str:
    """How the job says that it ended; "" where it said nothing: it was killed, or its run is one of an older submit."""
    if "run" in link:
        record = read_exit(Path(str(link["run"])))
        is_of_this = record is not None and record.time >= float(link.get("time", 0.0))
        return "" if record is None or not is_of_this else COMPLETED if record.code == DONE else FAILED
    end = disk.read_object(folder / END_NAME)
    if str(end.get("job")) != str(link["job"]):
        return ""
    return COMPLETED if end.get("code") == DONE else FAILED


def _why(folder: Path, known: JobState) -> str:
    """What a job waits for, or where it runs; of one that spreads tasks, what their array waits for."""
    if known.state == "PENDING":
        return reason_in_words(known.reason)
    arrays = sorted((folder / ARRAYS_NAME).glob(f"*/{JOB_NAME}"))
    if known.state != "RUNNING" or not arrays:
        return known.nodes
    array = str(disk.read_object(arrays[-1]).get("job", ""))
    state = slurm.job_states([array]).get(array) if array else None
    if state is None or state.is_over:
        return known.nodes
    waits = state.state == "PENDING" and state.reason != "JobArrayTaskLimit"
    told = reason_in_words(state.reason) if waits else state.state
    return f"{known.nodes}; its array {array}: {told}"


def lines_of(pipeline: dict[str, Any]) -> list[str]:
    """A head and a line for each link, and where the one that failed says why."""
    links = pipeline["links"]
    size = max(len(link["name"]) for link in links)
    lines = [
        f"pipeline {pipeline['name']} (파이프라인)",
        *(f"    {link['name']:<{size}}  job {link['job']}  {link['state']}  {link['why']}".rstrip() for link in links),
    ]
    if pipeline["failed"]:
        told = f"{pipeline['failed']} failed (실패): {pipeline['log']}"
        lines.append(f"    {told}; correct it, then submit the pipeline again")
    return lines
