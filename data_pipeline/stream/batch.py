"""What a step trains on: rows of ids, labels and positions.

Shapes: B rows (sequences) of T = seq_len ids. Torch appears in the last step only, inside `Batch.to_torch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

IntArray = NDArray[np.int64]

NO_TARGET = -100  # the label that torch's cross entropy ignores
NO_ROW = -1  # row id of a row that is padding alone


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch.

    `input_ids` (B, T) int64. `labels` (B, T) int64, already shifted: the id that follows `input_ids[b, t]` in the same
    document, -100 where there is no target. `position_ids` (B, T) int64, 0 at the start of each segment (a document, a
    piece of one, or the padding at a row's end). `row_ids` (B,) int64, -1 for a row of padding alone. `num_targets`
    counts the labels that are not -100. `epochs` (B,) int64: in which epoch each row stands, where the stream knows it.
    """

    input_ids: IntArray
    labels: IntArray
    position_ids: IntArray
    row_ids: IntArray
    num_targets: int
    epochs: IntArray | None = None

    @property
    def num_inputs(self) -> int:
        """Places of the rows, padding among them: what a step computes."""
        return int(self.input_ids.size)

    def to_torch(self, device: Any = "cpu") -> TorchBatch:
        """Copies as tensors on `device`; they stay as they are when the arrays of this batch are written again."""
        import torch

        def tensor(array: IntArray) -> torch.Tensor:
            return torch.tensor(array, dtype=torch.int64, device=device)

        return TorchBatch(
            input_ids=tensor(self.input_ids),
            labels=tensor(self.labels),
            position_ids=tensor(self.position_ids),
            row_ids=self.row_ids,
            num_targets=self.num_targets,
        )


@dataclass(frozen=True)
class TorchBatch:
    """`Batch` with tensors; `row_ids` stays a NumPy array on the host."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    row_ids: IntArray
    num_targets: int


@dataclass(frozen=True)
class RowBuffers:
    """Memory for up to B rows: three (B, T) int64 arrays that `Rows.gather` writes into."""

    input_ids: IntArray
    labels: IntArray
    position_ids: IntArray

    @classmethod
    def empty(cls, num_rows: int, seq_len: int) -> RowBuffers:
        shape = (num_rows, seq_len)
        return cls(np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int64))

    def first_rows(self, num_rows: int) -> RowBuffers:
        """Views of the first rows, or the buffers themselves if that is all of them."""
        if num_rows == len(self.input_ids):
            return self
        return RowBuffers(self.input_ids[:num_rows], self.labels[:num_rows], self.position_ids[:num_rows])


def padding_batch(*, seq_len: int, pad_id: int) -> Batch:
    """One row without a target, for a rank that has no row but must join the collectives."""
    return Batch(
        input_ids=np.full((1, seq_len), pad_id, np.int64),
        labels=np.full((1, seq_len), NO_TARGET, np.int64),
        position_ids=np.arange(seq_len, dtype=np.int64)[None],
        row_ids=np.full(1, NO_ROW, np.int64),
        num_targets=0,
    )
