"""What `dure evaluate` left in the folders of several runs, side by side: by source, and tasks of lm-eval."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.report_data import RunRecord, Tree, as_number
from launch.report_html import Markup, both, card, join, section, table, tag
from launch.report_rows import Row, better, cells_of, head_of, label_of, shower
from launch.report_summary import short
from trainer.run_folder import read_lines

EVALUATION_NAME, TASKS_NAME = "evaluation.json", "tasks.jsonl"


def evaluations_section(runs: Sequence[RunRecord]) -> Markup:
    """What `dure evaluate` left in the run folders: by source, and the tasks of lm-eval."""
    parts = [part for part in (_by_source(runs), _tasks(runs)) if part is not None]
    if not parts:
        words = "`dure evaluate`의 결과가 아직 없습니다 · `dure evaluate RUN [--tasks …]` has not been run on them"
        parts = [card(tag("p", words, cls="empty"))]
    return section("evaluations", "평가", "Evaluations", tag("div", *parts, cls="stack"))


def _by_source(runs: Sequence[RunRecord]) -> Markup | None:
    trees = [_object(run.folder / EVALUATION_NAME) for run in runs]
    if not any(trees):
        return None
    rows = [_row_of(name, name, [tree.get(name) for tree in trees]) for name in _floats(trees)]
    sources = [_tree(tree.get("sources")) for tree in trees]
    names = list(dict.fromkeys(name for tree in sources for name in tree))
    if len(names) > 1:
        for source in names:
            of_source = [_tree(tree.get(source)) for tree in sources]
            rows += [
                _row_of(f"{source}: {label_of(name)}", name, [tree.get(name) for tree in of_source])
                for name in _floats(of_source)
            ]
    counts = Row(both("행", "rows"), tuple(as_number(tree.get("num_documents")) for tree in trees), short)
    steps = Row(both("단계", "step"), tuple(as_number(tree.get("step")) for tree in trees), short)
    shown = [cells_of(row) for row in (*rows, counts, steps)]
    return card(tag("h3", both("검증 행 전체", "All held-out rows")), table(head_of(runs, ""), shown))


def _row_of(title: str, name: str, values: Sequence[Any]) -> Row:
    shown = label_of(name) if title == name else title
    return Row(shown, tuple(_finite(value) for value in values), shower(name), better(name))


def _finite(value: Any) -> float | None:
    number = as_number(value)
    return number if number is not None and math.isfinite(number) else None


def _floats(trees: Sequence[Tree]) -> list[str]:
    return list(dict.fromkeys(name for tree in trees for name, value in tree.items() if isinstance(value, float)))


def _tasks(runs: Sequence[RunRecord]) -> Markup | None:
    """The newest result of each task, few-shot count and limit; figures with a limit are a try."""
    found = [_newest(run.folder / TASKS_NAME) for run in runs]
    keys = list(dict.fromkeys(key for one in found for key in one))
    if not keys:
        return None
    rows = []
    for key in keys:
        task, shots, limit, metric = key
        tried = f", {limit} questions at most" if limit else ""
        name = join(tag("code", task), f" {metric} ({shots}-shot{tried})")
        values = tuple(one.get(key) for one in found)
        rows.append(cells_of(Row(name, values, shower(metric), better(metric))))
    return card(tag("h3", both("과제", "Tasks of lm-eval")), table(head_of(runs, ""), rows))


def _newest(path: Path) -> dict[tuple[str, Any, Any, str], float]:
    found = {}
    for line in read_lines(path):
        if not isinstance(line, dict):
            continue
        for task, tree in _tree(line.get("tasks")).items():
            for metric, value in _tree(_tree(tree).get("metrics")).items():
                if (number := _finite(value)) is not None:
                    shots, limit = as_number(_tree(tree).get("num_fewshot")), as_number(line.get("limit"))
                    found[(str(task), short(shots or 0), short(limit) if limit else "", str(metric))] = number
    return found


def _object(path: Path) -> Tree:
    try:
        return _tree(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}


def _tree(value: Any) -> Tree:
    return value if isinstance(value, dict) else {}
