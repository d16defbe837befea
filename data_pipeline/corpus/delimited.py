"""CSV and TSV with a header -> what each row holds. A quote that is never closed costs its own line and no other."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from data_pipeline.corpus.columns import DOCUMENTS, RowShape
from data_pipeline.corpus.encoding import encoding_of
from data_pipeline.corpus.records import Found, Reject
from data_pipeline.corpus.sources import InputConfig

MAX_FIELD_CHARS = 64 << 20
MAX_RECORD_LINES = 100_000  # a quoted cell may hold a book, line breaks and all

# A byte that is not in the encoding, as errors="surrogateescape" marks it.
_UNDECODABLE = re.compile("[\udc80-\udcff]")
_NO_HEADER = re.compile("[\0\udc80-\udcff]")  # UTF-16, which Excel calls "Unicode text", has zeros between letters


def read_csv(stream: BinaryIO, options: InputConfig, shape: RowShape = DOCUMENTS) -> Iterator[Found]:
    """What each row holds, or a reject, of a comma-separated file; positions count rows from 1."""
    return _read(stream, options, shape, _Commas)


def read_tsv(stream: BinaryIO, options: InputConfig, shape: RowShape = DOCUMENTS) -> Iterator[Found]:
    """What each row holds, or a reject, of a tab-separated file; a quote in it is an ordinary character."""
    return _read(stream, options, shape, _Tabs)


class _Commas(csv.excel):
    strict = True  # else a stray quote takes in the lines behind it, to the next quote or to the end of the file


class _Tabs(csv.excel_tab):
    # Korean TSV (NSMC and its like) is written unquoted: one stray quote would swallow the lines behind it.
    quoting = csv.QUOTE_NONE


@dataclass(frozen=True)
class _Row:
    """The cells of one row, or what was wrong with the line where it should begin. Lines count from 1."""

    first_line: int
    last_line: int
    cells: list[str]
    fault: str = ""

    @property
    def where(self) -> str:
        several = f"lines {self.first_line}-{self.last_line}"
        return f"line {self.last_line}" if self.first_line == self.last_line else several


def _read(stream: BinaryIO, options: InputConfig, shape: RowShape, dialect: type[csv.Dialect]) -> Iterator[Found]:
    encoding = encoding_of(stream, options)
    csv.field_size_limit(MAX_FIELD_CHARS)
    lines = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")
    rows = _Rows(lines, dialect)
    first = rows.next()
    header = [name.strip().removeprefix("\ufeff") for name in first.cells] if first else []
    if _NO_HEADER.search("".join(header)):
        message = f"line 1: the header is not {encoding}; save the file as UTF-8 (CSV UTF-8), or set encoding"
        yield Reject("invalid_encoding", message, offset=0)
        lines.detach()
        return
    if first and first.fault:
        yield Reject("invalid_row", f"line 1, the header: {first.fault}", offset=0)
    else:
        shape.check(header, options)
        yield from _documents(rows, header, options, shape, encoding=encoding)
    lines.detach()


def _documents(
    rows: _Rows, header: list[str], options: InputConfig, shape: RowShape, *, encoding: str
) -> Iterator[Found]:
    position = 0
    while (row := rows.next(num_cells=len(header))) is not None:
        if row.fault:
            yield Reject("invalid_row", f"{row.where}: {row.fault}")
        elif row.cells:
            position += 1
            fault = _fault(row, header, encoding=encoding)
            yield fault or shape.make(dict(zip(header, row.cells, strict=True)), options, position)


def _fault(row: _Row, header: list[str], *, encoding: str) -> Reject | None:
    if any(_UNDECODABLE.search(cell) for cell in row.cells):
        return Reject("invalid_encoding", f"{row.where}: bytes that are not {encoding}; set encoding")
    if len(row.cells) != len(header):
        return Reject("invalid_row", f"{row.where}: {len(row.cells)} cells, the header has {len(header)}")
    return None


class _TooLongError(Exception):
    """A row that goes on and on."""


class _Rows:
    """Rows one after another. Where a row does not end well, the lines behind its first are read again."""

    def __init__(self, lines: Iterator[str], dialect: type[csv.Dialect]) -> None:
        self._lines = lines
        self._dialect = dialect
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self._num_chars = 0
        self._line = 0
        self._rows = csv.reader(self, dialect)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next line, for the parser."""
        if len(self._taken) >= MAX_RECORD_LINES or self._num_chars > MAX_FIELD_CHARS:
            raise _TooLongError
        line = self._again.popleft() if self._again else next(self._lines)
        self._taken.append(line)
        self._num_chars += len(line)
        self._line += 1
        return line

    def next(self, *, num_cells: int = 0) -> _Row | None:
        """The next row, None behind the last one. `num_cells`: what a row of several lines must have."""
        self._taken, self._num_chars = [], 0
        first = self._line + 1
        try:
            cells = next(self._rows, None)
        except (csv.Error, _TooLongError) as error:
            return self._faulty(first, str(error) or f"it does not end within {MAX_RECORD_LINES:,} lines")
        if cells is None:
            return None
        if len(self._taken) > 1 and num_cells > 1 and len(cells) != num_cells:
            return self._faulty(first, f"{len(cells)} cells, the header has {num_cells}")
        return _Row(first, self._line, cells)

    def _faulty(self, first: int, fault: str) -> _Row:
        if len(self._taken) == 1:
            cells = self._leniently(self._taken[0])
            return _Row(first, first, cells or [], "" if cells else f"{fault}; quote the cell, and double quotes in it")
        self._again.extendleft(reversed(self._taken[1:]))
        self._line = first
        return _Row(first, first, [], f"a quote opens a cell and is not closed well ({fault}); close it, or double it")

    def _leniently(self, line: str) -> list[str] | None:
        """The cells of a line with text behind a closing quote, which many writers leave; None if it does not end."""
        rows = csv.reader(iter([line, ""]), csv.excel)
        try:
            cells = next(rows, [])
        except csv.Error:
            return None
        return cells if rows.line_num == 1 else None
