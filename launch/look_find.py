"""Which runs there are on this disk, and which one a person means."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.array import STATE_NAME
from launch.submission import JOBS_NAME
from trainer.errors import RunError
from trainer.locate import DEFAULT_ROOT, locate
from trainer.run_folder import ATTEMPTS_NAME, CONFIG_NAME


@dataclass(frozen=True)
class Found:
    """A run folder, and the shortest name that stands for it on the command line."""

    name: str
    folder: Path


def all_runs(root: Path = DEFAULT_ROOT) -> list[Found]:
    """The runs in `root` and in its folders (`runs/demo/sft`), by name; of a run that has not begun, too."""
    if not root.is_dir():
        return []
    found: list[Path] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if is_run(folder):
            found.append(folder)
        else:
            found += [path for path in sorted(folder.iterdir()) if path.is_dir() and is_run(path)]
    return [Found(_name_of(folder), folder) for folder in found]


def is_run(folder: Path) -> bool:
    """Whether the folder is that of a run, be it only submitted; a pipeline's has jobs too, and is none."""
    return not (folder / STATE_NAME).is_file() and any(
        (folder / name).is_file() for name in (ATTEMPTS_NAME, JOBS_NAME, CONFIG_NAME)
    )


def _name_of(folder: Path) -> str:
    return str(folder.relative_to(DEFAULT_ROOT)) if folder.is_relative_to(DEFAULT_ROOT) else str(folder)


def find_runs(words: Sequence[str]) -> list[Found]:
    """The runs that `words` name: run folders, names below `runs/`, checkpoints, or folders of runs; [] means all.

    Raises:
        RunError: a word names none.
    """
    if not words:
        return all_runs()
    found = [run for word in words for run in _runs_of(word)]
    return list({run.folder.resolve(): run for run in found}.values())


def _runs_of(word: str) -> list[Found]:
    path = Path(word)
    if not is_run(path) and path.is_dir() and (inside := all_runs(path)):
        return inside
    return [find_run(word)]


def find_run(word: str) -> Found:
    """The one run that `word` names.

    Raises:
        RunError: it names none.
    """
    for folder in (Path(word), DEFAULT_ROOT / word):
        if is_run(folder):
            return Found(_name_of(folder), folder)
    place = locate(word)
    if place is not None and place.run_folder is not None:
        return Found(_name_of(place.run_folder), place.run_folder)
    names = [run.name for run in all_runs()]
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        advice = f"did you mean {close[0]!r}?"
    elif names:
        shown = ", ".join(names[:8])
        advice = f"the runs here are {shown}{', …' if len(names) > 8 else ''}; or give the path of its folder"
    else:
        advice = f"there are none under {DEFAULT_ROOT}/ here; give the path of its folder"
    raise RunError(f"{word}: no run of that name, and no run folder; {advice}")
