"""Examples by number: a few sequences each with a label or a score, padded on the right to the longest of a batch.

One example is one row of the order; nothing is packed, and no sequence ever shares a row with another.
Shapes: B examples of k sequences, S = B * k, T the longest of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import COLUMNS, RecordKind, ShardSet, read_shards
from data_pipeline.shards.reader import loss_spans, sequence_ends, values
from data_pipeline.stage import NothingToScoreError, StageError, fingerprint
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.maps import ShardMaps
from data_pipeline.stream.order import RowOrder
from data_pipeline.stream.split import rank_slices
from data_pipeline.stream.table import RowCounts, TooLong

IntArray = NDArray[np.int64]

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExampleBatch:
    """B examples. `input_ids` (S, T) int64: the k sequences of example b are rows b * k to b * k + k - 1.

    `lengths` (S,) int64: ids of each sequence, what follows is padding. `values` (B,) float64: the number of the class,
    or the score; NaN where there is none. `row_ids` (B,) int64, -1 for an example of padding alone. `num_targets`: the
    examples that are not. `answers` (S, 2) int64: the ids [start, end) of each sequence that are its answer, (0, 0) of
    padding; None where records have no answers.
    """

    input_ids: IntArray
    lengths: IntArray
    values: NDArray[np.float64]
    row_ids: IntArray
    num_targets: int
    answers: IntArray | None = None

    @property
    def num_sequences(self) -> int:
        """k, of each example."""
        return len(self.input_ids) // len(self.row_ids)

    @property
    def num_inputs(self) -> int:
        """Ids that are no padding."""
        return int(self.lengths.sum()) if self.num_targets else 0


class ExampleRows:
    """The examples of one split of at most `seq_len` ids a sequence, as rows by number.

    `identity` is a sha256 of all that decides which row is which example. `lengths` (num_rows,) int32: ids of the
    longest sequence of each.

    Raises:
        StageError: an example is longer and `too_long` is "refuse", or none is left.
    """

    def __init__(self, shards: ShardSet, *, seq_len: int, too_long: TooLong = "refuse") -> None:
        self.shards = shards
        self.seq_len = seq_len
        self._maps = ShardMaps(shards)
        self._first_example = np.concatenate([[0], np.cumsum(self._maps.table.num_documents)])
        lengths, num_ids = _measured(self._maps)
        fits = lengths <= seq_len
        num_too_long = int((~fits).sum())
        if num_too_long and too_long == "refuse":
            raise StageError(
                f"{shards.folder}: {num_too_long:,} of {len(lengths):,} examples of split {shards.split!r} are longer "
                f"than seq_len {seq_len:,} (너무 긴 행); raise data.seq_len, leave them out with data.too_long=drop, "
                f"or build the shards with max_tokens={seq_len} too_long=cut"
            )
        if not fits.any():
            raise StageError(
                f"{shards.folder}: all {len(lengths):,} examples of split {shards.split!r} are longer than seq_len "
                f"{seq_len:,}, so none is left; raise data.seq_len"
            )
        self._kept = np.flatnonzero(fits)
        self.lengths = lengths[fits]
        self.identity = fingerprint(
            [FORMAT_VERSION, shards.content_sha256, shards.split, "examples", seq_len, too_long]
        )
        self.counts = RowCounts(
            num_rows=len(self._kept),
            num_documents=len(lengths),
            num_documents_cut=0,
            num_documents_without_pair=0,
            num_pairs=int(num_ids[fits].sum()),
            num_padding=0,
            num_documents_too_long=num_too_long,
        )

    @property
    def num_rows(self) -> int:
        return len(self._kept)

    @property
    def pad_id(self) -> int:
        """What fills a sequence's end; `pad_with` changes it."""
        return self._maps.pad_id

    def pad_with(self, pad_id: int) -> None:
        """Pad with `pad_id` from now on; no loss depends on it."""
        self._maps.pad_id = pad_id

    def gather(self, row_numbers: IntArray) -> ExampleBatch:
        """The examples of those numbers, in that order. Raises IndexError if a number is not in [0, num_rows)."""
        numbers = np.asarray(row_numbers, np.int64)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= self.num_rows):
            raise IndexError("row number out of range")
        sequences: list[NDArray[Any]] = []
        answers: list[NDArray[np.int64]] = []
        found = np.empty(len(numbers), np.float64)
        for place, number in enumerate(self._kept[numbers].tolist()):
            ids, found[place], spans = self._example(number)
            sequences += ids
            answers += spans
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        input_ids = np.full((len(sequences), int(lengths.max())), self.pad_id, np.int64)
        for row, sequence in enumerate(sequences):
            input_ids[row, : len(sequence)] = sequence
        spans_S2 = np.concatenate(answers).reshape(-1, 2) if answers else None
        return ExampleBatch(input_ids, lengths, found, numbers, num_targets=len(numbers), answers=spans_S2)

    def values(self) -> NDArray[np.float64]:
        """(num_rows,) of every row: the number of its class, or its score."""
        numbers = range(len(self._maps.table.num_documents) if self._has("value") else 0)
        columns = [values(_record_batch(self._maps, number)) for number in numbers]
        if not columns:
            return np.full(self.num_rows, np.nan)
        found: NDArray[np.float64] = np.concatenate(columns)[self._kept]
        return found

    def rows_of(self, documents: IntArray) -> IntArray:
        """The rows that examples by their number in the split are, without those that are too long."""
        places = np.minimum(np.searchsorted(self._kept, documents), len(self._kept) - 1)
        rows: IntArray = places[self._kept[places] == documents]
        return rows

    def record_id(self, row_number: int) -> str:
        """The id of the record that a row was made from."""
        number = int(self._kept[row_number])
        batch_number = int(np.searchsorted(self._first_example, number, side="right")) - 1
        inner = number - int(self._first_example[batch_number])
        return str(_record_batch(self._maps, batch_number).column("record_id")[inner].as_py())

    def padding(self) -> ExampleBatch:
        """One example that counts for nothing, for a rank that has no row but must join the collectives."""
        num_sequences = self.shards.num_sequences
        return ExampleBatch(
            input_ids=np.full((num_sequences, 1), self.pad_id, np.int64),
            lengths=np.ones(num_sequences, np.int64),
            values=np.full(1, np.nan),
            row_ids=np.full(1, NO_ROW, np.int64),
            num_targets=0,
            answers=np.zeros((num_sequences, 2), np.int64) if self._has("loss_spans") else None,
        )

    def _has(self, column: str) -> bool:
        return any(field.name == column for field in COLUMNS[self.shards.record])

    def _example(self, number: int) -> tuple[list[NDArray[Any]], float, list[NDArray[np.int64]]]:
        """The sequences of an example of the split, as views of its shard, its value, and the (k, 2) answers if any."""
        batch_number = int(np.searchsorted(self._first_example, number, side="right")) - 1
        inner = number - int(self._first_example[batch_number])
        batch = _record_batch(self._maps, batch_number)
        offsets, ends = sequence_ends(batch)
        ids_of_batch = batch.column("input_ids")
        start, stop = ids_of_batch.offsets[inner].as_py(), ids_of_batch.offsets[inner + 1].as_py()
        ids = ids_of_batch.values.slice(start, stop - start).to_numpy()
        ends_k = ends[offsets[inner] : offsets[inner + 1]]
        sequences = np.split(ids, ends_k[:-1])
        value = float(values(batch)[inner]) if self._has("value") else np.nan
        if not self._has("loss_spans"):
            return sequences, value, []
        span_offsets, starts, stops = loss_spans(batch)
        chosen = slice(span_offsets[inner], span_offsets[inner + 1])
        spans_k2 = np.stack([starts[chosen], stops[chosen]], axis=1).astype(np.int64)
        spans_k2[1:] -= ends_k[:-1, None]
        return sequences, value, [spans_k2]


