"""Messages -> ids and which of them are targets. Every stage that asks or trains a model comes through here.

Pieces are encoded one by one, so that the ids of a prompt are those that training saw before the answer. A marker of
the template that is a special token becomes its id; the same characters in a message become ordinary ids.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.templates.template import Message, Piece, Span, Template, TemplateError

if TYPE_CHECKING:
    from data_pipeline.tokenizer.encode import Encoder

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class EncodedRows:
    """Rows side by side: flat ids; which of them each piece became; and the spans of them that are targets.

    Pieces and spans are [start, end), counted from the start of their row. There is one span an answer, its EOS
    included; the first id of a row follows nothing and is in none.
    """

    ids: NDArray[np.uint32]
    lengths: IntArray
    num_pieces: IntArray
    piece_starts: IntArray
    piece_ends: IntArray
    num_spans: IntArray
    span_starts: IntArray
    span_ends: IntArray


def encode_row(messages: Sequence[Message], template: Template, encoder: Encoder) -> tuple[list[int], list[Span]]:
    """The ids of a row that ends with an answer, and its spans of targets."""
    rows = encode_rows([template.render(messages)], encoder)
    spans = zip(rows.span_starts.tolist(), rows.span_ends.tolist(), strict=True)
    return rows.ids.tolist(), [(start, end) for start, end in spans if end > start]


def encode_prompt(messages: Sequence[Message], template: Template, encoder: Encoder) -> list[int]:
    """The ids before the answer to come: what `encode_row` gives before that answer's span."""
    return encode_rows([template.prompt_pieces(messages)], encoder).ids.tolist()


def encode_rows(rows: Sequence[Sequence[Piece]], encoder: Encoder) -> EncodedRows:
    """Rendered rows as ids, all texts encoded at once; a special token is an id of its own.

    Raises TemplateError if the tokenizer reads a special token that the template uses out of an ordinary text.
    """
    runs = _Runs(encoder)
    for row in rows:
        for piece in row:
            runs.add(piece)
        runs.end_row()
    return runs.encoded()


class _Runs:
    """Texts to encode and special ids between them, collected over many rows and encoded at once."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._pattern = _pattern_of(tuple(encoder.special_ids))
        self._texts: list[str] = []
        # Of each token run in order: its place among the texts, or -1 - id of a special token.
        self._runs: list[int] = []
        self._pieces: list[tuple[int, bool]] = []  # end of each piece in runs, and whether it is an answer
        self._row_ends: list[int] = []  # in pieces

    def add(self, piece: Piece) -> None:
        for text, token in _cut(piece, self._pattern):
            if text:
                self._runs.append(len(self._texts))
                self._texts.append(text)
            if token:
                self._add_special(self._encoder.special_ids[token])
        if piece.ends:
            assert self._encoder.eos_id is not None  # an Encoder refuses a tokenizer without an end of text
            self._add_special(self._encoder.eos_id)
        self._pieces.append((len(self._runs), piece.is_answer))

    def end_row(self) -> None:
        self._row_ends.append(len(self._pieces))

    def encoded(self) -> EncodedRows:
        flat, offsets = self._encoder.encode_batch(self._texts)
        self._check(flat)
        runs = np.array(self._runs, np.int64)
        is_text = runs >= 0
        lengths = np.ones(len(runs), np.int64)
        lengths[is_text] = np.diff(offsets)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        ids = np.empty(ends[-1], np.uint32)
        # Runs stand in the order of the texts, so what is not special is the texts' ids in a row.
        is_special = np.zeros(len(ids), bool)
        is_special[ends[:-1][~is_text]] = True
        ids[is_special] = -1 - runs[~is_text]
        ids[~is_special] = flat
        return self._rows(ids, ends)

    def _rows(self, ids: NDArray[np.uint32], run_ends: IntArray) -> EncodedRows:
        ends = run_ends[np.array([end for end, _ in self._pieces], np.int64)]
        is_answer = np.array([is_answer for _, is_answer in self._pieces], bool)
        row_piece_ends = np.array(self._row_ends, np.int64)
        row_ends = np.concatenate([np.zeros(1, np.int64), ends])[row_piece_ends]
        lengths, num_pieces = np.diff(row_ends, prepend=0), np.diff(row_piece_ends, prepend=0)
        row_starts = np.repeat(row_ends - lengths, num_pieces)
        piece_starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1] - row_starts
        piece_ends = ends - row_starts
        num_answers = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_answer)])
        span_starts = np.maximum(piece_starts[is_answer], 1)
        return EncodedRows(
            ids=ids,
            lengths=lengths,
            num_pieces=num_pieces,
            piece_starts=piece_starts,
            piece_ends=piece_ends,
            num_spans=num_answers[row_piece_ends] - num_answers[row_piece_ends - num_pieces],
            span_starts=span_starts,
            span_ends=np.maximum(piece_ends[is_answer], span_starts),
        )

    def _add_special(self, token_id: int) -> None:
        self._runs.append(-1 - token_id)

    def _check(self, flat: NDArray[np.uint32]) -> None:
        used = {-1 - run for run in self._runs if run < 0}
        forged = used.intersection(np.unique(flat).tolist())
        if forged:
            names = {token_id: token for token, token_id in self._encoder.special_ids.items()}
            found = ", ".join(repr(names.get(token_id, token_id)) for token_id in sorted(forged))
            raise TemplateError(
                f"{self._encoder.folder}: the tokenizer reads {found} out of ordinary text, so that a text could end "
                "or open a turn; mark it as special in tokenizer.json, or use another tokenizer"
            )


def _cut(piece: Piece, pattern: re.Pattern[str] | None) -> list[tuple[str, str]]:
    """(text, special token behind it) in order; a token is found in the template's own words only."""
    if pattern is None:
        return [(piece.text, "")]
    found, done = [], 0
    for start, end in piece.own:
        for match in pattern.finditer(piece.text, start, end):
            found.append((piece.text[done : match.start()], match.group()))
            done = match.end()
    return [*found, (piece.text[done:], "")]


@functools.lru_cache(maxsize=8)
def _pattern_of(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    """The longest special token at each place."""
    if not tokens:
        return None
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
