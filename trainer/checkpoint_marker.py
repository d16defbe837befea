"""What makes a folder a checkpoint: COMPLETE, which names every file with its size and hash, and a hash of itself.

Reads and checks; what is written when, is checkpoint.py's business. Needs no torch.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline import disk
from data_pipeline.stage import fingerprint
from trainer.errors import RunError

if TYPE_CHECKING:
    from trainer.ranks import Ranks

T = TypeVar("T")

COMPLETE_NAME = "COMPLETE"
STATE_NAME = "state.json"
FORMAT_VERSION = 1
# How long a disk may give no answer (a stale handle, an input/output error) before a start is refused.
PATIENCE_SECONDS = 60.0
_AGAIN_SECONDS = 1.0

# What torch, safetensors and DeepSpeed load; one that COMPLETE does not name is never let through.
LOADED_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".pkl", ".ckpt", ".safetensors"})

_STEP_NAME = re.compile(r"step-(\d{8,})(?:-ranks-(\d+))?")

Marker = dict[str, Any]


class CheckpointError(RunError):
    """A checkpoint that can't be saved, or none that can be loaded."""


def step_name(step: int) -> str:
    """The folder's name; as text it sorts like the step."""
    return f"step-{step:08d}"


def reshaped_name(step: int, *, num_ranks: int) -> str:
    """The folder's name of a checkpoint of `step` that was cut anew for another number of ranks."""
    return f"{step_name(step)}-ranks-{num_ranks}"


def reshaped_for(folder: Path) -> int | None:
    """How many ranks a checkpoint was cut anew for; None for one that a run saved."""
    match = _STEP_NAME.fullmatch(folder.name)
    return int(match.group(2)) if match is not None and match.group(2) else None


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder's name says."""
    match = _STEP_NAME.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"{folder}: not a checkpoint folder; its name must be like {step_name(1000)}")
    return int(match.group(1))


def marker_text(marker: Marker) -> str:
    """The one text of a marker, with a hash over itself."""
    body = {key: value for key, value in marker.items() if key != "sha256"}
    return json.dumps({**body, "sha256": fingerprint(body)}, ensure_ascii=False, indent=1) + "\n"


