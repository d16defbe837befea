"""The rows of one file as a classifier or an encoder is asked about them: texts, without the class or score to come.

What a build reads with an account of every byte is read here row by row, in its order, each with its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.corpus.archive import ExpansionLimits
from data_pipeline.corpus.examples import LABELS, PAIRS, form_without_target, without_targets
from data_pipeline.corpus.forms import Form, FormTable
from data_pipeline.corpus.kinds import RecordKind
from data_pipeline.corpus.read import FileRange, Reading
from data_pipeline.corpus.records import AnyRecord, ExampleRecord, RecordName, Reject
from data_pipeline.corpus.sources import InputConfig, Kind, find_files
from data_pipeline.stage import StageError

_TABLES: dict[RecordName, FormTable] = {"label": LABELS, "pair": PAIRS}


@dataclass(frozen=True)
class TextRow:
    """One row to predict. `number` counts rows from 0, rejected ones too; `id` as a corpus would have it.

    `texts`: one or two of a label row, two or three of a pair.
    """

    number: int
    id: str
    texts: tuple[str, ...]
    metadata: str


@dataclass(frozen=True)
class RejectedRow:
    """A row, or a whole file, that can't be predicted, in its place among the others."""

    number: int
    reject: Reject


def read_texts(path: Path, options: InputConfig, record: RecordName) -> Iterator[TextRow | RejectedRow]:
    """The rows of the CSV, TSV, JSONL, JSON or Parquet file (or `hf:` set) at `path`, in its order, not one left out.

    `options` are those of `corpus build`; its `path` gives way to `path`, and the class or score that its columns may
    name need not be there. Equal texts are rows of their own.

    Raises:
        StageError: no such file, one of another format, or columns that do not fit it; `record` is no kind of texts.
    """
    if record not in _TABLES:
        raise StageError(f"{path}: record is {record!r}, but rows to predict are {' or '.join(_TABLES)} records")
    table = without_targets(_TABLES[record])
    chosen = options.model_copy(update={"path": path, "columns": _columns(options, path)})
    for number, found in enumerate(rows_in_order(chosen, RecordKind(table.shape, table.read_json, nothing_skipped))):
        if isinstance(found, Reject):
            yield RejectedRow(number, found)
            continue
        assert isinstance(found, ExampleRecord)
        texts = tuple(str(cell) for name, cell in found.cells.items() if name.startswith("text") and cell)
        yield TextRow(number, found.id, texts, found.metadata)


def rows_in_order(options: InputConfig, kind: RecordKind) -> Iterator[AnyRecord | Reject]:
    """The records of an input as `kind` reads them, with what was rejected in its place among them.

    Raises:
        StageError: no such file, none with rows in it, or columns that do not fit it.
    """
    files = [file for file in find_files([options]) if not file.skip_reason and file.kind not in (None, "text")]
    if not files:
        raise StageError(
            f"{options.path}: no file with rows; give .csv, .tsv, .jsonl, .json or .parquet, or set format (a table "
            "that is called .txt: format: tsv)"
        )
    rejects: list[Reject] = []
    reading = Reading([options], limits=ExpansionLimits(), on_reject=rejects.append, kind=kind)
    for file in files:
        for found in reading.records(FileRange(file)):
            yield from _taken(rejects)
            yield found
        yield from _taken(rejects)


def nothing_skipped(path: str, kind: Kind | None) -> str:
    """A file that was named is to be read, whatever it is called."""
    return ""


def _taken(rejects: list[Reject]) -> list[Reject]:
    taken = rejects.copy()
    rejects.clear()
    return taken


def _columns(options: InputConfig, path: Path) -> object:
    if options.columns is None:
        return None
    columns = form_without_target(Form("columns", options.columns)).columns
    if not columns.text_a:
        raise StageError(f"{path}: columns names no text_a, which is the text to predict; name it")
    return columns
