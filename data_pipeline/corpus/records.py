"""What a reader yields, and the Parquet files that hold it. Knows no input format.

A corpus holds one kind of record; `SCHEMAS` names the columns of each kind.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.corpus.json_stream import dumps
from data_pipeline.corpus.text import normalise
from data_pipeline.disk import DurableFile
from data_pipeline.stage import StageError, read_manifest

RecordName = Literal["document", "instruction", "label", "pair", "preference", "feedback", "prompt"]

HELDOUT = "heldout"
ROW_GROUP_ROWS = 16_384
ROW_GROUP_TEXT_BYTES = 16 << 20  # a row group is what a reader and a writer hold in memory
READ_BATCH_ROWS = 4_096

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("input", pa.string())]))
_BESIDE = [("source", pa.string()), ("metadata", pa.string()), ("split_hint", pa.string())]
_ASKED = [("id", pa.string()), ("prompt", _MESSAGES)]

SCHEMAS: dict[RecordName, pa.Schema] = {
    "document": pa.schema([("id", pa.string()), ("text", pa.string()), *_BESIDE]),
    "instruction": pa.schema([("id", pa.string()), ("messages", _MESSAGES), *_BESIDE]),
    "label": pa.schema(
        [*((name, pa.string()) for name in ("id", "text_a", "text_b", "label")), *_BESIDE],
    ),
    "pair": pa.schema(
        [*((name, pa.string()) for name in ("id", "text_a", "text_b", "text_c")), ("score", pa.float64()), *_BESIDE],
    ),
    "preference": pa.schema([*_ASKED, ("chosen", pa.string()), ("rejected", pa.string()), *_BESIDE]),
    "feedback": pa.schema([*_ASKED, ("answer", pa.string()), ("is_desirable", pa.bool_()), *_BESIDE]),
    "prompt": pa.schema([*_ASKED, ("answer", pa.string()), *_BESIDE]),
}
ANSWER_COLUMNS = ("chosen", "rejected", "answer")


class Message(TypedDict):
    """One turn. `role`: system (first, if at all), user or assistant. `input`: on user turns only, "" if none."""

    role: str
    content: str
    input: str


@dataclass(frozen=True, slots=True)
class Document:
    """One text as its reader found it.

    `key` is unique inside the file or archive member: an id of the data's own, or the position. `position` is a byte
    offset or an ordinal, whichever the format has. `changes`: what its reader did to it, by name.
    """

    key: str
    text: str
    position: int
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not self.text.strip()

    @property
    def num_text_bytes(self) -> int:
        return len(self.text.encode())

    def normalised(self) -> tuple[Document, tuple[str, ...]]:
        """Itself with its text as a corpus holds it, and the names of what changed."""
        text, changes = normalise(self.text)
        return (replace(self, text=text) if changes else self), self.changes + changes

    def record(self, key: str, *, source: str, metadata: str, split_hint: str) -> Record:
        return Record(key, self.text, source, metadata, split_hint)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One row of turns as `instructions.py` made it: texts normalised, none of them empty, the last an answer.

    `key`, `position`, `source` and `metadata` are those of a document. `form`: where the row kept its turns.
    `changes`: what was done to it, by name.
    """

    key: str
    messages: tuple[Message, ...]
    position: int
    form: str
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return False  # an empty turn is rejected, never dropped

    @property
    def num_text_bytes(self) -> int:
        return _num_turn_bytes(self.messages)

    def normalised(self) -> tuple[Instruction, tuple[str, ...]]:
        return self, self.changes

    def record(self, key: str, *, source: str, metadata: str, split_hint: str) -> InstructionRecord:
        return InstructionRecord(key, self.messages, source, metadata, split_hint)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of cells as `examples.py` made it. `cells`: by column of the record's schema; an absent one is null.

    `key`, `position`, `form`, `source`, `metadata` and `changes` are those of an instruction.
    """

    key: str
    cells: dict[str, str | float | None]
    position: int
    form: str
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return False  # an empty text is rejected, never dropped

    @property
    def num_text_bytes(self) -> int:
        return sum(len(text.encode()) for text in _texts(self.cells))

    def normalised(self) -> tuple[Example, tuple[str, ...]]:
        return self, self.changes

    def record(self, key: str, *, source: str, metadata: str, split_hint: str) -> ExampleRecord:
        return ExampleRecord(key, self.cells, source, metadata, split_hint)


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with what was answered, as `preferences.py` made it. `prompt`: turns that end with the user's.

    `cells`: by column of the record's schema. The others are those of an instruction.
    """

    key: str
    prompt: tuple[Message, ...]
    cells: dict[str, str | bool | None]
    position: int
    form: str
    source: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return False  # an empty text is rejected, never dropped

    @property
    def num_text_bytes(self) -> int:
        return _num_turn_bytes(self.prompt) + sum(len(text.encode()) for text in _answers(self.cells))

    def normalised(self) -> tuple[Answered, tuple[str, ...]]:
        return self, self.changes

    def record(self, key: str, *, source: str, metadata: str, split_hint: str) -> AnsweredRecord:
        return AnsweredRecord(key, self.prompt, self.cells, source, metadata, split_hint)


