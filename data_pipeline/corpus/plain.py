"""Text files -> documents: the whole file is one, or each piece between blank lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from data_pipeline.corpus.encoding import decoder_of
from data_pipeline.corpus.records import Document, Reject
from data_pipeline.corpus.sources import InputConfig

MAX_DOCUMENT_BYTES = 256 << 20


def read_text(stream: BinaryIO, options: InputConfig) -> Iterator[Document | Reject]:
    """The documents of a text file, by `options.text_unit`; their position is their byte offset."""
    encoding = decoder_of(stream, options)
    pieces = _paragraphs(stream) if options.text_unit == "paragraph" else _whole_file(stream)
    for offset, piece in pieces:
        yield _to_document(piece, encoding, offset)


def _whole_file(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    yield 0, stream.read(MAX_DOCUMENT_BYTES + 1)


def _paragraphs(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    offset = start = num_bytes = 0
    lines: list[bytes] = []
    for line in iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b""):
        if line.strip():
            start = start if lines else offset
            if num_bytes <= MAX_DOCUMENT_BYTES:  # what is too large to keep is not kept to be refused either
                lines.append(line)
            num_bytes += len(line)
        elif lines:
            yield start, b"".join(lines).rstrip(b"\r\n")
            lines, num_bytes = [], 0
        offset += len(line)
    if lines:
        yield start, b"".join(lines).rstrip(b"\r\n")


def _to_document(data: bytes, encoding: str, offset: int) -> Document | Reject:
    if len(data) > MAX_DOCUMENT_BYTES:
        return Reject("too_large", f"a text of more than {MAX_DOCUMENT_BYTES:,} bytes; split the file", offset=offset)
    if offset == 0:
        data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        return Reject("invalid_encoding", f"not {encoding}: {error.reason}; set encoding", offset=offset + error.start)
    return Document(key=str(offset), text=text, position=offset)
