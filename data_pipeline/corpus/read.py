"""Files and archive members -> records, with an account of every one of them. The first half of a corpus build.

An item is a plain file or an archive member; it is read, passed over or rejected. A JSON item is read whole or not at
all; of a file of lines, what stands before a fault is kept.
"""

from __future__ import annotations

import gzip
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from data_pipeline.corpus import aihub, archive
from data_pipeline.corpus.archive import ArchiveError, BoundedFile, ExpansionLimits, Member
from data_pipeline.corpus.encoding import BROKEN_STREAM, encoding_of
from data_pipeline.corpus.json_stream import JsonError, dumps
from data_pipeline.corpus.jsonl import read_jsonl
from data_pipeline.corpus.kinds import KINDS, ROW_READERS, RecordKind
from data_pipeline.corpus.path_names import is_heldout, is_named_heldout, is_sample
from data_pipeline.corpus.plain import read_text
from data_pipeline.corpus.records import (
    HELDOUT,
    AnyRecord,
    Document,
    Drop,
    Found,
    RecordName,
    Reject,
    Several,
    Single,
)
from data_pipeline.corpus.sources import (
    InputConfig,
    InputFile,
    Kind,
    kind_of_name,
    skip_reason,
)
from data_pipeline.corpus.tally import Tally, package_key
from data_pipeline.corpus.text import normalise
from data_pipeline.stage import StageError

MAX_LOST_NAMED = 20  # files a task that `Reading.lost` names; rejects/ has them all
_WITH_ENCODING: tuple[Kind, ...] = ("json", "jsonl", "csv", "tsv", "text")


@dataclass(frozen=True)
class FileRange:
    """A piece of a file: members of an archive, or bytes of a file of lines. A `stop` of -1 is the end."""

    file: InputFile
    start: int = 0
    stop: int = -1


@dataclass(frozen=True)
class _Item:
    """What stands between a file and a reader. AIHub tells by `path`, the context with the member, what is what."""

    file: InputFile
    member: str
    num_bytes: int

    @property
    def place(self) -> str:
        return f"{self.file.name}!{self.member}" if self.member else self.file.name

    @property
    def path(self) -> str:
        return f"{self.file.context}/{self.member}" if self.member else self.file.context


