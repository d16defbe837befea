"""Rows of texts with a class or a score -> cells, by tables: a further form or kind of record is a row, not code.

A record is told by its `Cell`s: columns of `records.SCHEMAS` and what may stand there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from data_pipeline.corpus.columns import key_of
from data_pipeline.corpus.forms import Form, FormTable, value_at
from data_pipeline.corpus.mapping import Columns
from data_pipeline.corpus.records import Example
from data_pipeline.corpus.sources import InputConfig, Kind
from data_pipeline.corpus.text import normalise
from data_pipeline.corpus.turns import FaultyRowError

Value = str | float | None

_WHOLE_DECIMAL = re.compile(r"-?[0-9]+\.0+")


@dataclass(frozen=True)
class Cell:
    """A column of a record. `may_be_empty`: even where a form names it."""

    name: str
    kind: Literal["text", "label", "score"]
    may_be_empty: bool = False


_LABEL_CELLS = (Cell("text_a", "text"), Cell("text_b", "text"), Cell("label", "label"))
_PAIR_CELLS = (
    Cell("text_a", "text"),
    Cell("text_b", "text"),
    Cell("text_c", "text", may_be_empty=True),
    Cell("score", "score"),
)


def _form(name: str, **columns: str) -> Form:
    return Form(name, Columns(**columns))


# The first that fits counts: two texts before one.
LABEL_FORMS: tuple[Form, ...] = (
    _form("nli", text_a="premise", text_b="hypothesis", label="label"),
    _form("nli_gold", text_a="premise", text_b="hypothesis", label="gold_label"),
    _form("sentence_pair", text_a="sentence1", text_b="sentence2", label="label"),
    _form("sentence_pair_gold", text_a="sentence1", text_b="sentence2", label="gold_label"),
    _form("nsmc", text_a="document", label="label"),
    _form("sentence", text_a="sentence", label="label"),
    _form("text", text_a="text", label="label"),
    _form("title", text_a="title", label="label"),
)
PAIR_FORMS: tuple[Form, ...] = (
    _form("sts", text_a="sentence1", text_b="sentence2", score="score"),
    _form("klue_sts", text_a="sentence1", text_b="sentence2", score="labels.real-label"),
    _form("triplet", text_a="anchor", text_b="positive", text_c="negative"),
    _form("anchor_positive", text_a="anchor", text_b="positive"),
    _form("query_triplet", text_a="query", text_b="positive", text_c="negative"),
    _form("query_positive", text_a="query", text_b="positive"),
    _form("question_answer", text_a="question", text_b="answer"),
)


def skip_reason(path: str, kind: Kind | None) -> str:
    """Why the file at `path` holds no rows; "" where it may. A table that is called .txt needs its format said."""
    return "text_has_no_rows" if kind == "text" else ""


def to_example(
    row: Mapping[str, Any], form: Form, options: InputConfig, position: int, *, cells: Sequence[Cell]
) -> Example:
    """The cells of `row`; raises FaultyRowError where one that the form names is empty, or no such value."""
    named, changes = form.columns.named, list[str]()
    found: dict[str, Value] = {}
    num_texts = sum(cell.kind == "text" and cell.name in named for cell in cells)
    for cell in cells:
        if cell.name in named:
            value, changed = _READERS[cell.kind](value_at(row, named[cell.name]), named[cell.name])
            if value is None and not cell.may_be_empty:
                raise _empty(cell, named[cell.name], is_pair=num_texts > 1)
            changes += changed
            if cell.kind == "label" and str(value) in options.label_names:
                value = options.label_names[str(value)]
        else:
            value = None
        found[cell.name] = value
    return Example(
        key=key_of(value_at(row, form.columns.id or "id"), position),
        cells=found,
        position=position,
        form=form.name,
        metadata={column: value_at(row, column) for column in options.metadata_columns},
        changes=tuple(dict.fromkeys(changes)),
    )


def _empty(cell: Cell, column: str, *, is_pair: bool) -> FaultyRowError:
    if cell.kind == "text":
        what = "one of the two texts" if is_pair else "the text"
        return FaultyRowError("empty_pair" if is_pair else "empty_text", f"{column!r}: {what} is empty, or space alone")
    return FaultyRowError(f"missing_{cell.kind}", f"{column!r}: the row has no {cell.kind}")


def _text(value: Any, column: str) -> tuple[Value, tuple[str, ...]]:
    if value is None:
        return None, ()
    if not isinstance(value, str):
        raise FaultyRowError("text_not_string", f"{column!r} is a {type(value).__name__}, not a string")
    text, changes = normalise(value)
    return (text, changes) if text.strip() else (None, ())


def _label(value: Any, column: str) -> tuple[Value, tuple[str, ...]]:
    """A class by its name: of a whole number its digits (0, 0.0, "0" and "0.0" are one), else what spaces surround.

    pandas writes the labels of a column with one empty cell as 0.0 and 1.0.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, ()
    if isinstance(value, bool):
        return str(value).lower(), ()
    if isinstance(value, int):
        return str(value), ()
    if isinstance(value, float):
        if not value.is_integer():  # nor is an infinity
            hint = "for a score give record: pair and columns: {score: …}"
            raise FaultyRowError("bad_label", f"{column!r} is {value!r}, which is no class; {hint}")
        return str(int(value)), ()
    if not isinstance(value, str):
        raise FaultyRowError("bad_label", f"{column!r} is a {type(value).__name__}, not a string or a whole number")
    text, changes = normalise(value)
    label = text.strip()
    if label != text and label:
        changes += ("label_stripped",)
    if _WHOLE_DECIMAL.fullmatch(label):
        return str(int(label.partition(".")[0])), (*changes, "label_folded")
    return label or None, changes


def _score(value: Any, column: str) -> tuple[Value, tuple[str, ...]]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, ()
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise FaultyRowError("bad_score", f"{column!r} is {value!r}, not a finite number")
    return score, ()


_READERS: dict[str, Callable[[Any, str], tuple[Value, tuple[str, ...]]]] = {
    "text": _text,
    "label": _label,
    "score": _score,
}


def _table(forms: tuple[Form, ...], cells: tuple[Cell, ...], **words: str) -> FormTable:
    return FormTable(forms, partial(to_example, cells=cells), **words)


LABELS = _table(
    LABEL_FORMS,
    _LABEL_CELLS,
    row="label",
    what="text and label",
    korean="글과 분류 열을 찾을 수 없음",
    columns="columns: {text_a: …, label: …}, of two texts also text_b",
)
PAIRS = _table(
    PAIR_FORMS,
    _PAIR_CELLS,
    row="pair",
    what="two texts",
    korean="두 글의 열을 찾을 수 없음",
    columns="columns: {text_a: …, text_b: …}, with a score or a text_c where rows have one",
)


def without_targets(table: FormTable) -> FormTable:
    """The same rows without what is to be predicted: neither class nor score is looked for."""
    forms = {tuple(form.needed): form for form in map(form_without_target, table.forms)}
    return replace(table, forms=tuple(forms.values()))


def form_without_target(form: Form) -> Form:
    return replace(form, columns=form.columns.model_copy(update={"label": "", "score": ""}))
