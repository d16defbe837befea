"""What a model was made of: its data and its bases' data, back to the first. Credit is owed for all of it."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.shards.format import read_shards, read_shards_manifest
from data_pipeline.shards.reader import open_shard
from data_pipeline.stage import MANIFEST_NAME, StageError
from trainer.errors import RunError
from trainer.saved import Saved, find_saved

_LICENSE = re.compile(r"\A---\n.*?^license:\s*(\S+).*?^---", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class DataFacts:
    """One training's data: rows of each source. `is_known` is false where the shards are gone."""

    stage: str
    shards: str
    manifest_sha256: str
    record: str
    sources: dict[str, int]
    is_known: bool

    @property
    def is_from_aihub(self) -> bool:
        return any("aihub" in name.lower() for name in self.sources)


@dataclass(frozen=True)
class BaseFacts:
    """The model that training began with: its name, and the licence that its own card states ("" if none)."""

    name: str
    revision: str | None
    license: str


def data_of(saved: Saved) -> list[DataFacts]:
    """The data of every training that led to `saved`, the latest first."""
    if saved.config is None:
        return _told_by_manifest(saved.path)
    latest = _data_of_run(saved)
    base = saved.config.model.source
    if base is None:
        return [latest]
    folder = Path(base)
    if (folder / MANIFEST_NAME).is_file():
        return [latest, *_told_by_manifest(folder)]
    with contextlib.suppress(RunError):  # a hub name, or a folder that no training of ours made
        return [latest, *data_of(find_saved(base))]
    return [latest]


def base_of(saved: Saved) -> BaseFacts | None:
    """What a run continued, or what an adapter folder names; None for a model of its own."""
    revision = None
    if saved.config is not None:
        name, revision = saved.config.model.source, saved.config.model.revision
    else:
        name = _json(saved.path / "adapter_config.json").get("base_model_name_or_path")
    if not name:
        return None
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    return BaseFacts(name, revision, _licence_in(Path(name) / "README.md"))


def _data_of_run(saved: Saved) -> DataFacts:
    assert saved.config is not None
    shards, stage = Path(saved.config.data.shards), str(saved.config.stage)
    # The folder's name alone: an export may leave the house, and paths tell about it.
    try:
        manifest = read_shards_manifest(shards)
    except StageError:
        return DataFacts(stage, shards.name, "", "", {}, is_known=False)
    record = str(manifest.get("record", "document"))
    return DataFacts(stage, shards.name, manifest["manifest_sha256"], record, _sources_in(shards), is_known=True)


def _sources_in(shards: Path) -> dict[str, int]:
    """Rows of each source in the training split, from the one column that holds them."""
    counts: dict[str, int] = {}
    for file in read_shards(shards, split="train").files:
        for batch in open_shard(file):
            for pair in batch.column("source").value_counts().to_pylist():
                counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    return dict(sorted(counts.items()))


def _told_by_manifest(folder: Path) -> list[DataFacts]:
    """What an export of ours says of itself; nothing for other people's folders."""
    told = _json(folder / MANIFEST_NAME).get("data", [])
    return [DataFacts(**facts) for facts in told] if isinstance(told, list) else []


def as_trees(data: list[DataFacts]) -> list[dict[str, Any]]:
    """As a manifest keeps them."""
    return [asdict(facts) for facts in data]


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _licence_in(readme: Path) -> str:
    try:
        found = _LICENSE.match(readme.read_text(encoding="utf-8"))
    except OSError:
        return ""
    # `other` says no more than that somebody has to decide.
    return found.group(1) if found and found.group(1) != "other" else ""
