"""What a reference said of rows, on disk: parts while it is computed, then one table with its hash.

reference/train-<identity>/part-00000   a part: the sha256 of its bytes, then its bytes
reference/train-<identity>/values.bin   all parts behind one another: (rows, k) float64
reference/train-<identity>/table.json   {rows, sequences, sha256}; written last, and the parts are gone
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline import disk

PART_ROWS = 16_384
VALUES_NAME, TABLE_NAME = "values.bin", "table.json"
_DIGEST_BYTES = 32

Values = NDArray[np.float64]


class ReferenceTable:
    """(rows, k) float64 in a folder of its own. Only rank 0 writes."""

    def __init__(self, folder: Path, *, num_rows: int) -> None:
        self.folder, self.num_rows = folder, num_rows

    @property
    def num_parts(self) -> int:
        return -(-self.num_rows // PART_ROWS)

    def part(self, number: int) -> slice:
        """Its rows."""
        return slice(number * PART_ROWS, min((number + 1) * PART_ROWS, self.num_rows))

    def fault(self) -> str:
        """What is wrong with the finished table, all of whose bytes are read; "" if it is sound, or none is there."""
        told = disk.read_object(self.folder / TABLE_NAME)
        if not told:
            return ""
        values = self.folder / VALUES_NAME
        if not values.is_file():
            return f"{values}: missing"
        if told.get("rows") != self.num_rows or disk.sha256_of(values) != told.get("sha256"):
            return f"{values}: its bytes are not those that {TABLE_NAME} tells of"
        return ""

    def remove(self) -> None:
        if self.folder.is_dir():
            disk.remove_tree(self.folder)

    @property
    def is_finished(self) -> bool:
        return (self.folder / TABLE_NAME).is_file()

    def missing_parts(self) -> list[int]:
        """Parts that are not there whole."""
        if self.is_finished:
            return []
        return [number for number in range(self.num_parts) if self._read_part(number) is None]

    def write_part(self, number: int, values: Values) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        data = np.ascontiguousarray(values, np.float64).tobytes()
        disk.write_bytes(self._part_path(number), hashlib.sha256(data).digest() + data)

    def finish(self) -> None:
        """Join the parts, which are all there, and remove them."""
        if self.is_finished:
            return
        digest, num_bytes = hashlib.sha256(), 0
        with disk.durable_file(self.folder / VALUES_NAME) as file:
            for number in range(self.num_parts):
                data = self._read_part(number)
                assert data is not None, "missing_parts looked"
                file.write(data)
                digest.update(data)
                num_bytes += len(data)
        sequences = num_bytes // (8 * self.num_rows)
        told: dict[str, Any] = {"rows": self.num_rows, "sequences": sequences, "sha256": digest.hexdigest()}
        disk.write_json(self.folder / TABLE_NAME, told)
        for number in range(self.num_parts):
            self._part_path(number).unlink(missing_ok=True)

    def read(self) -> Values:
        """The finished table, memory-mapped."""
        told = disk.read_object(self.folder / TABLE_NAME)
        shape = (int(told["rows"]), int(told["sequences"]))
        found: Values = np.memmap(self.folder / VALUES_NAME, np.float64, mode="r", shape=shape)
        return found

    def _part_path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}"

    def _read_part(self, number: int) -> bytes | None:
        try:
            data = self._part_path(number).read_bytes()
        except FileNotFoundError:
            return None
        digest, values = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        rows = self.part(number)
        is_whole = hashlib.sha256(values).digest() == digest and len(values) % (8 * (rows.stop - rows.start)) == 0
        return values if is_whole and values else None


def rows_of_steps(
    step_rows: Callable[[int], NDArray[np.int64]], *, num_steps: int, num_rows: int, of_step: int
) -> NDArray[np.int64]:
    """The rows that so many steps read, sorted; all of them where they are read through."""
    if num_steps * of_step >= num_rows:
        return np.arange(num_rows)
    found: NDArray[np.int64] = np.unique(np.concatenate([step_rows(step) for step in range(num_steps)]))
    return found
