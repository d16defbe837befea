"""The pipelines that were submitted here: which of their links have a job, and what it does or waits for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launch import slurm
from launch.array import STATE_NAME
from launch.slurm import reason_in_words
from trainer.errors import RunError
from trainer.locate import DEFAULT_ROOT

PIPELINES_ROOT = DEFAULT_ROOT / "pipelines"


def pipelines(root: Path = PIPELINES_ROOT) -> list[dict[str, Any]]:
    """Each pipeline with a link whose job SLURM still knows: {name, folder, links: [{name, job, state, why}]}."""
    found = []
    for path in sorted(root.glob(f"*/{STATE_NAME}")):
        try:
            links = json.loads(path.read_text(encoding="utf-8"))["links"]
            states = slurm.job_states([str(link["job"]) for link in links.values()])
        except (OSError, ValueError, KeyError, TypeError, RunError):  # that SLURM is away is told by the runs' side
            continue
        shown = []
        for name, link in links.items():
            if (state := states.get(str(link["job"]))) is not None:
                why = reason_in_words(state.reason) if state.state == "PENDING" else state.nodes
                shown.append({"name": name, "job": str(link["job"]), "state": state.state, "why": why})
        if shown and not all(states[link["job"]].is_over for link in shown):
            found.append({"name": path.parent.name, "folder": str(path.parent), "links": shown})
    return found


def lines_of(pipeline: dict[str, Any]) -> list[str]:
    """A head and a line for each link."""
    links = pipeline["links"]
    size = max(len(link["name"]) for link in links)
    return [
        f"pipeline {pipeline['name']} (파이프라인)",
        *(f"    {link['name']:<{size}}  job {link['job']}  {link['state']}  {link['why']}".rstrip() for link in links),
    ]
