"""The three kinds of task of a corpus build, each on files of the staging folder: read, repeats, write.

A task's `.json` is written last and marks it done; a task that has one does nothing. The staging folder is named by
the hash of all inputs, so what lies there belongs to equal inputs.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import disk
from data_pipeline.corpus import duplicates
from data_pipeline.corpus.archive import ExpansionLimits
from data_pipeline.corpus.duplicates import DUPLICATE, HELD_OUT_AGAIN, Digests
from data_pipeline.corpus.read import FileRange, Reading
from data_pipeline.corpus.records import HELDOUT, RecordName, RecordWriter, Reject, iterate_rows, text_bytes
from data_pipeline.corpus.sources import InputConfig

LISTING_NAME = "inputs.jsonl"
# What is compared: equal texts (or turns, or rows of cells) are dropped from train, equal ids are told apart. Of
# examples also the texts alone: what is left of those and is equal says two things of one text, which is counted.
TEXT, ID, ASKED = "text", "id", "asked"
# Counts of rows: dropped from train because a held-out row is equal, and held out though another such row is equal.
ALSO_HELD_OUT, AGAIN = "also_held_out", "held_out_again"
_CONTRADICTIONS: dict[RecordName, str] = {
    "label": "contradicting_label",
    "pair": "contradicting_score",
    "preference": "contradicting_preference",
    "feedback": "contradicting_feedback",
}


def contradictions(record: RecordName) -> tuple[str, ...]:
    """The count of rows that contradict an earlier one; none where records can't."""
    return tuple(name for kind, name in _CONTRADICTIONS.items() if kind == record)


def _compared(record: RecordName) -> tuple[str, ...]:
    return (TEXT, ID, ASKED) if record in _CONTRADICTIONS else (TEXT, ID)


@dataclass(frozen=True)
class Staging:
    """Names of the files that tasks hand to each other."""

    folder: Path
    output: Path

    @property
    def listing(self) -> Path:
        """A line for each input file; goes to the output at the end."""
        return self.folder / LISTING_NAME

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    def pieces(self, part: int) -> Path:
        return self.folder / f"pieces-{part:05d}.jsonl"

    def rows(self, part: int) -> Path:
        return self.folder / f"read-{part:05d}.parquet"

    def digests(self, part: int, what: str) -> Path:
        return self.folder / f"read-{part:05d}.{what}.npy"

    def repeats(self, bucket: int, what: str) -> Path:
        return self.folder / f"repeats-{bucket:05d}.{what}.npy"

    def marker(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:05d}.json"

    def result(self, kind: str, number: int) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads(self.marker(kind, number).read_text(encoding="utf-8"))
        return tree


def read_part(
    staging: Staging,
    part: int,
    pieces: Iterable[FileRange],
    inputs: Sequence[InputConfig],
    *,
    limits: ExpansionLimits,
    record: RecordName,
) -> None:
    """Read `pieces` into rows, their digests and rejects; the tally is the marker."""
    digests = {what: Digests() for what in _compared(record)}
    with _Rejects(staging.output / "rejects" / f"part-{part:05d}.jsonl") as rejects:
        reading = Reading(inputs, limits=limits, on_reject=rejects.add, record=record)
        with (
            disk.durable_file(staging.rows(part)) as file,
            contextlib.closing(RecordWriter(file, compression="lz4", kind=record)) as writer,
        ):
            for piece in pieces:
                for row in reading.records(piece):
                    writer.write(row)
                    is_heldout = row.split_hint == HELDOUT
                    digests[TEXT].add(row.compared, is_heldout=is_heldout)
                    digests[ID].add(row.id)
                    if ASKED in digests:
                        digests[ASKED].add(row.asked, is_heldout=is_heldout)
    for what, found in digests.items():
        found.save(staging.digests(part, what))
    result = {
        "tally": reading.tally.to_tree(),
        "rejects": rejects.entry(),
        "lost": [asdict(lost) for lost in reading.lost],
    }
    disk.write_json(staging.marker("read", part), result)


def find_repeats(staging: Staging, bucket: int, *, num_parts: int, num_buckets: int, record: RecordName) -> None:
    """Name every row of a range of digests whose text, or id, an earlier row has."""
    for what in _compared(record):
        parts = [staging.digests(part, what) for part in range(num_parts)]
        places = duplicates.find_repeats(parts, bucket=bucket, num_buckets=num_buckets)
        duplicates.save_places(staging.repeats(bucket, what), places)
    disk.write_json(staging.marker("repeats", bucket), {})


