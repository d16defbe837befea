"""A row of named columns -> a document, by the columns that the config names. For JSONL and delimited files alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from data_pipeline.corpus.records import Document, Reject
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.stage import StageError


class MissingColumnError(StageError):
    """The first row of a file lacks a column that the config names: the mapping is wrong, not the row."""


def missing_column(column: str, *, key: str, columns: Iterable[str]) -> MissingColumnError:
    """The error for a `column`, named by config key `key`, that is none of `columns`."""
    names = [str(name) for name in columns]
    close = difflib.get_close_matches(column, names, n=1, cutoff=0.6)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    return MissingColumnError(f"no column {column!r}{guess}; the columns are {', '.join(names)}; set {key}")


def check_columns(columns: Iterable[str], options: InputConfig) -> None:
    """Raise MissingColumnError unless every column that the config names is there."""
    names = list(columns)
    if options.text_column not in names:
        raise missing_column(options.text_column, key="text_column", columns=names)
    if options.id_column and options.id_column not in names:
        raise missing_column(options.id_column, key="id_column", columns=names)
    for column in options.metadata_columns:
        if column not in names:
            raise missing_column(column, key="metadata_columns", columns=names)


def to_document(row: Mapping[str, Any], options: InputConfig, *, position: int) -> Document | Reject:
    """The document in `row`, or why there is none. A row's own `id` is its key unless `id_column` names another."""
    text = row.get(options.text_column)
    if options.text_column not in row:
        return Reject("missing_column", f"the row has no {options.text_column!r}", offset=position)
    if text is not None and not isinstance(text, str):
        kind = type(text).__name__
        return Reject("text_not_string", f"{options.text_column!r} is a {kind}, not a string", offset=position)
    key = row.get(options.id_column or "id")
    metadata = {column: row.get(column) for column in options.metadata_columns}
    has_key = isinstance(key, str | int) and key != ""
    return Document(key=str(key) if has_key else str(position), text=text or "", position=position, metadata=metadata)
