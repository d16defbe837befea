"""Rows of a file -> what a model is asked: the forms that `corpus build` knows, with or without their answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.corpus.instructions import FORMS, value_at
from data_pipeline.corpus.records import Message
from data_pipeline.corpus.turns import FaultyRowError, Turns
from trainer.errors import RunError

Row = dict[str, Any]


@dataclass(frozen=True)
class QuestionRow:
    """`number` counts from 0 in the file; `messages` end with a user turn; `row` is as it stands there."""

    number: int
    row: Row
    messages: tuple[Message, ...]


def read_questions(path: Path) -> list[QuestionRow]:
    """Every row of a JSONL file, or of a JSON file that is one array.

    Raises:
        RunError: a row without a question, and what the row is; nothing is asked then.
    """
    return [
        QuestionRow(number, row, tuple(_messages_of(row, where=f"{path}: row {number}")))
        for number, row in enumerate(_rows(path))
    ]


def _rows(path: Path) -> Iterator[Row]:
    # utf-8-sig: files from Windows begin with a mark.
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    is_array = text.lstrip().startswith("[")
    lines = (_parsed(line, f"{path}: {line[:40]!r}") for line in _lines(text))
    values = _parsed(text, f"{path}") if is_array else lines
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise RunError(f"{path}: row {number} is a {type(value).__name__}, not an object; write rows {_KNOWN}")
        yield value


def _lines(text: str) -> Iterator[str]:
    # Not splitlines: U+2028 and the like may stand inside a row.
    return (line for line in text.split("\n") if line.strip())


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RunError(f"{where}: not JSON: {error}; write one object a line") from None


_KNOWN = 'like {"instruction": …}, {"prompt": …}, {"question": …} or {"messages": […]}'


def _messages_of(row: Mapping[str, Any], *, where: str) -> list[Message]:
    for form in FORMS:
        columns = form.columns
        asked = columns.messages or columns.instruction
        if form.root or not asked or asked not in row:
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
