"""Preference, feedback and prompt records -> examples of rendered sequences, each answer's ids told by its span.

The prompt is written as before an instruction's answer, so that its ids are those that the model was tuned on and is
asked with. Both sequences of a preference begin with the same ids.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_pipeline.corpus.json_stream import dumps
from data_pipeline.corpus.records import HELDOUT, corpus_files, iterate_rows, turn_bytes
from data_pipeline.shards.examples import TooLong
from data_pipeline.shards.format import RecordKind, token_dtype
from data_pipeline.shards.instructions import are_emptied, rendered
from data_pipeline.shards.part import Encoded, Recipe, check_ids, num_unk
from data_pipeline.shards.writer import Documents, Ends, LossSpans
from data_pipeline.templates.encode import EncodedRows, encode_rows
from data_pipeline.templates.template import Message, Piece, Template, TemplateError

if TYPE_CHECKING:
    from pathlib import Path

    from data_pipeline.tokenizer.encode import Encoder

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# The columns of a record's answers, in the order of its sequences.
_ANSWERS: dict[RecordKind, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "feedback": ("answer",),
    "prompt": ("answer",),
}
# Each names a count of rows that became no example, and says what was wrong with them; a row has one at most.
_FAULTS = {
    "num_mixed": "have no answer to compare with, where others have one (references=false leaves all of them out)",
    "num_no_eos": "have an answer whose EOS is no target",
    "num_emptied": "have an answer or a question of which the tokenizer leaves nothing",
    "num_equal": "have a chosen and a rejected answer of equal tokens",
    "num_prompt_too_long": "have a prompt that leaves no room for an answer in max_tokens",
    "num_too_long": "have more than max_tokens tokens",
}
FAULTS: dict[RecordKind, dict[str, str]] = {
    "preference": {key: meaning for key, meaning in _FAULTS.items() if key != "num_mixed"},
    "feedback": {key: meaning for key, meaning in _FAULTS.items() if key not in ("num_mixed", "num_equal")},
    "prompt": {key: meaning for key, meaning in _FAULTS.items() if key not in ("num_no_eos", "num_equal")},
}
_OF_LENGTH = ("num_prompt_too_long", "num_too_long")


@dataclass(frozen=True)
class AnsweredShape:
    """What decides how the records of a corpus become examples, as plain values: it travels with each task.

    `num_sequences`: 2 of preferences, 1 of feedback; of prompts 2 where they have answers to compare with, else 1.
    """

    record: RecordKind
    num_sequences: int
    max_tokens: int | None = None  # of a sequence, its EOS included
    too_long: TooLong = "refuse"

    def to_tree(self) -> dict[str, Any]:
        """As JSON gives it back: a manifest's is compared with it."""
        return asdict(self)

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> AnsweredShape:
        return cls(**tree)

    @property
    def faults(self) -> dict[str, str]:
        """The counts of rows that a build refuses, each with what it says of them."""
        faults = FAULTS[self.record].items()
        return {key: meaning for key, meaning in faults if key not in _OF_LENGTH or self.too_long == "refuse"}


def preferences_recipe(shape: AnsweredShape, template: Template) -> Recipe:
    """How the records become examples, and held-out ones by their prompts."""
    counts = {"preference": ("num_targets",), "feedback": ("num_targets", "num_desirable")}.get(shape.record, ())
    verdict = ("is_desirable",) if shape.record == "feedback" else ()
    return Recipe(
        shape.record,
        ("id", "prompt", *_ANSWERS[shape.record], *verdict, "source", "split_hint"),
        functools.partial(_encode, template=template, shape=shape),
        counts=(*counts, *FAULTS[shape.record]),
        faults=shape.faults,
        split_keys=prompt_keys,
    )


def prompt_keys(batch: pa.RecordBatch) -> list[str]:
    """What tells the prompt of each record from others, equal where they are."""
    prompts = batch.column("prompt").to_pylist()
    return [hashlib.blake2b(dumps(prompt).encode(), digest_size=16).hexdigest() for prompt in prompts]


