"""What the inputs of a corpus are: which files they hold, under which stable names, and who reads each.

Names are relative to what the user gave, so that ids do not depend on the machine. No file is opened here beyond its
directory entry.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from data_pipeline.config import Config
from data_pipeline.corpus import hub
from data_pipeline.corpus.mapping import Columns
from data_pipeline.corpus.path_names import AIHUB_FOLDER
from data_pipeline.corpus.walk import Entry, walk
from data_pipeline.stage import StageError

Kind = Literal["zip", "json", "jsonl", "csv", "tsv", "parquet", "xlsx", "text"]

_KIND_BY_SUFFIX: dict[str, Kind] = {
    ".zip": "zip",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".txt": "text",
    ".md": "text",
}
_READABLE = tuple(f"*{suffix}{packed}" for suffix in _KIND_BY_SUFFIX for packed in ("", ".gz"))
_PART = re.compile(r"(.+\.zip)\.part(\d+)", re.IGNORECASE)
_SYSTEM_FILE = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)
_SPLIT_VOLUME = re.compile(r"\.z\d\d$", re.IGNORECASE)
# What people call the folders of one package when they sort its archives themselves.
_ROLE_FOLDER = re.compile(
    r"[\d.\-_ ]*(label|source|raw|train|valid|test|라벨|원천|학습|검증|[TV][LS]([_ \d]|$))", re.IGNORECASE
)
NOT_CHOSEN = "not_chosen"  # by the `files` of its input
_DANGLING = "a link to a file that is not there, or to itself (깨진 링크); restore its target, or remove the link"


class InputConfig(Config):
    """One file or folder to read, and how."""

    plain_key: ClassVar[str] = "path"

    path: Path = Field(description="a file, a folder, or hf:NAME@REVISION for a dataset of the Hugging Face hub")
    files: tuple[str, ...] = Field(default=(), description="patterns of the names to read; none = every file")
    source: str = Field(default="", description="`source` of its records; '' = the AIHub corpus, or the input's name")
    format: Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "xlsx", "text"] = "auto"
    text_column: str = "text"
    id_column: str = Field(default="", description="'' = a row's own `id` where it has one, else its position")
    metadata_columns: tuple[str, ...] = ()
    columns: Columns | None = Field(
        default=None, description="of rows; none = by the keys of the row, which the manifest tells (forms)"
    )
    label_names: dict[str, str] = Field(
        default={}, description="of labels: a label as it stands there -> its name, such as {0: entailment}"
    )
    split: Literal["auto", "heldout", "train"] = Field(
        default="auto",
        description="heldout = never trained on; train = whatever its files are called; auto = AIHub's, outside of it "
        "files named dev, test or valid are held out; of train `shards build` takes a share by a hash of each id",
    )
    encoding: Literal["auto", "utf-8", "cp949"] = Field(
        default="auto", description="auto = UTF-8, else CP949, by a sample"
    )
    text_unit: Literal["file", "paragraph", "line"] = Field(
        default="file", description="of text files: paragraph = between blank lines, line = one document a line"
    )
    validation_is_heldout: bool = Field(
        default=True, description="AIHub's Validation, and files named dev, test or valid, are never trained on"
    )
    aihub_unit: Literal["author", "member", "paragraph"] = Field(
        default="author", description="of AIHub books: author = consecutive paragraphs of one author, which is one book"
    )
    pairs: Literal["all", "best_worst", "adjacent"] = Field(
        default="all", description="of ranked or rated answers: which pairs of them become preference records"
    )
    ties: Literal["skip", "reject"] = Field(
        default="skip", description="of equally good answers: no pair is made of them, or of all answers of their row"
    )
    min_margin: float = Field(
        default=0.0, ge=0, description="by how much the ratings (or ranks) of a pair must differ at least"
    )

    @field_validator("label_names", mode="before")
    @classmethod
    def _labels_are_text(cls, value: Any) -> Any:
        return {str(label): name for label, name in value.items()} if isinstance(value, dict) else value


def paths_as_inputs(value: Any) -> Any:
    """A plain path, or each of a list, as an input with every default; for validators of configs that have inputs."""
    values = [value] if isinstance(value, str | Path) else value
    if not isinstance(values, list | tuple):
        return value
    return [{"path": item} if isinstance(item, str | Path) else item for item in values]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file (or the parts of one) to read or to pass over.

    `name` is unique in the corpus. `context` is the same with the AIHub folders above it, which say what a file is.
    `package`: the folder of the input in which the AIHub package of the file lies, "" for the input itself. `source` is
    that of records whose config and schema name none: the input's own name. None of these depends on where the data
    lies on this machine. `commit`: of a dataset of the hub.
    """

    input_index: int
    name: str
    context: str
    package: str
    paths: tuple[Path, ...]
    source: str
    num_bytes: int
    kind: Kind | None
    is_gzip: bool = False
    skip_reason: str = ""
    reject_reason: str = ""
    reject_error: str = ""
    commit: str = ""


