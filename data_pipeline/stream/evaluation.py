"""Whole held-out documents or instruction rows, each target scored once, for bits per byte.

A document of more than `seq_len` pairs is read through windows that overlap by `seq_len - stride`; a target counts in
the first window that holds it. Windows and whole documents are packed best-fit; no window ever crosses documents.
An instruction row of more than `seq_len` pairs is left out and counted, as in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import RecordKind, read_shards
from data_pipeline.shards.reader import document_lengths, loss_spans
from data_pipeline.stage import NothingToScoreError
from data_pipeline.stream.batch import NO_TARGET, Batch, RowBuffers, padding_batch
from data_pipeline.stream.maps import ShardMaps
from data_pipeline.stream.order import RowOrder
from data_pipeline.stream.packing import WINDOW_DOCUMENTS, pack_best_fit
from data_pipeline.stream.split import rank_slices

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class _Windows:
    """Window w is `lengths[w]` pairs from token `starts[w]` on; the first `unscored[w]` of them are context only."""

    starts: IntArray
    lengths: IntArray
    unscored: IntArray


@dataclass(frozen=True)
class _EvaluationRows:
    """Packed windows: row r is segments `row_ends[r - 1]`.. `row_ends[r]`."""

    row_ends: IntArray
    starts: IntArray
    lengths: NDArray[np.int32]
    unscored: IntArray


class EvaluationSet:
    """Documents of one split for evaluation, the same on every rank.

    `num_documents`, `num_targets` and `num_bytes` count what is scored; of instruction rows, their answers.
    `num_documents_too_long` counts the chosen instruction rows that are left out.

    Args:
        shards: a finished shards folder.
        split: its split, "heldout" as a rule.
        seq_len: pairs of a row.
        stride: pairs between the starts of two windows of a long document; half of `seq_len` if None.
        max_documents: how many to take, chosen evenly by the keyed order of the shards; all if None.
        documents: the numbers of those to take instead, ascending.

    Raises:
        NothingToScoreError: those to take hold no target.
    """

    def __init__(
        self,
        shards: Path,
        split: str,
        seq_len: int,
        stride: int | None = None,
        max_documents: int | None = None,
        documents: IntArray | None = None,
    ) -> None:
        self.seq_len = seq_len
        self.stride = max(seq_len // 2, 1) if stride is None else stride
        if not 1 <= self.stride <= seq_len:
            raise ValueError(f"stride is {stride}, but seq_len is {seq_len}; it must be from 1 to seq_len")
        if max_documents is not None and max_documents < 1:
            raise ValueError(f"max_documents is {max_documents}; it must be at least 1, or None for all")
        self._shards = read_shards(Path(shards), split=split)
        self._maps = ShardMaps(self._shards)
        self._chosen = self._choose(max_documents) if documents is None else documents
        self.num_documents_too_long = 0
        self.num_documents, self.num_targets, self.num_bytes = self._count()
        if self.num_documents == 0:
            raise NothingToScoreError(
                f"{shards}: all {self.num_documents_too_long:,} instruction rows of split {split!r} chosen for "
                f"evaluation are longer than seq_len {seq_len:,}; raise seq_len"
            )
        if self.num_targets == 0:
            raise NothingToScoreError(
                f"{shards}: the {self.num_documents:,} documents of split {split!r} chosen for evaluation hold no "
                "target; take more documents, or build the shards again with more held-out text"
            )

    @property
    def record(self) -> RecordKind:
        """Of the shards: "document" or "instruction"."""
        return self._shards.record

    @property
    def pad_id(self) -> int:
        """What fills a row's end: as the shards say, until `pad_with`."""
        return self._maps.pad_id

    def pad_with(self, pad_id: int) -> None:
        """Fill rows with `pad_id` from now on."""
        self._maps.pad_id = pad_id

    def batches(self, *, dp_rank: int, dp_world_size: int, micro_batch_sequences: int) -> Iterator[Batch]:
        """This rank's batches; every rank gets the same number, with rows of padding alone where there is none left.

        Each batch has memory of its own. `row_ids` number the rows of this set.
        """
        num_rows_before = 0
        for rows in self._packed_rows():
            for start, end in rank_slices(
                len(rows.row_ends),
                dp_rank=dp_rank,
                dp_world_size=dp_world_size,
                micro_batch_sequences=micro_batch_sequences,
            ):
                if start == end:
                    yield padding_batch(seq_len=self.seq_len, pad_id=self.pad_id)
                else:
                    yield self._gather(rows, np.arange(start, end), num_rows_before)
            num_rows_before += len(rows.row_ends)

    def _choose(self, max_documents: int | None) -> IntArray | None:
        """Numbers of the documents to take, ascending; None for all."""
        num_documents = self._shards.num_documents
        if max_documents is None or max_documents >= num_documents:
            return None
        order = RowOrder(self._shards.content_sha256, seed=0, epoch=0, num_rows=num_documents)
        return np.sort(order.rows_at(np.arange(max_documents)))

    def _count(self) -> tuple[int, int, int]:
        if self._chosen is None and self.record == "document":
            return self._shards.num_documents, self._shards.num_pairs, self._shards.num_bytes
        num_documents = num_targets = num_bytes = 0
        for number, chosen in self._chosen_by_batch():
            batch = self._record_batch(number)
            fitting = self._fitting(batch, chosen)
            self.num_documents_too_long += len(chosen) - len(fitting)
            num_documents += len(fitting)
            num_targets += int(self._targets_of_each(batch)[fitting].sum())
            num_bytes += int(batch.column("num_bytes").to_numpy()[fitting].sum())
        return num_documents, num_targets, num_bytes

    def _fitting(self, batch: Any, chosen: IntArray) -> IntArray:
        """Of the chosen documents of a record batch those that may be scored."""
        if self.record == "document":
            return chosen
        return chosen[document_lengths(batch)[chosen] - 1 <= self.seq_len]

    def _targets_of_each(self, batch: Any) -> IntArray:
        if self.record == "document":
            return document_lengths(batch) - 1
        offsets, starts, ends = loss_spans(batch)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(ends - starts, dtype=np.int64)])
        return before[offsets[1:]] - before[offsets[:-1]]

    def _chosen_by_batch(self) -> Iterator[tuple[int, IntArray]]:
        """(record batch, the chosen documents inside it) in shard order, without the batches that have none."""
        first_document = np.concatenate([[0], np.cumsum(self._maps.table.num_documents)])
        for number in range(len(first_document) - 1):
            first, end = int(first_document[number]), int(first_document[number + 1])
            if self._chosen is None:
                yield number, np.arange(end - first)
                continue
            low, high = np.searchsorted(self._chosen, [first, end])
            if high > low:
                yield number, self._chosen[low:high] - first

    def _record_batch(self, number: int) -> Any:
        file = int(self._maps.table.file_number[number])
        return self._maps.open(file)[number - int(np.searchsorted(self._maps.table.file_number, file))]

    def _packed_rows(self) -> Iterator[_EvaluationRows]:
        """Rows of WINDOW_DOCUMENTS chosen documents at a time, so that memory stays bounded."""
        starts, lengths = np.empty(0, np.int64), np.empty(0, np.int64)
        for number, of_batch in self._chosen_by_batch():
            chosen = self._fitting(self._record_batch(number), of_batch)
            tokens = document_lengths(self._record_batch(number))
            first_tokens = int(self._maps.table.first_token[number]) + np.cumsum(tokens) - tokens
            starts = np.concatenate([starts, first_tokens[chosen]])
            lengths = np.concatenate([lengths, tokens[chosen] - 1])
            while len(starts) >= WINDOW_DOCUMENTS:
                yield self._pack(self._windows(starts[:WINDOW_DOCUMENTS], lengths[:WINDOW_DOCUMENTS]))
                starts, lengths = starts[WINDOW_DOCUMENTS:], lengths[WINDOW_DOCUMENTS:]
        if len(starts):
            yield self._pack(self._windows(starts, lengths))

    def _windows(self, starts: IntArray, lengths: IntArray) -> _Windows:
        """The windows of documents that begin at tokens `starts` and hold `lengths` pairs."""
        over = np.maximum(lengths - self.seq_len, 0)
        num_windows = np.where(lengths > 0, 1 + -(-over // self.stride), 0)
        document = np.repeat(np.arange(len(lengths)), num_windows)
        place = np.arange(len(document)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
        inner = place * self.stride
        return _Windows(
            starts=starts[document] + inner,
            lengths=np.minimum(lengths[document] - inner, self.seq_len),
            unscored=np.where(place > 0, self.seq_len - self.stride, 0),
        )

    def _pack(self, windows: _Windows) -> _EvaluationRows:
        # Windows of one document overlap, so pack their numbers and look the starts up afterwards.
        numbers = np.arange(len(windows.starts)) * (self.seq_len + 1)
        packed = pack_best_fit(numbers, windows.lengths, seq_len=self.seq_len)
        window = packed.starts // (self.seq_len + 1)
        return _EvaluationRows(packed.row_ends, windows.starts[window], packed.lengths, windows.unscored[window])

    def _gather(self, rows: _EvaluationRows, numbers: IntArray, num_rows_before: int) -> Batch:
        buffers = RowBuffers.empty(len(numbers), self.seq_len)
        self._maps.write_segments(numbers, rows.row_ends, rows.starts, rows.lengths, buffers)
        if self.record == "document":
            _hide_unscored(rows, numbers, buffers.labels)
        num_targets = int(np.count_nonzero(buffers.labels != NO_TARGET))
        return Batch(
            input_ids=buffers.input_ids,
            labels=buffers.labels,
            position_ids=buffers.position_ids,
            row_ids=numbers + num_rows_before,
            num_targets=num_targets,
        )


def _hide_unscored(rows: _EvaluationRows, numbers: IntArray, labels: IntArray) -> None:
    """Take the labels away that an earlier window scores."""
    for place, row in enumerate(numbers):
        at = 0
        for segment in range(rows.row_ends[row - 1] if row else 0, rows.row_ends[row]):
            labels[place, at : at + rows.unscored[segment]] = NO_TARGET
            at += int(rows.lengths[segment])
