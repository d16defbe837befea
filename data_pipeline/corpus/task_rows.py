"""Rows of question answering, summaries and translation -> instruction rows, by tables: a further corpus is a line.

transformers has no pipelines for these any more: they are instructions, whose words stand in tasks.yaml. A row may be
one of a table, or an element of AIHub's JSON that holds several.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ruamel.yaml import YAML

from data_pipeline.corpus.aihub import select

TaskName = Literal["qa", "summarize", "translate"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
TASKS_FILE = Path(__file__).with_name("tasks.yaml")
ENGLISH = "영어"


@dataclass(frozen=True)
class TaskRow:
    """One row to be asked. `text`: what it is about. `answer`: "" where it is to be found."""

    text: str
    question: str = ""
    language: str = ""
    answer: str = ""
    id: str = ""


@dataclass(frozen=True)
class RowMapping:
    """How one corpus keeps the rows of a task: `keys` are those of an element, `rows` makes its rows.

    `root`: only for elements of the array under this key of a JSON file; "" for rows of tables and JSONL.
    """

    name: str
    task: TaskName
    keys: tuple[str, ...]
    rows: Callable[[Mapping[str, Any]], Iterator[TaskRow]]
    root: str = ""


def _reading(element: Mapping[str, Any]) -> Iterator[TaskRow]:
    """AIHub 92 and 89 (기계독해): paragraphs, each with questions; `answers` is a list, or in 577 and 569 an object."""
    for paragraph in select(element, "paragraphs[]"):
        for asked in select(paragraph, "qas[]"):
            answers = asked.get("answers")
            first = answers[0] if isinstance(answers, list) and answers else answers
            answer = first.get("text") if isinstance(first, Mapping) else first
            number = asked.get("question_id") or asked.get("id") or ""
            yield TaskRow(_text(paragraph.get("context")), _text(asked.get("question")), "", _text(answer), str(number))


def _summary(element: Mapping[str, Any]) -> Iterator[TaskRow]:
    """AIHub 97 (문서요약 텍스트): sentences in paragraphs, and a summary in words of its own."""
    paragraphs = [" ".join(map(_text, select(part, "[].sentence"))) for part in select(element, "text[]")]
    answer = next(select(element, "abstractive[]"), "")
    yield TaskRow("\n".join(paragraphs), answer=_text(answer), id=str(element.get("id", "")))


def _of_columns(*, text: str, question: str = "", answer: str = "", language: str = "") -> Any:
    def rows(row: Mapping[str, Any]) -> Iterator[TaskRow]:
        asked, told = (_text(row.get(name)) if name else "" for name in (question, answer))
        yield TaskRow(_text(row.get(text)), asked, _text(row.get("language")) or language, told, str(row.get("id", "")))

    return rows


def _qa(name: str, text: str, question: str, answer: str) -> RowMapping:
    return RowMapping(name, "qa", (text, question), _of_columns(text=text, question=question, answer=answer))


def _one(name: str, task: TaskName, text: str, answer: str, language: str = "") -> RowMapping:
    return RowMapping(name, task, (text,), _of_columns(text=text, answer=answer, language=language))


# The first of a task that fits counts.
MAPPINGS: tuple[RowMapping, ...] = (
    RowMapping("aihub_92", "qa", ("paragraphs",), _reading, root="data"),
    _qa("context", "context", "question", "answer"),
    _qa("passage", "passage", "question", "answer"),
    _qa("지문", "지문", "질문", "답변"),
    RowMapping("aihub_97", "summarize", ("text", "abstractive"), _summary, root="documents"),
    _one("document", "summarize", "document", "summary"),
    _one("passage", "summarize", "passage", "summary"),
    _one("text", "summarize", "text", "summary"),
    _one("본문", "summarize", "본문", "요약"),
    _one("aihub_126", "translate", "원문", "번역문", ENGLISH),
    _one("source", "translate", "source", "target", ENGLISH),
    _one("text", "translate", "text", "translation", ENGLISH),
)


def expand(element: Mapping[str, Any], *, name: str) -> Iterator[dict[str, str]]:
    """The instruction rows of an element that a corpus of that name keeps; an element without any gives none."""
    mapping = next(each for each in MAPPINGS if each.name == name)
    for row in mapping.rows(element):
        yield as_instruction(mapping.task, row) | ({"id": row.id} if row.id else {})


def known_keys(task: str) -> str:
    """What the rows of a task may hold, for a person."""
    return ", ".join("/".join(each.keys) for each in MAPPINGS if each.task == task)


def as_instruction(task: str, row: TaskRow) -> dict[str, str]:
    """{instruction, input, output} of a row, in the words of tasks.yaml; an answer that is not known is ""."""
    words = _words()[task]
    values = {"question": row.question, "text": row.text, "language": row.language}
    return {key: words[key].format(**values) for key in ("instruction", "input")} | {"output": row.answer}


@functools.cache
def _words() -> dict[str, dict[str, str]]:
    tree: dict[str, dict[str, str]] = YAML(typ="safe", pure=True).load(TASKS_FILE.read_text(encoding="utf-8"))
    return tree


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
