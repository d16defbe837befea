"""Which encoding a file of lines has: what the config says, else UTF-8, else CP949, by the file's first bytes."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import zlib
from typing import BinaryIO

from data_pipeline.corpus.sources import InputConfig

SAMPLE_BYTES = 1 << 20
PIECE_BYTES = 1 << 14
BROKEN_STREAM = (EOFError, gzip.BadGzipFile, zlib.error)


def decoder_of(stream: BinaryIO, options: InputConfig) -> str:
    """The codec of `stream`, which is left at its start. Bytes that fit neither are rejected later, line by line."""
    if options.encoding != "auto":
        return options.encoding
    sample = b""
    # A broken stream breaks again when it is read, and is named then.
    with contextlib.suppress(*BROKEN_STREAM):
        while len(sample) < SAMPLE_BYTES and (piece := stream.read(PIECE_BYTES)):
            sample += piece
    stream.seek(0)
    return "cp949" if not _decodes(sample, "utf-8") and _decodes(sample, "cp949") else "utf-8"


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        # Not final: the sample may end inside a character.
        codecs.getincrementaldecoder(encoding)().decode(sample, final=False)
    except UnicodeDecodeError:
        return False
    return True