class Reading:
    """Reads the pieces of one task. `tally` grows with it; `on_reject` gets every reject, file and member named.

    `lost`: the first of the rejects that stand for a whole file which could not be opened.
    """

    def __init__(
        self,
        inputs: Sequence[InputConfig],
        *,
        limits: ExpansionLimits,
        on_reject: Callable[[Reject], None],
        record: RecordName = "document",
        kind: RecordKind | None = None,
    ) -> None:
        """`kind`: how rows are read, where it is not as those of `record`."""
        self.tally = Tally()
        self.lost: list[Reject] = []
        self._kind = KINDS[record] if kind is None else kind
        self._inputs = inputs
        self._limits = limits
        self._on_reject = on_reject

    def records(self, piece: FileRange) -> Iterator[AnyRecord]:
        """The records of one piece, texts normalised, empty ones dropped.

        Raises:
            StageError: the config's column mapping does not fit the file.
        """
        file = piece.file
        if file.reject_error and not file.skip_reason:
            self._lose(file, file.reject_reason, file.reject_error)
            return
        if file.kind == "zip" and not file.skip_reason:
            yield from self._archive_records(piece)
            return
        item = _Item(file, "", file.num_bytes)
        if piece.start == 0:
            self._count(item, "found")
        kind = cast(Kind, file.kind)
        if reason := file.skip_reason or self._skip_reason(item, kind):
            self._pass_over(item, reason)
            return
        with _open(file, self._limits) as stream:
            yield from self._item_records(item, kind, stream, piece)

    def _archive_records(self, piece: FileRange) -> Iterator[AnyRecord]:
        file = piece.file
        try:
            with archive.open_archive(file.paths) as opened:
                found = archive.members(opened)
                has_data = any(kind_of_name(member.name)[0] not in (None, "text", "xlsx", "zip") for member in found)
                if piece.start == 0:
                    self._note(_Item(file, "", file.num_bytes), "archive", file.num_bytes)
                if not found:
                    self._pass_over_empty(file)
                for member in archive.iterate_range(found, piece.start, piece.stop):
                    yield from self._member_records(file, opened, member, has_data=has_data)
        except ArchiveError as error:
            self._lose(file, error.reason, str(error), offset=error.offset)

    def _lose(self, file: InputFile, reason: str, error: str, *, offset: int | None = None) -> None:
        """Reject a file that can't be opened; an archive among them is evidence against its package."""
        item = _Item(file, "", file.num_bytes)
        self._count(item, "found")
        if file.kind == "zip":
            self._note(item, "lost_archive", file.num_bytes)
        reject = Reject(reason, error, offset=offset)
        self._reject_item(item, reject)
        if len(self.lost) < MAX_LOST_NAMED:
            self.lost.append(replace(reject, file=file.name))

    def _member_records(self, file: InputFile, opened: Any, member: Member, *, has_data: bool) -> Iterator[AnyRecord]:
        item = _Item(file, member.name, member.info.file_size)
        self._count(item, "found")
        if reason := self._member_skip_reason(item, member, has_data=has_data):
            self._pass_over(item, reason)
            return
        kind = self._kind_of_member(file, member)
        try:
            if kind is None:
                message = "an archive inside an archive is not opened; unpack the outer one and give the folder"
                raise ArchiveError("nested_archive", message, offset=member.info.header_offset)
            with archive.open_member(opened, member, self._limits) as stream:
                yield from self._item_records(item, kind, stream, FileRange(file))
        except ArchiveError as error:
            self._reject_item(item, Reject(error.reason, str(error), offset=error.offset))

    def _kind_of_member(self, file: InputFile, member: Member) -> Kind | None:
        kind, is_gzip = kind_of_name(member.name)
        if kind == "zip" or is_gzip:
            return None
        wanted = self._inputs[file.input_index].format
        return kind if wanted == "auto" else wanted

    def _member_skip_reason(self, item: _Item, member: Member, *, has_data: bool) -> str:
        if member.info.is_dir():
            return "directory"
        kind = self._kind_of_member(item.file, member) or kind_of_name(member.name)[0]
        is_auto = self._inputs[item.file.input_index].format == "auto"
        reason = skip_reason(member.name, kind)
        reason = "" if reason == "no_reader" and member.name.lower().endswith(".gz") else reason
        reason = reason or self._skip_reason(item, kind) or ("empty_member" if item.num_bytes == 0 else "")
        return reason or ("text_beside_data" if is_auto and kind == "text" and has_data else "")

    def _skip_reason(self, item: _Item, kind: Kind | None) -> str:
        """Why an item of a format that can be read holds no record of the kind that is built."""
        if self._inputs[item.file.input_index].format != "auto":
            return ""
        return aihub.skip_reason(item.path) or self._kind.skip_reason(item.path, kind)

    def _item_records(self, item: _Item, kind: Kind, stream: BinaryIO, piece: FileRange) -> Iterator[AnyRecord]:
        options = self._inputs[item.file.input_index]
        is_source = kind in ("tsv", "csv", "text") and options.format == "auto"
        try:
            if is_source and aihub.is_source_text(stream, item.path, is_tsv=kind == "tsv"):
                self._pass_over(item, "source_tsv")
                return
            if kind in _WITH_ENCODING:
                options = options.model_copy(update={"encoding": encoding_of(stream, options)})
                if piece.start == 0:
                    self.tally.encodings[options.encoding] += 1
            held = self.tally.heldout.copy()
            for found in _rows(self._kind, kind, stream, options, piece=piece, num_bytes=item.num_bytes):
                yield from self._take(found, item, options)
            if piece.start == 0:
                self.tally.heldout_files.update((self.tally.heldout - held).keys())
        except (JsonError, aihub.UnknownSchemaError) as error:
            reason = "invalid_json" if isinstance(error, JsonError) else "unknown_schema"
            self._reject_item(item, Reject(reason, str(error), offset=getattr(error, "offset", None)))
            return
        except aihub.EmptyFileError:
            self._note(item, "label", item.num_bytes)
            self._pass_over(item, "empty_list")
            return
        except ArchiveError as error:
            self._reject_item(item, Reject(error.reason, str(error), offset=stream.tell()))
            return
        except BROKEN_STREAM as error:
            message = f"{type(error).__name__}: {error}; download the file again"
            self._reject_item(item, Reject("broken_stream", message, offset=stream.tell()))
            return
        except StageError as error:
            raise StageError(f"inputs.{item.file.input_index}: {item.place}: {error}") from None
        if piece.start == 0:
            self._count(item, "read")
            self._note(item, "label", item.num_bytes if kind == "json" else None)

    def _take(self, found: Found, item: _Item, options: InputConfig) -> Iterator[AnyRecord]:
        if isinstance(found, Several):
            for each in found.found:
                yield from self._take(each, item, options)
            return
        self.tally.records["found"] += 1
        if isinstance(found, Reject):
            self.tally.records["rejected"] += 1
            self._reject(item, found)
            return
        if isinstance(found, Drop):
            self._drop(found.reason)
            return
        found, changes = found.normalised()
        self.tally.changed.update(changes)
        if not isinstance(found, Document):
            self.tally.forms[found.form] += 1
        # A table was saved by somebody out of AIHub's xlsx: no package that could be judged.
        if found.source and not item.path.endswith((".csv", ".tsv", ".xlsx")):
            self._note(item, "text", found.num_text_bytes)
        if found.is_empty:
            self._drop("empty")
            return
        held_by = _held_by(found, item, options)
        if held_by:
            self.tally.heldout[held_by] += 1
        yield _record(found, item, options, is_heldout=bool(held_by))

    def _drop(self, reason: str) -> None:
        self.tally.records["dropped"] += 1
        self.tally.dropped[reason] += 1

    def _count(self, item: _Item, status: str) -> None:
        self.tally.items[status] += 1
        self.tally.item_bytes[status] += item.num_bytes

    def _pass_over_empty(self, file: InputFile) -> None:
        item = _Item(file, "", file.num_bytes)
        self._count(item, "found")
        self._pass_over(item, "empty_archive")

    def _pass_over(self, item: _Item, reason: str) -> None:
        self._count(item, "passed_over")
        self.tally.passed_over[reason] += 1
        if reason in ("info_file", "source_tsv"):
            self._note(item, reason, item.num_bytes)

    def _reject_item(self, item: _Item, reject: Reject) -> None:
        self._count(item, "rejected")
        is_label = item.path.endswith(".json") and (self._kind.is_all or reject.reason != "unknown_schema")
        self._note(item, "label", item.num_bytes if is_label else None)
        self._reject(item, reject)

    def _reject(self, item: _Item, reject: Reject) -> None:
        self.tally.rejected[reject.reason] += 1
        self._on_reject(replace(reject, file=item.file.name, member=item.member))

    def _note(self, item: _Item, what: str, num_bytes: int | None) -> None:
        """Add to what an input showed of AIHub, the evidence for `packages.py`."""
        if num_bytes is None:
            return
        key = package_key(item.file.input_index, item.file.package)
        package = self.tally.packages.setdefault(key, Counter())
        for name in (what, f"sample_{what}") if is_sample(item.path) else (what,):
            package[f"num_{name}"] += 1
            package[f"{name}_bytes"] += num_bytes


