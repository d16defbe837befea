"""Exact duplicates over a corpus of any size: sorted digests a part, then one range of digests after another.

Memory holds the digests of one range. Of equal ones the first stays, by part and row, but a held-out row comes before
all that are trained on, and every held-out row stays: which rows a model is judged by does not depend on what else was
read, nor on who ran what when.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline import disk

DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8"), ("is_heldout", "?")])
PLACE = np.dtype([("part", "<i8"), ("row", "<i8"), ("fate", "u1")])
# Of a row that is not the first of equal ones: trained on twice; trained on and held out too; held out twice.
DUPLICATE, ALSO_HELD_OUT, HELD_OUT_AGAIN = range(3)


class Digests:
    """The 128-bit digests of a part's strings, in row order; 25 bytes each."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._are_heldout = bytearray()

    def add(self, text: str, *, is_heldout: bool = False) -> None:
        self._bytes += hashlib.blake2b(text.encode(), digest_size=16).digest()
        self._are_heldout.append(is_heldout)

    def save(self, path: Path) -> None:
        """Write them sorted, each with its row."""
        pairs = np.frombuffer(self._bytes, dtype="<u8").reshape(-1, 2)
        digests = np.empty(len(pairs), dtype=DIGEST)
        digests["high"], digests["low"], digests["row"] = pairs[:, 0], pairs[:, 1], np.arange(len(pairs))
        digests["is_heldout"] = np.frombuffer(self._are_heldout, dtype="?")
        _save(path, digests[np.lexsort((digests["low"], digests["high"]))])


def find_repeats(parts: Sequence[Path], *, bucket: int, num_buckets: int) -> np.ndarray:
    """(part, row, fate) of every digest of the bucket that a row before it has too, by part and row; dtype PLACE."""
    slices = [_bucket_of(np.load(path, mmap_mode="r"), bucket, num_buckets) for path in parts]
    digests = np.concatenate(slices) if slices else np.empty(0, dtype=DIGEST)
    part = np.repeat(np.arange(len(slices)), [len(piece) for piece in slices])
    order = np.lexsort((digests["row"], part, ~digests["is_heldout"], digests["low"], digests["high"]))
    digests, part = digests[order], part[order]
    is_repeat = np.zeros(len(digests), dtype=bool)
    is_repeat[1:] = (digests["high"][1:] == digests["high"][:-1]) & (digests["low"][1:] == digests["low"][:-1])
    # Of each digest the first of its equals: where that one is held out, so is the text.
    first = np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(digests))))
    is_text_heldout = digests["is_heldout"][first]
    fate = np.where(digests["is_heldout"], HELD_OUT_AGAIN, np.where(is_text_heldout, ALSO_HELD_OUT, DUPLICATE))
    places = np.empty(int(is_repeat.sum()), dtype=PLACE)
    places["part"], places["row"], places["fate"] = part[is_repeat], digests["row"][is_repeat], fate[is_repeat]
    return np.sort(places, order=("part", "row"))


def save_places(path: Path, places: np.ndarray) -> None:
    _save(path, places)


def places_of_part(buckets: Sequence[Path], part: int) -> np.ndarray:
    """The places of one part that any bucket names, by row; dtype PLACE."""
    found = []
    for path in buckets:
        places = np.load(path, mmap_mode="r")
        start, stop = (_bisect(places, "part", edge) for edge in (part, part + 1))
        found.append(np.asarray(places[start:stop]))
    return np.sort(np.concatenate(found), order="row") if found else np.empty(0, dtype=PLACE)


def _bucket_of(digests: np.ndarray, bucket: int, num_buckets: int) -> np.ndarray:
    start, stop = (_bisect(digests, "high", (edge << 64) // num_buckets) for edge in (bucket, bucket + 1))
    return digests[start:stop]


def _bisect(rows: np.ndarray, name: str, value: int) -> int:
    # np.searchsorted would copy the whole column of a memory-mapped file to find one place in it.
    return bisect.bisect_left(rows, value, key=lambda row: int(row[name]))


def _save(path: Path, array: np.ndarray) -> None:
    with disk.durable_file(path) as file:
        np.save(file, array)  # type: ignore[arg-type]
