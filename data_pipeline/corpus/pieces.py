"""How the files of a corpus are cut into parts, a task each, by their sizes and tables of contents.

The pieces of each part lie in a file of its own, so that a worker reads its slice of the list and no more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline import disk
from data_pipeline.corpus import archive, jsonl
from data_pipeline.corpus.archive import ArchiveError
from data_pipeline.corpus.listing import from_plain, json_line, to_plain
from data_pipeline.corpus.read import FileRange
from data_pipeline.corpus.sources import InputFile

MAX_PIECES = 100_000  # of a part: files of no bytes would fill one without end


@dataclass
class Part:
    """Pieces in corpus order, and their input bytes, about."""

    pieces: list[FileRange] = field(default_factory=list)
    num_bytes: int = 0


def cut_files(files: Iterable[InputFile], *, task_bytes: int) -> Iterator[Part]:
    """Parts of about `task_bytes` each, at least one; holds one at a time."""
    part = Part()
    for file in files:
        for piece in _pieces(file, task_bytes=task_bytes):
            num_bytes = _piece_bytes(piece, task_bytes=task_bytes)
            is_full = part.num_bytes + num_bytes > task_bytes or len(part.pieces) >= MAX_PIECES
            if part.pieces and is_full:
                yield part
                part = Part()
            part.pieces.append(piece)
            part.num_bytes += num_bytes
    yield part


def write_pieces(path: Path, pieces: Iterable[FileRange]) -> None:
    """One line a piece."""
    with disk.durable_file(path) as file:
        for piece in pieces:
            file.write(json_line([to_plain(piece.file), piece.start, piece.stop]))


def read_pieces(path: Path) -> Iterator[FileRange]:
    """The pieces that `write_pieces` wrote, one by one."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            tree, start, stop = json.loads(line)
            yield FileRange(from_plain(tree), start, stop)


def _piece_bytes(piece: FileRange, *, task_bytes: int) -> int:
    if piece.start == 0 and piece.stop == -1:
        return piece.file.num_bytes
    if piece.file.kind == "jsonl":
        return (piece.file.num_bytes if piece.stop < 0 else piece.stop) - piece.start
    return task_bytes  # a run of an archive's members, cut at about that size


def _pieces(file: InputFile, *, task_bytes: int) -> list[FileRange]:
    whole = [FileRange(file)]
    if file.num_bytes <= task_bytes or file.skip_reason or file.reject_error:
        return whole
    if file.kind == "zip":
        try:
            return [FileRange(file, start, stop) for start, stop in _member_runs(file, task_bytes)]
        except ArchiveError:
            return whole  # reading it names the fault
    if file.kind == "jsonl" and not file.is_gzip:
        with file.paths[0].open("rb") as stream:
            if jsonl.is_array(stream):
                return whole
        starts = list(range(0, file.num_bytes, task_bytes))
        return [FileRange(file, start, stop) for start, stop in zip(starts, [*starts[1:], -1], strict=True)]
    return whole


def _member_runs(file: InputFile, task_bytes: int) -> list[tuple[int, int]]:
    starts, filled = [0], 0
    with archive.open_archive(file.paths) as opened:
        for number, member in enumerate(archive.members(opened)):
            if filled and filled + member.info.compress_size > task_bytes:
                starts.append(number)
                filled = 0
            filled += member.info.compress_size
    return list(zip(starts, [*starts[1:], -1], strict=True))
