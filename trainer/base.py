"""Which model a run continues from: a run's newest checkpoint, a folder or a hub name, pinned at the first start.

A base that is a run is exported once beside its checkpoints; `base.json` in the run folder keeps which step that was
and its hash, so that a base that trains on does not move under a run that is resumed. An export that was removed is
made again from that step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline import disk
from trainer.checkpoint_marker import read_marker
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.locate import DEFAULT_ROOT, locate
from trainer.model_config import ModelConfig
from trainer.ranks import Ranks
from trainer.run_folder import BASE_NAME, CHECKPOINTS_NAME, has_begun

EXPORT_NAME = "export"

# What the cheap hash reads of each weight file: its safetensors header, and so many samples of so many bytes.
NUM_SAMPLES, SAMPLE_BYTES, MAX_HEADER_BYTES = 64, 4096, 1 << 20


@dataclass(frozen=True)
class BaseIdentity:
    """What tells one base from another without reading all of it."""

    source: str
    sha256: str
    num_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def pin_base(config: TrainConfig, run_folder: Path, ranks: Ranks) -> TrainConfig:
    """`config` with `model.from` as a folder or hub name that can be loaded; a run is exported first (rank 0).

    A run is found by its path, or by its name in `run.folder` or under runs/.

    Raises:
        RunError: a run without a complete checkpoint, or a checkpoint that is not the one that was pinned.
    """
    asked = config.model.source
    if asked is None:
        return config
    roots = (Path(config.run.folder), DEFAULT_ROOT)
    pinned = ranks.on_main(lambda: _pin(asked, run_folder, roots=roots))
    return with_source(config, pinned)


def with_source(config: TrainConfig, source: str) -> TrainConfig:
    """`config` with another `model.from`."""
    return config.model_copy(update={"model": config.model.model_copy(update={"source": source})})


def pinned_source(config: TrainConfig, run_folder: Path) -> str | None:
    """What `model.from` of a run that has begun stands for: its `base.json` knows; None for a new model."""
    asked = config.model.source
    told = _read(run_folder) if asked is not None else {}
    return str(told["path"]) if told.get("from") == asked and told else asked


def restore_base(folder: Path) -> None:
    """Make the export that a run's `base.json` in `folder` names, where somebody removed it; else change nothing.

    Raises:
        RunError: the checkpoint that it was made of is gone, or is another one by its hash.
    """
    told = _read(folder)
    path = Path(str(told.get("path", "")))
    if not told or path.is_dir() or path.parent.name != EXPORT_NAME:
        return
    # Files of before knew the checkpoint by the export's place alone.
    made_of = Path(told.get("checkpoint") or path.parents[1] / CHECKPOINTS_NAME / path.name)
    marker, fault = read_marker(made_of)
    if fault:
        raise RunError(
            f"model.from: {path}, which this run began on, was removed, and can't be made again: {fault}; restore the "
            "export or its checkpoint, or give a new run.name to begin on another"
        )
    found = str(marker["sha256"])
    pinned = str(told.get("checkpoint_sha256", found))
    if pinned != found:
        raise RunError(
            f"model.from: {path}, which this run began on, was removed, and {made_of} is another one now: this run "
            f"pinned {pinned[:12]}…, its COMPLETE says {found[:12]}…; restore the old one, or give a new run.name"
        )
    _export_once(made_of, path, asked=str(told["from"]))


def _read(run_folder: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((run_folder / BASE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return told


def _pin(asked: str, run_folder: Path, *, roots: Sequence[Path]) -> str:
    told = _read(run_folder)
    if told.get("from") == asked and has_begun(run_folder):
        restore_base(run_folder)
        return str(told["path"])
    pinned = {"from": asked, **_pinned(asked, run_folder, roots=roots)}
    disk.write_json(run_folder / BASE_NAME, pinned)
    return pinned["path"]


def _pinned(asked: str, run_folder: Path, *, roots: Sequence[Path]) -> dict[str, str]:
    """The model folder of a run or of one of its checkpoints, made now where it is missing; else `asked` itself."""
    place = locate(asked, roots=roots, besides=run_folder)
    if place is None or place.kind == "model":
        return {"path": asked}
    found = place.checkpoint
    if found is None:
        raise RunError(f"model.from: {place.path} is a run without a complete checkpoint yet; train it first")
    output = (place.run_folder or found.resolve().parent) / EXPORT_NAME / found.name
    _export_once(found, output, asked=asked)
    return {"path": str(output), "checkpoint": str(found), "checkpoint_sha256": read_marker(found)[0]["sha256"]}


def _export_once(found: Path, output: Path, *, asked: str) -> None:
    """All weights of a checkpoint in `output`; an export of the same lies there, or is made. Another one is refused."""
    from trainer.export import export_full

    with disk.locked(output.parent / ".lock"):  # two runs may begin on one base at once
        if not output.is_dir():
            print(f"model.from: {asked} is a run: its {found.name} is exported to {output}, once", flush=True)
        export_full(found, output)


def identify(model: ModelConfig) -> BaseIdentity:
    """The identity of the weights in the folder or hub name `model.from`, which can be loaded here.

    A hash over config.json and, of each weight file, its name, its size, its header and samples all over it: a base
    of 25 GB takes milliseconds. A change that no sample meets goes unseen.
    """
    folder = _folder_of(model)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    num_bytes = 0
    for file in files:
        size = file.stat().st_size
        num_bytes += size
        digest.update(f"{file.name}\0{size}\0".encode())
        digest.update(_samples(file, size=size))
    return BaseIdentity(source=str(model.source), sha256=digest.hexdigest(), num_bytes=num_bytes)


def _folder_of(model: ModelConfig) -> Path:
    from transformers.utils import cached_file

    source = str(model.source)
    if Path(source).is_dir():
        return Path(source)
    file = cached_file(source, "config.json", revision=model.revision)
    return Path(str(file)).parent


def model_tokenizer(model: ModelConfig) -> Path | None:
    """The tokenizer.json that `model.from` brings, in its folder or the hub's cache."""
    from transformers.utils import cached_file

    file = cached_file(
        model.source,
        "tokenizer.json",
        revision=model.revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if file is None else Path(file)


def _samples(path: Path, *, size: int) -> bytes:
    parts = []
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little") if path.suffix == ".safetensors" else 0
        parts.append(file.read(min(header_bytes, MAX_HEADER_BYTES)))
        for number in range(NUM_SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * number // (NUM_SAMPLES - 1))
            parts.append(file.read(SAMPLE_BYTES))
    return b"".join(parts)


def check_base(saved: dict[str, Any] | None, ours: BaseIdentity | None, *, folder: Path) -> None:
    """Refuse an adapter's checkpoint over another base than it was trained on, before anything is loaded."""
    if saved is None or ours is None or saved["sha256"] == ours.sha256:
        return
    raise RunError(
        f"{folder}: model.from: this adapter was trained on a base {saved['sha256'][:12]}… ({saved['num_bytes']:,} "
        f"bytes, {saved['source']}), but {ours.source} is now {ours.sha256[:12]}… ({ours.num_bytes:,} bytes); put the "
        "old base back, or give a new run.name to begin on this one"
    )
