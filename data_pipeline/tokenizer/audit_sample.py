"""The texts that an audit measures: of a finished corpus or of raw files, those of the least hashes of their ids.

Every record is read once, and no more than the sample is held. Equal inputs and size give an equal sample, wherever
the data lies and in whatever order it comes.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.corpus.archive import ExpansionLimits
from data_pipeline.corpus.build import STAGING
from data_pipeline.corpus.read import FileRange, Reading
from data_pipeline.corpus.record_texts import iterate_texts
from data_pipeline.corpus.records import AnyRecord, Record, Reject
from data_pipeline.corpus.sources import InputConfig, InputFile, find_files
from data_pipeline.stage import MANIFEST_NAME, StageError

MAX_NAMED = 5  # rejects that are told by name
MAX_PIECE_CHARS = 1 << 18  # a longer text (a file of lines is one) is sampled in pieces, cut behind a line


class Text(NamedTuple):
    source: str
    text: str


@dataclass(frozen=True)
class Sample:
    """`texts` by the hash of their ids; `seen`: documents and UTF-8 bytes of all that was read, by source.

    `rejected`: records and files that could not be read, by reason; `rejects`: the first of them. A document of more
    than `MAX_PIECE_CHARS` is several texts.
    """

    texts: tuple[Text, ...]
    seen: dict[str, dict[str, int]]
    is_corpus: bool
    rejected: dict[str, int]
    rejects: tuple[Reject, ...]

    @property
    def num_bytes(self) -> int:
        return sum(len(text.text.encode()) for text in self.texts)

    def by_source(self) -> dict[str, list[str]]:
        """The texts of each source, sources by name."""
        found: dict[str, list[str]] = {source: [] for source in sorted(self.seen)}
        for source, text in self.texts:
            found[source].append(text)
        return {source: texts for source, texts in found.items() if texts}

    def to_tree(self) -> dict[str, Any]:
        totals = {key: sum(counts[key] for counts in self.seen.values()) for key in ("num_documents", "num_bytes")}
        return {
            "is_corpus": self.is_corpus,
            "num_texts": len(self.texts),
            "num_bytes": self.num_bytes,
            "seen": {**totals, "sources": dict(sorted(self.seen.items()))},
            "rejected": self.rejected,
        }


@dataclass
class _Rejects:
    """Counts rejects; keeps the first."""

    reasons: Counter[str] = field(default_factory=Counter)
    first: list[Reject] = field(default_factory=list)

    def add(self, reject: Reject) -> None:
        self.reasons[reject.reason] += 1
        if len(self.first) < MAX_NAMED:
            self.first.append(reject)


@dataclass
class _Kept:
    """The texts of the least hashes whose sizes add up to `max_bytes`; one at least."""

    max_bytes: int
    num_bytes: int = 0
    heap: list[tuple[int, str, int, Text]] = field(default_factory=list)  # the greatest hash first, as its negative
    limit: tuple[int, str] | None = None  # what was let go: nothing of a greater hash comes in any more

    def add(self, key: str, text: Text, num_bytes: int) -> None:
        digest = hashlib.blake2b(f"audit\0{key}".encode(), digest_size=8).digest()
        place = (-int.from_bytes(digest, "big"), key)
        if self.limit is not None and place <= self.limit:
            return
        heapq.heappush(self.heap, (*place, num_bytes, text))
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes and len(self.heap) > 1:
            negative, name, size, _ = heapq.heappop(self.heap)
            self.limit = (negative, name)
            self.num_bytes -= size

    def texts(self) -> tuple[Text, ...]:
        return tuple(text for *_, text in sorted(self.heap, reverse=True))


def read_sample(path: Path, *, max_bytes: int, text_column: str = "text") -> Sample:
    """About `max_bytes` of UTF-8 of the corpus folder, the folder or the file at `path`.

    Sources are those of the corpus, of raw files the names of what lies in the folder. Of instructions and
    other rows the texts are measured, without what a template or a frame writes around them.

    Raises:
        StageError: nothing there, no text in it, an unfinished corpus, or a column that is missing.
    """
    is_corpus = (path / MANIFEST_NAME).exists() or (path / STAGING).exists()
    rejects, kept, seen = _Rejects(), _Kept(max_bytes), Counter[tuple[str, str]]()
    for key, source, text in _corpus_rows(path) if is_corpus else _raw_rows(path, text_column, rejects):
        seen[source, "num_documents"] += 1
        for number, piece in enumerate(_pieces(text)):
            num_bytes = len(piece.encode())
            seen[source, "num_bytes"] += num_bytes
            kept.add(f"{key}\0{number}" if number else key, Text(source, piece), num_bytes)
    if not kept.heap:
        named = "".join(f"; {one.file}{f'!{one.member}' * bool(one.member)}: {one.error}" for one in rejects.first)
        raise StageError(f"--corpus {path}: no text in it (빈 말뭉치){named}; give a corpus, or files of text")
    sources = sorted({source for source, _ in seen})
    counts = {source: {key: seen[source, key] for key in ("num_documents", "num_bytes")} for source in sources}
    return Sample(kept.texts(), counts, is_corpus, dict(sorted(rejects.reasons.items())), tuple(rejects.first))


def _pieces(text: str) -> Iterator[str]:
    while len(text) > MAX_PIECE_CHARS:
        cut = text.rfind("\n", 0, MAX_PIECE_CHARS) + 1 or MAX_PIECE_CHARS
        yield text[:cut]
        text = text[cut:]
    yield text


def _corpus_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    for batch in iterate_texts(path):
        yield from ((row.id, row.source, row.text) for row in batch)


def _raw_rows(path: Path, text_column: str, rejects: _Rejects) -> Iterator[tuple[str, str, str]]:
    if not path.exists():
        raise StageError(f"--corpus {path}: does not exist; give a corpus folder, or a folder or file of text")
    options = InputConfig(path=path, text_column=text_column)
    reading = Reading([options], limits=ExpansionLimits(), on_reject=rejects.add)
    for file in find_files([options]):
        try:
            for record in reading.records(FileRange(file)):
                assert isinstance(record, Record)
                yield record.id, _source_of(record, file), record.text
        except StageError as error:
            told = str(error).removeprefix("inputs.0: ").replace("set text_column", "name it with --text-column")
            raise StageError(f"--corpus: {told}") from None


def _source_of(record: AnyRecord, file: InputFile) -> str:
    """The source that the data names, else the file or folder right below the one that was given."""
    inside = file.name.removeprefix(f"{file.source}/")
    is_named = record.source != file.source or inside == file.name
    return record.source if is_named else inside.partition("/")[0].partition(".")[0] or record.source
