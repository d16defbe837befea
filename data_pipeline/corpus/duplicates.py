"""Exact duplicates over a corpus of any size: sorted digests a part, then one range of digests after another.

Memory holds the digests of one range. The first of equal ones, by part and row, stays: the result does not depend on
who ran what when.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline import disk

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])
PLACE = np.dtype([("part", "<i8"), ("row", "<i8")])


class Digests:
    """The 128-bit digests of a part's strings, in row order; 24 bytes each."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, text: str) -> None:
        self._bytes += hashlib.blake2b(text.encode(), digest_size=16).digest()

    def save(self, path: Path) -> None:
        """Write them sorted, each with its row."""
        pairs = np.frombuffer(self._bytes, dtype="<u8").reshape(-1, 2)
        digests = np.empty(len(pairs), dtype=DIGEST)
        digests["high"], digests["low"], digests["row"] = pairs[:, 0], pairs[:, 1], np.arange(len(pairs))
        _save(path, digests[np.lexsort((digests["low"], digests["high"]))])


def find_repeats(parts: Sequence[Path], *, bucket: int, num_buckets: int) -> np.ndarray:
    """(part, row) of every digest of the bucket that an earlier (part, row) has too, in that order; dtype PLACE."""
    slices = [_bucket_of(np.load(path, mmap_mode="r"), bucket, num_buckets) for path in parts]
    digests = np.concatenate(slices) if slices else np.empty(0, dtype=DIGEST)
    part = np.repeat(np.arange(len(slices)), [len(piece) for piece in slices])
    order = np.lexsort((digests["row"], part, digests["low"], digests["high"]))
    digests, part = digests[order], part[order]
    is_repeat = np.zeros(len(digests), dtype=bool)
    is_repeat[1:] = (digests["high"][1:] == digests["high"][:-1]) & (digests["low"][1:] == digests["low"][:-1])
    places = np.empty(int(is_repeat.sum()), dtype=PLACE)
    places["part"], places["row"] = part[is_repeat], digests["row"][is_repeat]
    return np.sort(places, order=("part", "row"))


def save_places(path: Path, places: np.ndarray) -> None:
    _save(path, places)


def rows_of_part(buckets: Sequence[Path], part: int) -> np.ndarray:
    """The sorted rows of one part that any bucket names; int64."""
    found = []
    for path in buckets:
        places = np.load(path, mmap_mode="r")
        start, stop = (_bisect(places, "part", edge) for edge in (part, part + 1))
        found.append(np.asarray(places["row"][start:stop]))
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _bucket_of(digests: np.ndarray, bucket: int, num_buckets: int) -> np.ndarray:
    start, stop = (_bisect(digests, "high", (edge << 64) // num_buckets) for edge in (bucket, bucket + 1))
    return digests[start:stop]


def _bisect(rows: np.ndarray, name: str, value: int) -> int:
    # np.searchsorted would copy the whole column of a memory-mapped file to find one place in it.
    return bisect.bisect_left(rows, value, key=lambda row: int(row[name]))


def _save(path: Path, array: np.ndarray) -> None:
    with disk.durable_file(path) as file:
        np.save(file, array)  # type: ignore[arg-type]
