"""`dure corpus inspect PATH`: what a build would read, from a look at the first records. Writes nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.corpus.archive import ExpansionLimits
from data_pipeline.corpus.read import FileRange, Reading
from data_pipeline.corpus.records import Record, Reject
from data_pipeline.corpus.sources import InputConfig, find_files

MAX_RECORDS_A_FILE = 200
MAX_FILES = 50


@dataclass(frozen=True)
class Inspection:
    """A look at an input. Counts of `tally` are of what was looked at, `is_whole` says whether that was all."""

    num_files: int
    num_bytes: int
    kinds: dict[str, int]
    samples: list[Record]
    rejects: list[Reject]
    tally: dict[str, Any]
    is_whole: bool

    def lines(self) -> list[str]:
        """The report for a person."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.kinds.items()))
        look = "everything" if self.is_whole else "the first records"
        records = self.tally["records"]
        lines = [
            f"files      {self.num_files:,} ({self.num_bytes:,} bytes): {kinds}",
            f"looked at  {look}: {records.get('found', 0):,} records",
        ]
        lines += [
            f"{name:<10} {self.tally[name]}" for name in ("passed_over", "rejected", "dropped") if self.tally[name]
        ]
        for record in self.samples:
            text = record.text if len(record.text) <= 200 else record.text[:200] + "…"
            lines += ["", f"{record.id}  [{record.source}] {record.split_hint} {record.metadata}", text]
        for reject in self.rejects:
            lines.append(f"rejected   {reject.to_json()}")
        return lines


def inspect_path(path: Path, *, options: InputConfig | None = None, num_samples: int = 3) -> Inspection:
    """Look at the file or folder `path` as `corpus build` would read it; raises StageError as a build would."""
    chosen = options or InputConfig(path=path)
    files = find_files([chosen])
    rejects: list[Reject] = []
    reading = Reading([chosen], limits=ExpansionLimits(), on_reject=rejects.append)
    samples: list[Record] = []
    is_whole = len(files) <= MAX_FILES
    for file in files[:MAX_FILES]:
        records = reading.records(FileRange(file))
        for record in itertools.islice(records, MAX_RECORDS_A_FILE):
            if len(samples) < num_samples:
                samples.append(record)
        is_whole = is_whole and next(records, None) is None
    kinds = Counter(file.skip_reason or file.kind or "" for file in files)
    num_bytes = sum(file.num_bytes for file in files)
    tally = reading.tally.to_tree()
    return Inspection(len(files), num_bytes, dict(kinds), samples, rejects[:num_samples], tally, is_whole)
