"""Checkpoints that are whole or invisible (law 9): save, commit, find, verify, choose, prune.

    checkpoints/step-00001000/            model, optimizer (the engine's files), state.json, config.yaml ...
                     COMPLETE             names every file with its size and hash; written last
                step-00001000-ranks-4/    the same step, cut anew for so many ranks (`dure checkpoint reshape`)

A folder without COMPLETE is unfinished work. Nothing is loaded from a folder that was not verified. What the engine's
files mean is not known here.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from data_pipeline import disk
from data_pipeline.config import Config
from data_pipeline.disk import FileRecord
from trainer.checkpoint_marker import (
    COMPLETE_NAME,
    FORMAT_VERSION,
    PATIENCE_SECONDS,
    STATE_NAME,
    CheckpointError,
    find_complete,
    has_marker,
    is_listed,
    marker_text,
    reshaped_for,
    step_folders,
    step_name,
    step_of,
    stray_files,
    verify,
)
from trainer.errors import RunError

if TYPE_CHECKING:  # torch is not needed to find and verify a checkpoint
    from trainer.ranks import Ranks

__all__ = [
    "COMPLETE_NAME",
    "STATE_NAME",
    "CheckpointConfig",
    "CheckpointError",
    "Chosen",
    "choose",
    "find_complete",
    "prune",
    "read_state",
    "save",
    "step_name",
    "step_of",
    "verify",
]

DAMAGED_PREFIX = "damaged-"

WriteEngine = Callable[[Path], list[FileRecord]]


class CheckpointConfig(Config):
    """How often a checkpoint is saved, and which ones stay."""

    every_steps: int = Field(default=500, ge=1)
    keep_last: int = Field(default=3, ge=1)
    keep_best: bool = True


@dataclass(frozen=True)
class Chosen:
    """The checkpoint to go on from (None: a fresh start), and a line for each fault of newer ones passed over."""

    path: Path | None
    damaged: list[str]


def save(
    checkpoints: Path,
    *,
    step: int,
    state: Mapping[str, Any],
    write_engine: WriteEngine,
    extra_files: Mapping[str, bytes],
    ranks: Ranks,
) -> Path:
    """A complete checkpoint of `step`; every rank calls it, and all return or all raise.

    `write_engine` writes this rank's files into the folder through `disk`; an error of one rank must not keep the
    others waiting inside it. `state` and `extra_files` are rank 0's. A sound checkpoint of this step stays as it is:
    it was made by the same steps, and removing it first would leave a moment without.

    Raises:
        CheckpointError: some rank failed. Nothing is committed, the checkpoint before stands.
    """
    folder = checkpoints / step_name(step)
    write(folder, state=state, write_engine=write_engine, extra_files=extra_files, ranks=ranks)
    return folder


def write(
    folder: Path,
    *,
    state: Mapping[str, Any],
    write_engine: WriteEngine,
    extra_files: Mapping[str, bytes],
    ranks: Ranks,
) -> None:
    """`save` under the name of `folder`, which says the step."""
    if _is_sound(folder, ranks):
        return
    attempt = _Attempt(folder, ranks)
    # Before rank 0 has made it no other rank may look: a network file system remembers for a minute what was missing.
    attempt.phase(lambda: _make_empty(folder) if ranks.is_main else [])
    records = attempt.phase(lambda: _write_into(folder, write_engine))
    step = step_of(folder)
    attempt.phase(lambda: _commit(folder, step, records, state, extra_files) if ranks.is_main else [])


def _is_sound(folder: Path, ranks: Ranks) -> bool:
    exists = ranks.on_main(lambda: has_marker(folder))
    return exists and not verify(folder, ranks)


def _write_into(folder: Path, write_engine: WriteEngine) -> list[FileRecord]:
    if not _appears(folder, PATIENCE_SECONDS):
        raise CheckpointError(
            f"{folder}: not seen here {PATIENCE_SECONDS:.0f} s after rank 0 has made it; put the run folder on a file "
            "system that all nodes share"
        )
    return write_engine(folder)


class _Attempt:
    """One try at a save: what every rank does in each phase, and the agreement on whether it worked."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder = folder
        self._ranks = ranks

    def phase(self, action: Callable[[], list[FileRecord]]) -> list[FileRecord]:
        """Every rank's records once all are through `action`; where one failed, all raise the same."""
        records: list[FileRecord] = []
        failure = ""
        try:
            records = action()
        except Exception as error:  # whatever it is, the other ranks wait to hear of it
            failure = f"{error}" if isinstance(error, (OSError, RunError)) else f"{type(error).__name__}: {error}"
        outcomes = self._ranks.gather_objects((records, failure))
        failures = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(outcomes) if text]
        if failures:
            self._give_up(failures)
        return [record for theirs, _ in outcomes for record in theirs]

    def _give_up(self, failures: list[str]) -> None:
        before = next(iter(find_complete(self._folder.parent)), None)
        stands = "there is no checkpoint before, so a new start begins anew"
        if before is not None:
            stands = f"the checkpoint before, {before.name}, stands, and a new start goes on from there"
        self._ranks.barrier()
        if self._ranks.is_main:
            with contextlib.suppress(OSError):
                disk.remove_tree(self._folder)
        message = f"{self._folder}: not saved: {'; '.join(failures)}; {stands}"
        raise CheckpointError(message, told_by_main=not self._ranks.is_main)


