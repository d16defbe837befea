"""`python -m launch.array_work plan|run|finish|verb FOLDER`: the work in a pipeline's jobs, in their container if any.

plan, finish: of a link's stage (FOLDER is the link's). run: one element of an array (FOLDER is the array's). verb: a
link that is one job. Knows no SLURM but the number of its own element.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

LINK_NAME, PLAN_NAME = "link.json", "plan.json"
SPEC_NAME, ELEMENTS_NAME, FAILURES_NAME, LOCKS_NAME = "spec.json", "elements.jsonl", "failures", "locks"
_THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS")


def main(argv: Sequence[str]) -> int:
    """Do one part; returns its exit code, after an error's message."""
    from launch.cli import exit_code_of, message_of

    what, folder = argv
    try:
        return {"plan": plan, "run": run_element, "finish": finish, "verb": run_verb}[what](Path(folder))
    except Exception as error:
        if (code := exit_code_of(error)) is None or os.environ.get("DURE_TRACEBACK") == "1":
            raise
        print(message_of(error), file=sys.stderr, flush=True)
        return code


def plan(folder: Path) -> int:
    """Write plan.json: whether the stage is done, its config, and the tasks that are not, by wave."""
    from data_pipeline import disk
    from data_pipeline.config import to_tree
    from launch.link import arguments_of, stage_config, stage_of

    link = read_link(folder)
    config = stage_config(link.verb, arguments_of(link))
    stage = stage_of(link.verb, config)
    is_done = stage.is_done()
    tasks = [] if is_done else stage.plan()
    waves: dict[int, list[dict[str, Any]]] = {}
    for task in tasks:
        if not stage.is_task_done(task):
            waves.setdefault(task.wave, []).append(asdict(task))
    ordered = [waves[wave] for wave in sorted(waves)]
    found = {"is_done": is_done, "num_tasks": len(tasks), "waves": ordered, "verb": link.verb}
    disk.write_json(folder / PLAN_NAME, {**found, "config": to_tree(config)})
    return 0


def finish(folder: Path) -> int:
    """Commit the stage whose tasks are all done, with the config that they were planned with."""
    from launch.link import stage_of

    planned = json.loads((folder / PLAN_NAME).read_text(encoding="utf-8"))
    stage = stage_of(planned["verb"], planned["config"])
    manifest = stage.finish()
    print(f"{stage.output}: {manifest['kind']} done (완료)", flush=True)
    return 0


def run_element(folder: Path) -> int:
    """Run the tasks of this element of the array, one after the other; the first that fails ends it.

    Nothing is begun where the array was superseded, or where a task of another element has failed already.
    """
    _use_the_cores_of_this_task()
    index = int(os.environ["SLURM_ARRAY_TASK_ID"])
    if (tasks := _tasks_of(folder, index)) is None:
        print(f"{folder}: superseded by another array; nothing was begun", flush=True)
        return 0
    from data_pipeline.stage import Task
    from launch.link import stage_of

    spec = json.loads((folder / SPEC_NAME).read_text(encoding="utf-8"))
    stage = stage_of(spec["verb"], spec["config"])
    for number, tree in enumerate(tasks):
        if any((folder / FAILURES_NAME).iterdir()):
            left = ", ".join(task["name"] for task in tasks[number:])
            print(f"left out, as another task failed (see {folder / FAILURES_NAME}): {left}", flush=True)
            return 0
        _run_task(stage, Task(**tree), spec=spec, folder=folder)
    return 0


def _tasks_of(folder: Path, index: int) -> list[dict[str, Any]] | None:
    """The tasks of element `index`; None where the array is not to run any more."""
    try:
        with (folder / ELEMENTS_NAME).open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == index:
                    found: list[dict[str, Any]] = json.loads(line)
                    return found
    except FileNotFoundError:
        return None
    raise ValueError(f"{folder / ELEMENTS_NAME}: no element {index}")


def _run_task(stage: Any, task: Any, *, spec: dict[str, Any], folder: Path) -> None:
    from data_pipeline import disk
    from launch.tasks import TaskError, run_task

    started = time.monotonic()
    # An array that lost its coordinator may still run where another was submitted for the same tasks.
    with disk.locked(Path(spec["locks"]) / f"{task.name}.lock"):
        if stage.is_task_done(task):
            print(f"task {task.name}: stands already", flush=True)
            return
        try:
            run_task(stage, task, label=spec["verb"])
        except TaskError as error:
            failure = {"task": task.name, "message": str(error), "element": os.environ["SLURM_ARRAY_TASK_ID"]}
            disk.write_json(folder / FAILURES_NAME / f"{task.name}.json", failure)
            raise
    print(f"task {task.name}: done in {time.monotonic() - started:.1f} s", flush=True)


def _use_the_cores_of_this_task() -> None:
    """Native threads (Arrow, tokenizers, numba) as many as SLURM gave cores, whatever the machine has."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    for name in _THREADS:
        os.environ.setdefault(name, cores)


def run_verb(folder: Path) -> int:
    """Call the verb of a link that is one job, and write down on which inputs it succeeded."""
    from data_pipeline import disk
    from launch import cli
    from launch.link import BEGUN_NAME, DONE_NAME, arguments_of, verb_inputs, was_cut_off_after_its_work

    link = read_link(folder)
    if link.kind != "verb":
        return cli.main([*link.verb.split(), *link.args])
    inputs = verb_inputs(link, arguments_of(link))
    if was_cut_off_after_its_work(link, folder):
        print(f"{link.name}: its result stands already, made by a job that was cut off after it", flush=True)
        code = cli.DONE
    else:
        disk.write_json(folder / BEGUN_NAME, inputs)
        code = cli.main([*link.verb.split(), *link.args])
    if code == cli.DONE:
        disk.write_json(folder / DONE_NAME, inputs)
    return code


def read_link(folder: Path) -> Any:
    """The link whose job this is."""
    from data_pipeline.config import validate
    from launch.link import LinkConfig

    tree = json.loads((folder / LINK_NAME).read_text(encoding="utf-8"))
    return validate(tree["link"], LinkConfig, where=str(folder / LINK_NAME))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
