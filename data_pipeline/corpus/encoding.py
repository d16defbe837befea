"""Which encoding a file of text has: what the config says, else UTF-8, else CP949, by the file's first bytes.

A few broken bytes do not make a file one of the other encoding: it stays what most of it is, and what is broken is
rejected where it stands.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import zlib
from typing import BinaryIO, Literal

from data_pipeline.corpus.sources import InputConfig

SAMPLE_BYTES = 1 << 20
PIECE_BYTES = 1 << 14
BROKEN_STREAM = (EOFError, gzip.BadGzipFile, zlib.error)
REPLACEMENT = "\ufffd"
MAX_BROKEN_UTF8 = 0.25  # of the bytes beyond ASCII; of Korean in CP949 well over half are no UTF-8
MAX_BROKEN_SHARE = 0.1  # of the characters beyond ASCII, in a file that is called CP949

Encoding = Literal["utf-8", "cp949"]


def encoding_of(stream: BinaryIO, options: InputConfig) -> Encoding:
    """The encoding of `stream`, which is left at its start. Bytes that it does not fit are rejected later, by line."""
    if options.encoding != "auto":
        return options.encoding
    sample = b""
    # A broken stream breaks again when it is read, and is named then.
    with contextlib.suppress(*BROKEN_STREAM):
        while len(sample) < SAMPLE_BYTES and (piece := stream.read(PIECE_BYTES)):
            sample += piece
    stream.seek(0)
    return encoding_of_bytes(sample)


def encoding_of_bytes(sample: bytes) -> Encoding:
    """UTF-8 where most of the bytes beyond ASCII are whole characters of it; else CP949 where it fits.

    >>> encoding_of_bytes("가나다".encode("cp949")), encoding_of_bytes("가나다".encode() + b"\\xff")
    ('cp949', 'utf-8')
    """
    with contextlib.suppress(UnicodeDecodeError):
        _decoded(sample, "utf-8", errors="strict")
        return "utf-8"
    text = _decoded(sample, "utf-8", errors="surrogateescape")
    num_broken = sum("\udc80" <= character <= "\udcff" for character in text)
    num_bytes = sum(byte >= 0x80 for byte in sample)
    if num_broken <= MAX_BROKEN_UTF8 * num_bytes:
        return "utf-8"
    text = _decoded(sample, "cp949", errors="replace")
    num_letters = sum(character >= "\x80" for character in text)
    return "cp949" if text.count(REPLACEMENT) <= MAX_BROKEN_SHARE * num_letters else "utf-8"


def _decoded(sample: bytes, encoding: Encoding, *, errors: str) -> str:
    # Not final: the sample may end inside a character.
    return codecs.getincrementaldecoder(encoding)(errors).decode(sample, final=False)