def _num_turn_bytes(turns: Sequence[Message]) -> int:
    return sum(len(turn["content"].encode()) + len(turn["input"].encode()) for turn in turns)


def _answers(cells: dict[str, str | bool | None]) -> list[str]:
    return [cell for cell in cells.values() if isinstance(cell, str)]


def _texts(cells: dict[str, str | float | None]) -> list[str]:
    return [str(cell) for name, cell in cells.items() if name.startswith("text") and cell is not None]


@dataclass(frozen=True, slots=True)
class Reject:
    """Input that could not be read: why (`reason`, counted) and what was wrong (`error`, for a person)."""

    reason: str
    error: str
    offset: int | None = None
    file: str = ""
    member: str = ""

    def to_json(self) -> str:
        tree = {key: getattr(self, key) for key in ("file", "member", "offset", "reason", "error")}
        return json.dumps(tree, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Drop:
    """What was in a row and left out by a rule of the config; `reason` is counted."""

    reason: str


@dataclass(frozen=True, slots=True)
class Several:
    """What was in a row that holds several records, in order."""

    found: tuple[Answered | Reject | Drop, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a corpus of documents."""

    id: str
    text: str
    source: str
    metadata: str
    split_hint: str

    @property
    def compared(self) -> str:
        """What equal records have in common."""
        return self.text

    @property
    def asked(self) -> str:
        """What records have in common that contradict each other unless they are equal; "" where none can."""
        return ""

    @property
    def num_chars(self) -> int:
        return len(self.text)

    def cell(self, name: str) -> Any:
        """What stands in a column of the schema."""
        return getattr(self, name)


@dataclass(frozen=True, slots=True)
class InstructionRecord:
    """One row of a corpus of instructions."""

    id: str
    messages: tuple[Message, ...]
    source: str
    metadata: str
    split_hint: str

    @property
    def compared(self) -> str:
        return dumps(self.messages)

    @property
    def asked(self) -> str:
        return ""

    @property
    def num_chars(self) -> int:
        return sum(len(turn["content"]) + len(turn["input"]) for turn in self.messages)

    def cell(self, name: str) -> Any:
        return getattr(self, name)


@dataclass(frozen=True, slots=True)
class ExampleRecord:
    """One row of a corpus of labels or pairs."""

    id: str
    cells: dict[str, str | float | None]
    source: str
    metadata: str
    split_hint: str

    @property
    def compared(self) -> str:
        return dumps(self.cells)

    @property
    def asked(self) -> str:
        return dumps(_texts(self.cells))

    @property
    def num_chars(self) -> int:
        return sum(map(len, _texts(self.cells)))

    def cell(self, name: str) -> Any:
        return getattr(self, name) if name in self.__slots__ else self.cells.get(name)


@dataclass(frozen=True, slots=True)
class AnsweredRecord:
    """One row of a corpus of preferences, feedback or prompts."""

    id: str
    prompt: tuple[Message, ...]
    cells: dict[str, str | bool | None]
    source: str
    metadata: str
    split_hint: str

    @property
    def compared(self) -> str:
        return dumps([self.prompt, self.cells])

    @property
    def asked(self) -> str:
        """The prompt and the answers, whichever of them is better."""
        return dumps([self.prompt, sorted(_answers(self.cells))])

    @property
    def num_chars(self) -> int:
        return sum(len(turn["content"]) + len(turn["input"]) for turn in self.prompt) + sum(
            map(len, _answers(self.cells))
        )

    def cell(self, name: str) -> Any:
        return getattr(self, name) if name in self.__slots__ else self.cells.get(name)


Single = Document | Instruction | Example | Answered
Found = Single | Reject | Drop | Several
AnyRecord = Record | InstructionRecord | ExampleRecord | AnsweredRecord


class RecordWriter:
    """Parquet writer that holds at most one row group; equal rows in equal calls give equal bytes."""

    def __init__(self, sink: DurableFile, *, compression: str = "zstd", kind: RecordName = "document") -> None:
        self._schema = SCHEMAS[kind]
        self._writer = pq.ParquetWriter(sink, self._schema, compression=compression)
        self._rows: list[AnyRecord] = []
        self._row_text_chars = 0
        self._batches: list[pa.RecordBatch] = []

    def write(self, record: AnyRecord) -> None:
        self._rows.append(record)
        self._row_text_chars += record.num_chars
        # Hangul is 3 bytes in UTF-8: an upper bound that costs nothing.
        if len(self._rows) >= READ_BATCH_ROWS or self._row_text_chars * 3 >= ROW_GROUP_TEXT_BYTES:
            self._flush_rows()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Take rows that are columns already, behind all that were written."""
        self._flush_rows()
        num_rows = batch.num_rows + sum(held.num_rows for held in self._batches)
        num_bytes = batch.nbytes + sum(held.nbytes for held in self._batches)
        if num_rows > ROW_GROUP_ROWS or num_bytes > ROW_GROUP_TEXT_BYTES:
            self._flush_batches()
        self._batches.append(batch)

    def close(self) -> None:
        self._flush_rows()
        self._flush_batches()
        self._writer.close()

    def _flush_rows(self) -> None:
        if not self._rows:
            return
        columns = [[row.cell(name) for row in self._rows] for name in self._schema.names]
        self._rows, self._row_text_chars = [], 0
        arrays = [pa.array(column, type=kind) for column, kind in zip(columns, self._schema.types, strict=True)]
        self.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def _flush_batches(self) -> None:
        if self._batches:
            table = pa.Table.from_batches(self._batches, schema=self._schema)
            self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._batches = []


def corpus_files(folder: Path) -> list[Path]:
    """The Parquet files of a finished corpus, in corpus order; raises StageError on an unfinished one."""
    manifest = read_manifest(folder, kind="corpus")
    return [folder / entry["name"] for entry in manifest["files"]]


def iterate_documents(folder: Path, *, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of a finished corpus of documents in corpus order, all columns or only `columns`; holds one row group.

    Raises:
        StageError: unfinished, or a corpus of other records.
    """
    record = read_manifest(folder, kind="corpus").get("record", "document")
    if record != "document":
        raise StageError(f"{folder}: record is {record!r}, but 'document' is needed; give a corpus of documents")
    yield from iterate_records(folder, columns=columns)


def iterate_records(folder: Path, *, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The same of a finished corpus of any kind of record."""
    for path in corpus_files(folder):
        yield from iterate_rows(path, columns=columns)


def iterate_rows(path: Path, *, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Batches of one Parquet file."""
    with pq.ParquetFile(path, memory_map=True) as file:
        yield from file.iter_batches(
            batch_size=READ_BATCH_ROWS, columns=list(columns) if columns else None, use_threads=False
        )


def text_bytes(batch: pa.RecordBatch) -> pa.Array:
    """UTF-8 bytes of each row's texts and answers, and of the contents and inputs of its turns; int64."""
    names = batch.schema.names
    texts = [name for name in names if name.startswith("text") or name in ANSWER_COLUMNS]
    sizes = [pc.fill_null(pc.cast(pc.binary_length(batch[name]), pa.int64()), 0) for name in texts]
    sizes += [turn_bytes(batch[name]) for name in ("messages", "prompt") if name in names]
    return functools.reduce(pc.add, sizes)


def turn_bytes(rows: pa.Array) -> pa.Array:
    """UTF-8 bytes of the contents and inputs of each row's turns; int64."""
    turns = pc.list_flatten(rows)
    sizes = pc.add(*(pc.binary_length(pc.struct_field(turns, name)) for name in ("content", "input")))
    table = pa.table({"row": pc.list_parent_indices(rows), "size": pc.cast(sizes, pa.int64())})
    # Every row has a turn, and rows come in order.
    return table.group_by("row", use_threads=False).aggregate([("size", "sum")])["size_sum"].combine_chunks()
