"""The endless stream of steps: every epoch visits each row once, in an order that any rank count shares.

State is one integer, the rows that all ranks together have consumed, beside the identities that give it a meaning.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import ShardSet
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import Batch
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.grouping import GroupedOrder
from data_pipeline.stream.order import RowOrder
from data_pipeline.stream.split import rank_slices
from data_pipeline.stream.table import RowCounts

IntArray = NDArray[np.int64]

STATE_KEYS = ("next_row", "rows_identity", "num_rows", "seed")


AnyBatch = Batch | ExampleBatch


class RowSource(Protocol):
    """Rows by number: packed documents, or examples. `identity`: a sha256 of all that decides which row holds what."""

    shards: ShardSet
    seq_len: int

    @property
    def identity(self) -> str: ...

    @property
    def num_rows(self) -> int: ...

    @property
    def counts(self) -> RowCounts: ...

    @property
    def pad_id(self) -> int: ...

    def pad_with(self, pad_id: int) -> None:
        """Fill what is no text with `pad_id` from now on."""

    def gather(self, row_numbers: IntArray) -> AnyBatch:
        """The rows of those numbers, in that order."""

    def padding(self) -> AnyBatch:
        """What a rank without a row works on: nothing of it counts."""


class ResumeError(StageError):
    """A saved state that does not belong to this stream. The stream is as it was."""


class Stream:
    """Steps of `global_batch_sequences` rows. `batches` shows the current step, `advance` goes to the next.

    A step may straddle two epochs. A changed `global_batch_sequences`, rank count or micro-batch continues where the
    saved state ended, for the state counts rows. With `lengths` (num_rows,) the rows of a step are about equally long
    (see grouping.py), and the order knows the size of a step, which must then stay.
    """

    def __init__(
        self, rows: RowSource, *, seed: int, global_batch_sequences: int, lengths: NDArray[np.int32] | None = None
    ) -> None:
        if global_batch_sequences < 1:
            raise ValueError(f"global_batch_sequences is {global_batch_sequences}; it must be at least 1")
        if global_batch_sequences > rows.num_rows:
            warnings.warn(
                f"global_batch_sequences is {global_batch_sequences}, but there are only {rows.num_rows} rows: "
                "every step repeats rows; lower it, or add text",
                stacklevel=2,
            )
        self.rows = rows
        self.seed = seed
        self.global_batch_sequences = global_batch_sequences
        self._next_row = 0
        self._lengths = lengths
        self._order: RowOrder | GroupedOrder | None = None

    @property
    def epoch(self) -> int:
        """Of the first row of the current step."""
        return self._next_row // self.rows.num_rows

    @property
    def has_ended_epoch(self) -> bool:
        """Whether the step before the current one held the last row of an epoch."""
        before = self._next_row - self.global_batch_sequences
        return before >= 0 and self._next_row // self.rows.num_rows > before // self.rows.num_rows

    @property
    def next_row(self) -> int:
        """Rows that all ranks have consumed since the start, over all epochs."""
        return self._next_row

    def step_row_ids(self) -> IntArray:
        """The rows of the current step in the global order; (global_batch_sequences,) int64."""
        return self._rows_between(0, self.global_batch_sequences)

    def batches(self, *, dp_rank: int, dp_world_size: int, micro_batch_sequences: int) -> list[AnyBatch]:
        """This rank's micro-batches of the current step; every rank gets the same number of them.

        A rank whose share of the last micro-step is empty gets one row of padding without targets. Each batch has
        memory of its own: reused buffers would gain 2 to 5 % (measured) and change under a caller who keeps a batch.
        """
        found: list[AnyBatch] = []
        for start, end in rank_slices(
            self.global_batch_sequences,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
            micro_batch_sequences=micro_batch_sequences,
        ):
            if start == end:
                found.append(self.rows.padding())
                continue
            batch = self.rows.gather(self._rows_between(start, end))
            if isinstance(batch, Batch):
                epochs = np.arange(self._next_row + start, self._next_row + end) // self.rows.num_rows
                batch = dataclasses.replace(batch, epochs=epochs)
            found.append(batch)
        return found

    def advance(self) -> None:
        """Go to the next step."""
        self._next_row += self.global_batch_sequences

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint: `next_row`, and what it counts."""
        return {
            "next_row": self._next_row,
            "rows_identity": self.rows.identity,
            "num_rows": self.rows.num_rows,
            "seed": self.seed,
            **({} if self._lengths is None else {"grouped_by": self.global_batch_sequences}),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue after `saved`. A refused state leaves the stream untouched.

        Raises ResumeError if a key is missing, if the rows or the seed are others, or if `next_row` is no count.
        """
        ours = self.state_dict()
        for key in STATE_KEYS:
            if key not in saved:
                raise ResumeError(f"data.{key}: the checkpoint has none; it is damaged or not of this program")
        for key in ("rows_identity", "num_rows", "seed"):
            if saved[key] != ours[key]:
                values = f"checkpoint has {saved[key]!r}, this run {ours[key]!r}"
                raise ResumeError(f"data.{key}: {values}; restore it, or start a new run")
        if (theirs := saved.get("grouped_by")) != (mine := ours.get("grouped_by")):
            raise ResumeError(
                f"train.global_batch_sequences: the checkpoint orders rows by length in steps of {theirs or 'any'}, "
                f"this run in steps of {mine or 'any'}; restore it and data.group_by_length, or start a new run"
            )
        next_row = saved["next_row"]
        if type(next_row) is not int or next_row < 0:
            raise ResumeError(f"data.next_row: checkpoint has {next_row!r}, a count of rows is needed; it is damaged")
        self._next_row = next_row

    def _rows_between(self, start: int, end: int) -> IntArray:
        """Rows at positions [start, end) of the current step."""
        num_rows = self.rows.num_rows
        pieces = []
        position, last = self._next_row + start, self._next_row + end
        while position < last:
            epoch, first = divmod(position, num_rows)
            count = min(last - position, num_rows - first)
            pieces.append(self._order_of(epoch).rows_at(np.arange(first, first + count)))
            position += count
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _order_of(self, epoch: int) -> RowOrder | GroupedOrder:
        if self._order is None or self._order.epoch != epoch:
            order = RowOrder(self.rows.identity, self.seed, epoch, self.rows.num_rows)
            if self._lengths is None:
                self._order = order
            else:
                self._order = GroupedOrder(order, self._lengths, block=self.global_batch_sequences)
        return self._order
