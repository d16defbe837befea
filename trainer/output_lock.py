"""One process at a time writes an output: the second is told who the first is, and nothing waits.

The kernel lets the lock go when its holder dies, so that what a kill leaves keeps nobody out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from trainer.errors import RunError


@contextlib.contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Be the only process of this block for the file or folder `output`; a hidden file beside it says who is.

    Raises:
        RunError: another process is.
    """
    path = output.with_name(f".{output.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while not _is_locked(file := stack.enter_context(path.open("a+")), path, output=output):
            continue
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: who waits for nothing finds no file, or a new one


def _is_locked(file: TextIO, path: Path, *, output: Path) -> bool:
    """Lock the file; False where the holder before removed it meanwhile, so that nobody else would find it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read() or "another process"
        raise RunError(f"{output}: {who} writes it now; wait for it, or give another --output") from None
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
