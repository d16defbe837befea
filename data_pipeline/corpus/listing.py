"""The list of a corpus's input files: what identifies each, in a file beside the corpus and not in any memory.

A file is known by its name, its size and a hash of samples of its bytes, never by its time: a copy or a `touch` is the
same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.corpus.sources import InputConfig, InputFile, find_files

SAMPLE_BYTES = 4096
NUM_SAMPLES = 64  # evenly over the file, its first and last bytes among them; a zip's last ones are its checksums
MAX_WHOLE_BYTES = 1 << 20  # a file up to this size is hashed whole


@dataclass(frozen=True)
class Listing:
    """All input files in a few figures. `sha256`: of the lines of all of them. `commits`: by input, of the hub."""

    num_files: int
    num_to_read: int
    num_bytes: int
    sha256: str
    commits: dict[int, str]

    @property
    def identity(self) -> dict[str, Any]:
        return {"num_files": self.num_files, "num_bytes": self.num_bytes, "sha256": self.sha256}


class Lister:
    """Goes through the files of the inputs once; `listing` is of those that passed."""

    def __init__(self, inputs: Sequence[InputConfig], *, on_line: Callable[[bytes], object] | None = None) -> None:
        self._inputs = inputs
        self._on_line = on_line
        self._hash = hashlib.sha256()
        self._num_files = self._num_to_read = self._num_bytes = 0
        self._commits: dict[int, str] = {}

    def files(self) -> Iterator[InputFile]:
        """Every file; `on_line` gets its line before it is yielded. Raises StageError as `find_files` does."""
        for file in find_files(self._inputs):
            line = _line(file)
            self._hash.update(line)
            if self._on_line is not None:
                self._on_line(line)
            self._num_files += 1
            self._num_to_read += not file.skip_reason
            self._num_bytes += file.num_bytes
            self._commits[file.input_index] = file.commit
            yield file

    def listing(self) -> Listing:
        return Listing(self._num_files, self._num_to_read, self._num_bytes, self._hash.hexdigest(), self._commits)


def list_inputs(inputs: Sequence[InputConfig]) -> Listing:
    """The listing of all files of `inputs`."""
    lister = Lister(inputs)
    for _ in lister.files():
        continue
    return lister.listing()


def content_sample(path: Path, *, num_bytes: int) -> bytes:
    """The bytes that stand for a file of this size: all of a small one, else samples at fixed places."""
    with path.open("rb") as file:
        if num_bytes <= MAX_WHOLE_BYTES:
            return file.read()
        parts = []
        for number in range(NUM_SAMPLES):
            file.seek((num_bytes - SAMPLE_BYTES) * number // (NUM_SAMPLES - 1))
            parts.append(file.read(SAMPLE_BYTES))
    return b"".join(parts)


def to_plain(file: InputFile) -> dict[str, Any]:
    """`file` as JSON spells it."""
    return asdict(file) | {"paths": [str(path) for path in file.paths]}


def from_plain(tree: dict[str, Any]) -> InputFile:
    return InputFile(**(tree | {"paths": tuple(map(Path, tree["paths"]))}))


def json_line(value: Any) -> bytes:
    """One line of JSON; what no encoding of a file's name explains stays as an escape, and comes back."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _line(file: InputFile) -> bytes:
    return json_line([file.name, file.context, file.num_bytes, file.commit or _content_of(file)])


def _content_of(file: InputFile) -> str:
    """A hash of what the file holds; of one that is not read, why."""
    if file.skip_reason or file.reject_error:
        return file.skip_reason or file.reject_reason
    digest = hashlib.blake2b(digest_size=16)
    for path in file.paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        digest.update(content_sample(path, num_bytes=size))
    return digest.hexdigest()
