"""Memory maps of one split's shards, opened when a row first needs them and bounded in number.

Rows are gathered by compiled kernels from the addresses kept here; nothing of a shard is copied when it is opened.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.shards.format import ShardSet
from data_pipeline.shards.reader import loss_spans, open_shard
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import RowBuffers
from data_pipeline.stream.kernels import (
    DAMAGED,
    DONE,
    NO_SUCH_ROW,
    BatchTable,
    SpanTable,
    gather_concatenated,
    gather_framed,
    gather_segments,
    hide_what_is_no_target,
)

IntArray = NDArray[np.int64]

# Linux allows 65,530 maps a process (vm.max_map_count); the libraries of a training process need some hundred.
MAX_OPEN_SHARDS = 32_768
NOT_STARTED = 0
NOT_OPEN = np.int64(np.iinfo(np.int64).max)  # as the tick of a shard's last use


class ShardMaps:
    """The record batches of a split as addresses. `table` is what kernels read; `tick` counts gathers.

    `pad_id` fills what is left of a row: a segment of its own, without a label, so that no loss knows its value.
    """

    def __init__(self, shards: ShardSet, *, max_open_shards: int = MAX_OPEN_SHARDS) -> None:
        self.shards = shards
        self.max_open_shards = max_open_shards
        self.pad_id = shards.pad_id
        self.tick = 0
        self.table = _batch_table(shards)
        self.spans = _span_table(len(self.table.num_documents)) if shards.record == "instruction" else None
        self.like = np.empty(0, shards.dtype)  # tells kernels the type of ids
        self._first_batch = np.cumsum([0] + [len(file.batch_documents) for file in shards.files])
        self._open: dict[int, list[pa.RecordBatch]] = {}  # keeps the maps, and so the addresses, alive

    @property
    def num_open_shards(self) -> int:
        return len(self._open)

    def write_concatenated(self, numbers: IntArray, out: RowBuffers) -> int:
        """Write rows of the endless sequence of pairs into `out`; returns how many targets they hold."""
        self.tick += 1
        arrays = (out.input_ids, out.labels, out.position_ids)
        num_done, answer, num_targets = 0, NOT_STARTED, 0
        while answer != DONE:
            num_done, answer, written = gather_concatenated(
                numbers, num_done, self.table, self.like, self.tick, self.pad_id, *arrays
            )
            num_targets += written
            self._resolve(answer)
        return num_targets

    def write_segments(
        self, numbers: IntArray, row_ends: IntArray, starts: IntArray, lengths: NDArray[np.int32], out: RowBuffers
    ) -> int:
        """Write rows of a table of segments (see `gather_segments`) into `out`; returns how many targets they hold."""
        self.tick += 1
        segments = (row_ends, starts, lengths)
        arrays = (out.input_ids, out.labels, out.position_ids)
        num_done, answer, num_targets = 0, NOT_STARTED, 0
        while answer != DONE:
            num_done, answer, written = gather_segments(
                numbers, num_done, *segments, self.table, self.like, self.tick, self.pad_id, *arrays
            )
            num_targets += written
            self._resolve(answer)
        return num_targets if self.spans is None else self._hide(numbers, segments, self.spans, out.labels)

    def write_framed(
        self,
        numbers: IntArray,
        row_ends: IntArray,
        starts: IntArray,
        lengths: NDArray[np.int32],
        out: RowBuffers,
        *,
        frame: tuple[int, int],
    ) -> int:
        """Write rows of pieces between the ids of `frame` (see `gather_framed`) into `out`; returns their targets."""
        self.tick += 1
        segments = (row_ends, starts, lengths)
        arrays = (out.input_ids, out.labels, out.position_ids)
        num_done, answer, num_targets = 0, NOT_STARTED, 0
        while answer != DONE:
            num_done, answer, written = gather_framed(
                numbers, num_done, *segments, self.table, self.like, self.tick, *frame, self.pad_id, *arrays
            )
            num_targets += written
            self._resolve(answer)
        return num_targets

    def _hide(self, numbers: IntArray, segments: tuple[Any, ...], spans: SpanTable, labels: IntArray) -> int:
        """Take the labels of instruction rows away that are no targets; returns how many are left."""
        row_ends, starts, lengths = segments
        num_done, answer, num_targets = 0, NOT_STARTED, 0
        while answer != DONE:
            num_done, answer, kept = hide_what_is_no_target(
                numbers, num_done, row_ends, starts, lengths, self.table, spans, labels
            )
            num_targets += kept
            self._resolve(answer)
        return num_targets

    def _resolve(self, answer: int) -> None:
        """Do what a kernel stopped for: open the shard of record batch `answer`, or raise what it found."""
        if answer == DONE:
            return
        if answer == DAMAGED:
            raise StageError(
                f"{self.shards.folder}: the offsets of a {self.shards.split} shard or of its row table contradict "
                "manifest.json; `dure shards verify` names the file"
            )
        if answer == NO_SUCH_ROW:
            raise IndexError("row number out of range")
        self.open(int(self.table.file_number[answer]))

    def open(self, number: int) -> list[pa.RecordBatch]:
        """The record batches of file `number`; closes the shard unused for longest when too many are open."""
        if number not in self._open:
            while len(self._open) >= self.max_open_shards:
                if not self._close_oldest():
                    break  # a gather that needs more shards than the bound goes beyond it rather than never end
            batches = open_shard(self.shards.files[number])
            first = self._first_batch[number]
            for position, batch in enumerate(batches, start=first):
                column = batch.column("input_ids")
                self.table.offsets_address[position] = _address(column.offsets)
                self.table.values_address[position] = _address(column.values)
                if self.spans is not None:
                    self._open_spans(self.spans, position, batch)
            self.table.last_used[number] = self.tick
            self._open[number] = batches
        return self._open[number]

    def _open_spans(self, spans: SpanTable, position: int, batch: pa.RecordBatch) -> None:
        offsets, starts, ends = loss_spans(batch)
        spans.num_spans[position] = len(starts)
        for addresses, array in (
            (spans.offsets_address, offsets),
            (spans.starts_address, starts),
            (spans.ends_address, ends),
        ):
            addresses[position] = array.ctypes.data

    def _close_oldest(self) -> bool:
        """Close the shard unused for longest; False if the current gather reads every open one."""
        oldest = int(np.argmin(self.table.last_used))
        if self.table.last_used[oldest] == self.tick:
            return False
        first, end = self._first_batch[oldest], self._first_batch[oldest + 1]
        self.table.values_address[first:end] = 0
        self.table.last_used[oldest] = NOT_OPEN
        del self._open[oldest]
        return True


def _batch_table(shards: ShardSet) -> BatchTable:
    documents = np.array([count for file in shards.files for count in file.batch_documents], np.int64)
    tokens = np.array([count for file in shards.files for count in file.batch_tokens], np.int64)
    files = np.repeat(np.arange(len(shards.files)), [len(file.batch_documents) for file in shards.files])
    return BatchTable(
        first_token=np.concatenate([[0], np.cumsum(tokens)]),
        first_pair=np.concatenate([[0], np.cumsum(tokens - documents)]),
        num_documents=documents,
        file_number=files.astype(np.int64),
        values_address=np.zeros(len(documents), np.uint64),
        offsets_address=np.zeros(len(documents), np.uint64),
        last_used=np.full(len(shards.files), NOT_OPEN),
    )


def _span_table(num_batches: int) -> SpanTable:
    addresses = (np.zeros(num_batches, np.uint64) for _ in range(3))
    return SpanTable(np.zeros(num_batches, np.int64), *addresses)


def _address(array: Any) -> int:
    if len(array) == 0:
        return 0
    data = array.buffers()[1]
    width = array.type.bit_width // 8
    return int(data.address) + array.offset * width
