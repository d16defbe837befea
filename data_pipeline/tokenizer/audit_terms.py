"""The words of a field: read from a list or a table, counted in texts, and how a tokenizer breaks each.

A list is a text file with one term a line; a table is CSV or TSV with a column of terms. UTF-8 (a BOM or not) or CP949.
"""

from __future__ import annotations

import io
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from data_pipeline.corpus.columns import MissingColumnError
from data_pipeline.corpus.delimited import read_csv, read_tsv
from data_pipeline.corpus.encoding import encoding_of_bytes
from data_pipeline.corpus.records import Document
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.stage import StageError
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.spelling import Spelling

MAX_FILE_BYTES = 16 << 20
MAX_TERMS = 20_000
MAX_TERM_CHARS = 100
MAX_NAMED = 5  # of each kind of fault

# Before a term in running text: a word and a space, which some tokenizers make a part of what follows.
CARRIER = "가"
_TABLES = {".csv": read_csv, ".tsv": read_tsv}


@dataclass(frozen=True)
class Terms:
    """`terms`: each once, NFC, in the order of the file. `faults`: what was left out, by kind, and the first of each.

    Kinds: `blank`, `duplicate`, `too_long`, `not_readable`.
    """

    terms: tuple[str, ...]
    encoding: str
    faults: dict[str, int]
    named: dict[str, tuple[str, ...]]

    def to_tree(self) -> dict[str, Any]:
        named = {kind: list(lines) for kind, lines in self.named.items()}
        return {"num_terms": len(self.terms), "encoding": self.encoding, "left_out": self.faults, "named": named}


def read_terms(path: Path, *, column: str = "term") -> Terms:
    """The terms of a file.

    Raises:
        StageError: no such file, too large, not text, no such column, too many terms, or none left.
    """
    if not path.is_file():
        raise StageError(f"--terms {path}: no such file; give a text file with one term a line, or a CSV or TSV")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise StageError(f"--terms {path}: {size:,} bytes, at most {MAX_FILE_BYTES:,}; is it a list of terms?")
    data = path.read_bytes()
    if b"\0" in data:
        raise StageError(f"--terms {path}: zero bytes in it, so it is no UTF-8 (UTF-16?); save it as UTF-8")
    encoding = encoding_of_bytes(data)
    is_table = path.suffix.lower() in _TABLES
    lines = _column(path, data, column) if is_table else _lines(data, encoding)
    found = _sorted_out(lines)
    if not found.terms:
        raise StageError(f"--terms {path}: no term left of {sum(found.faults.values()):,} lines: {_told(found)}")
    if len(found.terms) > MAX_TERMS:
        raise StageError(f"--terms {path}: {len(found.terms):,} terms, at most {MAX_TERMS:,}; give those that matter")
    return Terms(found.terms, encoding, found.faults, found.named)


def _told(found: Terms) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in found.faults.items()) or "the file is empty"