@functools.lru_cache(maxsize=4)
def heldout_prompts(corpus: Path, manifest_sha256: str) -> frozenset[str]:
    """Keys of the prompts of which a record is called held out by its source: so are all others of them.

    `manifest_sha256` tells one corpus in a folder from the next.
    """
    found: set[str] = set()
    for path in corpus_files(corpus):
        for batch in iterate_rows(path, columns=["prompt", "split_hint"]):
            found.update(prompt_keys(batch.filter(pc.equal(batch.column("split_hint"), HELDOUT))))
    return frozenset(found)


@functools.lru_cache(maxsize=4)
def has_references(corpus: Path, manifest_sha256: str) -> bool:
    """Whether a record of a corpus of prompts has an answer to compare with."""
    return any(
        batch.column("answer").null_count < batch.num_rows
        for path in corpus_files(corpus)
        for batch in iterate_rows(path, columns=["answer"])
    )


def _encode(batch: pa.RecordBatch, encoder: Encoder, *, template: Template, shape: AnsweredShape) -> Encoded:
    names = batch.column("id").to_pylist()
    sequences = _sequences(batch, template, shape)
    found = encode_rows(sequences, encoder)
    check_ids(found.ids, encoder)
    table = found.lengths.reshape(batch.num_rows, shape.num_sequences)
    ends = np.cumsum(table, axis=1)
    spans = _Answers.of(found, ends)
    faults = _faults(batch, sequences, found, spans, encoder, shape)
    kept = ~np.logical_or.reduce(list(faults.values()))
    each = np.full(batch.num_rows, shape.num_sequences, np.int64)
    verdicts = batch.column("is_desirable").to_numpy(zero_copy_only=False) if shape.record == "feedback" else None
    documents = Documents(
        ids=found.ids.astype(token_dtype(encoder.vocab_size)),
        lengths=ends[:, -1],
        record_ids=names,
        num_bytes=_num_bytes(batch, shape),
        sources=batch.column("source").to_pylist(),
        loss_spans=None if shape.record == "prompt" else spans.in_examples(each),
        ends=Ends(each, ends.ravel().astype(np.int32)),
        values=None if verdicts is None else verdicts.astype(np.float64),
    ).where(kept)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(ends[:, -1])])
    counts = {"num_unk": num_unk(found.ids, offsets, encoder.unk_id)}
    if shape.record != "prompt":
        counts["num_targets"] = (spans.ends - spans.starts).reshape(table.shape).sum(axis=1)
    if verdicts is not None:
        counts["num_desirable"] = verdicts.astype(np.int64)
    return Encoded(documents, {key: values[kept] for key, values in counts.items()}, faults, kept)


def _sequences(batch: pa.RecordBatch, template: Template, shape: AnsweredShape) -> list[list[Piece]]:
    """The pieces of every sequence, those of an example in a row."""
    names, prompts = batch.column("id").to_pylist(), batch.column("prompt").to_pylist()
    columns = [batch.column(name).to_pylist() for name in _ANSWERS[shape.record]]
    found: list[list[Piece]] = []
    for record_id, prompt, *answers in zip(names, prompts, *columns, strict=True):
        asked = _asked(record_id, prompt, template)
        if shape.record == "prompt":
            # The answer as it is: what a template adds to one is no part of what answers are compared with.
            found += [asked, [Piece(answers[0] or "")]][: shape.num_sequences]
            continue
        for answer in answers:
            pieces = rendered(record_id, [*prompt, {"role": "assistant", "content": answer, "input": ""}], template)
            if pieces[:-1] != asked:
                raise TemplateError(
                    f"record {record_id!r}: template {template.name!r} writes the prompt in another way where an "
                    "answer follows, so that answers could not be compared; use another template"
                )
            found.append(pieces)
    return found


def _asked(record_id: str, prompt: Sequence[Message], template: Template) -> list[Piece]:
    try:
        return template.prompt_pieces(prompt)
    except TemplateError as error:
        raise TemplateError(f"record {record_id!r}: {error}") from None


