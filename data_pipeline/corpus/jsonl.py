"""JSON lines (or an array of rows) -> what each row holds; streams a file of any size."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_pipeline.corpus.columns import DOCUMENTS, RowShape
from data_pipeline.corpus.encoding import encoding_of
from data_pipeline.corpus.json_stream import JsonError, iterate_values
from data_pipeline.corpus.records import Found, Reject
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.corpus.text import rest_of_line

MAX_LINE_BYTES = 256 << 20

_JSON = json.JSONDecoder(strict=False)  # raw control characters inside strings do occur; normalise() drops them


def read_jsonl(
    stream: BinaryIO, options: InputConfig, shape: RowShape = DOCUMENTS, *, start: int = 0, stop: int | None = None
) -> Iterator[Found]:
    """What each line holds that begins in [start, stop) of `stream`, or a reject; its position is its byte offset.

    Raises:
        MissingColumnError: the first row lacks a column that the config names.
    """
    encoding = encoding_of(stream, options)
    if start == 0 and is_array(stream):
        yield from _read_array(stream, options, shape, encoding=encoding)
        return
    is_first = start == 0
    for offset, line in _lines(stream, start, stop):
        if len(line) > MAX_LINE_BYTES:
            yield Reject("too_large", f"a line is longer than {MAX_LINE_BYTES:,} bytes", offset=offset)
            continue
        row = _parse(line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line, encoding, offset)
        if isinstance(row, Reject):
            yield row
        elif row is not None:
            if is_first:
                shape.check(row, options)
                is_first = False
            yield shape.make(row, options, offset)


def is_array(stream: BinaryIO) -> bool:
    """Whether the file is one JSON array instead of lines (some that are named .jsonl are); leaves it at its start."""
    head = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    stream.seek(0)
    return head.startswith(b"[")


def _read_array(stream: BinaryIO, options: InputConfig, shape: RowShape, *, encoding: str) -> Iterator[Found]:
    is_first = True
    try:
        for _, offset, row in iterate_values(stream, encoding=encoding):
            if not isinstance(row, dict):
                yield _not_an_object(row, offset)
                continue
            if is_first:
                shape.check(row, options)
                is_first = False
            yield shape.make(row, options, offset)
    except JsonError as error:
        yield Reject("invalid_json", f"{error}; the rest of the array is not read", offset=error.offset)


def _lines(stream: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    offset = start
    if start > 0:
        # The line that spans the border belongs to the range in which it begins.
        stream.seek(start - 1)
        offset = start - 1 + len(_read_line(stream))
    while stop is None or offset < stop:
        line = _read_line(stream)
        if not line:
            return
        yield offset, line
        offset += len(line) if len(line) <= MAX_LINE_BYTES else rest_of_line(stream) + len(line)


def _read_line(stream: BinaryIO) -> bytes:
    return stream.readline(MAX_LINE_BYTES + 1)


def _parse(line: bytes, encoding: str, offset: int) -> dict[str, Any] | Reject | None:
    if not line.strip():
        return None
    try:
        row = _JSON.decode(line.decode(encoding))
    except UnicodeDecodeError as error:
        return Reject("invalid_encoding", f"not {encoding}: {error.reason}", offset=offset + error.start)
    except json.JSONDecodeError as error:
        return Reject("invalid_json", f"{error.msg} at character {error.pos} of the line", offset=offset)
    except RecursionError:
        return Reject("invalid_json", "values nested too deep", offset=offset)
    return row if isinstance(row, dict) else _not_an_object(row, offset)


def _not_an_object(row: object, offset: int) -> Reject:
    return Reject("not_an_object", f"the row is a {type(row).__name__}, not an object of columns", offset=offset)
