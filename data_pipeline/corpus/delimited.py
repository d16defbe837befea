"""CSV and TSV with a header -> what each row holds."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from data_pipeline.corpus.columns import DOCUMENTS, RowShape
from data_pipeline.corpus.encoding import decoder_of
from data_pipeline.corpus.records import Document, Instruction, Reject
from data_pipeline.corpus.sources import InputConfig

MAX_FIELD_CHARS = 64 << 20

# A byte that is not in the encoding, as errors="surrogateescape" marks it.
_UNDECODABLE = re.compile("[\udc80-\udcff]")
_NO_HEADER = re.compile("[\0\udc80-\udcff]")  # UTF-16, which Excel calls "Unicode text", has zeros between letters


def read_csv(
    stream: BinaryIO, options: InputConfig, shape: RowShape = DOCUMENTS
) -> Iterator[Document | Instruction | Reject]:
    """What each row holds, or a reject, of a comma-separated file; positions count rows from 1."""
    return _read(stream, options, shape, csv.excel)


def read_tsv(
    stream: BinaryIO, options: InputConfig, shape: RowShape = DOCUMENTS
) -> Iterator[Document | Instruction | Reject]:
    """What each row holds, or a reject, of a tab-separated file; a quote in it is an ordinary character."""
    return _read(stream, options, shape, _Tabs)


class _Tabs(csv.excel_tab):
    # Korean TSV (NSMC and its like) is written unquoted: one stray quote would swallow the lines behind it.
    quoting = csv.QUOTE_NONE


def _read(
    stream: BinaryIO, options: InputConfig, shape: RowShape, dialect: type[csv.Dialect]
) -> Iterator[Document | Instruction | Reject]:
    encoding = decoder_of(stream, options)
    csv.field_size_limit(MAX_FIELD_CHARS)
    lines = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")
    rows = csv.reader(lines, dialect)
    header = [name.strip().removeprefix("\ufeff") for name in next(rows, [])]
    if _NO_HEADER.search("".join(header)):
        message = f"line 1: the header is not {encoding}; save the file as UTF-8 (CSV UTF-8), or set encoding"
        yield Reject("invalid_encoding", message, offset=0)
        lines.detach()
        return
    shape.check(header, options)
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
            fault = _fault(cells, header, line=rows.line_num, encoding=encoding)
            yield fault or shape.make(dict(zip(header, cells, strict=True)), options, position)


def _fault(cells: list[str], header: list[str], *, line: int, encoding: str) -> Reject | None:
    if any(_UNDECODABLE.search(cell) for cell in cells):
        return Reject("invalid_encoding", f"line {line}: bytes that are not {encoding}; set encoding")
    if len(cells) != len(header):
        return Reject("invalid_row", f"line {line}: {len(cells)} cells, the header has {len(header)}")
    return None