def write_part(
    staging: Staging, part: int, *, num_buckets: int, record: RecordName, keeps_duplicates: bool = False
) -> None:
    """Write a part of the corpus without texts that train repeats or heldout has; one without rows leaves no file.

    `keeps_duplicates`: with them; they are counted all the same.
    """
    counts: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = {}
    path = staging.output / "data" / f"part-{part:05d}.parquet"
    with disk.durable_file(path) as file, contextlib.closing(RecordWriter(file, kind=record)) as writer:
        same = {
            what: duplicates.places_of_part([staging.repeats(bucket, what) for bucket in range(num_buckets)], part)
            for what in _compared(record)
        }
        for batch in _without_repeats(staging, part, same, counts, record=record, keeps_duplicates=keeps_duplicates):
            writer.write_batch(batch)
            _count_rows(batch, counts, sources)
    entry = asdict(file.record(f"data/{path.name}")) if counts["num_records"] else None
    if entry is None:
        path.unlink()
    disk.write_json(staging.marker("write", part), {"file": entry, "counts": counts, "sources": sources})


def _without_repeats(
    staging: Staging,
    part: int,
    same: Mapping[str, np.ndarray],
    counts: Counter[str],
    *,
    record: RecordName,
    keeps_duplicates: bool,
) -> Iterator[pa.RecordBatch]:
    """The rows that stay, batch by batch. `same`: by what is compared, the places of rows that are not the first."""
    rows_of = {
        name: same[TEXT]["row"][same[TEXT]["fate"] == fate]
        for name, fate in (("duplicate", DUPLICATE), (ALSO_HELD_OUT, duplicates.ALSO_HELD_OUT), (AGAIN, HELD_OUT_AGAIN))
    }
    start = 0
    for batch in iterate_rows(staging.rows(part)):
        rows = np.arange(start, start + batch.num_rows)
        start += batch.num_rows
        found = {name: np.isin(rows, places) for name, places in rows_of.items()}
        is_repeat = np.logical_or.reduce(list(found.values()))
        is_kept = np.full(len(rows), True) if keeps_duplicates else ~is_repeat | found[AGAIN]
        is_renamed = np.isin(rows, same[ID]["row"]) & is_kept
        for name, are_so in found.items():
            counts[name] += int(are_so.sum())
        counts["repeated_id"] += int(is_renamed.sum())
        for name in contradictions(record):
            # A row before it has its texts and none has its cells: they differ in what they say of them.
            counts[name] += int((np.isin(rows, same[ASKED]["row"]) & ~is_repeat).sum())
        if is_renamed.any():
            batch = _with_new_ids(batch, part, rows, is_renamed)
        yield batch.filter(pa.array(is_kept))


def _with_new_ids(batch: pa.RecordBatch, part: int, rows: np.ndarray, is_renamed: np.ndarray) -> pa.RecordBatch:
    """The same id twice is the data's fault; part and row, which inputs alone decide, tell them apart."""
    ids = [
        f"{name}~{part}.{row}" if renamed else name
        for name, row, renamed in zip(batch["id"].to_pylist(), rows.tolist(), is_renamed.tolist(), strict=True)
    ]
    return batch.set_column(batch.schema.get_field_index("id"), batch.schema.field("id"), pa.array(ids))


def _count_rows(batch: pa.RecordBatch, counts: Counter[str], sources: dict[str, Counter[str]]) -> None:
    counts["heldout"] += pc.sum(pc.equal(batch["split_hint"], HELDOUT)).as_py() or 0
    table = pa.table({"source": batch["source"], "num_bytes": text_bytes(batch)})
    for row in (
        table.group_by("source", use_threads=False).aggregate([("num_bytes", "sum"), ([], "count_all")]).to_pylist()
    ):
        for counter in (counts, sources.setdefault(row["source"], Counter())):
            counter["num_records"] += row["count_all"]
            counter["num_text_bytes"] += row["num_bytes_sum"]


class _Rejects:
    """A file of rejects, one JSON line each, that exists only if there are any."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._file: disk.DurableFile | None = None
        self._num_records = 0

    def __enter__(self) -> _Rejects:
        return self

    def __exit__(self, *fault: Any) -> None:
        self._stack.__exit__(*fault)

    def add(self, reject: Reject) -> None:
        if self._file is None:
            self._path.parent.mkdir(exist_ok=True)
            self._file = self._stack.enter_context(disk.durable_file(self._path))
        self._file.write(reject.to_json().encode("utf-8", "backslashreplace") + b"\n")
        self._num_records += 1

    def entry(self) -> dict[str, Any] | None:
        if self._file is None:
            return None
        return asdict(self._file.record(f"rejects/{self._path.name}")) | {"num_records": self._num_records}
