"""JSON values one after another from a file of any size. Knows nothing of what they mean.

The elements of each array directly under the root are yielded alone, so memory holds one of them and not the file.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, BinaryIO

CHUNK_BYTES = 1 << 20
MAX_VALUE_CHARS = 256 << 20  # one element (or one root value that is no array); more is refused, not loaded

# Parquet has values that JSON has no word for (dates, decimals): they are written as text.
_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
_NUMBER_REST = re.compile(r"[-+.eE0-9]*")
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonError(ValueError):
    """Not JSON, or not in its encoding. `offset` is in bytes from the start of the file."""

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


def iterate_values(
    stream: BinaryIO,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    encoding: str = "utf-8",
    on_array: Callable[[str], object] | None = None,
) -> Iterator[tuple[str, int, Any]]:
    """Yield (root key, byte offset, value) for each element of an array under the root, and each other root value.

    A root that is a list has the key "". `on_array` gets the key of each array, an empty one too, which yields nothing.
    The stream is read to its end, so that its checksum is checked.

    Raises:
        JsonError: with the byte offset of the fault.
    """
    window = _Window(stream, chunk_bytes, encoding)
    on_array = on_array or _ignore
    match window.peek():
        case "[":
            on_array("")
            for offset, value in _elements(window):
                yield "", offset, value
        case "{":
            yield from _members(window, on_array)
        case _:
            yield "", window.offset, window.value()
    if window.peek():
        raise window.error("text after the end of the JSON value")


def _ignore(key: str) -> None:
    return None


def _members(window: _Window, on_array: Callable[[str], object]) -> Iterator[tuple[str, int, Any]]:
    window.expect("{")
    if window.peek() == "}":
        window.expect("}")
        return
    while True:
        key = window.value()
        if not isinstance(key, str):
            raise window.error(f"the key {key!r} of an object is not a string")
        window.expect(":")
        if window.peek() == "[":
            on_array(key)
            for offset, value in _elements(window):
                yield key, offset, value
        else:
            offset = window.offset
            yield key, offset, window.value()
        if window.expect(",}") == "}":
            return


def _elements(window: _Window) -> Iterator[tuple[int, Any]]:
    window.expect("[")
    if window.peek() == "]":
        window.expect("]")
        return
    while True:
        window.peek()
        offset = window.offset
        yield offset, window.value()
        if window.expect(",]") == "]":
            return


class _Window:
    """The text of a stream from the next value on, as much of it as was needed so far."""

    def __init__(self, stream: BinaryIO, chunk_bytes: int, encoding: str) -> None:
        self._stream = stream
        self._chunk_bytes = chunk_bytes
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._json = JSONDecoder(strict=False)  # raw control characters inside strings do occur; normalise() drops them
        self._text = ""
        self._at = 0
        self._is_at_end = False
        self._ahead = stream.read(3)
        self._read_bytes = 3 if self._ahead == codecs.BOM_UTF8 else 0
        self._ahead = b"" if self._read_bytes else self._ahead
        self.offset = self._read_bytes  # of _text[_at], in bytes

    def peek(self) -> str:
        """The next character that is not space, "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._advance(space.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def expect(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            wanted = " or ".join(repr(character) for character in characters)
            raise self.error(
                f"{wanted} expected, got {found!r}" if found else f"the text ends where {wanted} should be"
            )
        self._advance(self._at + 1)
        return found

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except JSONDecodeError as error:
                num_sound = error.pos - self._at
                if self._grow():
                    continue
                raise self.error(error.msg, behind=num_sound) from None
            except RecursionError:
                raise self.error("values nested too deep") from None
            # A number at the window's end may go on behind it: "1", "1." and "1.5e" of "1.5e3".
            if not _NUMBER_REST.fullmatch(self._text, end) or not self._fill():
                self._advance(end)
                return value

    def error(self, message: str, *, behind: int = 0) -> JsonError:
        sound = self._text[self._at : self._at + behind]
        return JsonError(message, offset=self.offset + len(sound.encode(self._encoding)))

    def _advance(self, to: int) -> None:
        if to > self._at:
            self.offset += len(self._text[self._at : to].encode(self._encoding))
            self._at = to

    def _grow(self) -> bool:
        """Read as much again as is held, so that a value over many chunks costs linear time."""
        wanted = max(len(self._text) - self._at, 1)
        if wanted > MAX_VALUE_CHARS:
            raise self.error(f"one value is longer than {MAX_VALUE_CHARS:,} characters, or is not closed")
        start = len(self._text) - self._at
        while not self._is_at_end and len(self._text) - self._at < start + wanted:
            self._fill()
        return len(self._text) - self._at > start

    def _fill(self) -> bool:
        if self._is_at_end:
            return False
        data = self._ahead or self._stream.read(self._chunk_bytes)
        self._ahead = b""
        self._is_at_end = not data
        num_pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=self._is_at_end)
        except UnicodeDecodeError as error:
            offset = self._read_bytes - num_pending + error.start
            raise JsonError(f"not {self._encoding.upper()}: {error.reason}; set encoding", offset=offset) from None
        self._read_bytes += len(data)
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(text) or not self._is_at_end


def dumps(value: Any) -> str:
    """Canonical JSON of one line: sorted keys, Korean unescaped."""
    return _CANONICAL.encode(value)
