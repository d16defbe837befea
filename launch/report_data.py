"""What a report shows, read from run folders, a tokenizer's card and a corpus's manifest. Knows no HTML.

A run folder may be empty, cut off or damaged: what can't be read becomes a note on the page, never a failure.
"""

from __future__ import annotations

import json
import math
import re
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.config import ConfigError, read_tree
from data_pipeline.stage import MANIFEST_NAME, fingerprint
from trainer.errors import RunError
from trainer.locate import DEFAULT_ROOT, locate
from trainer.run_folder import (
    ATTEMPTS_NAME,
    CHECKPOINTS_NAME,
    CONFIG_NAME,
    ENVIRONMENT_NAME,
    EVALUATIONS_NAME,
    EVENTS_NAME,
    EXIT_NAME,
    METRICS_NAME,
    read_lines,
)

Tree = dict[str, Any]

ANSWERS_NAME = "answers"
TEMPLATE_NAME = "template.yaml"
CURVES = (
    "loss",
    "lr",
    "grad_norm",
    "tokens_per_second",
    "memory_gib",
    "mfu",
    "accuracy",
    "margin",
    "log_ratio",
    "entropy",
)
MAX_ANSWERS = 200  # of one file; a page is read by people
MAX_NEIGHBOURS = 200  # folders beside the shards among which the corpus and the tokenizer are sought
MAX_JSON_BYTES = 64 << 20
MAX_STEP = 10**15
LARGEST, SMALLEST = 1e100, 1e-100  # beyond, a figure is as good as infinite, or as zero


@dataclass(frozen=True)
class Series:
    """A figure over steps; NaN where it was not finite."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: float, value: Any) -> None:
        number = as_number(value)
        if number is not None:
            self.steps.append(step)
            small = 0.0 if abs(number) < SMALLEST else number
            self.values.append(small if abs(small) < LARGEST else math.nan)

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if not math.isnan(value)]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class RunRecord:
    """One run folder. `answers`: the first and the last of the steps at which it answered."""

    folder: Path
    config: Tree
    config_text: str
    curves: Mapping[str, Series]
    last: Tree
    seconds: float
    evaluations: tuple[Tree, ...]
    events: tuple[Tree, ...]
    attempts: tuple[Tree, ...]
    exit: Tree
    environment: Tree
    answers: tuple[tuple[int, tuple[Tree, ...]], ...]
    template: Tree
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return str(self.get("run.name") or self.folder.resolve().name)

    @property
    def stage(self) -> str:
        return str(self.get("stage") or "pretrain")

    @property
    def step(self) -> int:
        """The last step that the folder knows of."""
        known = [as_number(line.get("step")) for line in (self.last, self.exit, *self.evaluations[-1:])]
        return int(max((step for step in known if step is not None and math.isfinite(step)), default=0))

    def get(self, path: str) -> Any:
        """A value of the config by its dotted path; None where it is not there."""
        value: Any = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def evaluated(self, figure: str) -> Series:
        """A held-out figure over steps."""
        series = Series()
        for line in self.evaluations:
            series.add(line["step"], line.get(figure))
        return series


def find_run(name: str | Path) -> Path:
    """The run folder that `name` means: a folder, its name under runs/, or one of its checkpoints.

    Raises:
        RunError: there is none.
    """
    place = locate(name)
    if place is not None and place.run_folder is not None:
        return place.run_folder
    raise RunError(
        f"{name}: not a run folder ({CONFIG_NAME} is not there), nor the name of one under {DEFAULT_ROOT}/; "
        "check the path"
    )


def read_run(folder: Path) -> RunRecord:
    """All that the page shows of one run."""
    notes: list[str] = []
    config, config_text = _read_config(folder, notes)
    curves, last, seconds = _read_metrics(folder)
    return RunRecord(
        folder=folder,
        config=config,
        config_text=config_text,
        curves=curves,
        last=last,
        seconds=seconds,
        evaluations=tuple(_stepped(folder / EVALUATIONS_NAME)),
        events=tuple(_objects(folder / EVENTS_NAME)),
        attempts=tuple(_objects(folder / ATTEMPTS_NAME)),
        exit=_read_object(folder / EXIT_NAME, notes),
        environment=_read_object(folder / ENVIRONMENT_NAME, notes),
        answers=_read_answers(folder),
        template=_read_template(folder),
        notes=tuple(notes),
    )


def as_number(value: Any) -> float | None:
    """A number, also one that was written as text because JSON lacks it ("nan", "inf"); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _objects(path: Path) -> Iterator[Tree]:
    return (line for line in read_lines(path) if isinstance(line, dict))


def _stepped(path: Path) -> Iterator[Tree]:
    """The objects that name a step, in the order of the file."""
    for line in _objects(path):
        step = as_number(line.get("step"))
        if step is not None and abs(step) <= MAX_STEP:
            yield {**line, "step": int(step)}


def _read_config(folder: Path, notes: list[str]) -> tuple[Tree, str]:
    path = folder / CONFIG_NAME
    shown = path.read_bytes().decode("utf-8", "replace")
    try:
        return read_tree(path, []), shown
    except ConfigError as error:
        notes.append(str(error))
        return {}, shown


def _read_metrics(folder: Path) -> tuple[dict[str, Series], Tree, float]:
    """The curves, the last line, and the seconds of all steps."""
    curves = {name: Series() for name in CURVES}
    last: Tree = {}
    seconds, before = 0.0, 0
    for line in _stepped(folder / METRICS_NAME):
        for name, series in curves.items():
            series.add(line["step"], line.get(name))
        a_step = as_number(line.get("seconds_per_step"))
        if a_step is not None and math.isfinite(a_step):
            seconds += a_step * max(0, line["step"] - before)
        before, last = line["step"], line
    return curves, last, seconds