@dataclass(frozen=True)
class _Root:
    """An input on this machine. `named`: the path whose end becomes its label; of a hub's dataset it is its name."""

    path: Path
    named: Path
    commit: str = ""

    @cached_property
    def real(self) -> Path:
        return self.path.resolve()

    @cached_property
    def source(self) -> str:
        name = _nfc(self.named.name)
        return name if self.path.is_dir() else name.partition(".")[0]

    @cached_property
    def context(self) -> str:
        parts = self.named.parts
        own_name = len(parts) if self.path.is_dir() else len(parts) - 1  # the name of a user's folder tells nothing
        first = next((at for at, part in enumerate(parts) if AIHUB_FOLDER.fullmatch(_nfc(part))), own_name)
        return _nfc("/".join(parts[first:]))


def find_files(inputs: Sequence[InputConfig]) -> Iterator[InputFile]:
    """Every file of the inputs, in the order of inputs and then of names; none is left out. Holds a folder at a time.

    A path may be given several times, each time for other `files`; what none of them takes is told once.

    Raises:
        StageError: a path that does not exist; a file that two inputs take, or `files` that fit none; a folder that
            can't be listed.
    """
    roots = [_root(options, where=f"inputs.{index}.path") for index, options in enumerate(inputs)]
    for index, (root, label) in enumerate(zip(roots, _unique_labels(roots), strict=True)):
        others = _Others(index, inputs, roots)
        of_folder = partial(_folder_files, index=index, label=label, options=inputs[index], root=root, others=others)
        if root.path.is_dir():
            num_chosen = 0
            for file in walk(root.path, of_folder):
                num_chosen += file.skip_reason != NOT_CHOSEN
                yield file
            if inputs[index].files and not num_chosen:
                raise StageError(
                    f"inputs.{index}.files: {', '.join(inputs[index].files)} fits no file of {inputs[index].path}; "
                    "mend the patterns, or leave the input out"
                )
        else:
            yield from (file for _, file in of_folder([Entry(root.path, "", root.path.stat().st_size)]))


def _folder_files(
    entries: list[Entry], *, index: int, label: str, options: InputConfig, root: _Root, others: _Others
) -> list[tuple[str, InputFile]]:
    """The files of one folder, each with its name inside the input."""
    files = [_input_file(index, entry, label, options, root) for entry in entries]
    elsewhere = {entry.path for entry in entries if not others.is_told_here(entry)}
    files = _pass_over_notes(_join_parts(files), options, label)
    return [(file.name[len(label) + 1 :], file) for file in files if file.paths[0] not in elsewhere]


class _Others:
    """The other inputs that see the files of one: those of its own path, and of a folder above it."""

    def __init__(self, index: int, inputs: Sequence[InputConfig], roots: Sequence[_Root]) -> None:
        self._index, self._own = index, inputs[index]
        real = roots[index].real
        self._above = [
            (other, inputs[other], "" if root.real == real else f"{_nfc(real.relative_to(root.real).as_posix())}/")
            for other, root in enumerate(roots)
            if other != index and real.is_relative_to(root.real)
        ]

    def is_told_here(self, entry: Entry) -> bool:
        """Whether this input is the one that tells of the entry; raises StageError where another takes it too."""
        is_chosen = _is_chosen(entry.inside, self._own)
        for other, options, above in self._above:
            is_others = _is_chosen((above + entry.inside).rstrip("/"), options)
            if is_chosen and is_others:
                raise StageError(
                    f"inputs: {entry.path} is given twice, by inputs.{self._index}.path {self._own.path} and by "
                    f"inputs.{other}.path {options.path}; name it once, or give them `files` that do not overlap"
                )
            if not is_chosen and not above and (is_others or other < self._index):
                return False
        return True


def _is_chosen(inside: str, options: InputConfig) -> bool:
    """Whether an input takes what lies at `inside` of its folder; "" is the input itself."""
    return not inside or not options.files or any(fnmatchcase(inside, _nfc(glob)) for glob in options.files)


def _root(options: InputConfig, *, where: str) -> _Root:
    dataset = hub.dataset_of(options.path, where=where)
    if dataset is not None:
        snapshot = hub.fetch(dataset, patterns=options.files or _READABLE, where=where)
        return _Root(snapshot.folder, Path("/hf:", dataset.name), snapshot.commit)
    if not options.path.exists():
        raise StageError(f"{where}: {options.path} does not exist; give a file or a folder")
    return _Root(options.path, options.path.resolve())


def kind_of_name(name: str) -> tuple[Kind | None, bool]:
    """The format that a file's name promises, and whether it is gzipped."""
    suffixes = Path(name.lower()).suffixes
    is_gzip = bool(suffixes) and suffixes[-1] == ".gz"
    last = suffixes[-2] if is_gzip and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    kind = _KIND_BY_SUFFIX.get(last)
    return (None, is_gzip) if kind == "zip" and is_gzip else (kind, is_gzip)


