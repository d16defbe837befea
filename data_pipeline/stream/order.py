"""The global order of rows: a keyed permutation of 0..n-1 that is computed a row at a time (law 1).

A Feistel network (Luby and Rackoff 1988) over the bits of the row number, with cycle-walking (Black and Rogaway 2002,
section 3.1) where n is not a power of two. No table, no state; position p costs what position 0 costs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.stage import fingerprint
from data_pipeline.stream.compiled import compiled

IntArray = NDArray[np.int64]

NUM_ROUNDS = 8
# A tiny domain mixes badly (2 bits: two halves of one bit), so few rows are walked to inside a domain of 64.
MIN_BITS = 6
WORD = (1 << 64) - 1


@dataclass(frozen=True)
class RowOrder:
    """The order in which one epoch visits `num_rows` rows; a pure function of its fields."""

    identity: str
    seed: int
    epoch: int
    num_rows: int
    keys: NDArray[np.uint64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", round_keys(self.identity, seed=self.seed, epoch=self.epoch))

    def rows_at(self, positions: IntArray) -> IntArray:
        """Row numbers at `positions` (int64, each in [0, num_rows)) of the epoch; int64 of the same length."""
        rows = np.empty(len(positions), np.int64)
        low_bits, high_bits = half_widths(self.num_rows)
        _permute(positions, self.num_rows, low_bits, high_bits, self.keys, rows)
        return rows


def round_keys(identity: str, *, seed: int, epoch: int) -> NDArray[np.uint64]:
    """One 64-bit key a round, from sha256 of the triple: seed and epoch can't stand in for each other."""
    blocks = [hashlib.sha256(f"{block}:{fingerprint([identity, seed, epoch])}".encode()).digest() for block in range(2)]
    return np.frombuffer(b"".join(blocks), dtype="<u8").astype(np.uint64)


def half_widths(num_rows: int) -> tuple[int, int]:
    """Bits of the low and the high half of the smallest domain of at least 64 that holds `num_rows`."""
    bits = max((num_rows - 1).bit_length(), MIN_BITS)
    return bits - bits // 2, bits // 2


def permute_plainly(position: int, *, num_rows: int, keys: list[int]) -> int:
    """The row at `position`, in plain Python: what the compiled kernel is held against."""
    low_bits, high_bits = half_widths(num_rows)
    value = position
    while True:
        low, high = value & ((1 << low_bits) - 1), value >> low_bits
        for number, key in enumerate(keys):
            if number % 2 == 0:
                high ^= _mixed_plainly(low ^ key) & ((1 << high_bits) - 1)
            else:
                low ^= _mixed_plainly(high ^ key) & ((1 << low_bits) - 1)
        value = high << low_bits | low
        if value < num_rows:
            return value


def _mixed_plainly(value: int) -> int:
    # The finaliser of splitmix64 (Steele, Lea and Flood 2014), variant 13 of David Stafford's constants.
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & WORD
    return value ^ value >> 31


@compiled
def _mixed(value: Any) -> Any:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def _permute(positions: Any, num_rows: int, low_bits: int, high_bits: int, keys: Any, rows: Any) -> None:
    one, shift = np.uint64(1), np.uint64(low_bits)
    low_mask = (one << np.uint64(low_bits)) - one
    high_mask = (one << np.uint64(high_bits)) - one
    limit = np.uint64(num_rows)
    for i in range(len(positions)):
        value = np.uint64(positions[i])
        while True:
            low, high = value & low_mask, value >> shift
            for pair in range(len(keys) // 2):
                high ^= _mixed(low ^ keys[2 * pair]) & high_mask
                low ^= _mixed(high ^ keys[2 * pair + 1]) & low_mask
            value = (high << shift) | low
            if value < limit:
                break
        rows[i] = np.int64(value)
