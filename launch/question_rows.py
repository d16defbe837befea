"""Rows of a file -> what a model is asked: the forms that `corpus build` knows, with or without their answers."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.corpus.forms import value_at
from data_pipeline.corpus.instructions import FORMS
from data_pipeline.corpus.json_stream import JsonError, iterate_values
from data_pipeline.corpus.questions import AskedRow, read_asked
from data_pipeline.corpus.records import Message, Reject
from data_pipeline.corpus.task_rows import TaskName
from data_pipeline.corpus.turns import FaultyRowError, Turns
from data_pipeline.stage import StageError
from trainer.errors import RunError

Row = dict[str, Any]


@dataclass(frozen=True)
class QuestionRow:
    """`number` counts from 0 in the file; `messages` end with a user turn; `row` is as it stands there.

    `fault`: why nothing can be asked of it; its messages are none then.
    """

    number: int
    row: Row
    messages: tuple[Message, ...]
    fault: Reject | None = None


def read_questions(path: Path) -> Iterator[QuestionRow]:
    """Each row of a JSONL file, or of a JSON file that is one array, as it is read: memory holds one.

    Raises:
        RunError: a row without a question, and what the row is.
    """
    for number, row in enumerate(_rows(path)):
        yield QuestionRow(number, row, tuple(_messages_of(row, where=f"{path}: row {number}")))


def _rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        is_array = _first_byte(file) == b"["
        file.seek(0)
        for number, value in enumerate(_elements(file, path) if is_array else _lines(file, path)):
            if not isinstance(value, dict):
                raise RunError(f"{path}: row {number} is a {type(value).__name__}, not an object; write rows {_KNOWN}")
            yield value


def read_task(path: Path, task: TaskName) -> Iterator[QuestionRow]:
    """What a task asks of each row of a CSV, TSV, Parquet, JSONL or JSON file; a bad row stands in its place.

    Raises:
        RunError: no such file, or a table whose columns hold nothing to be asked.
    """
    try:
        for found in read_asked(path, task):
            if isinstance(found, AskedRow):
                yield QuestionRow(found.number, found.row, (found.message,))
            else:
                yield QuestionRow(found.number, {}, (), fault=found.reject)
    except StageError as error:
        raise RunError(f"{path}: {str(error).removeprefix('inputs.0: ')}") from None


def _first_byte(file: BinaryIO) -> bytes:
    """The first that is neither space nor the mark with which files from Windows begin."""
    if file.read(len(BOM_UTF8)) != BOM_UTF8:
        file.seek(0)
    while (byte := file.read(1)).isspace():
        continue
    return byte


def _elements(file: BinaryIO, path: Path) -> Iterator[Any]:
    try:
        for _, _, value in iterate_values(file):
            yield value
    except JsonError as error:
        raise RunError(
            f"{path}: byte {error.offset}: not JSON: {error}; write an array, or one object a line"
        ) from None


def _lines(file: BinaryIO, path: Path) -> Iterator[Any]:
    # Bytes end at newlines alone: U+2028 and the like may stand inside a row.
    start = 0
    for data in file:
        line = _decoded(data, path, start=start)
        start += len(data)
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            shown = line.rstrip()[:40]
            raise RunError(f"{path}: {shown!r}: not JSON: {error}; write one object a line") from None


def _decoded(data: bytes, path: Path, *, start: int) -> str:
    try:
        return data.decode("utf-8" if start else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: byte {start + error.start} is not UTF-8; save the file as UTF-8") from None


_KNOWN = 'like {"instruction": …}, {"prompt": …}, {"question": …} or {"messages": […]}'


def _messages_of(row: Mapping[str, Any], *, where: str) -> list[Message]:
    for form in FORMS:
        columns = form.columns
        asked = columns.messages or columns.instruction
        if form.root or form.expand is not None or not asked or asked not in row:
            continue
        turns = Turns()
        try:
            if columns.messages:
                turns.add_chat(row[asked])
            else:
                turns.add_pair(row[asked], None, value_at(row, columns.input) if columns.input else None)
        except FaultyRowError as fault:
            raise RunError(f"{where}: {fault}; mend the row") from None
        messages = turns.messages
        if messages and messages[-1]["role"] == "assistant":  # the answer that is known, or that is asked for
            messages.pop()
        system = value_at(row, columns.system) if columns.system else None
        if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
            messages.insert(0, Message(role="system", content=system, input=""))
        if not messages or not messages[-1]["content"].strip():
            raise RunError(f"{where}: its {asked} holds no question; mend the row, or leave it out")
        return messages
    raise RunError(f"{where}: no question among the keys {', '.join(row) or '(none)'}; write rows {_KNOWN}")
