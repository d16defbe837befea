"""Rows by number: `seq_len` inputs with shifted labels and positions, gathered from memory-mapped shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import ShardSet, read_shards
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import Batch, RowBuffers, padding_batch
from data_pipeline.stream.maps import ShardMaps
from data_pipeline.stream.packing import Packing
from data_pipeline.stream.table import RowCounts, RowTable, TooLong, open_table

IntArray = NDArray[np.int64]


def open_rows(
    shards: Path, *, split: str, seq_len: int, packing: Packing, build: bool = True, too_long: TooLong = "refuse"
) -> Rows:
    """The rows of one split under one packing. Builds and commits the row table if it is missing.

    `too_long`: what becomes of instruction rows longer than `seq_len`; documents are cut.

    Raises:
        StageError: the folder is no finished shards folder, the split is empty, no document has a target, the row
            table is missing and `build` is false, or the shards' rows can't be packed so.
    """
    found = read_shards(Path(shards), split=split)
    if found.num_targets == 0:
        what = "no target token" if found.record == "instruction" else "no token beside their EOS"
        raise StageError(
            f"{shards}: the {found.num_documents:,} {found.record}s of split {split!r} hold {what}, so there is "
            "nothing to learn; look at the corpus and the tokenizer with `dure shards inspect`"
        )
    table = open_table(found, packing=packing, seq_len=seq_len, build=build, too_long=too_long)
    if table.counts.num_rows == 0:
        raise StageError(
            f"{shards}: all {found.num_documents:,} instruction rows of split {split!r} are longer than seq_len "
            f"{seq_len:,}, so none is left; raise seq_len"
        )
    return Rows(found, table, packing, seq_len=seq_len)


class TableRows:
    """`num_rows` rows of `seq_len` places by a row table. `identity`: a sha256 of what decides which row holds what.

    How a row is gathered is the business of each form of rows.
    """

    def __init__(self, shards: ShardSet, table: RowTable, *, seq_len: int) -> None:
        self.shards = shards
        self.seq_len = seq_len
        self._table = table
        self._maps = ShardMaps(shards)

    @property
    def pad_id(self) -> int:
        """What fills a row's end: as the shards say, until `pad_with`. No part of `identity`: no loss depends on it."""
        return self._maps.pad_id

    def pad_with(self, pad_id: int) -> None:
        """Fill rows with `pad_id` from now on; the model may have a row for it that the tokenizer has no token for."""
        self._maps.pad_id = pad_id

    @property
    def num_rows(self) -> int:
        return self._table.counts.num_rows

    @property
    def identity(self) -> str:
        return self._table.identity

    @property
    def counts(self) -> RowCounts:
        return self._table.counts

    def padding(self) -> Batch:
        """One row without a target."""
        return padding_batch(seq_len=self.seq_len, pad_id=self.pad_id)


class Rows(TableRows):
    """Rows of `seq_len` pairs."""

    def __init__(self, shards: ShardSet, table: RowTable, packing: Packing, *, seq_len: int) -> None:
        super().__init__(shards, table, seq_len=seq_len)
        self.packing = packing

    def gather(self, row_numbers: IntArray, out: RowBuffers | None = None) -> Batch:
        """The rows of those numbers, in that order, written into `out` (which the Batch then shows) or new memory.

        Raises IndexError if a number is not in [0, num_rows), StageError if a shard is damaged.
        """
        numbers = np.ascontiguousarray(row_numbers, np.int64)
        buffers = RowBuffers.empty(len(numbers), self.seq_len) if out is None else out.first_rows(len(numbers))
        if self.packing == "concatenated":
            num_targets = self._maps.write_concatenated(numbers, buffers)
        else:
            table = self._table
            num_targets = self._maps.write_segments(numbers, table.row_ends, table.starts, table.lengths, buffers)
        return Batch(
            input_ids=buffers.input_ids,
            labels=buffers.labels,
            position_ids=buffers.position_ids,
            row_ids=numbers,
            num_targets=num_targets,
        )
