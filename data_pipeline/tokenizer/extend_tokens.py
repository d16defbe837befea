"""New tokens beside a tokenizer's own: which of a list can be one, and the `tokenizer.json` that has them.

A new token is an entry of `added_tokens`, not a merge: texts are cut at added tokens before anything else looks at
them, so that a text without one goes the way that it always went, whatever kind the tokenizer is. They match inside
words (`IfcBuilding은`): a token that asked for a border would miss every word with a Korean particle.
"""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from data_pipeline.corpus.encoding import encoding_of_bytes
from data_pipeline.stage import StageError

MAX_CHARS = 128  # of a token: what is longer is a sentence


class Term(NamedTuple):
    """A token that was asked for, and where: the line of a list, or how it was chosen."""

    text: str
    where: str


@dataclass(frozen=True)
class Refused:
    """A token that was asked for and can't be one."""

    text: str
    where: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.where}: {self.text!r}: {self.reason}"


class Added(NamedTuple):
    """A tokenizer with new tokens: its file as a tree, the ids in order, and what could not be one."""

    tree: dict[str, Any]
    ids: dict[str, int]
    refused: list[Refused]


def read_terms(file: Path, *, spaced: bool = False) -> tuple[list[Term], list[Refused]]:
    """The terms of a text file, one a line, in NFC and without white space around them; UTF-8 or CP949.

    `spaced` adds to each term its form with a space before it, which byte-level tokenizers need.

    Raises:
        StageError: there is no such file.
    """
    if not file.is_file():
        raise StageError(f"{file}: no such file; give a text file with one new token a line")
    data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    encoding = encoding_of_bytes(data)
    terms, refused = [], []
    for number, line in enumerate(data.splitlines(), start=1):
        where = f"{file}: line {number}"
        try:
            text = unicodedata.normalize("NFC", line.decode(encoding)).strip()
        except UnicodeDecodeError as error:
            told = line.decode(encoding, errors="replace")
            refused.append(Refused(told, where, f"is no {encoding}: {error.reason} at byte {error.start}"))
            continue
        if text:
            terms.append(Term(text, where))
            terms += [Term(f" {text}", where)] if spaced else []
    return terms, refused


def add_tokens(tree: dict[str, Any], terms: Iterable[Term]) -> Added:
    """The tokenizer of `tree` with those of `terms` that can be tokens, with ids after its last one, in their order.

    Each is tried: alone and inside a sentence it must become its own id, and come back as it was written.
    """
    wanted, refused = _sift(terms, _tokenizer(tree), unknown=_unk_id(tree))
    while True:
        added, ids = _with(tree, [term.text for term in wanted], normalized=True)
        faults = _faults(added, ids)
        if faults and tree.get("normalizer") is not None:
            # Some normalizers change a token (Llama 2's puts "▁" before it): those match the text as it is written.
            other, other_ids = _with(tree, [term.text for term in wanted], normalized=False)
            if len(other_faults := _faults(other, other_ids)) < len(faults):
                added, ids, faults = other, other_ids, other_faults
        if not faults:
            return Added(added, ids, refused)
        refused += [Refused(term.text, term.where, faults[term.text]) for term in wanted if term.text in faults]
        wanted = [term for term in wanted if term.text not in faults]


def _sift(terms: Iterable[Term], base: Tokenizer, *, unknown: int | None) -> tuple[list[Term], list[Refused]]:
    """Terms that are new to the tokenizer, each once."""
    first: dict[str, str] = {}
    wanted, refused = [], []
    for term in terms:
        reason = _why_not(term.text, base, unknown=unknown)
        if term.text in first:
            reason = f"is there twice, first at {first[term.text]}"
        elif not reason:
            first[term.text] = term.where
            wanted.append(term)
            continue
        refused.append(Refused(term.text, term.where, reason))
    return wanted, refused


def _why_not(text: str, base: Tokenizer, *, unknown: int | None) -> str:
    if len(text) > MAX_CHARS:
        return f"has {len(text)} characters, more than {MAX_CHARS}"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        return "holds a control character"
    ids = base.encode(text, add_special_tokens=False).ids
    found = base.token_to_id(text)
    if found is None and len(ids) == 1 and ids[0] != unknown:
        found = ids[0]
    return "" if found is None else f"is a token already: id {found}"


def _unk_id(tree: dict[str, Any]) -> int | None:
    """What the model makes of text that it does not know; Unigram names its id, the others its token."""
    model = tree["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    token = model.get("unk_token")
    return None if token is None else _tokenizer(tree).token_to_id(token)


def _with(tree: dict[str, Any], texts: Sequence[str], *, normalized: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """The tree with added tokens, and their ids as the tokenizers library gives them."""
    tokenizer = _tokenizer(tree)
    tokenizer.add_tokens([AddedToken(text, normalized=normalized, special=False) for text in texts])
    extended = copy.copy(tree)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    ids = {text: vocabulary[text] for text in texts}
    entries = [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": normalized,
            "special": False,
        }
        for text, number in ids.items()
    ]
    extended["added_tokens"] = [*(tree.get("added_tokens") or []), *entries]
    return extended, ids


def _faults(tree: dict[str, Any], ids: dict[str, int]) -> dict[str, str]:
    """Token -> why it is none, tried in the tokenizer as it would be read from its file."""
    plain, splitting = _tokenizer(tree), _tokenizer(tree)
    splitting.encode_special_tokens = True
    texts = list(ids)
    faults: dict[str, str] = {}
    for tokenizer in (plain, splitting):
        alone = tokenizer.encode_batch(texts, add_special_tokens=False)
        # No space before it: a new token may be another one with a space.
        inside = tokenizer.encode_batch([f"앞{text}은" for text in texts], add_special_tokens=False)
        for text, one, two in zip(texts, alone, inside, strict=True):
            if one.ids != [ids[text]] or two.ids.count(ids[text]) != 1:
                faults.setdefault(text, f"is not matched as itself in a text, but as {one.tokens}")
    written = plain.decode_batch([[number] for number in ids.values()], skip_special_tokens=False)
    for text, back in zip(texts, written, strict=True):
        if _letters(back) != _letters(text):
            faults.setdefault(text, f"would come back as {back!r}: the tokenizer's decoder reads its letters as bytes")
    return faults


def _letters(text: str) -> str:
    # Normalizers may fold case, and decoders of word pieces drop spaces; neither is a fault of the token.
    return "".join(unicodedata.normalize("NFC", text).casefold().split())


def _tokenizer(tree: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(tree, ensure_ascii=False))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
