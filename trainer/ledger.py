"""The ledger: which rows each rank trained on in each step, `ledger/rank-00000.jsonl`, one line a step and epoch.

What laws 1 and 2 promise, written down as it happened: the ids are those of the batches that the model was given.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_pipeline import disk
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.split import rank_slices
from data_pipeline.stream.stream import AnyBatch, Stream
from trainer.run_folder import read_lines, repair_lines, rewind_lines

LEDGER_NAME = "ledger"


class Ledger:
    """The lines of one rank in one attempt."""

    def __init__(self, run_folder: Path, *, rank: int, world_size: int, micro_batch_sequences: int) -> None:
        self._path = run_folder / LEDGER_NAME / f"rank-{rank:05d}.jsonl"
        self._share = {"dp_rank": rank, "dp_world_size": world_size, "micro_batch_sequences": micro_batch_sequences}
        self._path.parent.mkdir(exist_ok=True)

    def add(self, micro_batches: Sequence[AnyBatch], *, stream: Stream, step: int) -> None:
        """Note this rank's rows of `step`, which `stream` stands at; a step over an epoch's end gives two lines."""
        rows: dict[int, list[int]] = defaultdict(list)
        slices = rank_slices(stream.global_batch_sequences, **self._share)
        for batch, (start, end) in zip(micro_batches, slices, strict=True):
            ids = [int(row) for row in batch.row_ids if row != NO_ROW]
            assert len(ids) == end - start, "a batch holds the rows of its slice"
            for place, row in enumerate(ids, start=stream.next_row + start):
                rows[place // stream.rows.num_rows].append(row)
        for epoch, ids in rows.items():
            disk.append_line(self._path, json.dumps({"step": step, "epoch": epoch, "rows": ids}).encode())


def rewind_ledger(run_folder: Path, *, step: int, rank: int, world_size: int) -> None:
    """Forget the rows of steps after `step`, from which the run goes on; each rank does its share of the files.

    An attempt with more ranks may have left files that no rank of this one writes.
    """
    for path in sorted((run_folder / LEDGER_NAME).glob("rank-*.jsonl"))[rank::world_size]:
        repair_lines(path)
        rewind_lines(path, step=step)


def read_ledger(run_folder: Path) -> dict[int, list[int]]:
    """The rows of each step over all ranks, sorted; steps in order."""
    rows: dict[int, list[int]] = defaultdict(list)
    for path in sorted((run_folder / LEDGER_NAME).glob("rank-*.jsonl")):
        for line in read_lines(path):
            rows[line["step"]] += line["rows"]
    return {step: sorted(rows[step]) for step in sorted(rows)}


def rows_by_epoch(run_folder: Path) -> dict[int, list[int]]:
    """The rows of each epoch over all ranks and steps, sorted; a row stands as often as it was trained on."""
    rows: dict[int, list[int]] = defaultdict(list)
    for path in sorted((run_folder / LEDGER_NAME).glob("rank-*.jsonl")):
        for line in read_lines(path):
            rows[line["epoch"]] += line["rows"]
    return {epoch: sorted(rows[epoch]) for epoch in sorted(rows)}
