"""CSV and TSV with a header and mapped columns -> documents, row by row."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from data_pipeline.corpus.columns import check_columns, to_document
from data_pipeline.corpus.encoding import decoder_of
from data_pipeline.corpus.records import Document, Reject
from data_pipeline.corpus.sources import InputConfig

MAX_FIELD_CHARS = 64 << 20

# A byte that is not in the encoding, as errors="surrogateescape" marks it.
_UNDECODABLE = re.compile("[\udc80-\udcff]")


def read_csv(stream: BinaryIO, options: InputConfig) -> Iterator[Document | Reject]:
    """A document or a reject for each row of a comma-separated file; positions count rows from 1."""
    return _read(stream, options, csv.excel)


def read_tsv(stream: BinaryIO, options: InputConfig) -> Iterator[Document | Reject]:
    """A document or a reject for each row of a tab-separated file; a quote in it is an ordinary character."""
    return _read(stream, options, _Tabs)


class _Tabs(csv.excel_tab):
    # Korean TSV (NSMC and its like) is written unquoted: one stray quote would swallow the lines behind it.
    quoting = csv.QUOTE_NONE


def _read(stream: BinaryIO, options: InputConfig, dialect: type[csv.Dialect]) -> Iterator[Document | Reject]:
    encoding = decoder_of(stream, options)
    csv.field_size_limit(MAX_FIELD_CHARS)
    lines = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")
    rows = csv.reader(lines, dialect)
    header = [name.strip().removeprefix("\ufeff") for name in next(rows, [])]
    check_columns(header, options)
    position = 0
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield Reject("invalid_row", f"line {rows.line_num}: {error}")
            continue
        if cells is None:
            lines.detach()
            return
        if cells:
            position += 1
            yield _to_document(cells, header, options, position=position, line=rows.line_num, encoding=encoding)


def _to_document(
    cells: list[str], header: list[str], options: InputConfig, *, position: int, line: int, encoding: str
) -> Document | Reject:
    if any(_UNDECODABLE.search(cell) for cell in cells):
        return Reject("invalid_encoding", f"line {line}: bytes that are not {encoding}; set encoding")
    if len(cells) != len(header):
        return Reject("invalid_row", f"line {line}: {len(cells)} cells, the header has {len(header)}")
    return to_document(dict(zip(header, cells, strict=True)), options, position=position)
