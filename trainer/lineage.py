"""What a model was made of: its data and its bases' data, back to the first. Credit is owed for all of it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline import disk
from data_pipeline.shards.format import read_shards, read_shards_manifest
from data_pipeline.shards.reader import open_shard
from data_pipeline.stage import MANIFEST_NAME, Manifest, StageError
from trainer.base import identify
from trainer.errors import RunError
from trainer.locate import ADAPTER_CONFIG_NAME
from trainer.model_config import ModelConfig
from trainer.saved import Saved, find_saved

EXPORT_KIND = "export"
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
    """The model that training began with, as anybody may read it: no path of this machine.

    `name`: a hub name, or of a folder here the run that made it or its last part; `is_loadable`: whether others can
    load that name. `sha256`: `identify`'s of a folder here, "" of a hub name. `license`: what its own card states.
    """

    name: str
    revision: str | None
    step: int | None
    sha256: str
    license: str
    is_loadable: bool


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
        found = find_saved(base)
        if found.path.resolve() != saved.path.resolve():  # a hub name that is this run's own name too
            return [latest, *data_of(found)]
    return [latest]


def base_path_of(saved: Saved) -> tuple[str, str | None] | None:
    """The hub name or the folder here that a run continued or an adapter folder names, and its revision on the hub."""
    if saved.config is not None:
        source, revision = saved.config.model.source, saved.config.model.revision
    else:
        told = disk.read_object(saved.path / ADAPTER_CONFIG_NAME)
        source, revision = told.get("base_model_name_or_path"), told.get("revision")
    if not source:
        return None
    return (str(Path(source).resolve()), None) if Path(source).is_dir() else (source, revision)


def base_of(saved: Saved, *, name: str | None = None) -> BaseFacts | None:
    """What may be told of the base; None for a model of its own. `name`: what to call it, loadable by others."""
    found = base_path_of(saved)
    if found is None:
        return None
    source, revision = found
    folder = Path(source)
    is_model = (folder / "config.json").is_file()
    # A path of which nothing is left: still no name that others could load.
    is_path = folder.is_dir() or source.startswith(("/", "."))
    origin = _export_manifest(folder).get("origin", {})
    own_name = str(origin.get("name") or folder.name) if is_path else source
    return BaseFacts(
        name=name or own_name,
        revision=revision if name in (None, source) else None,
        step=origin.get("step"),
        sha256=identify(ModelConfig.model_validate({"from": source})).sha256 if is_model else "",
        license=_licence_in(folder / "README.md"),
        is_loadable=name is not None or not is_path,
    )


def _data_of_run(saved: Saved) -> DataFacts:
    assert saved.config is not None
    shards, stage = Path(saved.config.data.shards), str(saved.config.stage)
    # The folder's name alone: an export may leave the house, and paths tell about it.
    try:
        manifest = read_shards_manifest(shards)
    except StageError:
        return DataFacts(stage, shards.name, "", "", {}, is_known=False)
    record = str(manifest.get("record", "document"))
    sources = _sources_in(shards, manifest)
    return DataFacts(stage, shards.name, manifest["manifest_sha256"], record, sources, is_known=True)


def _sources_in(shards: Path, manifest: Manifest) -> dict[str, int]:
    """Rows of each source in the training split; from the one column that holds them where the manifest is older."""
    if "sources" in manifest:
        return dict(sorted(manifest["sources"]["train"].items()))
    counts: dict[str, int] = {}
    for file in read_shards(shards, split="train").files:
        for batch in open_shard(file):
            for pair in batch.column("source").value_counts().to_pylist():
                counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    return dict(sorted(counts.items()))


def _told_by_manifest(folder: Path) -> list[DataFacts]:
    """What an export of ours says of itself; nothing for other people's folders."""
    return [DataFacts(**facts) for facts in _export_manifest(folder).get("data", [])]


def _export_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export of ours; {} for other people's folders, which may have one of that name."""
    told = disk.read_object(folder / MANIFEST_NAME)
    return told if told.get("kind") == EXPORT_KIND else {}


def as_trees(data: list[DataFacts]) -> list[dict[str, Any]]:
    """As a manifest keeps them."""
    return [asdict(facts) for facts in data]


def _licence_in(readme: Path) -> str:
    try:
        found = _LICENSE.match(readme.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    # `other` says no more than that somebody has to decide.
    return found.group(1) if found and found.group(1) != "other" else ""