def skip_reason(name: str, kind: Kind | None) -> str:
    """Why a file or member of this name is passed over; "" where it is to be read."""
    if _SYSTEM_FILE.search(name):
        return "system_file"
    if _SPLIT_VOLUME.search(name):
        return "split_volume"
    return "" if kind else "no_reader"


def _unique_labels(roots: Sequence[_Root]) -> list[str]:
    """The shortest ends of the given paths that tell them apart: two `TL1.zip` become `1.Training/TL1.zip`, …"""
    places = {root.named: root.real for root in roots}
    for root in roots:
        if places[root.named] != root.real:
            raise StageError(f"inputs: {root.named} is given at two revisions; name one")
    labels = []
    for root in roots:
        parts, depth = root.named.parts, 1
        while sum(other.parts[-depth:] == parts[-depth:] for other in places) > 1:
            depth += 1
        labels.append(_nfc("/".join(parts[-depth:])))
    return labels


def _input_file(index: int, entry: Entry, label: str, options: InputConfig, root: _Root) -> InputFile:
    inside = f"/{entry.inside}" if entry.inside else ""
    name = label + inside
    kind, is_gzip = kind_of_name(name)
    if options.format != "auto" and kind != "zip" and not _PART.fullmatch(name):
        kind = options.format
    is_chosen = _is_chosen(entry.inside, options)
    reason = skip_reason(name, kind) if is_chosen else NOT_CHOSEN
    is_dangling = entry.oddity == "dangling_link" and is_chosen
    return InputFile(
        index,
        name,
        (root.context + inside).lstrip("/"),
        _package(entry.inside),
        (entry.path,),
        root.source,
        entry.num_bytes,
        kind,
        is_gzip,
        skip_reason="" if is_dangling else reason if entry.oddity in ("", "dangling_link") else entry.oddity,
        reject_reason="dangling_link" if is_dangling else "",
        reject_error=_DANGLING if is_dangling else "",
        commit=root.commit,
    )


def _package(inside: str) -> str:
    """Where the package of a file lies: above the first folder that every package has, else the input's own folder."""
    folders = inside.split("/")[:-1]
    above = next((at for at, name in enumerate(folders) if AIHUB_FOLDER.fullmatch(name)), None)
    if above is None:
        above = min(1, len(folders)) if folders and not _ROLE_FOLDER.match(folders[0]) else 0
    return "/".join(folders[:above])


def _join_parts(files: Iterable[InputFile]) -> list[InputFile]:
    """Replace `X.zip.part0`, `X.zip.part1048576`, … by one `X.zip`: aihubshell's leavings, numbered by byte offset."""
    whole: list[InputFile] = []
    parts: dict[str, list[tuple[int, InputFile]]] = {}
    for file in files:
        if match := _PART.fullmatch(file.name):
            parts.setdefault(match[1], []).append((int(match[2]), file))
        else:
            whole.append(file)
    names = {file.name for file in whole}
    for name, pieces in parts.items():
        if name in names:
            whole += [replace(piece, skip_reason="part_of_joined_archive") for _, piece in pieces]
        else:
            whole.append(_joined(name, sorted(pieces, key=lambda pair: pair[0])))
    return whole


def _joined(name: str, pieces: list[tuple[int, InputFile]]) -> InputFile:
    expected, error = 0, ""
    for offset, piece in pieces:
        if offset != expected and not error:
            error = (
                f"the part at byte {offset:,} follows {expected:,} bytes: a part is missing or not whole "
                "(다운로드가 끝나지 않음); download it again"
            )
        expected = offset + piece.num_bytes
    first = pieces[0][1]
    paths = tuple(path for _, piece in pieces for path in piece.paths)
    total = sum(piece.num_bytes for _, piece in pieces)
    return replace(
        first,
        name=name,
        context=_PART.sub(r"\1", first.context),
        paths=paths,
        num_bytes=total,
        kind="zip",
        skip_reason=first.skip_reason if first.skip_reason == NOT_CHOSEN else "",
        reject_reason="missing_part" if error else first.reject_reason,
        reject_error=error or first.reject_error,
    )


def _pass_over_notes(files: list[InputFile], options: InputConfig, label: str) -> list[InputFile]:
    """Text files beside data files (README.txt, SOURCE.txt, LICENSE.md) and the card of a hub's dataset: no data."""
    if options.format != "auto":
        return files
    no_data = (None, "text", "xlsx")  # a table of what the data is lies beside text, too
    has_data = [file for file in files if file.kind not in no_data and file.reject_reason != "dangling_link"]
    data_folders = {_folder(file.name) for file in has_data}

    def is_note(file: InputFile) -> bool:
        is_card = bool(file.commit) and file.name == f"{label}/README.md"
        return file.kind == "text" and not file.skip_reason and (is_card or _folder(file.name) in data_folders)

    return [replace(file, skip_reason="text_beside_data") if is_note(file) else file for file in files]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
