"""The row table of one packing: which pairs of which documents stand in which row, committed beside the shards.

    rows/<split>-<packing>-<seq_len>/       …-drop/ where instruction rows that are too long were left out; <packing>
                                            is "framed" for pieces between two ids
      manifest.json    identity, number of rows, what was cut and padded; written last
      row_ends.i64     not for concatenated rows: row r is segments row_ends[r - 1]..row_ends[r]
      starts.i64       the token of the split at which a segment begins
      lengths.i32      its pairs; of a framed piece its places, two more than its ids

Concatenated rows need no table: row r is pairs [r * seq_len, (r + 1) * seq_len), found by bisection in the shards' own
offsets. Framed rows (of masked language models) are packed best-fit with two places more a piece, for the ids around
it. Built in one pass over the documents' lengths; a window of documents is in memory at a time. Files are read through
memory maps: 12 bytes a document and 8 a row, 1.2 % of the ids at 500 tokens a document. An instruction row is never
cut: one that is longer than `seq_len` is in no row, and counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_pipeline import disk
from data_pipeline.disk import FileRecord
from data_pipeline.shards.format import ShardSet
from data_pipeline.shards.reader import iterate_lengths
from data_pipeline.stage import MANIFEST_NAME, StageError, file_entries, fingerprint, read_manifest, write_manifest
from data_pipeline.stream.packing import WINDOW_DOCUMENTS, Packing, count_cut_by_rows, frame_pieces, pack_best_fit

IntArray = NDArray[np.int64]

TooLong = Literal["refuse", "drop"]
Form = Packing | Literal["framed"]

KIND = "rows"
FORMAT_VERSION = 1
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "row_ends.i64": np.dtype("<i8"),
    "starts.i64": np.dtype("<i8"),
    "lengths.i32": np.dtype("<i4"),
}


@dataclass(frozen=True)
class RowCounts:
    """What became of the documents of a split. `num_documents_cut`: in more than one row.

    `num_documents_too_long`: instruction rows that are in no row. `num_pairs`: those in rows; of framed rows, ids.
    """

    num_rows: int
    num_documents: int
    num_documents_cut: int
    num_documents_without_pair: int
    num_pairs: int
    num_padding: int
    num_documents_too_long: int = 0


@dataclass(frozen=True)
class RowTable:
    """The committed rows of one packing. The three arrays are empty for concatenated rows."""

    identity: str
    counts: RowCounts
    row_ends: IntArray
    starts: IntArray
    lengths: NDArray[np.int32]


def rows_identity(
    shards: ShardSet,
    *,
    packing: Form,
    seq_len: int,
    too_long: TooLong = "refuse",
    frame: tuple[int, int] | None = None,
) -> str:
    """sha256 of all that decides which row holds what. `too_long` decides nothing for documents.

    `frame`: of framed rows, the ids before and behind each piece.
    """
    decided_by = [FORMAT_VERSION, shards.content_sha256, shards.split, packing, seq_len, *(frame or ())]
    return fingerprint(decided_by if shards.record == "document" else [*decided_by, too_long])


def open_table(
    shards: ShardSet,
    *,
    packing: Form,
    seq_len: int,
    build: bool,
    too_long: TooLong = "refuse",
    frame: tuple[int, int] | None = None,
) -> RowTable:
    """The row table of a packing; made and committed first if it is missing and `build` is true.

    Several processes may ask at once: one builds, the others wait for it.

    Raises:
        StageError: no table of these shards and `build` is false, or the table's files contradict its manifest; for
            instruction rows another packing than best_fit, or a row longer than `seq_len` that is to be refused.
    """
    drops = shards.record == "instruction" and too_long == "drop"
    folder = shards.folder / "rows" / f"{shards.split}-{packing}-{seq_len}{'-drop' * drops}"
    identity = rows_identity(shards, packing=packing, seq_len=seq_len, too_long=too_long, frame=frame)
    if shards.record == "instruction" and packing != "best_fit":
        raise StageError(
            f"{shards.folder}: holds instruction rows, but packing is {packing!r}, which would cut them; "
            "set packing to best_fit"
        )
    if not _is_built(folder, identity):
        if not build:
            raise StageError(
                f"{folder}: no row table of these shards for this packing and seq_len; start the run again, whose "
                "rank 0 builds it, on a folder that all ranks share"
            )
        if shards.record == "instruction" and too_long == "refuse":
            _refuse_too_long(shards, seq_len)
        with _lock(folder):
            if not _is_built(folder, identity):
                _build(shards, folder, identity, packing=packing, seq_len=seq_len)
    return _read(folder)


def _refuse_too_long(shards: ShardSet, seq_len: int) -> None:
    num_too_long = longest = 0
    for lengths in iterate_lengths(shards):
        num_too_long += int(np.count_nonzero(lengths - 1 > seq_len))
        longest = max(longest, int(lengths.max(initial=1)) - 1)
    if num_too_long:
        raise StageError(
            f"{shards.folder}: {num_too_long:,} of {shards.num_documents:,} instruction rows of {shards.split!r} are "
            f"longer than seq_len {seq_len:,} (the longest {longest:,}), and none is ever cut; raise seq_len, or leave "
            "them out with data.too_long=drop"
        )


def _is_built(folder: Path, identity: str) -> bool:
    return (folder / MANIFEST_NAME).is_file() and read_manifest(folder, kind=KIND)["identity"] == identity


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the table's lock."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(disk.locked(folder.with_name(f".{folder.name}.lock")))
        except OSError as error:
            raise StageError(
                f"{folder}: the row table is missing and can't be written here: {error.strerror}; "
                "build it once from an account that may write beside the shards"
            ) from None
        yield


def _build(shards: ShardSet, folder: Path, identity: str, *, packing: Form, seq_len: int) -> None:
    if folder.exists():
        disk.remove_tree(folder)  # of other shards, or unfinished
    folder.mkdir()
    if packing == "concatenated":
        counts, files = _count_concatenated(shards, folder, seq_len)
    else:
        counts, files = _build_best_fit(shards, folder, seq_len, is_framed=packing == "framed")
    write_manifest(
        folder,
        {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "identity": identity,
            "shards_manifest_sha256": shards.manifest_sha256,
            "split": shards.split,
            "packing": packing,
            "seq_len": seq_len,
            "counts": asdict(counts),
            "files": file_entries(files),
        },
    )


def _build_best_fit(
    shards: ShardSet, folder: Path, seq_len: int, *, is_framed: bool
) -> tuple[RowCounts, list[FileRecord]]:
    num_rows = num_segments = num_cut = num_without = num_too_long = num_pairs = num_places = 0
    room = seq_len - 2 if is_framed else seq_len
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(disk.durable_file(folder / name)) for name in DTYPES}
        for starts, lengths in _windows(shards):
            if shards.record == "instruction":
                fits = lengths <= seq_len
                num_too_long += int(np.count_nonzero(~fits))
                starts, lengths = starts[fits], lengths[fits]
            pieces = frame_pieces(starts, lengths, seq_len=seq_len) if is_framed else (starts, lengths)
            window = pack_best_fit(*pieces, seq_len=seq_len)
            files["row_ends.i64"].write((window.row_ends + num_segments).astype("<i8"))
            files["starts.i64"].write(window.starts.astype("<i8"))
            files["lengths.i32"].write(window.lengths.astype("<i4"))
            num_rows += len(window.row_ends)
            num_segments += len(window.starts)
            num_pairs += int(lengths.sum())
            num_places += int(window.lengths.sum(dtype=np.int64))
            num_cut += int(np.count_nonzero(lengths > room))
            num_without += int(np.count_nonzero(lengths == 0))
    counts = RowCounts(
        num_rows=num_rows,
        num_documents=shards.num_documents,
        num_documents_cut=num_cut,
        num_documents_without_pair=num_without,
        num_pairs=num_pairs,
        num_padding=num_rows * seq_len - num_places,
        num_documents_too_long=num_too_long,
    )
    return counts, [file.record(name) for name, file in files.items()]


def _count_concatenated(shards: ShardSet, folder: Path, seq_len: int) -> tuple[RowCounts, list[FileRecord]]:
    num_cut = num_without = first_pair = 0
    for lengths in _with_progress(iterate_lengths(shards), shards):
        num_cut += count_cut_by_rows(first_pair, lengths - 1, seq_len=seq_len)
        num_without += int(np.count_nonzero(lengths == 1))
        first_pair += int((lengths - 1).sum())
    num_rows = -(-shards.num_pairs // seq_len)
    counts = RowCounts(
        num_rows=num_rows,
        num_documents=shards.num_documents,
        num_documents_cut=num_cut,
        num_documents_without_pair=num_without,
        num_pairs=shards.num_pairs,
        num_padding=num_rows * seq_len - shards.num_pairs,
    )
    return counts, []


def _windows(shards: ShardSet) -> Iterator[tuple[IntArray, IntArray]]:
    """(first token, pairs) of each document, WINDOW_DOCUMENTS at a time, over the borders of batches and shards."""
    first_token, rest = 0, np.empty(0, np.int64)
    for lengths in _with_progress(iterate_lengths(shards), shards):
        rest = np.concatenate([rest, lengths])
        while len(rest) >= WINDOW_DOCUMENTS:
            window, rest = rest[:WINDOW_DOCUMENTS], rest[WINDOW_DOCUMENTS:]
            yield first_token + np.cumsum(window) - window, window - 1
            first_token += int(window.sum())
    if len(rest):
        yield first_token + np.cumsum(rest) - rest, rest - 1


def _with_progress(batches: Iterator[IntArray], shards: ShardSet) -> Iterator[IntArray]:
    with tqdm(total=shards.num_documents, desc=f"rows of {shards.split}", unit="doc", disable=None) as bar:
        for lengths in batches:
            yield lengths
            bar.update(len(lengths))


def _read(folder: Path) -> RowTable:
    manifest = read_manifest(folder, kind=KIND)
    for entry in manifest["files"]:
        path = folder / entry["name"]
        found = path.stat().st_size if path.is_file() else 0
        if found != entry["num_bytes"]:
            raise StageError(
                f"{path}: {found:,} bytes, {MANIFEST_NAME} says {entry['num_bytes']:,}; "
                f"remove {folder} and let it be built again"
            )
    arrays = {name: _mapped(folder / name, dtype) for name, dtype in DTYPES.items()}
    return RowTable(
        identity=manifest["identity"],
        counts=RowCounts(**manifest["counts"]),
        row_ends=arrays["row_ends.i64"],
        starts=arrays["starts.i64"],
        lengths=arrays["lengths.i32"],
    )


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not path.is_file() or path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))
