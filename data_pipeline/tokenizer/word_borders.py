"""Which tokens begin and end a word, once per id of a vocabulary: what masking whole words asks for.

A word is what stands between white space and punctuation, whatever pieces the tokenizer makes of it. A piece shows its
place in one of three ways: byte-level BPE and SentencePiece mark the space before it (`Ġ`, `▁`), WordPiece and `##` BPE
mark what goes on (`##`).
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, pre_tokenizers

from data_pipeline.tokenizer.fingerprint import tokenizer_file

CONTINUES = "##"
SPACE_MARKS = ("▁", "Ġ")
BYTE_FALLBACK = 6  # characters of "<0xE3>"

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class WordBorders:
    """(vocabulary size,) bool each: whether a token begins a word, and whether what follows it does."""

    begins: BoolArray
    ends: BoolArray

    def first_of_words(self, ids: NDArray[np.int64]) -> BoolArray:
        """Of ids (…, T) in a row: whether each begins a word. The first of a row does."""
        found: BoolArray = self.begins[ids].copy()
        found[..., 1:] |= self.ends[ids[..., :-1]]
        found[..., 0] = True
        return found


def word_borders(tokenizer: Path, *, num_rows: int) -> WordBorders:
    """Of the tokenizer in a folder; ids without a token, up to `num_rows`, are words of their own."""
    loaded = Tokenizer.from_file(str(tokenizer_file(tokenizer)))
    vocabulary = loaded.get_vocab(with_added_tokens=True)
    added = set(loaded.get_added_tokens_decoder())
    marks_what_goes_on = getattr(loaded.model, "continuing_subword_prefix", None) == CONTINUES
    is_byte_level = "ByteLevel" in str(loaded.pre_tokenizer)
    begins, ends = np.ones((2, max(num_rows, max(vocabulary.values()) + 1)), bool)
    for token, token_id in vocabulary.items():
        if token_id in added:
            begins[token_id], ends[token_id] = _of_text(token, begins=True)
        elif marks_what_goes_on:
            text = token.removeprefix(CONTINUES)
            begins[token_id], ends[token_id] = _of_text(text or token, begins=text == token or not text)
        elif token.startswith(SPACE_MARKS):
            ends[token_id] = _of_text(_spelled(token, is_byte_level).lstrip(" ▁"), begins=True)[1]
        else:
            begins[token_id], ends[token_id] = _of_text(_spelled(token, is_byte_level), begins=False)
    return WordBorders(begins, ends)


def _spelled(token: str, is_byte_level: bool) -> str:
    """The token's text. A byte that is no whole character stands as a letter: it goes on what is before it."""
    if len(token) == BYTE_FALLBACK and token.startswith("<0x"):
        return "x"
    if not is_byte_level:
        return token
    table = _byte_of_character()
    if any(character not in table for character in token):
        return token
    text = bytes(table[character] for character in token).decode("utf-8", errors="replace")
    return text.replace("\N{REPLACEMENT CHARACTER}", "x")


def _of_text(text: str, *, begins: bool) -> tuple[bool, bool]:
    """Whether a piece of this text begins a word, and whether the next piece does."""
    if not text:
        return True, False  # a space alone, before a word
    return begins or not _is_inner(text[0]), not _is_inner(text[-1])


def _is_inner(character: str) -> bool:
    """Whether a character is part of words: letters, digits, and the marks that combine with them."""
    return character.isalnum() or unicodedata.category(character).startswith("M")


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes, turned round: what prints stands for itself, the others for characters from 256 on."""
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others: Sequence[int] = [byte for byte in range(256) if byte not in printing]
    table = {chr(byte): byte for byte in printing} | {chr(256 + place): byte for place, byte in enumerate(others)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table
