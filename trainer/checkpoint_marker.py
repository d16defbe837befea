"""What makes a folder a checkpoint: COMPLETE, which names every file with its size and hash, and a hash of itself.

Reads and checks; what is written when, is checkpoint.py's business. Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline import disk
from data_pipeline.stage import fingerprint
from trainer.errors import RunError

if TYPE_CHECKING:
    from trainer.ranks import Ranks

COMPLETE_NAME = "COMPLETE"
FORMAT_VERSION = 1

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


def read_marker(folder: Path) -> tuple[Marker, str]:
    """COMPLETE's content, and what is wrong with it ("" if nothing)."""
    path = folder / COMPLETE_NAME
    try:
        data = path.read_bytes()
        marker = json.loads(data)
        is_ours = isinstance(marker, dict) and marker_text(marker).encode() == data
    except OSError as error:
        return {}, f"{path}: cannot be read: {error.strerror}"
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


def verify(folder: Path, ranks: Ranks | None = None) -> list[str]:
    """A line for each fault of a checkpoint, [] if every file is as it was saved.

    With `ranks`, each rank reads its share of the files and all return the same.
    """
    marker, fault = read_marker(folder)
    if ranks is not None:
        marker, fault = ranks.broadcast_object((marker, fault))
    if fault:
        return [fault]
    largest_first = sorted(marker["files"], key=lambda entry: entry["num_bytes"], reverse=True)
    ours = largest_first if ranks is None else largest_first[ranks.rank :: ranks.world_size]
    faults = [fault for entry in ours if (fault := _file_fault(folder, entry))]
    if ranks is None or ranks.is_main:
        names = {entry["name"] for entry in marker["files"]}
        faults += [f"{path}: not named in {COMPLETE_NAME}" for path in stray_files(folder, names)]
    return faults if ranks is None else [fault for theirs in ranks.gather_objects(faults) for fault in theirs]


def _file_fault(folder: Path, entry: Mapping[str, Any]) -> str:
    path = folder / entry["name"]
    try:
        found_bytes = path.stat().st_size
        if found_bytes != entry["num_bytes"]:
            return f"{path}: {found_bytes:,} bytes, {COMPLETE_NAME} says {entry['num_bytes']:,}"
        found = disk.sha256_of(path)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    if found != entry["sha256"]:
        return f"{path}: sha256 is {found[:12]}…, {COMPLETE_NAME} says {entry['sha256'][:12]}…"
    return ""
