"""Rows of questions and answers -> turns, by a table: a further way to spell them is a row of `FORMS`, not code.

Which form a row has is told by its keys, or by `columns` of the config. How a model is shown the turns is a template's
business.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from data_pipeline.corpus.aihub import UnknownSchemaError, select
from data_pipeline.corpus.columns import MissingColumnError, RowShape, key_of, missing_column
from data_pipeline.corpus.encoding import encoding_of
from data_pipeline.corpus.json_stream import iterate_values
from data_pipeline.corpus.records import Instruction, Reject
from data_pipeline.corpus.sources import InputConfig, InstructionColumns, Kind
from data_pipeline.corpus.turns import FaultyRowError, Turns

MAX_ROOT_BYTES = 16 << 20  # of a JSON file that is one row; a larger one is none


@dataclass(frozen=True)
class Form:
    """One way in which rows spell their turns. It fits a row that has instruction and output, or messages.

    `root`: only for elements of the array under this key of a JSON file ("" = anywhere). `metadata`: name -> path.
    """

    name: str
    columns: InstructionColumns
    root: str = ""
    source: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def fits(self, keys: Iterable[str], root: str = "") -> bool:
        """Whether a row of these keys, found under `root`, has all that the form must have."""
        names = set(keys)
        return self.root in ("", root) and all(first_key(name, names) in names for _, name in self.needed)

    @property
    def needed(self) -> list[tuple[str, str]]:
        """(config key, column) of what a row can't do without."""
        keys = ("messages",) if self.columns.messages else ("instruction", "output")
        return [(key, getattr(self.columns, key)) for key in keys]


def _pair(instruction: str, output: str, **more: str) -> InstructionColumns:
    return InstructionColumns(instruction=instruction, output=output, **more)