def _make_empty(folder: Path) -> list[FileRecord]:
    """An empty folder for the save; what a killed save left there goes first."""
    if folder.exists():
        disk.remove_tree(folder)
    folder.mkdir(parents=True)
    disk.sync_folder(folder.parent)
    return []


def _commit(
    folder: Path, step: int, records: list[FileRecord], state: Mapping[str, Any], extra_files: Mapping[str, bytes]
) -> list[FileRecord]:
    """Rank 0's own files, then every folder's names on the disk, then COMPLETE."""
    ours = [disk.write_json(folder / STATE_NAME, dict(state))]
    ours += [disk.write_bytes(folder / name, data) for name, data in extra_files.items()]
    files = sorted([*records, *ours], key=lambda record: record.name)
    _check_written(folder, files)
    for inner in sorted(path for path in folder.rglob("*") if path.is_dir()):
        disk.sync_folder(inner)
    disk.sync_folder(folder)
    disk.sync_folder(folder.parent)
    marker = {"format_version": FORMAT_VERSION, "step": step, "files": [asdict(record) for record in files]}
    disk.write_bytes(folder / COMPLETE_NAME, marker_text(marker).encode())
    return ours


def _check_written(folder: Path, files: list[FileRecord]) -> None:
    """Refuse to vouch for files that rank 0 does not see as they were written, or that nobody told of."""
    names = [record.name for record in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CheckpointError(f"two ranks wrote {', '.join(twice)}; each file belongs to one rank")
    for record in files:
        path = folder / record.name
        found = path.stat().st_size if path.is_file() else None
        if found != record.num_bytes:
            raise CheckpointError(
                f"{path}: rank 0 finds {'no file' if found is None else f'{found:,} bytes'}, {record.num_bytes:,} were "
                "written; put the run folder on a file system that all nodes share"
            )
    if strays := stray_files(folder, set(names)):
        raise CheckpointError(f"{strays[0]}: written without its hash; the engine must report every file")


def choose(checkpoints: Path, ranks: Ranks) -> Chosen:
    """The newest checkpoint that is sound to the last byte; every rank calls it and gets the same.

    Of one step, that which was cut for as many ranks comes first, then what the run saved. Newer damaged ones are set
    aside under another name, unfinished ones are removed.

    Raises:
        CheckpointError: there are checkpoints, but none is sound: training from scratch must be a person's decision;
            or a node has another folder of this name, or a disk gives no answer: that is no damage, nothing is changed.
    """
    check_shared(checkpoints, ranks)
    marked: list[Path] = ranks.on_main(lambda: [folder for folder in step_folders(checkpoints) if has_marker(folder)])
    marked.sort(key=lambda folder: (-step_of(folder), reshaped_for(folder) != ranks.world_size))
    damaged: dict[Path, list[str]] = {}
    chosen = None
    for folder in marked:
        if not (faults := verify(folder, ranks)):
            chosen = folder
            break
        damaged[folder] = faults
    lines = [line for faults in damaged.values() for line in faults]
    if chosen is None and damaged:
        raise CheckpointError(
            "\n".join(lines) + f"\n{checkpoints}: none of {len(damaged)} checkpoints is sound; restore the files, or "
            "give a new run.name to train from the start",
            told_by_main=not ranks.is_main,
        )
    ranks.on_main(lambda: _tidy(checkpoints, damaged=list(damaged)))
    return Chosen(path=chosen, damaged=lines)


def check_shared(folder: Path, ranks: Ranks, *, patience_seconds: float = 60.0) -> None:
    """Refuse nodes that have folders of one name, but not one folder: each would read other files than were saved.

    DeepSpeed goes on with wrong weights there (its issue 7601). A shared file system may show a new file late, so that
    it is looked for until `patience_seconds` are over.

    Raises:
        CheckpointError: what rank 0 writes into `folder` is not seen by every rank.
    """
    if ranks.world_size == 1:
        return
    name: str = ranks.on_main(lambda: _leave_mark(folder))
    outcomes = ranks.gather_objects((socket.gethostname(), _appears(folder / name, patience_seconds)))
    if ranks.is_main:
        (folder / name).unlink(missing_ok=True)
    blind = [f"rank {rank} on {host}" for rank, (host, sees) in enumerate(outcomes) if not sees]
    if blind:
        others = f" and {len(blind) - 8:,} more" if len(blind) > 8 else ""
        raise CheckpointError(
            f"{folder}: {', '.join(blind[:8])}{others} cannot see what rank 0 on {outcomes[0][0]} wrote there "
            f"{patience_seconds:.0f} s ago; put run.folder on a file system that all nodes share (공유 파일 시스템)",
            told_by_main=not ranks.is_main,
        )


def _leave_mark(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(".shared-*"):
        old.unlink(missing_ok=True)
    name = f".shared-{secrets.token_hex(8)}"
    (folder / name).touch()
    return name


def _appears(path: Path, patience_seconds: float) -> bool:
    deadline = time.monotonic() + patience_seconds
    while not (is_listed(path) and path.exists()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _tidy(checkpoints: Path, *, damaged: list[Path]) -> None:
    """Set damaged checkpoints aside, so that pruning never counts them, and remove what killed saves left."""
    for folder in damaged:
        aside = folder.with_name(DAMAGED_PREFIX + folder.name)
        if aside.exists():
            disk.remove_tree(aside)
        disk.rename(folder, aside)
    for folder in step_folders(checkpoints):
        if not has_marker(folder):
            disk.remove_tree(folder)
    for leftover in checkpoints.glob(".*step-*.removed"):
        shutil.rmtree(leftover, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a verified checkpoint."""
    state: dict[str, Any] = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
    return state


def prune(checkpoints: Path, *, keep_last: int, best: int | None) -> list[str]:
    """Remove all but the checkpoints of the last `keep_last` steps and of step `best`, oldest first.

    Returns a line for each that could not be removed: that is no reason to end a run.
    """
    complete, kept_back = find_complete(checkpoints), []
    kept = {*sorted({step_of(folder) for folder in complete}, reverse=True)[:keep_last], best}
    for folder in reversed(complete):
        if step_of(folder) in kept:
            continue
        try:
            disk.remove_tree(folder)
        except OSError as error:
            kept_back.append(f"{folder}: could not be removed: {error}")
    return kept_back