def _record_batch(maps: ShardMaps, number: int) -> Any:
    file = int(maps.table.file_number[number])
    return maps.open(file)[number - int(np.searchsorted(maps.table.file_number, file))]


def _measured(maps: ShardMaps) -> tuple[NDArray[np.int32], IntArray]:
    """Of each example of a split, the ids of its longest sequence, and of all of them."""
    longest, together = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    for number in range(len(maps.table.num_documents)):
        offsets, ends = sequence_ends(_record_batch(maps, number))
        lengths = np.diff(ends, prepend=0).astype(np.int64)
        firsts = offsets[:-1]
        lengths[firsts] = ends[firsts]
        longest.append(np.maximum.reduceat(lengths, firsts).astype(np.int32))
        together.append(np.add.reduceat(lengths, firsts))
    return np.concatenate(longest), np.concatenate(together)


class ExampleSet:
    """Examples of one split for evaluation, the same on every rank; the shortest first, so that little is padded.

    `num_documents` and `num_targets` count the examples that are scored, `num_documents_too_long` those left out.
    `documents`: the numbers in the split of those to take, ascending, instead of `max_documents` of them.
    """

    def __init__(
        self,
        shards: Path,
        split: str,
        seq_len: int,
        max_documents: int | None = None,
        documents: IntArray | None = None,
    ) -> None:
        self._rows = ExampleRows(read_shards(Path(shards), split=split), seq_len=seq_len, too_long="drop")
        num_rows = self._rows.num_rows
        if documents is not None:
            chosen = self._rows.rows_of(documents)
        else:
            order = RowOrder(self._rows.shards.content_sha256, seed=0, epoch=0, num_rows=num_rows)
            chosen = order.rows_at(np.arange(min(num_rows, max_documents or num_rows)))
        if not len(chosen):
            raise NothingToScoreError(
                f"{shards}: the examples of split {split!r} to score are all longer than seq_len {seq_len:,}; raise "
                "data.seq_len"
            )
        self._chosen = chosen[np.argsort(self._rows.lengths[chosen], kind="stable")]
        self.num_documents = self.num_targets = len(chosen)
        self.num_documents_too_long = self._rows.counts.num_documents_too_long
        if documents is not None:
            self.num_documents_too_long = len(documents) - len(chosen)
        self.num_bytes = 0

    @property
    def row_numbers(self) -> IntArray:
        """Of the rows that are scored, in their order."""
        return self._chosen

    @property
    def record(self) -> RecordKind:
        """Of the shards."""
        return self._rows.shards.record

    def pad_with(self, pad_id: int) -> None:
        """Pad with `pad_id` from now on."""
        self._rows.pad_with(pad_id)

    def batches(self, *, dp_rank: int, dp_world_size: int, micro_batch_sequences: int) -> Iterator[ExampleBatch]:
        """This rank's batches; every rank gets the same number of them. `row_ids` are those of the split."""
        for start, end in rank_slices(
            len(self._chosen),
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
            micro_batch_sequences=micro_batch_sequences,
        ):
            yield self._rows.gather(self._chosen[start:end]) if end > start else self._rows.padding()
