"""Parquet -> what each row holds, in batches of a few rows and of the columns that are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.corpus.columns import RowShape
from data_pipeline.corpus.records import Found, Reject
from data_pipeline.corpus.sources import InputConfig

BATCH_ROWS = 512


def read_parquet(stream: BinaryIO, options: InputConfig, shape: RowShape) -> Iterator[Found]:
    """What each row holds, or a reject; positions count rows from 1. Of a broken file, what stands before the fault.

    Raises:
        MissingColumnError: it lacks a column that the config names.
    """
    position = 0
    try:
        file = pq.ParquetFile(stream)
        columns = shape.check(file.schema_arrow.names, options)
        names = class_names(file.schema_arrow.metadata or {})
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            for row in _rows(batch):
                position += 1
                named = row if isinstance(row, Reject) else _with_names(row, names, position)
                yield named if isinstance(named, Reject) else shape.make(named, options, position)
    except (pa.ArrowException, OSError) as error:
        said = str(error).strip().splitlines()[0]
        yield Reject("broken_parquet", f"after {position:,} rows: {said}; download the file again")


def class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """By column, the names of the classes that its numbers stand for, as `datasets` keeps them beside the schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):  # it is anybody's to write
        return {}
    return {name: names for name, names in found.items() if isinstance(names, list)}


def _with_names(row: dict[str, Any], names: Mapping[str, list[str]], position: int) -> dict[str, Any] | Reject:
    """The row with names in place of the numbers of classes; -1, by which `datasets` says unknown, becomes none."""
    for column, known in names.items():
        value = row.get(column)
        if not isinstance(value, int):
            continue
        if value >= len(known) or value < -1:
            told = f"{column!r} is {value}, but the file names {len(known)} classes ({', '.join(map(str, known[:5]))})"
            return Reject("bad_label", told, offset=position)
        row[column] = None if value == -1 else str(known[value])
    return row


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Reject]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # Parquet's strings are bytes that nobody checked
        for at in range(batch.num_rows):
            yield _row(batch.slice(at, 1))


def _row(batch: pa.RecordBatch) -> dict[str, Any] | Reject:
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
        return row
    except UnicodeDecodeError as error:
        return Reject("invalid_encoding", f"not utf-8: {error.reason}; write the file again from its source")
