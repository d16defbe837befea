"""Writes that survive a kill: every byte that a run may not lose goes through this module.

A file is written beside its place, synced, renamed into it, and its folder is synced. `set_probe` is the seam for
fault tests: it is called before and after each write, fsync, rename and removal. What the files mean is not known here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Operation = Literal["write", "fsync", "rename", "remove"]
Moment = Literal["before", "after"]
Probe = Callable[[Operation, Moment, Path], None]

PARTIAL_SUFFIX = ".partial"
CHUNK_BYTES = 8 << 20  # one write call: large enough for a parallel file system, small enough to keep in memory

_probe: Probe | None = None


class DiskError(OSError):
    """A write that the disk refused. The file that stood there before stands there still."""


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says of one file: its name inside the folder, its size and the hash of its bytes."""

    name: str
    num_bytes: int
    sha256: str


def set_probe(probe: Probe | None) -> None:
    """Call `probe` before and after each operation of this process; a test's probe may kill it or raise OSError."""
    global _probe
    _probe = probe


@contextlib.contextmanager
def _operation(operation: Operation, path: Path) -> Iterator[None]:
    try:
        if _probe is not None:
            _probe(operation, "before", path)
        yield
        if _probe is not None:
            _probe(operation, "after", path)
    except OSError as error:
        if isinstance(error, DiskError):
            raise
        raise DiskError(error.errno, _explain(operation, path, error)) from error


def _explain(operation: Operation, path: Path, error: OSError) -> str:
    what = f"{path}: {operation} failed: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(_existing_parent(path)).free
        return f"{what}, {free:,} bytes free; free space or a quota there (디스크 용량 부족), then start again"
    if operation == "remove":
        return f"{what}; remove what is left by hand, then start again"
    return f"{what}; what stood there before is whole: check the disk and its permissions, then start again"


def _existing_parent(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


class DurableFile:
    """A binary file for writing in order; hashes what passes and writes it in large chunks. Not seekable."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self._hash = hashlib.sha256()
        self._chunk = bytearray()
        with _operation("write", path):
            self._file = path.open("wb", buffering=0)

    def write(self, data: Any) -> int:
        """Take all bytes of `data` (any buffer); returns their count."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            piece = view[start : start + CHUNK_BYTES]
            self._hash.update(piece)
            self.num_bytes += len(piece)
            self._chunk += piece
            if len(self._chunk) >= CHUNK_BYTES:
                self.flush()
        return len(view)

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        rest = memoryview(bytes(self._chunk))
        self._chunk.clear()
        while len(rest):
            with _operation("write", self.path):
                rest = rest[self._file.write(rest[:CHUNK_BYTES]) :]

    def tell(self) -> int:
        return self.num_bytes

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Close without syncing; `durable_file` syncs before it renames."""
        self._file.close()

    def sync(self) -> None:
        """Everything written stands on the disk."""
        self.flush()
        with _operation("fsync", self.path):
            os.fsync(self._file.fileno())

    def record(self, name: str) -> FileRecord:
        return FileRecord(name=name, num_bytes=self.num_bytes, sha256=self._hash.hexdigest())


@contextlib.contextmanager
def durable_file(path: Path) -> Iterator[DurableFile]:
    """A file that appears at `path` whole, synced and at once when the block ends, or not at all."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    file = DurableFile(partial)
    try:
        yield file
        file.sync()
    except BaseException:
        file.close()
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    file.close()
    rename(partial, path)


def write_bytes(path: Path, data: bytes) -> FileRecord:
    """Replace the file at `path` by `data`, whole or not at all."""
    with durable_file(path) as file:
        file.write(data)
    return file.record(path.name)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where the file is missing or torn, or holds something else."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def write_json(path: Path, tree: Any) -> FileRecord:
    """Replace the file at `path` by `tree` as readable JSON (UTF-8, Korean unescaped)."""
    return write_bytes(path, (json.dumps(tree, ensure_ascii=False, indent=1) + "\n").encode())


def rename(source: Path, target: Path) -> None:
    """Move `source` over `target` on the same file system, and sync the folder that holds the name."""
    with _operation("rename", target):
        source.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """The names in `folder` stand on the disk."""
    with _operation("fsync", folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Remove a folder so that a kill half-way never leaves a folder of that name with some of its files."""
    doomed = folder.with_name(f".{folder.name}.removed")
    with _operation("remove", doomed):
        shutil.rmtree(doomed, ignore_errors=True)
    rename(folder, doomed)
    with _operation("remove", doomed):
        shutil.rmtree(doomed)


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, read once in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, line: bytes) -> None:
    """Add `line` and a newline at the end in one write, so that processes may share the file; not synced."""
    with _operation("write", path), path.open("ab", buffering=0) as file:
        data = line + b"\n"
        if (written := file.write(data)) != len(data):
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes were taken")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process of this block among those that lock `path`; the kernel lets it go if this process dies.

    Raises:
        DiskError: its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise DiskError(
                error.errno,
                f"{path}: cannot be locked: {error.strerror}; mount that file system with locks (Lustre: -o flock; "
                "NFS: without nolock), or put the folder on one that has them",
            ) from error
        yield
