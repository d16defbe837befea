"""The few changes that every text goes through on its way into a corpus, each of them counted.

NFC, never NFKC: NFKC rewrites ㅋ, ㆍ, ㈜ and ① (notes/aihub.md). Cleaning proper is another stage.
"""

from __future__ import annotations

import re
import unicodedata
from typing import BinaryIO

_UNUSUAL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # any of what the others look for
_PAGE_BREAK = re.compile("[\x0b\x0c]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them, UTF-8 can't


def normalise(text: str) -> tuple[str, tuple[str, ...]]:
    """`text` in NFC with line ends as `\\n` and without control characters, and the names of what changed.

    >>> normalise("\\u1112\\u1161\\u11ab\\r\\n\\x00")
    ('한\\n', ('line_ends', 'control_characters', 'nfc'))
    """
    changes: list[str] = []
    if _UNUSUAL.search(text):
        text, changes = _plain(text)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
        changes.append("nfc")
    return text, tuple(changes)


def _plain(text: str) -> tuple[str, list[str]]:
    changes = []
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        changes.append("line_ends")
    if _LONE_SURROGATE.search(text):
        text = _LONE_SURROGATE.sub("\ufffd", text)
        changes.append("lone_surrogates")
    if _PAGE_BREAK.search(text) or _CONTROL.search(text):
        text = _CONTROL.sub("", _PAGE_BREAK.sub("\n", text))
        changes.append("control_characters")
    return text, changes


def rest_of_line(stream: BinaryIO) -> int:
    """Pass over what is left of a line, a part at a time; its bytes."""
    num_bytes = 0
    while piece := stream.readline(1 << 20):
        num_bytes += len(piece)
        if piece.endswith(b"\n"):
            break
    return num_bytes