def _read_object(path: Path, notes: list[str]) -> Tree:
    """A JSON object; {} with a note where the file is damaged, {} without one where it is not there."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES:,} bytes")
        tree = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, OSError, RecursionError) as error:
        notes.append(f"{path}: {error}")
        return {}
    if not isinstance(tree, dict):
        notes.append(f"{path}: holds a {type(tree).__name__}, not an object with keys")
        return {}
    return tree


def _read_answers(folder: Path) -> tuple[tuple[int, tuple[Tree, ...]], ...]:
    files = {}
    for path in (folder / ANSWERS_NAME).glob("step-*.jsonl"):
        if found := re.fullmatch(r"step-(\d+)\.jsonl", path.name):
            files[int(found[1])] = path
    read = []
    for step in sorted(files):
        if step in (min(files), max(files)):
            lines = [line for _, line in zip(range(MAX_ANSWERS), _objects(files[step]), strict=False)]
            read.append((step, tuple(lines)))
    return tuple(read)


def _read_template(folder: Path) -> Tree:
    """How questions stand in prompts; {} where the run has none that can be read: prompts are then shown whole."""
    try:
        return read_tree(folder / TEMPLATE_NAME, [])
    except (ConfigError, OSError):
        return {}


@dataclass(frozen=True)
class DataRecord:
    """What runs were made from: manifests of corpora and shards, and a tokenizer's card, each with its folder."""

    corpora: tuple[tuple[Path, Tree], ...] = ()
    tokenizers: tuple[tuple[Path, Tree], ...] = ()
    shards: tuple[tuple[Path, Tree], ...] = ()
    notes: tuple[str, ...] = ()


def read_data(runs: list[RunRecord], *, corpora: list[Path], tokenizers: list[Path]) -> DataRecord:
    """The data of `runs`: what is named, and what lies beside their shards and is theirs by its hash."""
    notes: list[str] = []
    found: dict[str, dict[Path, Tree]] = {"corpora": {}, "tokenizers": {}, "shards": {}}
    for path in corpora:
        found["corpora"][path.resolve()] = _needed(path / MANIFEST_NAME, notes)
    for path in tokenizers:
        found["tokenizers"][path.resolve()] = _needed(path / "card.json", notes)
    for shards in dict.fromkeys(Path(str(run.get("data.shards"))) for run in runs if run.get("data.shards")):
        manifest = _needed(shards / MANIFEST_NAME, notes)
        if manifest:
            found["shards"][shards.resolve()] = manifest
            _seek_sources(shards, manifest, found)
    for run in runs:
        _add_tokenizer(run.folder / "tokenizer", None, found["tokenizers"])
    kept = {kind: tuple((path, tree) for path, tree in trees.items() if tree) for kind, trees in found.items()}
    return DataRecord(**kept, notes=tuple(dict.fromkeys(notes)))


def _needed(path: Path, notes: list[str]) -> Tree:
    tree = _read_object(path, notes)
    if not tree and not path.exists():
        notes.append(f"{path}: not there (any more); its figures are left out")
    return tree


def _seek_sources(shards: Path, manifest: Tree, found: dict[str, dict[Path, Tree]]) -> None:
    """The corpus and the tokenizer of a shards folder, known by their hashes and not by their names."""
    wanted = manifest.get("tokenizer_fingerprint")
    _add_tokenizer(shards / "tokenizer", wanted, found["tokenizers"])
    folders = (path for path in shards.resolve().parent.iterdir() if path.is_dir())
    for _, folder in zip(range(MAX_NEIGHBOURS), folders, strict=False):
        _add_tokenizer(folder, wanted, found["tokenizers"])
        corpus = _read_object(folder / MANIFEST_NAME, [])
        if corpus.get("kind") == "corpus" and _hash_of(corpus.get("files")) == manifest.get("corpus_files_sha256"):
            found["corpora"].setdefault(folder, corpus)


def _hash_of(files: Any) -> str:
    try:
        return fingerprint(files)
    except UnicodeEncodeError:  # half a surrogate pair: no stage wrote that
        return ""


def _add_tokenizer(folder: Path, wanted: Any, tokenizers: dict[Path, Tree]) -> None:
    """One card a fingerprint, that of `wanted` where it is given."""
    card = _read_object(folder / "card.json", [])
    known = [tree.get("fingerprint") for tree in tokenizers.values()]
    if card and card.get("fingerprint") not in known and wanted in (None, card.get("fingerprint")):
        tokenizers[folder.resolve()] = card


def num_parameters(run: RunRecord) -> int | None:
    """What the run's latest start counted as trained; else the numbers in the newest checkpoint's safetensors.

    None where neither tells: a run that never started, or one whose checkpoint holds the shards of ZeRO.
    """
    for event in reversed(run.events):
        detail = event.get("detail")
        if event.get("kind") == "started" and isinstance(detail, dict) and as_number(detail.get("trainable")):
            return int(detail["trainable"])
    checkpoints = sorted((run.folder / CHECKPOINTS_NAME).glob("step-*"))
    files = sorted(checkpoints[-1].glob("model*.safetensors")) if checkpoints else []
    try:
        return sum(_num_values(path) for path in files) or None
    except (OSError, ValueError, TypeError, AttributeError, struct.error):
        return None


def _num_values(path: Path) -> int:
    """Of one file; its header is JSON behind 8 bytes that give its length."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_JSON_BYTES:
            raise ValueError(f"{path}: a header of {length:,} bytes")
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
