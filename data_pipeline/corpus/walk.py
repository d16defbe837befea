"""What lies below a folder, one folder at a time, in the order of names; links are followed, nothing is left out.

Only directory entries are read. What a file is for is not known here.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from data_pipeline.stage import StageError

Oddity = Literal["", "dangling_link", "link_loop", "special_file"]
Key = tuple[int, int]  # device and inode

FileT = TypeVar("FileT")


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a folder that is no folder to go into. `oddity`: why it is no file to read either; "" where it is."""

    path: Path
    inside: str  # below the folder where the walk began, NFC, "/" between
    num_bytes: int = 0
    oddity: Oddity = ""


def walk(
    folder: Path, of_folder: Callable[[list[Entry]], list[tuple[str, FileT]]], *, inside: str = ""
) -> Iterator[FileT]:
    """What `of_folder` makes of the entries of each folder, (name inside, file) pairs, in the order of those names.

    Memory holds the folders from `folder` to the one at hand. A folder that two links lead to is walked twice; a link
    to a folder above it is an entry.

    Raises:
        StageError: a folder that can't be listed.
    """
    yield from _walk(folder, of_folder, inside, above=frozenset({_key(folder.stat())}))


def _walk(
    folder: Path, of_folder: Callable[[list[Entry]], list[tuple[str, FileT]]], inside: str, *, above: frozenset[Key]
) -> Iterator[FileT]:
    entries, folders = _listed(folder, inside, above)
    # "a.txt" stands before "a/x": a folder is sorted with the "/" behind its name.
    below: list[tuple[str, FileT | Path]] = [*of_folder(entries), *folders]
    for name, found in sorted(below, key=lambda pair: pair[0]):
        if isinstance(found, Path):
            yield from _walk(found, of_folder, name, above=above | {_key(found.stat())})
        else:
            yield found


def _listed(folder: Path, inside: str, above: frozenset[Key]) -> tuple[list[Entry], list[tuple[str, Path]]]:
    entries: list[Entry] = []
    folders: list[tuple[str, Path]] = []
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names alone: a Path each costs more than the listing
    except OSError as error:
        raise StageError(f"{folder}: can't be listed: {error.strerror}; check its permissions") from None
    for name in names:
        path, here = folder / name, inside + _readable(name)
        try:
            found = path.stat()
        except OSError:  # its target is not there, or it leads to itself
            entries.append(Entry(path, here, oddity="dangling_link"))
            continue
        if not stat.S_ISDIR(found.st_mode):
            oddity: Oddity = "" if stat.S_ISREG(found.st_mode) else "special_file"
            entries.append(Entry(path, here, found.st_size, oddity))
        elif _key(found) in above:
            entries.append(Entry(path, here, oddity="link_loop"))
        else:
            folders.append((here + "/", path))
    return entries, folders


def _readable(name: str) -> str:
    """`name` in NFC; bytes that are not UTF-8 as escapes."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def _key(found: os.stat_result) -> Key:
    return found.st_dev, found.st_ino
