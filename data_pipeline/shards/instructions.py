"""Instruction records -> rows of ids and their targets, and the rows that nothing can be learned from (law 10)."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.shards.format import token_dtype
from data_pipeline.shards.part import Encoded, Recipe, check_ids, num_unk
from data_pipeline.shards.writer import Documents, LossSpans
from data_pipeline.templates.encode import EncodedRows, encode_rows
from data_pipeline.templates.template import Message, Piece, Template, TemplateError

if TYPE_CHECKING:
    from data_pipeline.tokenizer.encode import Encoder

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

COLUMNS = ("id", "messages", "source", "split_hint")
# Each names a count of rows that became none, and says what was wrong with them.
FAULTS = {
    "num_no_target": "have no target",
    "num_no_eos": "have an answer whose EOS is no target",
    "num_emptied": "have an answer or a question of which the tokenizer leaves nothing",
    "num_too_long": "have more than max_tokens tokens",
}


def instructions_recipe(template: Template, *, max_tokens: int | None) -> Recipe:
    """How instruction records become rows. Rows of more than `max_tokens` ids, EOS included, are a fault."""
    encode = functools.partial(_encode, template=template, max_tokens=max_tokens)
    return Recipe("instruction", COLUMNS, encode, counts=("num_targets", *FAULTS), faults=FAULTS)


def _encode(batch: pa.RecordBatch, encoder: Encoder, *, template: Template, max_tokens: int | None) -> Encoded:
    names, conversations = batch.column("id").to_pylist(), batch.column("messages").to_pylist()
    rows = [rendered(name, messages, template) for name, messages in zip(names, conversations, strict=True)]
    found = encode_rows(rows, encoder)
    check_ids(found.ids, encoder)
    faults = _faults(rows, found, encoder, max_tokens=max_tokens)
    kept = ~np.logical_or.reduce(list(faults.values()))
    documents = Documents(
        ids=found.ids.astype(token_dtype(encoder.vocab_size)),
        lengths=found.lengths,
        record_ids=names,
        num_bytes=np.array([_num_answer_bytes(messages) for messages in conversations], np.int64),
        sources=batch.column("source").to_pylist(),
        loss_spans=LossSpans(found.num_spans, found.span_starts.astype(np.int32), found.span_ends.astype(np.int32)),
    ).where(kept)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(found.lengths)])
    counts = {"num_unk": num_unk(found.ids, offsets, encoder.unk_id), "num_targets": _num_targets(found)}
    return Encoded(documents, {key: values[kept] for key, values in counts.items()}, faults, kept)


def rendered(record_id: str, messages: Sequence[Message], template: Template) -> list[Piece]:
    try:
        return template.render(messages)
    except TemplateError as error:
        raise TemplateError(f"record {record_id!r}: {error}") from None


def _num_answer_bytes(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].encode()) for message in messages if message["role"] == "assistant")


def _num_targets(rows: EncodedRows) -> IntArray:
    """Targets of each row."""
    return _sum_by_row(rows.span_ends - rows.span_starts, rows)


def _sum_by_row(values: NDArray[Any], rows: EncodedRows) -> IntArray:
    ends = np.cumsum(rows.num_spans)
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    return sums[ends] - sums[ends - rows.num_spans]


def _faults(
    rows: list[list[Piece]], found: EncodedRows, encoder: Encoder, *, max_tokens: int | None
) -> dict[str, BoolArray]:
    """By name, whether a row has the fault: one fault a row at most, the first that it has."""
    row_starts = np.cumsum(found.lengths) - found.lengths
    lasts = found.ids[np.repeat(row_starts, found.num_spans) + found.span_ends - 1]
    has_eos = (lasts == encoder.eos_id) & (found.span_ends > found.span_starts)
    faults: dict[str, BoolArray] = {
        "num_no_target": _num_targets(found) == 0,
        "num_no_eos": _sum_by_row(has_eos, found) < found.num_spans,
        "num_emptied": are_emptied(rows, found, encoder),
        "num_too_long": found.lengths > (max_tokens or np.inf),
    }
    seen = np.zeros(len(rows), bool)
    for key, has_fault in faults.items():
        faults[key] = has_fault & ~seen
        seen |= has_fault
    return faults


def are_emptied(rows: list[list[Piece]], found: EncodedRows, encoder: Encoder) -> BoolArray:
    """Whether a piece of a row became the ids that it has without any message's text."""
    frames = [[_without_text(piece) for piece in row] for row in rows]
    encoded = {
        frame: encode_rows([[frame]], encoder).ids.tolist() for frame in {each for row in frames for each in row}
    }
    for frame, ids in encoded.items():
        _check_own_words(frame, ids, encoder)
    starts, ends = found.piece_starts.tolist(), found.piece_ends.tolist()
    row_starts = (np.cumsum(found.lengths) - found.lengths).tolist()
    emptied, number = np.zeros(len(rows), bool), 0
    for row, (pieces, start) in enumerate(zip(frames, row_starts, strict=True)):
        for frame in pieces:
            first, end = start + starts[number], start + ends[number]
            if end - first == len(encoded[frame]) and found.ids[first:end].tolist() == encoded[frame]:
                emptied[row] = True
            number += 1
    return emptied


def _check_own_words(frame: Piece, ids: list[int], encoder: Encoder) -> None:
    """Raise TemplateError if the tokenizer drops words of the template: a model could not tell question from answer."""
    decoded = encoder.tokenizer.decode(ids, skip_special_tokens=False)
    if not _letters(decoded).startswith(_letters(frame.text)):
        raise TemplateError(
            f"{encoder.folder}: the tokenizer loses words of the template: {frame.text!r} comes back as {decoded!r}; "
            "train the tokenizer with these words as markers, or choose a template whose words it has"
        )


def _letters(text: str) -> str:
    """Letters and digits alone, whatever their case and composition."""
    return "".join(letter for letter in unicodedata.normalize("NFC", text) if letter.isalnum()).casefold()


def _without_text(piece: Piece) -> Piece:
    """The piece with the template's own words alone."""
    text = "".join(piece.text[start:end] for start, end in piece.own)
    return Piece(text, is_answer=True, ends=piece.ends, own=((0, len(text)),) if text else ())
