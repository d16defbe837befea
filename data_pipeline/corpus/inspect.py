"""`dure corpus inspect PATH`: what a build would read, from a look at the first records. Writes nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.corpus.archive import ExpansionLimits
from data_pipeline.corpus.read import FileRange, Reading
from data_pipeline.corpus.records import AnsweredRecord, AnyRecord, ExampleRecord, Message, Record, RecordName, Reject
from data_pipeline.corpus.sources import InputConfig, InputFile, find_files
from data_pipeline.stage import StageError

MAX_RECORDS_A_FILE = 200
MAX_FILES = 50
MAX_SHOWN_CHARS = 200


_KOREAN: dict[RecordName, str] = {
    "document": "",
    "instruction": " (지시 대화)",
    "label": " (분류)",
    "pair": " (글 쌍)",
    "preference": " (선호: 나은 답변과 못한 답변)",
    "feedback": " (평가한 답변)",
    "prompt": " (질문)",
}
# A row of these files may be either kind of record; of other files only a look at all of it tells.
_ROW_KINDS = {"jsonl", "csv", "tsv", "parquet", "xlsx"}


@dataclass(frozen=True)
class Inspection:
    """A look at an input. Counts of `tally` are of what was looked at, `is_whole` says whether that was all."""

    record: RecordName
    num_files: int
    num_bytes: int
    kinds: dict[str, int]
    samples: list[AnyRecord]
    rejects: list[Reject]
    tally: dict[str, Any]
    is_whole: bool

    def lines(self) -> list[str]:
        """The report for a person."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.kinds.items()))
        look = "everything" if self.is_whole else "the first records"
        forms = ", ".join(f"{count:,} {name}" for name, count in self.tally["forms"].items())
        lines = [
            f"files      {self.num_files:,} ({self.num_bytes:,} bytes): {kinds}",
            f"looked at  {look}: {self.tally['records'].get('found', 0):,} records",
            f"record     {self.record}{_KOREAN[self.record]}" + (f": {forms}" if forms else ""),
        ]
        lines += [
            f"{name:<10} {self.tally[name]}"
            for name in ("encodings", "passed_over", "rejected", "dropped")
            if self.tally[name]
        ]
        for record in self.samples:
            lines += ["", f"{record.id}  [{record.source}] {record.split_hint} {record.metadata}", *_texts(record)]
        return [*lines, *(f"rejected   {reject.to_json()}" for reject in self.rejects)]


def _texts(record: AnyRecord) -> list[str]:
    if isinstance(record, Record):
        return [_cut(record.text)]
    if isinstance(record, ExampleRecord):
        return [f"{name:<10} {_cut(str(cell))}" for name, cell in record.cells.items() if cell is not None]
    if isinstance(record, AnsweredRecord):
        told = [f"{name:<10} {_cut(str(cell))}" for name, cell in record.cells.items() if cell is not None]
        return [*_turns(record.prompt), *told]
    return _turns(record.messages)


def _turns(turns: Sequence[Message]) -> list[str]:
    lines = []
    for turn in turns:
        lines.append(f"{turn['role']:<10} {_cut(turn['content'])}")
        if turn["input"]:
            lines.append(f"{'(input)':<10} {_cut(turn['input'])}")
    return lines


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"


def inspect_path(path: Path, *, options: InputConfig | None = None, num_samples: int = 3) -> Inspection:
    """Look at the file or folder `path` as `corpus build` would read it; raises StageError as a build would.

    It is a corpus of the kind of record of which something is found.
    """
    chosen = options or InputConfig(path=path)
    files = _Files()
    for file in find_files([chosen]):
        files.add(file)
    has_rows = any(kind in _ROW_KINDS for kind in files.kinds)
    # What needs more columns comes before what needs fewer of them: every row of a question may be a prompt.
    of_rows: tuple[RecordName, ...] = ("preference", "feedback", "instruction", "label", "pair")
    kinds: tuple[RecordName, ...] = (*of_rows, "document", "prompt") if has_rows else ("document", *of_rows, "prompt")
    looks: dict[RecordName, Inspection] = {}
    faults: dict[RecordName, StageError] = {}
    for record in kinds:
        try:
            looks[record] = _look(files, chosen, record, num_samples=num_samples)
        except StageError as fault:
            faults[record] = fault
        else:
            if looks[record].samples:
                return looks[record]
    if "document" in faults:
        hint = (
            "for questions and answers: record: instruction, columns: {instruction: …, output: …}; for texts with a "
            "label: record: label, columns: {text_a: …, label: …}"
        )
        raise StageError(f"{faults['document']}; {hint}")
    return looks["document"]


@dataclass
class _Files:
    """The first files of an input, and figures of all of them."""

    first: list[InputFile] = field(default_factory=list)
    num_files: int = 0
    num_bytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, file: InputFile) -> None:
        if self.num_files < MAX_FILES:
            self.first.append(file)
        self.num_files += 1
        self.num_bytes += file.num_bytes
        self.kinds[file.skip_reason or file.kind or ""] += 1


def _look(files: _Files, options: InputConfig, record: RecordName, *, num_samples: int) -> Inspection:
    rejects: list[Reject] = []
    reading = Reading([options], limits=ExpansionLimits(), on_reject=rejects.append, record=record)
    samples: list[AnyRecord] = []
    is_whole = files.num_files <= MAX_FILES
    for file in files.first:
        records = reading.records(FileRange(file))
        for found in itertools.islice(records, MAX_RECORDS_A_FILE):
            if len(samples) < num_samples:
                samples.append(found)
        is_whole = is_whole and next(records, None) is None
    return Inspection(
        record,
        files.num_files,
        files.num_bytes,
        dict(files.kinds),
        samples,
        rejects[:num_samples],
        reading.tally.to_tree(),
        is_whole,
    )
