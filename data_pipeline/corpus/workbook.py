"""The first sheet of an Excel file -> what each of its rows holds, by its header; the rows of other sheets are named.

Needs openpyxl, which only this module knows.
"""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_pipeline.corpus.columns import RowShape
from data_pipeline.corpus.records import Found, Reject
from data_pipeline.corpus.sources import InputConfig

MAX_FILE_BYTES = 512 << 20
MAX_UNPACKED_BYTES = 8 << 30  # Excel's own limit is a million rows


def read_workbook(stream: BinaryIO, options: InputConfig, shape: RowShape) -> Iterator[Found]:
    """What each row of the first sheet holds, or a reject; positions are rows of the sheet, the header is 1.

    Raises:
        MissingColumnError: it lacks a column that the config names.
    """
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError:
        message = "an Excel file needs openpyxl: pip install openpyxl, or save it as CSV UTF-8 (CSV로 저장)"
        yield Reject("needs_openpyxl", message)
        return
    data = stream.read(MAX_FILE_BYTES + 1)
    if fault := _fault(data):
        yield fault
        return
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    try:
        first, *others = book.worksheets
        yield from _rows(first, options, shape)
        for sheet in others:
            if any(any(cell is not None for cell in row) for row in sheet.iter_rows(max_row=1, values_only=True)):
                yield Reject("other_sheet", f"the sheet {sheet.title!r} is not read: the first is; save it by itself")
    finally:
        book.close()


def _fault(data: bytes) -> Reject | None:
    if len(data) > MAX_FILE_BYTES:
        return Reject("too_large", f"an Excel file of more than {MAX_FILE_BYTES:,} bytes; save it as CSV UTF-8")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            unpacked = sum(member.file_size for member in packed.infolist())
            has_sheets = "xl/workbook.xml" in packed.namelist()
    except zipfile.BadZipFile as error:
        return Reject("broken_workbook", f"no Excel file of today (.xlsx): {error}; download it again, or save as CSV")
    if unpacked > MAX_UNPACKED_BYTES:
        told = f"it unpacks to {unpacked:,} bytes, more than {MAX_UNPACKED_BYTES:,}; save it as CSV UTF-8"
        return Reject("too_large", told)
    return None if has_sheets else Reject("broken_workbook", "a zip without xl/workbook.xml; download it again")


def _rows(sheet: Any, options: InputConfig, shape: RowShape) -> Iterator[Found]:
    sheet.reset_dimensions()  # many writers leave wrong ones
    rows = sheet.iter_rows(values_only=True)
    header = _trimmed(next(rows, ()))
    names = ["" if name is None else str(name).strip() for name in header]
    shape.check([name for name in names if name], options)
    for position, row in enumerate(rows, start=2):
        cells = _trimmed(row)
        if not cells:
            continue  # rows that were coloured, or emptied
        if len(cells) > len(names):
            told = f"row {position}: {len(cells)} cells, the header has {len(names)}"
            yield Reject("invalid_row", told, offset=position)
            continue
        padded = [*cells, *[None] * (len(names) - len(cells))]
        yield shape.make({name: cell for name, cell in zip(names, padded, strict=True) if name}, options, position)


def _trimmed(row: tuple[Any, ...]) -> list[Any]:
    """The cells up to the last that holds something."""
    cells = list(row)
    while cells and (cells[-1] is None or (isinstance(cells[-1], str) and not cells[-1].strip())):
        cells.pop()
    return cells