@dataclass(frozen=True)
class _Answers:
    """[start, end) of the last answer in each sequence, and where the sequence begins in its example; all flat.

    A sequence without an answer has an empty span at its end.
    """

    starts: IntArray
    ends: IntArray
    offsets: IntArray

    @classmethod
    def of(cls, rows: EncodedRows, ends: IntArray) -> _Answers:
        starts, stops = rows.lengths.copy(), rows.lengths.copy()
        has_answer = rows.num_spans > 0
        last = (np.cumsum(rows.num_spans) - 1)[has_answer]
        starts[has_answer], stops[has_answer] = rows.span_starts[last], rows.span_ends[last]
        offsets = np.concatenate([np.zeros((len(ends), 1), np.int64), ends[:, :-1]], axis=1)
        return cls(starts, stops, offsets.ravel())

    def in_examples(self, counts: IntArray) -> LossSpans:
        starts, ends = (self.starts + self.offsets).astype(np.int32), (self.ends + self.offsets).astype(np.int32)
        return LossSpans(counts, starts, ends)


def _faults(
    batch: pa.RecordBatch,
    sequences: list[list[Piece]],
    rows: EncodedRows,
    spans: _Answers,
    encoder: Encoder,
    shape: AnsweredShape,
) -> dict[str, BoolArray]:
    """By name, whether a row has the fault: one fault a row at most, the first that it has."""
    table = (batch.num_rows, shape.num_sequences)
    row_ends = np.cumsum(rows.lengths)
    # A sequence of no id at all is empty, and the last id before it is not its own.
    lasts = np.where(spans.ends > spans.starts, rows.ids[np.maximum(row_ends - rows.lengths + spans.ends, 1) - 1], -1)
    limit = shape.max_tokens or np.inf
    found = {
        "num_mixed": _lack_reference(batch, shape),
        "num_no_eos": (lasts != encoder.eos_id).reshape(table).any(axis=1),
        "num_emptied": are_emptied(sequences, rows, encoder).reshape(table).any(axis=1),
        "num_equal": _are_equal(rows, row_ends, table),
        # Of a prompt record the span is empty and begins where the prompt ends.
        "num_prompt_too_long": spans.starts.reshape(table)[:, 0] >= limit,
        "num_too_long": (rows.lengths > limit).reshape(table).any(axis=1),
    }
    faults = {key: found[key] for key in FAULTS[shape.record]}
    seen = np.zeros(batch.num_rows, bool)
    for key, has_fault in faults.items():
        faults[key] = has_fault & ~seen
        seen |= has_fault
    return faults


def _lack_reference(batch: pa.RecordBatch, shape: AnsweredShape) -> BoolArray:
    if shape.record != "prompt" or shape.num_sequences == 1:
        return np.zeros(batch.num_rows, bool)
    lacking: BoolArray = batch.column("answer").is_null().to_numpy(zero_copy_only=False)
    return lacking


def _are_equal(rows: EncodedRows, row_ends: IntArray, table: tuple[int, int]) -> BoolArray:
    """Whether both sequences of an example are the same ids."""
    num_rows, num_sequences = table
    if num_sequences < 2:
        return np.zeros(num_rows, bool)
    starts, ends = (row_ends - rows.lengths).reshape(table), row_ends.reshape(table)
    return np.array(
        [
            np.array_equal(rows.ids[first[0] : last[0]], rows.ids[first[1] : last[1]])
            for first, last in zip(starts.tolist(), ends.tolist(), strict=True)
        ],
        bool,
    )


def _num_bytes(batch: pa.RecordBatch, shape: AnsweredShape) -> IntArray:
    """Of the answers; of prompt records, of the prompt's texts."""
    if shape.record == "prompt":
        return _as_int64(turn_bytes(batch.column("prompt")))
    return np.sum([_as_int64(pc.binary_length(batch.column(name))) for name in _ANSWERS[shape.record]], axis=0)


def _as_int64(column: pa.Array) -> IntArray:
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64)