def is_listed(path: Path) -> bool:
    """Whether its folder names it. A folder that is listed is looked up anew: a client of a network file system may
    remember for a minute that a name it once asked for was missing."""
    try:
        return any(found.name == path.name for found in path.parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def has_marker(folder: Path) -> bool:
    """Whether COMPLETE stands in it; not whether it is sound.

    Raises:
        CheckpointError: the disk gives no answer.
    """
    return _answered(lambda: is_listed(folder / COMPLETE_NAME), path=folder, patience_seconds=PATIENCE_SECONDS)


def _answered(look: Callable[[], T], *, path: Path, patience_seconds: float) -> T:
    """What `look` returns; where the disk gives an error instead, it is asked again, and at last refused."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return look()
        except OSError as error:
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"{path}: cannot be read: {error.strerror}, for {patience_seconds:.0f} s; that is no proof of "
                    "damage, and nothing was changed: look at the disk, its mount and its permissions, then start "
                    "again; or move that checkpoint away by hand, to go on from the one before"
                ) from error
        time.sleep(_AGAIN_SECONDS)


def read_marker(folder: Path) -> tuple[Marker, str]:
    """COMPLETE's content, and what is wrong with it ("" if nothing)."""
    path = folder / COMPLETE_NAME
    try:
        return _marker_in(folder, path.read_bytes())
    except OSError as error:
        return {}, f"{path}: cannot be read: {error.strerror}"


def _read_patiently(folder: Path, patience_seconds: float) -> tuple[Marker, str]:
    """As `read_marker`, but only a missing file is a fault, no error of the disk."""
    path = folder / COMPLETE_NAME

    def look() -> tuple[Marker, str]:
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            if is_listed(path):
                raise
            return {}, f"{path}: cannot be read: {error.strerror}"
        return _marker_in(folder, data)

    return _answered(look, path=path, patience_seconds=patience_seconds)


def _marker_in(folder: Path, data: bytes) -> tuple[Marker, str]:
    path = folder / COMPLETE_NAME
    try:
        marker = json.loads(data)
        is_ours = isinstance(marker, dict) and marker_text(marker).encode() == data
    except ValueError:
        is_ours = False
    if not is_ours:
        return {}, f"{path}: its content does not match the hash that it holds"
    if marker["format_version"] != FORMAT_VERSION:
        says = f"format_version is {marker['format_version']}, this program reads {FORMAT_VERSION}"
        return {}, f"{path}: {says}; use the version that wrote it"
    if marker["step"] != step_of(folder):
        return {}, f"{path}: says step {marker['step']}; the folder was renamed"
    return marker, ""


def step_folders(checkpoints: Path) -> list[Path]:
    """Folders named like a checkpoint, newest first; of one step what the run saved comes first."""
    if not checkpoints.is_dir():
        return []
    found = [path for path in checkpoints.iterdir() if _STEP_NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda folder: (-step_of(folder), reshaped_for(folder) or 0))


def find_complete(checkpoints: Path) -> list[Path]:
    """Checkpoints whose COMPLETE is there and sound, newest first; their files are not read."""
    return [folder for folder in step_folders(checkpoints) if not read_marker(folder)[1]]


def stray_files(folder: Path, names: set[str]) -> list[Path]:
    """Files that a load might take up, though `names` lacks them."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in LOADED_SUFFIXES and path.is_file() and str(path.relative_to(folder)) not in names
    )


def verify(folder: Path, ranks: Ranks | None = None, *, patience_seconds: float = PATIENCE_SECONDS) -> list[str]:
    """A line for each fault of a checkpoint, [] if every file is as it was saved.

    With `ranks`, each rank reads its share of the files and all return the same. A file that is missing, or has another
    size or hash, is a fault; one that the disk will not give is asked for again.

    Raises:
        CheckpointError: the disk gave no answer for `patience_seconds`; on every rank.
    """
    marker, fault, refusal = _tried(lambda: _read_patiently(folder, patience_seconds), ranks)
    _refuse_unread([refusal], ranks)
    if fault:
        return [fault]
    largest_first = sorted(marker["files"], key=lambda entry: entry["num_bytes"], reverse=True)
    ours = largest_first if ranks is None else largest_first[ranks.rank :: ranks.world_size]
    faults, refusal = [], ""
    try:
        faults = [found for entry in ours if (found := _file_fault(folder, entry, patience_seconds))]
        if ranks is None or ranks.is_main:
            names = {entry["name"] for entry in marker["files"]}
            strays = _answered(lambda: stray_files(folder, names), path=folder, patience_seconds=patience_seconds)
            faults += [f"{path}: not named in {COMPLETE_NAME}" for path in strays]
    except CheckpointError as error:
        refusal = str(error)
    outcomes = [(faults, refusal)] if ranks is None else ranks.gather_objects((faults, refusal))
    _refuse_unread([theirs for _, theirs in outcomes], ranks)
    return [found for theirs, _ in outcomes for found in theirs]


def _tried(read: Callable[[], tuple[Marker, str]], ranks: Ranks | None) -> tuple[Marker, str, str]:
    """The marker, its fault, and why it could not be read, as rank 0 found them; only that one looks."""
    found: tuple[Marker, str, str] = ({}, "", "")
    if ranks is None or ranks.is_main:
        try:
            found = (*read(), "")
        except CheckpointError as error:
            found = ({}, "", str(error))
    return found if ranks is None else ranks.broadcast_object(found)


def _refuse_unread(refusals: list[str], ranks: Ranks | None) -> None:
    if told := [refusal for refusal in refusals if refusal]:
        raise CheckpointError("\n".join(told), told_by_main=ranks is not None and not ranks.is_main)


def _file_fault(folder: Path, entry: Mapping[str, Any], patience_seconds: float) -> str:
    path = folder / entry["name"]
    return _answered(lambda: _difference(path, entry), path=path, patience_seconds=patience_seconds)


def _difference(path: Path, entry: Mapping[str, Any]) -> str:
    """What is wrong with a file; raises OSError where the disk does not say."""
    try:
        found_bytes = path.stat().st_size
        if found_bytes != entry["num_bytes"]:
            return f"{path}: {found_bytes:,} bytes, {COMPLETE_NAME} says {entry['num_bytes']:,}"
        found = disk.sha256_of(path)
    except IsADirectoryError as error:
        return f"{path}: cannot be read: {error.strerror}"
    except (FileNotFoundError, NotADirectoryError) as error:
        if is_listed(path):
            raise
        return f"{path}: cannot be read: {error.strerror}"
    if found != entry["sha256"]:
        return f"{path}: sha256 is {found[:12]}…, {COMPLETE_NAME} says {entry['sha256'][:12]}…"
    return ""