def _open(file: InputFile, limits: ExpansionLimits) -> BinaryIO:
    if not file.is_gzip:
        return file.paths[0].open("rb")
    bounded = BoundedFile(gzip.GzipFile(file.paths[0], "rb"), compressed_bytes=file.num_bytes, limits=limits)
    return io.BufferedReader(bounded, buffer_size=1 << 20)


def _rows(
    record: RecordKind, kind: Kind, stream: BinaryIO, options: InputConfig, *, piece: FileRange, num_bytes: int
) -> Iterator[Found]:
    match kind:
        case "jsonl":
            stop = None if piece.stop < 0 else piece.stop
            return read_jsonl(stream, options, record.rows, start=piece.start, stop=stop)
        case "json":
            return _whole_or_nothing(record, stream, options, num_bytes=num_bytes)
        case "text":
            return read_text(stream, options)
    return ROW_READERS[kind](stream, options, record.rows)


def _whole_or_nothing(record: RecordKind, stream: BinaryIO, options: InputConfig, *, num_bytes: int) -> Iterator[Found]:
    """What a JSON file holds, the first of it only after the last byte was found sound."""
    if num_bytes <= archive.IN_MEMORY_BYTES:
        yield from list(record.read_json(stream, options))
        return
    for _ in record.read_json(stream, options):
        continue
    stream.seek(0)
    yield from record.read_json(stream, options)


def _held_by(found: Single, item: _Item, options: InputConfig) -> str:
    """Why a record is never trained on; "" where it may be."""
    if options.split != "auto":
        return "split" if options.split == HELDOUT else ""
    if not options.validation_is_heldout:
        return ""
    if is_heldout(item.path):
        return "validation"
    # Inside AIHub's archives its folders alone decide: a member is called whatever its text is about.
    is_aihub = bool(found.source and item.member)
    return "name" if not is_aihub and is_named_heldout(item.path) else ""


def _record(found: Single, item: _Item, options: InputConfig, *, is_heldout: bool) -> AnyRecord:
    return found.record(
        normalise(f"{item.place}#{found.key}")[0],
        source=options.source or found.source or item.file.source,
        metadata=dumps(found.metadata | ({"member": item.member} if item.member else {})),
        split_hint=HELDOUT if is_heldout else "",
    )
