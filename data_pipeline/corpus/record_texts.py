"""The texts of a corpus of any kind of record, as a tokenizer sees them: the one place that knows where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from data_pipeline.corpus.records import ANSWER_COLUMNS, SCHEMAS, RecordName, iterate_records
from data_pipeline.stage import read_manifest

_TURNS = ("messages", "prompt")


class RecordText(NamedTuple):
    """All that a record says, its texts a line apart; classes, scores and what a template writes are none of it."""

    id: str
    source: str
    split_hint: str
    text: str


def text_columns(record: RecordName) -> tuple[str, ...]:
    """The columns in which records of a kind keep their texts, or their turns.

    >>> text_columns("label"), text_columns("preference")
    (('text_a', 'text_b'), ('prompt', 'chosen', 'rejected'))
    """
    return tuple(
        name for name in SCHEMAS[record].names if name.startswith("text") or name in (*_TURNS, *ANSWER_COLUMNS)
    )


def iterate_texts(corpus: Path) -> Iterator[list[RecordText]]:
    """The texts of every record of a finished corpus, batch by batch; raises StageError on an unfinished one."""
    columns = text_columns(read_manifest(corpus, kind="corpus").get("record", "document"))
    beside = ("id", "source", "split_hint")
    for batch in iterate_records(corpus, columns=[*beside, *columns]):
        told = (batch[name].to_pylist() for name in beside)
        yield [RecordText(*row) for row in zip(*told, _texts(batch, columns), strict=True)]


def _texts(batch: pa.RecordBatch, columns: tuple[str, ...]) -> Iterator[str]:
    if columns == ("text",):
        yield from batch["text"].to_pylist()
        return
    for row in zip(*(batch[name].to_pylist() for name in columns), strict=True):
        yield "\n".join(part for cell in row for part in _parts(cell) if part)


def _parts(cell: Any) -> Iterator[str]:
    if isinstance(cell, str):
        yield cell
    for turn in cell if isinstance(cell, list) else ():
        assert isinstance(turn, Mapping)
        yield turn["content"]
        yield turn["input"]
