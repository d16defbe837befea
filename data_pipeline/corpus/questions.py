"""The rows of one file as a task asks about them: in their order, each with its place, the bad ones among them.

The readers are those of a build, so that every format, encoding and stray quote is taken as it is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.corpus.columns import MissingColumnError, RowShape, key_of
from data_pipeline.corpus.forms import Form, FormTable
from data_pipeline.corpus.kinds import RecordKind
from data_pipeline.corpus.mapping import Columns
from data_pipeline.corpus.records import Instruction, InstructionRecord, Message, Reject
from data_pipeline.corpus.sources import InputConfig, kind_of_name
from data_pipeline.corpus.task_rows import MAPPINGS, RowMapping, TaskName, TaskRow, as_instruction, known_keys
from data_pipeline.corpus.texts import RejectedRow, nothing_skipped, rows_in_order
from data_pipeline.corpus.turns import FaultyRowError, Turns

_UNUSED = Columns(instruction="instruction", output="output")  # a form must name some; a task's rows have their own


@dataclass(frozen=True)
class AskedRow:
    """`number` counts from 0 in the file, bad rows too; `row` is as it stands there, with the `answer` it may have."""

    number: int
    row: dict[str, Any]
    message: Message


def read_asked(path: Path, task: TaskName) -> Iterator[AskedRow | RejectedRow]:
    """What `task` asks of each row of a CSV, TSV, Parquet, JSONL or JSON file, AIHub's own among them; none left out.

    A file of another name is read as JSONL. Memory holds one row, of a small JSON file all.

    Raises:
        StageError: no such file, or a table whose columns hold nothing to be asked.
    """
    kind = kind_of_name(path.name)[0]
    name = "auto" if kind == "zip" else "jsonl" if kind in (None, "text") else kind
    options = InputConfig.model_validate({"path": path, "format": name})
    for number, found in enumerate(rows_in_order(options, _kind_of(task))):
        if isinstance(found, Reject):
            yield RejectedRow(number, found)
            continue
        assert isinstance(found, InstructionRecord)
        yield AskedRow(number, json.loads(json.loads(found.metadata)["row"]), found.messages[0])


def _kind_of(task: TaskName) -> RecordKind:
    forms = tuple(
        Form(mapping.name, _UNUSED, root=mapping.root, keys=mapping.keys, expand=partial(_expand, mapping=mapping))
        for mapping in MAPPINGS
        if mapping.task == task
    )
    table = FormTable(
        forms,
        partial(_to_question, task=task),
        row=task,
        what=f"what {task} asks about ({known_keys(task)})",
        korean="물을 열을 찾을 수 없음",
        columns="columns",
    )
    return RecordKind(RowShape(partial(_check, table=table), table.to_record), table.read_json, nothing_skipped)


def _check(columns: Iterable[str], options: InputConfig, *, table: FormTable) -> list[str]:
    """All columns: what nobody asks about goes to the answers' file with the rest of its row."""
    names = list(columns)
    if table.form_of(names, options) is None:
        raise MissingColumnError(f"no known form of {table.what} in the columns {', '.join(names)} ({table.korean})")
    return names


def _expand(element: Mapping[str, Any], *, mapping: RowMapping) -> Iterator[dict[str, Any]]:
    for asked in mapping.rows(element):
        own = {"id": asked.id, "question": asked.question, "text": asked.text}
        known = {"answer": asked.answer} if asked.answer else {}
        yield {"asked": asked, "row": (own if mapping.root else dict(element)) | known}


def _to_question(
    row: Mapping[str, Any], form: Form, options: InputConfig, position: int, *, task: TaskName
) -> Instruction:
    """One question as a record; raises FaultyRowError where the text or the question is empty."""
    asked: TaskRow = row["asked"]
    if not asked.text:
        raise FaultyRowError("empty_text", "the text is empty, or space alone")
    if task == "qa" and not asked.question:
        raise FaultyRowError("empty_question", "the question is empty, or space alone")
    said, turns = as_instruction(task, asked), Turns()
    turns.add_pair(said["instruction"], None, said["input"])
    # As text: the order of its columns is the user's.
    kept = {"row": json.dumps(row["row"], ensure_ascii=False, default=str)}
    return Instruction(key_of(asked.id, position), (turns.messages[0],), position, form.name, metadata=kept)
