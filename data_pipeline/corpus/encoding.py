"""Which encoding a file of lines has: what the config says, else UTF-8, else CP949, by the file's first bytes."""

from __future__ import annotations

import codecs
from typing import BinaryIO

from data_pipeline.corpus.sources import InputConfig

SAMPLE_BYTES = 1 << 20


def decoder_of(stream: BinaryIO, options: InputConfig) -> str:
    """The codec of `stream`, which is left at its start. Bytes that fit neither are rejected later, line by line."""
    if options.encoding != "auto":
        return options.encoding
    sample = stream.read(SAMPLE_BYTES)
    stream.seek(0)
    return "cp949" if not _decodes(sample, "utf-8") and _decodes(sample, "cp949") else "utf-8"


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        # Not final: the sample may end inside a character.
        codecs.getincrementaldecoder(encoding)().decode(sample, final=False)
    except UnicodeDecodeError:
        return False
    return True
