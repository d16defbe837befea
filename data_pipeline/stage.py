"""What every data stage is: tasks that any runner can carry, and a manifest written last.

A folder without `manifest.json` is unfinished work: its own stage resumes it, no other stage reads it. How tasks are
spread over processes or a cluster is the runner's business (`launch/tasks.py`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from data_pipeline import disk
from data_pipeline.disk import FileRecord

MANIFEST_NAME = "manifest.json"
MAX_SHOWN_CHARS = 60  # of a value in a message

Manifest = dict[str, Any]


class StageError(RuntimeError):
    """An input that a stage can't use: `where: what, both values; what to do`."""


class NothingToScoreError(StageError):
    """Held-out documents of which none has a target that could be scored."""


@dataclass(frozen=True)
class Task:
    """One independent piece of a stage.

    `wave`: every task of a wave is done before one of the next wave starts. `spec`: plain JSON values, all that
    `run` needs beside the stage's config. `num_bytes`: input size, for the progress bar.
    """

    name: str
    wave: int
    spec: dict[str, Any]
    num_bytes: int = 0


class Stage(Protocol):
    """Picklable; made from a config. `run` is idempotent and commits its own part, so a killed stage goes on."""

    @property
    def output(self) -> Path: ...

    def is_done(self) -> bool:
        """Whether the output folder already holds this stage's result for equal inputs."""

    def plan(self) -> list[Task]: ...

    def is_task_done(self, task: Task) -> bool:
        """Whether `run` of a task that `plan` gave would find its part committed."""

    def run(self, task: Task) -> None: ...

    def finish(self) -> Manifest:
        """Check that every task is done, write the manifest last, and return it."""


def fingerprint(tree: Any) -> str:
    """sha256 of plain values in canonical JSON; equal for equal trees, whatever the order of their keys."""
    text = json.dumps(tree, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Commit `manifest` as the last file of `folder`, with a hash over itself; returns what was written."""
    # As JSON gives it back, so that the hash is of what a reader sees: keys that were integers sort as text.
    body = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "manifest_sha256"}))
    body["manifest_sha256"] = fingerprint(body)
    disk.write_json(folder / MANIFEST_NAME, body)
    return body


def read_manifest(folder: Path, *, kind: str) -> Manifest:
    """The manifest of a finished folder of `kind` ("corpus", "tokenizer", "shards").

    Raises:
        StageError: no manifest (unfinished, or not such a folder), another kind, or altered by hand.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        state = "an unfinished folder (no manifest.json)" if folder.is_dir() else "no such folder"
        raise StageError(f"{folder}: {state}, but a finished {_named(kind)} is needed; run the stage that makes it")
    try:
        manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StageError(f"{path}: not valid JSON: {error}; remove that file and run the stage again") from None
    if not isinstance(manifest, dict):
        found = type(manifest).__name__
        raise StageError(f"{path}: holds a {found}, not an object with keys; remove that file and run the stage again")
    if manifest.get("kind") != kind:
        raise StageError(f"{path}: kind is {manifest.get('kind')!r}, but {kind!r} is needed; give another folder")
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    if fingerprint(body) != manifest.get("manifest_sha256"):
        stored = str(manifest.get("manifest_sha256"))[:12]
        raise StageError(
            f"{path}: its content hashes to {fingerprint(body)[:12]}…, but it says {stored}…; "
            "it was altered after the stage wrote it: restore it, or remove that file and run the stage again"
        )
    return manifest


def _named(kind: str) -> str:
    return "folder of shards" if kind == "shards" else kind


def differences(theirs: Any, ours: Any, path: str = "") -> list[str]:
    """What differs between two trees of plain values, a line for each key: `key theirs, now ours`; [] where equal.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b 1, now 3']
    """
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = dict.fromkeys([*ours, *theirs])
        found = [differences(theirs.get(key), ours.get(key), f"{path}.{key}".lstrip(".")) for key in keys]
        return [line for lines in found for line in lines]
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        found = [differences(*pair, f"{path}.{at}") for at, pair in enumerate(zip(theirs, ours, strict=True))]
        return [line for lines in found for line in lines]
    return [] if theirs == ours else [f"{path} {_shown(theirs)}, now {_shown(ours)}"]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def is_done(folder: Path, *, kind: str, inputs_sha256: str) -> bool:
    """Whether `folder` holds the finished result of equal inputs and config."""
    if not (folder / MANIFEST_NAME).is_file():
        return False
    return bool(read_manifest(folder, kind=kind).get("inputs_sha256") == inputs_sha256)


def file_entries(records: list[FileRecord]) -> list[dict[str, Any]]:
    """File records as the manifest spells them."""
    return [asdict(record) for record in records]


def verify_files(folder: Path, manifest: Manifest) -> list[str]:
    """A line for each file of the manifest that is missing, of another size, or of another hash; [] when sound."""
    faults = []
    for entry in manifest["files"]:
        path = folder / entry["name"]
        if not path.is_file():
            faults.append(f"{path}: missing; restore it, or build again")
        elif path.stat().st_size != entry["num_bytes"]:
            found = path.stat().st_size
            faults.append(f"{path}: {found:,} bytes, {MANIFEST_NAME} says {entry['num_bytes']:,}; build again")
        elif (found_hash := disk.sha256_of(path)) != entry["sha256"]:
            says = entry["sha256"][:12]
            faults.append(f"{path}: sha256 is {found_hash[:12]}…, {MANIFEST_NAME} says {says}…; build again")
    return faults
