"""Rows of questions and answers -> turns, by a table: a further way to spell them is a row of `FORMS`, not code.

Which form a row has is told by its keys, or by `columns` of the config. How a model is shown the turns is a template's
business.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from data_pipeline.corpus.columns import key_of
from data_pipeline.corpus.forms import Form, FormTable, value_at
from data_pipeline.corpus.mapping import Columns
from data_pipeline.corpus.records import Instruction
from data_pipeline.corpus.sources import InputConfig, Kind
from data_pipeline.corpus.task_rows import expand
from data_pipeline.corpus.turns import Turns


def _pair(instruction: str, output: str, **more: str) -> Columns:
    return Columns(instruction=instruction, output=output, **more)


def _task(name: str, *keys: str, root: str = "") -> Form:
    """Rows of a task: questions in the words of tasks.yaml."""
    columns = _pair("instruction", "output", input="input", id="id")
    return Form(name, columns, root=root, source=name, keys=keys, expand=functools.partial(expand, name=name))


# The first that fits counts: a row of `messages` may carry its first `prompt` beside them.
FORMS: tuple[Form, ...] = (
    Form(
        name="aihub_71748",  # 초거대AI 언어모델: SFTlabel.json
        columns=_pair("question", "answer", id="data_id"),
        root="data_info",
        source="aihub_71748",
        metadata={"category": "data_category", "question_type": "question_type"},
    ),
    _task("aihub_92", "paragraphs", root="data"),  # 기계독해
    _task("aihub_97", "text", "abstractive", root="documents"),  # 문서요약 텍스트
    Form("chat", Columns(messages="messages", system="system")),
    Form("sharegpt", Columns(messages="conversations", system="system")),
    Form("alpaca", _pair("instruction", "output", input="input", system="system")),
    Form("dolly", _pair("instruction", "response", input="context", system="system")),
    Form("question_answer", _pair("question", "answer", system="system")),
    Form("question_response", _pair("question", "response", system="system_prompt")),
    Form("prompt_completion", _pair("prompt", "completion", system="system")),
    Form("prompt_response", _pair("prompt", "response", system="system")),
    Form("q_a", _pair("Q", "A")),
    Form("질문_답변", _pair("질문", "답변")),
    _task("aihub_126", "원문", "번역문"),  # 한국어-영어 번역, its xlsx saved as CSV
)
# AIHub's files of other records, which lie beside SFTlabel.json.
_OTHER_RECORDS = (
    (re.compile(r"(^|/)RMlabel[^/]*\.json$", re.IGNORECASE), "preference_file"),
    (re.compile(r"(^|/)PPOdata[^/]*\.json$", re.IGNORECASE), "prompt_file"),
)


def skip_reason(path: str, kind: Kind | None) -> str:
    """Why the file at `path` holds no instruction rows; "" where it may."""
    if kind == "text":
        return "text_has_no_rows"
    return next((reason for pattern, reason in _OTHER_RECORDS if pattern.search(path)), "")


def _to_instruction(row: Mapping[str, Any], form: Form, options: InputConfig, position: int) -> Instruction:
    """The turns in `row`; raises FaultyRowError where there are none."""
    turns = Turns()
    columns = form.columns
    if columns.messages:
        turns.add_chat(value_at(row, columns.messages))
    else:
        given = value_at(row, columns.input) if columns.input else None
        turns.add_pair(value_at(row, columns.instruction), value_at(row, columns.output), given)
    turns.close(system=value_at(row, columns.system) if columns.system else None)
    paths = form.metadata | {column: column for column in options.metadata_columns}
    return Instruction(
        key=key_of(value_at(row, columns.id or "id"), position),
        messages=tuple(turns.messages),
        position=position,
        form=form.name,
        source=form.source,
        metadata={name: value_at(row, path) for name, path in paths.items()},
        changes=tuple(sorted(turns.changes)),
    )


INSTRUCTIONS = FormTable(
    FORMS,
    _to_instruction,
    row="instruction",
    what="question and answer",
    korean="질문과 답변 열을 찾을 수 없음",
    columns="columns: {instruction: …, output: …} or {messages: …}",
)
