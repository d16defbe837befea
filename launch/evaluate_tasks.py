"""`dure evaluate RUN --tasks …`: lm-eval's tasks by name, as a table and as lines of tasks.jsonl."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline import disk
from trainer.errors import RunError

TASKS_NAME = "tasks.jsonl"
GROUP_FOLDERS = (Path("configs/evaluate"), Path(__file__).resolve().parents[1] / "configs" / "evaluate")


def evaluate_tasks(arguments: argparse.Namespace) -> int:
    """Run the tasks, print each group as it is done, and add it to the run's tasks.jsonl, or to that of --output."""
    from trainer.lm_eval_tasks import require_lm_eval, run_groups
    from trainer.task_groups import find_groups

    names = [name for name in arguments.tasks.split(",") if name]
    if not names:
        raise RunError("--tasks: no name given; name some, such as --tasks kobest,haerae")
    if arguments.shards is not None:
        raise RunError(
            f"--shards: {arguments.shards} was given, but tasks of lm-eval bring their own data; leave it out"
        )
    groups = find_groups(names, folders=GROUP_FOLDERS)
    require_lm_eval()

    import torch

    from trainer.quiet import quieten_libraries
    from trainer.saved import find_saved

    quieten_libraries(use_gpu=torch.cuda.is_available())
    saved = find_saved(arguments.path, checkpoint=arguments.checkpoint)
    if saved.told:
        print(saved.told)
    folder = Path(arguments.output) if arguments.output else saved.run_folder
    if folder is None:
        print("a model folder keeps no results: they are printed alone (--output DIR writes them)")

    def tell(tree: Mapping[str, Any]) -> None:
        print("\n".join(task_lines(tree)))
        if folder is not None:
            write_line(folder / TASKS_NAME, tree)

    run_groups(
        saved,
        groups,
        num_fewshot=arguments.num_fewshot,
        limit=arguments.limit,
        batch_size=arguments.batch,
        dtype=arguments.dtype,
        on_group=tell,
    )
    if folder is not None:
        print(f"written: {folder / TASKS_NAME}")
    return 0


def write_line(path: Path, tree: Mapping[str, Any]) -> None:
    """Add a result to a file of them; what it holds already stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **tree}
    disk.append_line(path, json.dumps(line, ensure_ascii=False).encode())


def task_lines(tree: Mapping[str, Any]) -> list[str]:
    """The table of one group: a row a task, a column a metric."""
    from launch.verb_evaluate import aligned

    tasks: Mapping[str, Mapping[str, Any]] = tree["tasks"]
    metrics = list(dict.fromkeys(name for task in tasks.values() for name in task["metrics"]))
    rows = [["과제 task", "version", "few-shot", "questions", *metrics]]
    for name, task in tasks.items():
        counts = [str(task["version"]), str(task["num_fewshot"]), f"{task['num_questions']:,}"]
        rows.append([name, *counts, *(_cell(task["metrics"].get(metric)) for metric in metrics)])
    limited = f", {tree['limit']:,} questions a task at most (시험)" if tree["limit"] else ""
    score = "–" if tree["score"] is None else f"{tree['score']:.4f}"
    head = f"{tree['group']}: {tree['metric']} {score} over {tree['num_questions']:,} questions{limited}"
    held = f", base held in {tree['quantization']}" if tree["quantization"] else ""
    return [
        f"{head} (lm-eval {tree['lm_eval']}, {tree['dtype']}{held}, {tree['seconds']:.0f} s)",
        *_indented(aligned(rows)),
    ]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
