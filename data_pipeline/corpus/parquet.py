"""Parquet -> what each row holds, in batches of a few rows and of the columns that are needed."""

from __future__ import annotations

from collections.abc import Iterator
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
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            for row in _rows(batch):
                position += 1
                yield row if isinstance(row, Reject) else shape.make(row, options, position)
    except (pa.ArrowException, OSError) as error:
        said = str(error).strip().splitlines()[0]
        yield Reject("broken_parquet", f"after {position:,} rows: {said}; download the file again")


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
