"""`dure cancel`: a run ends with a save, wherever it runs, and stays ended; says which step stands."""

from __future__ import annotations

import argparse
import sys

from launch.look_cancel import Cancel
from launch.look_cancel_pipeline import cancel_pipeline, pipeline_named
from launch.look_find import find_run
from launch.look_jobs import ask
from launch.look_run import Look, look_at
from trainer.checkpoint_marker import step_name
from trainer.resilience import DONE, STOPPED
from trainer.run_folder import CHECKPOINTS_NAME, read_exit

_FAILED = 1


def cancel(arguments: argparse.Namespace) -> int:
    """0 where the run is ended and its step saved, or nothing was to be ended; 1 where it ended without its save.

    The name of a pipeline ends all its jobs.
    """
    if (pipeline := pipeline_named(arguments.path)) is not None:
        if not (count := cancel_pipeline(pipeline, tell=_tell, now=arguments.now)):
            print(f"{pipeline}: nothing to cancel (취소할 것 없음): none of its jobs waits or runs")
        else:
            print(f"{pipeline}: {count} jobs ended; what is done stays done, the same submit goes on from it")
        return 0
    run = find_run(arguments.path)
    before = look_at(run, ask([run.folder]))
    ending = Cancel(run, tell=_tell, now=arguments.now)
    try:
        if not ending.end():
            print(f"{run.name}: nothing to cancel (취소할 것 없음): {before.title}{_because(before)}")
            return 0
    except KeyboardInterrupt:
        print(f"\n{run.name}: it was told, and ends by itself; `dure status {run.name}` says when", file=sys.stderr)
        return 130
    after = look_at(run, ask([run.folder]))
    record = read_exit(run.folder)
    print(f"{run.name}: {after.title}; {_stands(after)}")
    if arguments.now or not ending.found_ranks or (record is not None and record.code in (DONE, STOPPED)):
        return 0
    print(f"{run.name}: ended without a save{_because(after)}", file=sys.stderr)
    return _FAILED


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _because(look: Look) -> str:
    return f": {look.why}" if look.why else ""


def _stands(look: Look) -> str:
    if look.checkpoint_step < 0:
        return "no checkpoint stands, so the next start begins anew"
    folder = look.folder / CHECKPOINTS_NAME / step_name(look.checkpoint_step)
    return f"step {look.checkpoint_step:,} stands (남은 단계): {folder}; the same command goes on from it"