# The first that fits counts: a row of `messages` may carry its first `prompt` beside them.
FORMS: tuple[Form, ...] = (
    Form(
        name="aihub_71748",  # 초거대AI 언어모델: SFTlabel.json
        columns=_pair("question", "answer", id="data_id"),
        root="data_info",
        source="aihub_71748",
        metadata={"category": "data_category", "question_type": "question_type"},
    ),
    Form("chat", InstructionColumns(messages="messages", system="system")),
    Form("sharegpt", InstructionColumns(messages="conversations", system="system")),
    Form("alpaca", _pair("instruction", "output", input="input", system="system")),
    Form("dolly", _pair("instruction", "response", input="context", system="system")),
    Form("question_answer", _pair("question", "answer", system="system")),
    Form("question_response", _pair("question", "response", system="system_prompt")),
    Form("prompt_completion", _pair("prompt", "completion", system="system")),
    Form("prompt_response", _pair("prompt", "response", system="system")),
    Form("q_a", _pair("Q", "A")),
    Form("질문_답변", _pair("질문", "답변")),
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


def form_of(keys: Iterable[str], options: InputConfig, *, root: str = "") -> Form | None:
    """The form of a row of these keys: the config's, or the first of the table that fits; None where none does."""
    names = set(keys)
    return next((form for form in _forms(options) if form.fits(names, root)), None)


def _forms(options: InputConfig) -> tuple[Form, ...]:
    return FORMS if options.columns is None else (Form("columns", options.columns),)


def check_columns(columns: Iterable[str], options: InputConfig) -> list[str]:
    """The columns that make instructions; raises MissingColumnError where no form fits, or the config's does not."""
    names = list(columns)
    mapped = [(f"columns.{key}", name) for key, name in options.columns or () if name]
    for key, name in [*mapped, *(("metadata_columns", name) for name in options.metadata_columns)]:
        if first_key(name, names) not in names:
            raise missing_column(name, key=key, columns=names)
    form = form_of(names, options)
    if form is None:
        raise MissingColumnError(
            f"no known form of question and answer in the columns {', '.join(names)} (질문과 답변 열을 찾을 수 없음); "
            f"set columns: {{instruction: …, output: …}} or {{messages: …}}, or give rows of one of {known_forms()}"
        )
    wanted = [name for _, name in form.columns if name] + [*form.metadata.values(), *options.metadata_columns, "id"]
    return [name for name in names if name in {first_key(path, names) for path in wanted}]


def to_instruction(
    row: Mapping[str, Any], options: InputConfig, position: int, *, root: str = ""
) -> Instruction | Reject:
    """The turns in `row`, or why there are none."""
    form = form_of(row, options, root=root)
    if form is None:
        return _missing(row, options, position)
    turns = Turns()
    columns = form.columns
    try:
        if columns.messages:
            turns.add_chat(value_at(row, columns.messages))
        else:
            given = value_at(row, columns.input) if columns.input else None
            turns.add_pair(value_at(row, columns.instruction), value_at(row, columns.output), given)
        turns.close(system=value_at(row, columns.system) if columns.system else None)
    except FaultyRowError as fault:
        return Reject(fault.reason, str(fault), offset=position)
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


def read_json(stream: BinaryIO, options: InputConfig) -> Iterator[Instruction | Reject]:
    """The rows of one JSON file: those of the arrays and objects under its root that hold any, or the root itself.

    Raises:
        JsonError: not JSON; what was yielded before must then be dropped.
        UnknownSchemaError: no row in it.
    """
    fitting: set[str] = set()
    unfit: dict[str, list[int]] = {}
    for key, offset, element in iterate_values(stream, encoding=encoding_of(stream, options)):
        if isinstance(element, dict) and form_of(element, options, root=key) is not None:
            if key not in fitting:
                fitting.add(key)
                yield from (_unfit(key, at) for at in unfit.pop(key, ()))
            yield to_instruction(element, options, offset, root=key)
        elif key in fitting:
            yield _unfit(key, offset)
        else:
            unfit.setdefault(key, []).append(offset)
    if not fitting:
        yield _root_row(stream, options, keys=list(unfit))


def _root_row(stream: BinaryIO, options: InputConfig, *, keys: list[str]) -> Instruction | Reject:
    """The row that a whole file is. `keys`: of its root."""
    if form_of(keys, options) is not None:
        stream.seek(0)
        data = stream.read(MAX_ROOT_BYTES + 1)
        if len(data) <= MAX_ROOT_BYTES:
            text = data.removeprefix(codecs.BOM_UTF8).decode(encoding_of(stream, options))
            return to_instruction(json.loads(text, strict=False), options, 0)
    found = ", ".join(map(repr, keys)) or "nothing"
    wanted = (
        known_forms() if options.columns is None else ", ".join(repr(name) for _, name in _forms(options)[0].needed)
    )
    raise UnknownSchemaError(f"the root holds {found}: no instruction row ({wanted}); set columns, or record: document")


def known_forms() -> str:
    """The keys of every form, for a person."""
    return ", ".join("/".join(name for _, name in form.needed) for form in FORMS if not form.root)


def first_key(path: str, keys: Iterable[str]) -> str:
    """The column that `path` begins with: itself where a column is so called."""
    return path if path in keys else path.partition(".")[0].rstrip("[]")


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """What stands at a column, or at a path into one; None where nothing does."""
    return row[path] if path in row else next(select(row, path), None)


def _missing(row: Mapping[str, Any], options: InputConfig, position: int) -> Reject:
    needed = [name for _, name in _forms(options)[0].needed] if options.columns else []
    missing = [name for name in needed if first_key(name, row) not in row]
    lacks = f"has no {' and no '.join(map(repr, missing))}" if missing else "has no known form of question and answer"
    return Reject("missing_column", f"the row {lacks}; its keys are {', '.join(map(str, row))}", offset=position)


def _unfit(key: str, offset: int) -> Reject:
    where = f"an element of {key!r}" if key else "an element"
    return Reject("missing_column", f"{where} has not the keys of the other rows", offset=offset)


INSTRUCTIONS = RowShape(check=check_columns, make=to_instruction)
