"""A row of named columns -> a document, by the columns that the config names. For JSONL and tables alike.

`RowShape` is what their readers know of the kind of record that is built.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data_pipeline.corpus.records import Document, Found, Reject
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.stage import StageError


@dataclass(frozen=True)
class RowShape:
    """What rows of named columns become.

    `check`: the columns that it takes, of those there are; raises MissingColumnError where the config's do not fit.
    `make`: (row, options, position) -> what is in it, or why there is nothing.
    """

    check: Callable[[Iterable[str], InputConfig], list[str]]
    make: Callable[[Mapping[str, Any], InputConfig, int], Found]


class MissingColumnError(StageError):
    """The first row of a file lacks a column that the config names: the mapping is wrong, not the row."""


def missing_column(column: str, *, key: str, columns: Iterable[str]) -> MissingColumnError:
    """The error for a `column`, named by config key `key`, that is none of `columns`."""
    names = [str(name) for name in columns]
    close = difflib.get_close_matches(column, names, n=1, cutoff=0.6)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return MissingColumnError(f"no column {column!r}{guess}; the columns are {', '.join(names)}; set {key}")


def check_columns(columns: Iterable[str], options: InputConfig) -> list[str]:
    """The columns that make documents; raises MissingColumnError unless every one that the config names is there."""
    names = list(columns)
    wanted = [("text_column", options.text_column), ("id_column", options.id_column)]
    wanted += [("metadata_columns", column) for column in options.metadata_columns]
    for key, column in wanted:
        if column and column not in names:
            raise missing_column(column, key=key, columns=names)
    return [name for name in names if name == "id" or name in {column for _, column in wanted}]


def to_document(row: Mapping[str, Any], options: InputConfig, position: int) -> Document | Reject:
    """The document in `row`, or why there is none. A row's own `id` is its key unless `id_column` names another."""
    text = row.get(options.text_column)
    if options.text_column not in row:
        return Reject("missing_column", f"the row has no {options.text_column!r}", offset=position)
    if text is not None and not isinstance(text, str):
        kind = type(text).__name__
        return Reject("text_not_string", f"{options.text_column!r} is a {kind}, not a string", offset=position)
    metadata = {column: row.get(column) for column in options.metadata_columns}
    key = key_of(row.get(options.id_column or "id"), position)
    return Document(key=key, text=text or "", position=position, metadata=metadata)


def key_of(value: Any, position: int) -> str:
    """What tells a row from others of its file: its own id where it has one, else its position."""
    return str(value) if isinstance(value, str | int) and value != "" else str(position)


DOCUMENTS = RowShape(check=check_columns, make=to_document)
