"""Text files -> documents: the whole file is one, or each piece between blank lines, or each line. Streams any size.

A line that is not in the file's encoding is rejected alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from data_pipeline.corpus.encoding import encoding_of
from data_pipeline.corpus.records import Document, Reject
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.corpus.text import rest_of_line

MAX_DOCUMENT_BYTES = 64 << 20  # a longer text goes on in a further document, from the line that would not fit


def read_text(stream: BinaryIO, options: InputConfig) -> Iterator[Document | Reject]:
    """The documents of a text file, by `options.text_unit`; their position is their byte offset."""
    encoding = encoding_of(stream, options)
    pieces = _Pieces(options.text_unit, encoding)
    offset = 0
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        is_whole = len(line) <= MAX_DOCUMENT_BYTES
        if is_whole:
            yield from pieces.take(line, offset)
            offset += len(line)
            continue
        yield from pieces.close()
        message = f"a line of more than {MAX_DOCUMENT_BYTES:,} bytes; break it into lines, or give JSONL"
        yield Reject("too_large", message, offset=offset)
        offset += len(line) + (0 if line.endswith(b"\n") else rest_of_line(stream))
    yield from pieces.close()


class _Pieces:
    """Gathers lines until a document ends."""

    def __init__(self, unit: str, encoding: str) -> None:
        self._unit = unit
        self._encoding = encoding
        self._lines: list[bytes] = []
        self._start = self._num_bytes = 0
        self._is_rest = False

    def take(self, line: bytes, offset: int) -> Iterator[Document | Reject]:
        if self._unit != "file" and not line.strip():
            yield from self.close()
            return
        if self._lines and self._num_bytes + len(line) > MAX_DOCUMENT_BYTES:
            yield from self.close()
            self._is_rest = True
        if not self._lines:
            self._start = offset
        self._lines.append(line)
        self._num_bytes += len(line)
        if self._unit == "line":
            yield from self.close()

    def close(self) -> Iterator[Document | Reject]:
        """What was gathered, if anything was; without lines that are not in the encoding, each a reject."""
        lines, is_rest = self._lines, self._is_rest
        self._lines, self._num_bytes, self._is_rest = [], 0, False
        changes = ("long_text_cut",) if is_rest else ()
        try:
            text = b"".join(lines).decode(self._encoding)
        except UnicodeDecodeError as error:
            sound, rejects = self._line_by_line(lines)
            yield from rejects if sound else [self._reject(error, self._start)]
            text, changes = "".join(sound), (*changes, *["broken_line_cut"] * len(rejects))
        if text:
            text = text.removeprefix("\ufeff") if self._start == 0 else text
            text = text if self._unit == "file" else text.rstrip("\r\n")
            yield Document(key=str(self._start), text=text, position=self._start, changes=changes)

    def _line_by_line(self, lines: list[bytes]) -> tuple[list[str], list[Reject]]:
        """The sound lines, and a reject for each other one; no sound ones where most are broken: it is no text."""
        sound, rejects, offset = [], [], self._start
        for line in lines:
            try:
                sound.append(line.decode(self._encoding))
            except UnicodeDecodeError as error:
                rejects.append(self._reject(error, offset))
            offset += len(line)
        return (sound, rejects) if len(sound) > len(rejects) else ([], [])

    def _reject(self, error: UnicodeDecodeError, offset: int) -> Reject:
        message = f"a line that is not {self._encoding}: {error.reason}; set encoding"
        return Reject("invalid_encoding", message, offset=offset + error.start)
