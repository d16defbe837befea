"""Files that a run appends to, read without reading all of them: their end, what is new in them, a sample of them.

A run may be at work on them: a last line without its end is not there yet, a torn one is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 65536
_MOST_BYTES = 2**23
_SAMPLE_BLOCKS = 512
_SAMPLE_BYTES = 16384


def last_lines(path: Path, count: int) -> list[bytes]:
    """The last `count` whole lines, without their ends; read from the end of the file."""
    return Growth(path).last_lines(count)


def last_objects(path: Path, count: int) -> list[dict[str, Any]]:
    """The last objects of a .jsonl file, at most `count`, oldest first."""
    return list(_objects(last_lines(path, count)))


def _objects(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            tree = json.loads(line)
        except ValueError:
            continue
        if isinstance(tree, dict):
            yield tree


class Growth:
    """What comes to a file from call to call; whole lines only. A file that was rewritten is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.was_rewritten = False
        self._identity, self._offset = (0, 0), 0

    def last_lines(self, count: int) -> list[bytes]:
        """The last lines as of now, read from the end; what comes after them is new."""
        if not (size := self._look()):
            return []
        with self.path.open("rb") as file:
            start, tail = size, b""
            while start > 0 and tail.count(b"\n") <= count:
                start, before = max(0, start - _BLOCK_BYTES), start
                file.seek(start)
                tail = file.read(before - start) + tail
        self._offset = start
        return self._whole_lines(tail)[-count:]

    def new_lines(self) -> list[bytes]:
        """The next lines, at most 8 MiB of them; [] where none came since the last call.

        `was_rewritten` then says whether they replace all earlier ones.
        """
        return self._read_on() if self._look() else []

    def rest(self) -> bytes:
        """What stands after the last whole line: a line that is not ended yet, or never will be."""
        if not self._look():
            return b""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            return file.read(_BLOCK_BYTES)

    def new_objects(self) -> list[dict[str, Any]]:
        """The same of a .jsonl file. A large one is sampled at first: objects from all over it, to its end."""
        size = self._look()
        if self._offset == 0 and size > _MOST_BYTES:
            return list(_objects(self._sample(size)))
        return list(_objects(self._read_on() if size else []))

    def _look(self) -> int:
        """The file's size where there is something new in it, else 0."""
        found = _stat(self.path)
        self.was_rewritten = False
        if found is None:
            return 0
        identity = (found.st_dev, found.st_ino)
        if identity != self._identity or found.st_size < self._offset:
            self.was_rewritten = self._offset > 0
            self._identity, self._offset = identity, 0
        return found.st_size if found.st_size > self._offset else 0

    def _read_on(self) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(self._offset)
            return self._whole_lines(file.read(_MOST_BYTES))

    def _whole_lines(self, data: bytes) -> list[bytes]:
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        return data[:whole].split(b"\n")[:-1]

    def _sample(self, size: int) -> list[bytes]:
        lines: list[bytes] = []
        with self.path.open("rb") as file:
            for number in range(_SAMPLE_BLOCKS):
                self._offset = number * (size - _SAMPLE_BYTES) // (_SAMPLE_BLOCKS - 1)
                file.seek(self._offset)
                lines += self._whole_lines(file.read(_SAMPLE_BYTES))  # the rest of a line that is cut is no object
        return lines


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
