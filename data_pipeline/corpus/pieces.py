"""How the files of a corpus are cut into parts, a task each, by their sizes and tables of contents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data_pipeline.corpus import archive, jsonl
from data_pipeline.corpus.archive import ArchiveError
from data_pipeline.corpus.sources import InputFile

Piece = tuple[int, int, int]  # file index, start, stop: members of a zip, or bytes; a stop of -1 is the end


def cut_files(files: Sequence[InputFile], *, task_bytes: int) -> list[list[Piece]]:
    """Pieces in corpus order, grouped so that a part has about `task_bytes`."""
    parts: list[list[Piece]] = [[]]
    filled = 0
    for index, file in enumerate(files):
        for piece in _pieces(index, file, task_bytes=task_bytes):
            num_bytes = piece_bytes(files, [piece], task_bytes=task_bytes)
            if parts[-1] and filled + num_bytes > task_bytes:
                parts.append([])
                filled = 0
            parts[-1].append(piece)
            filled += num_bytes
    return parts


def piece_bytes(files: Sequence[InputFile], pieces: Iterable[Piece], *, task_bytes: int) -> int:
    """Input bytes of `pieces`, about."""
    total = 0
    for index, start, stop in pieces:
        file = files[index]
        if start == 0 and stop == -1:
            total += file.num_bytes
        elif file.kind == "jsonl":
            total += (file.num_bytes if stop < 0 else stop) - start
        else:
            total += task_bytes  # a run of an archive's members, cut at about that size
    return total


def _pieces(index: int, file: InputFile, *, task_bytes: int) -> list[Piece]:
    whole = [(index, 0, -1)]
    if file.num_bytes <= task_bytes or file.skip_reason or file.reject_error:
        return whole
    if file.kind == "zip":
        try:
            return [(index, start, stop) for start, stop in _member_runs(file, task_bytes)]
        except ArchiveError:
            return whole  # reading it names the fault
    if file.kind == "jsonl" and not file.is_gzip:
        with file.paths[0].open("rb") as stream:
            if jsonl.is_array(stream):
                return whole
        starts = list(range(0, file.num_bytes, task_bytes))
        return [(index, start, stop) for start, stop in zip(starts, [*starts[1:], -1], strict=True)]
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