def _lines(data: bytes, encoding: str) -> Iterator[tuple[int, str | None]]:
    """Each line with its number; None where it is not in the encoding."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            yield number, line.decode(encoding)
        except UnicodeDecodeError:
            yield number, None


def _column(path: Path, data: bytes, column: str) -> Iterator[tuple[int, str | None]]:
    options = InputConfig(path=path, text_column=column)
    try:
        for row, found in enumerate(_TABLES[path.suffix.lower()](io.BytesIO(data), options), start=1):
            yield row, found.text if isinstance(found, Document) else None
    except MissingColumnError as error:
        told = str(error).replace("set text_column", "name it with --term-column")
        raise StageError(f"--terms {path}: {told}") from None


def _sorted_out(lines: Iterable[tuple[int, str | None]]) -> Terms:
    faults: Counter[str] = Counter()
    named: dict[str, list[str]] = {}
    first_line: dict[str, int] = {}
    for number, line in lines:
        term = unicodedata.normalize("NFC", line or "").strip()
        fault, told = _fault(line, term, first_line)
        if not fault:
            first_line[term] = number
            continue
        faults[fault] += 1
        if len(named.setdefault(fault, [])) < MAX_NAMED:
            named[fault].append(f"line {number}{told}")
    return Terms(tuple(first_line), "", dict(sorted(faults.items())), {kind: tuple(at) for kind, at in named.items()})


def _fault(line: str | None, term: str, first_line: dict[str, int]) -> tuple[str, str]:
    """Why a line is left out ("" where it is not), and what is told of it."""
    if line is None:
        return "not_readable", ""
    if not term:
        return "blank", ""
    if len(term) > MAX_TERM_CHARS:
        return "too_long", f": {term[:20]}… ({len(term):,} characters, at most {MAX_TERM_CHARS})"
    if term in first_line:
        return "duplicate", f": {term} (as line {first_line[term]})"
    return "", ""


def count_terms(terms: Sequence[str], texts: Iterable[str]) -> list[int]:
    """How often each term stands in the texts (NFC).

    A Latin letter or a digit at its end must not go on in the text: `IFC` is not counted in `IFC4`, but in `IFC를`.
    """
    words: Counter[str] = Counter()
    spaced = [term for term in terms if len(term.split()) > 1]
    counts: Counter[str] = Counter()
    for text in texts:
        words.update(text.split())
        line = " ".join(text.split()) if spaced else ""
        for term in spaced:
            counts[term] += sum(1 for _ in _places(" ".join(term.split()), line))
    # Of words of one kind only one is searched, and counted for all.
    joined = "\n".join(words)
    starts, weights = _starts(words)
    for term in terms:
        if len(term.split()) == 1:
            counts[term] = sum(weights[bisect_right(starts, at) - 1] for at in _places(term, joined))
    return [counts[term] for term in terms]


def _starts(words: Counter[str]) -> tuple[list[int], list[int]]:
    starts, at = [], 0
    for word in words:
        starts.append(at)
        at += len(word) + 1
    return starts, list(words.values())


def _places(term: str, text: str) -> Iterator[int]:
    at = text.find(term)
    while at >= 0:
        end = at + len(term)
        goes_on = _is_joined(text[at - 1 : at], term[0]) or _is_joined(term[-1], text[end : end + 1])
        if not goes_on:
            yield at
        at = text.find(term, at + 1 if goes_on else end)


def _is_joined(left: str, right: str) -> bool:
    return all(one.isascii() and one.isalnum() for one in (left, right) if one) and bool(left) and bool(right)


def break_terms(encoder: Encoder, spelling: Spelling, terms: Sequence[str]) -> list[dict[str, Any]]:
    """How each term breaks, alone and behind a word and a space: counts, and the pieces as a person reads them."""
    alone = _ids(encoder, terms)
    (carrier,) = _ids(encoder, [CARRIER])
    behind = [_rest(ids, carrier) for ids in _ids(encoder, [f"{CARRIER} {term}" for term in terms])]
    return [
        {
            "num_alone": len(first),
            "num_in_text": len(second),
            "alone": [spelling.show(number) for number in first],
            "in_text": [spelling.show(number) for number in second],
            "has_unknown": encoder.unk_id is not None and encoder.unk_id in (*first, *second),
        }
        for first, second in zip(alone, behind, strict=True)
    ]


def _ids(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    ids, offsets = encoder.encode_batch(texts)
    return [ids[start:stop].tolist() for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]


def _rest(ids: list[int], carrier: list[int]) -> list[int]:
    """What follows the carrier; all behind what they share where a piece spans its end."""
    shared = 0
    while shared < min(len(ids), len(carrier)) and ids[shared] == carrier[shared]:
        shared += 1
    return ids[shared:]


def summary(broken: Sequence[dict[str, Any]], counts: Sequence[int], *, max_pieces: int) -> dict[str, Any]:
    """Figures of all terms: pieces in text, alone, weighted by how often each occurs, and what whole terms would save.

    `num_saved`: tokens of the counted texts, were each term one token.
    """
    pieces = [one["num_in_text"] for one in broken]
    num_seen = sum(counts)
    weighted = sum(number * count for number, count in zip(pieces, counts, strict=True))
    return {
        "num_terms": len(pieces),
        "num_occurrences": num_seen,
        "mean_pieces": sum(pieces) / len(pieces),
        "mean_pieces_alone": sum(one["num_alone"] for one in broken) / len(pieces),
        "mean_pieces_by_occurrence": weighted / num_seen if num_seen else 0.0,
        "median_pieces": median(pieces),
        "max_pieces": max(pieces),
        "num_whole": sum(one["num_in_text"] == 1 and not one["has_unknown"] for one in broken),
        "broken_share": sum(number > max_pieces for number in pieces) / len(pieces),
        "num_unknown": sum(one["has_unknown"] for one in broken),
        "num_saved": weighted - num_seen,
    }
