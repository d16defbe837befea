"""`dure checkpoint list`, `verify`, `prune` and `reshape`: what a run has saved, and what is done with it by hand."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from data_pipeline import disk
from data_pipeline.config import load
from trainer import checkpoint
from trainer.checkpoint_marker import find_complete, read_marker, reshaped_for, step_folders, step_of
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.locate import DEFAULT_ROOT, Place, locate
from trainer.run_folder import CHECKPOINTS_NAME, CONFIG_NAME
from trainer.run_lock import held

_HEADINGS = ("step", "saved", "ranks", "engine", "GiB", "")


def list_(arguments: argparse.Namespace) -> int:
    """A line for each checkpoint, newest first; files are counted, not read."""
    place = _find(arguments.path)
    checkpoints = _folder_of(place)
    complete = find_complete(checkpoints)
    newest = complete[0] if complete else None
    best = _state_of(newest)["progress"]["best_step"] if newest is not None else -1
    rows = [_row(folder, newest=newest, best=best) for folder in _shown(place)]
    rows += [(folder.name, *4 * ("",), "damaged, set aside (손상됨)") for folder in _set_aside(checkpoints)]
    print(_table([_HEADINGS, *rows]) if rows else f"{checkpoints}: no checkpoint yet (저장된 체크포인트 없음)")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Read every file of a checkpoint, or of all of a run, against its hash; 1 if one is not as it was saved."""
    place = _find(arguments.path)
    folders = _shown(place)
    if not folders:
        raise RunError(f"{place.path}: no checkpoint yet; train it first")
    found = [_verified(folder) for folder in folders]
    return 0 if all(found) else 1


def prune(arguments: argparse.Namespace) -> int:
    """Remove what the run's config does not keep; --keep keeps another number, the best one stays in any case."""
    place = _find(arguments.path)
    if place.kind != "run":
        raise RunError(f"{place.path}: one checkpoint; name its run ({place.run_folder or 'a run folder'})")
    config = load(place.path / CONFIG_NAME, [], TrainConfig).checkpoint
    keep = arguments.keep or config.keep_last
    checkpoints = place.path / CHECKPOINTS_NAME
    with held(place.path):
        before = {*step_folders(checkpoints), *_set_aside(checkpoints)}
        complete = find_complete(checkpoints)
        best = _state_of(complete[0])["progress"]["best_step"] if complete and config.keep_best else None
        faults = checkpoint.prune(checkpoints, keep_last=keep, best=best)
        if arguments.damaged:
            for folder in _set_aside(checkpoints):
                disk.remove_tree(folder)
        after = {*step_folders(checkpoints), *_set_aside(checkpoints)}
    for folder in sorted(before - after):
        print(f"removed {folder}")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{checkpoints}: {len(after):,} of {len(before):,} left (남음)")
    return 1 if faults else 0


def reshape(arguments: argparse.Namespace) -> int:
    """Cut a ZeRO checkpoint, the newest of a run, for another number of ranks; the old one stays."""
    from trainer.reshape import reshape as cut

    if arguments.ranks is None:
        raise RunError("--ranks: not given; say for how many ranks the checkpoint is to be cut, such as --ranks 8")
    place = _find(arguments.path)
    if (source := place.checkpoint) is None:
        raise RunError(f"{place.path}: no complete checkpoint yet; train it first")
    with _holding(place):
        target = cut(source, num_ranks=arguments.ranks)
    print(f"{target}: complete; a start with {arguments.ranks} ranks goes on from it, and {source.name} stays")
    return 0


def _find(name: str) -> Place:
    place = locate(name)
    if place is None or place.kind == "model":
        raise RunError(
            f"{name}: not a run folder (config.yaml), nor a run under {DEFAULT_ROOT}/, nor a checkpoint (COMPLETE); "
            "check the path"
        )
    return place


def _holding(place: Place) -> AbstractContextManager[Any]:
    """No run may save, prune or choose while a checkpoint is written beside its own."""
    return nullcontext() if place.run_folder is None else held(place.run_folder)


def _folder_of(place: Place) -> Path:
    return place.path / CHECKPOINTS_NAME if place.kind == "run" else place.path.absolute().parent


def _shown(place: Place) -> list[Path]:
    """All of a run, unfinished ones too, or the one that was named."""
    return step_folders(place.path / CHECKPOINTS_NAME) if place.kind == "run" else [place.path.absolute()]


def _set_aside(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob(f"{checkpoint.DAMAGED_PREFIX}*"))


def _verified(folder: Path) -> bool:
    faults = checkpoint.verify(folder)
    for fault in faults:
        print(fault, file=sys.stderr)
    files = [] if faults else read_marker(folder)[0]["files"]
    size = sum(entry["num_bytes"] for entry in files)
    is_unfinished = not (folder / checkpoint.COMPLETE_NAME).exists()
    fault = "unfinished: the next start removes it (미완성)" if is_unfinished else f"{len(faults):,} faults (손상됨)"
    print(f"{folder}: {fault if faults else f'sound (정상): {len(files):,} files, {size:,} bytes'}")
    return not faults


def _state_of(folder: Path) -> dict[str, Any]:
    return checkpoint.read_state(folder)


def _row(folder: Path, *, newest: Path | None, best: int) -> tuple[str, ...]:
    step = f"{step_of(folder):,}"
    marker, fault = read_marker(folder)
    if fault:
        is_unfinished = not (folder / checkpoint.COMPLETE_NAME).exists()
        return (step, "", "", "", "", "unfinished (미완성)" if is_unfinished else fault)
    engine = _state_of(folder)["engine"]
    saved = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / checkpoint.COMPLETE_NAME).stat().st_mtime))
    size = sum(entry["num_bytes"] for entry in marker["files"]) / 2**30
    name = f"ZeRO-{engine['zero_stage']}" if engine["kind"] == "deepspeed" else str(engine["kind"])
    return (step, saved, str(engine.get("ranks", "")), name, f"{size:,.3f}", ", ".join(_notes(folder, newest, best)))


def _notes(folder: Path, newest: Path | None, best: int) -> Iterator[str]:
    if folder == newest:
        yield "newest (최신)"
    if step_of(folder) == best:
        yield "best (최고)"
    if reshaped_for(folder) is not None:
        yield "reshaped (재분할)"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)) for row in rows)
    return "\n".join(f"{line}  {row[-1]}".rstrip() for line, row in zip(lines, rows, strict=True))
