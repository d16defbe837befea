"""How a vocabulary writes its pieces, and how a person reads them: bytes, leading spaces, halves of a character.

`ĠìķĪ` of a byte-level vocabulary reads `␣안`, a piece that ends inside a character `⟨EC 95⟩`, `##다` is `다` within a
word. Works for any `tokenizer.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.fingerprint import read_tokenizer_json, tokenizer_file

PieceKind = Literal["special", "added", "byte", "partial", "character", "word"]
# special: markers that no text becomes; added: put in after training; byte: one byte that is no character by itself;
# partial: several such bytes; character: one character (with a space before it or not); word: all others.
KINDS: tuple[PieceKind, ...] = ("special", "added", "byte", "partial", "character", "word")

_SPACES = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
_ASCII = bytes((*b"\t\n", *range(0x20, 0x7F)))  # bytes that are characters of a text
_METASPACE = "▁"
_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")


class Spelling:
    """Reads the pieces of one tokenizer."""

    def __init__(self, encoder: Encoder) -> None:
        tree = read_tokenizer_json(tokenizer_file(encoder.folder))
        kinds = set(_types(tree.get("pre_tokenizer"))) | set(_types(tree.get("decoder")))
        self.is_byte_level = "ByteLevel" in kinds
        # Where no part writes spaces so, ▁ is a character of a text.
        parts = [tree.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
        self._space = _METASPACE if _METASPACE in json.dumps(parts, ensure_ascii=False) else " "
        self._prefix: str = tree["model"].get("continuing_subword_prefix") or ""
        self._tokens = {number: token for token, number in encoder.tokenizer.get_vocab(with_added_tokens=True).items()}
        added = encoder.tokenizer.get_added_tokens_decoder()
        self._added = {number: token.special for number, token in added.items()}
        if encoder.unk_id is not None:
            self._added[encoder.unk_id] = True
        self._byte_of = _byte_alphabet() if self.is_byte_level else {}

    @property
    def token_ids(self) -> list[int]:
        """The ids that have a token, ascending."""
        return sorted(self._tokens)

    def kind_of(self, token_id: int) -> PieceKind:
        if token_id in self._added:
            return "special" if self._added[token_id] else "added"
        token, data = self._tokens[token_id], self.bytes_of(token_id)
        if _FALLBACK_BYTE.fullmatch(token) or (self.is_byte_level and data not in _ASCII and len(data) == 1):
            return "byte"
        text = data.decode("utf-8", "surrogateescape")
        if _ESCAPED_BYTES.search(text):
            return "partial"
        return "character" if len(text.strip()) <= 1 else "word"

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of text that a piece stands for; those of its name for a special token."""
        token = self._tokens[token_id]
        if token_id in self._added:
            return token.encode()
        if found := _FALLBACK_BYTE.fullmatch(token):
            return bytes([int(found[1], 16)])
        if self.is_byte_level and all(character in self._byte_of for character in token):
            return bytes(self._byte_of[character] for character in token)
        if self._prefix and token.startswith(self._prefix) and token != self._prefix:
            token = token.removeprefix(self._prefix)
        return token.replace(self._space, " ").encode()

    def show(self, token_id: int) -> str:
        """A piece as a person reads it.

        A space is ␣, a newline ⏎; bytes that are no whole character stand in hexadecimal, as ⟨EC 95⟩.
        """
        return readable(self.bytes_of(token_id))

    def show_in_list(self, token_id: int) -> str:
        """The same of a piece that stands alone, with the prefix that says that it goes on inside a word."""
        inner = bool(self._prefix) and token_id not in self._added and self._tokens[token_id].startswith(self._prefix)
        return f"{self._prefix if inner else ''}{self.show(token_id)}"


def readable(data: bytes) -> str:
    """Bytes of text as a person reads them.

    >>> readable("\\n 안".encode()[:-1])
    '⏎␣⟨EC 95⟩'
    """
    text = data.decode("utf-8", "surrogateescape").translate(_SPACES)
    text = _ESCAPED_BYTES.sub(lambda found: f"⟨{_hexadecimal(found[0])}⟩", text)
    return "".join(one if one.isprintable() else f"⟨U+{ord(one):04X}⟩" for one in text)


def _hexadecimal(escaped: str) -> str:
    return escaped.encode("utf-8", "surrogateescape").hex(" ").upper()


def _types(node: Any) -> Iterator[str]:
    """The `type` of a part of a `tokenizer.json` and of those inside it."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node["type"]
        for value in node.values():
            yield from _types(value)
    elif isinstance(node, list):
        for value in node:
            yield from _types(value)


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table), and the byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}
