"""An order of rows in which those of one step are about equally long, so that little is padded.

Law 1 holds: a pure function of the order beneath, the lengths and two sizes. The order is cut into windows; the rows of
a window are sorted by length and cut into blocks, and the blocks change places. Any position costs a window. An epoch
that begins inside a step first gives what that step lacks, so that blocks stand where steps do in every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_pipeline.stream.order import RowOrder

IntArray = NDArray[np.int64]

WINDOW_BLOCKS = 50  # steps of a window: longer ones pad less, and mix less


@dataclass(frozen=True)
class GroupedOrder:
    """`order`, grouped by `lengths` (one a row of the source) into blocks of `block` rows within windows."""

    order: RowOrder
    lengths: NDArray[np.int32]
    block: int
    _cache: dict[int, IntArray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def epoch(self) -> int:
        return self.order.epoch

    def rows_at(self, positions: IntArray) -> IntArray:
        """Row numbers at `positions` (int64, each in [0, num_rows)) of the epoch; int64 of the same length."""
        window = self.block * WINDOW_BLOCKS
        numbers = (positions - self._head) // window
        found = np.empty(len(positions), np.int64)
        for number in np.unique(numbers).tolist():
            inside = numbers == number
            if number < 0:
                found[inside] = self.order.rows_at(positions[inside])
            else:
                found[inside] = self._window(number)[positions[inside] - self._head - number * window]
        return found

    @property
    def _head(self) -> int:
        """Rows of the epoch that end a step which began in the one before."""
        return min(-self.order.epoch * self.order.num_rows % self.block, self.order.num_rows)

    def _window(self, number: int) -> IntArray:
        if number not in self._cache:
            self._cache.clear()
            self._cache[number] = self._sorted(number)
        return self._cache[number]

    def _sorted(self, number: int) -> IntArray:
        size = self.block * WINDOW_BLOCKS
        first = self._head + number * size
        end = min(first + size, self.order.num_rows)
        rows = self.order.rows_at(np.arange(first, end))
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        num_whole = len(rows) // self.block
        if num_whole < 2:
            return rows
        # What is no whole block stays behind the others, so that blocks stay where steps are.
        identity = f"{self.order.identity}:window {number}"
        places = RowOrder(identity, self.order.seed, self.order.epoch, num_whole).rows_at(np.arange(num_whole))
        whole = num_whole * self.block
        blocks = rows[len(rows) - whole :].reshape(num_whole, self.block)[places]
        return np.concatenate([blocks.reshape(-1), rows[: len(rows) - whole]])
