"""Label and pair records -> examples of framed sequences, each with the number of its class or its score.

Of a label record both texts make one sequence; of a pair record each text is a sequence of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_pipeline.corpus.records import corpus_files, iterate_rows
from data_pipeline.shards.format import Frame, RecordKind, token_dtype
from data_pipeline.shards.frames import Framed, Texts, cut_lengths, num_frame_ids, put_in_frame
from data_pipeline.shards.part import Encoded, Recipe, check_ids, num_unk
from data_pipeline.shards.writer import Documents, Ends
from data_pipeline.stage import StageError, read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from data_pipeline.tokenizer.encode import Encoder

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

TooLong = Literal["refuse", "drop", "cut"]

MAX_LABELS = 1_000
# Each names a count of rows that became no example, and says what was wrong with them.
FAULTS: dict[RecordKind, dict[str, str]] = {
    "label": {
        "num_emptied": "have a text of which the tokenizer leaves nothing",
        "num_unknown_label": "have a label that is none of labels",
        "num_too_long": "have more than max_tokens tokens",
    },
    "pair": {
        "num_emptied": "have a text of which the tokenizer leaves nothing",
        "num_mixed": "have no third text (text_c), where others have one",
        "num_too_long": "have a text of more than max_tokens tokens",
    },
}
_TEXT_COLUMNS: dict[RecordKind, tuple[str, ...]] = {
    "label": ("text_a", "text_b"),
    "pair": ("text_a", "text_b", "text_c"),
}


@dataclass(frozen=True)
class ExampleShape:
    """What decides how the records of a corpus become examples, as plain values: it travels with each task.

    `labels`: the classes in the order of their numbers, () of pairs. `num_sequences`: of each example.
    """

    record: RecordKind
    frame: Frame
    num_sequences: int
    labels: tuple[str, ...] = ()
    max_tokens: int | None = None  # of a sequence, its frame included
    too_long: TooLong = "refuse"

    def to_tree(self) -> dict[str, Any]:
        """As JSON gives it back: a manifest's is compared with it."""
        return asdict(self) | {"labels": list(self.labels)}

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> ExampleShape:
        return cls(**tree | {"frame": Frame(**tree["frame"]), "labels": tuple(tree["labels"])})

    @property
    def sequences(self) -> list[tuple[str, ...]]:
        """The columns of each sequence's texts."""
        columns = _TEXT_COLUMNS[self.record]
        return [columns] if self.record == "label" else [(name,) for name in columns[: self.num_sequences]]

    @property
    def faults(self) -> dict[str, str]:
        """The counts of rows that a build refuses, each with what it says of them."""
        faults = FAULTS[self.record].items()
        return {key: meaning for key, meaning in faults if key != "num_too_long" or self.too_long == "refuse"}


def examples_recipe(shape: ExampleShape) -> Recipe:
    """How the records become examples. Raises StageError where max_tokens leaves no token to each text."""
    num_texts = max(len(columns) for columns in shape.sequences)
    least = num_frame_ids(shape.frame, num_texts=num_texts) + num_texts
    if shape.max_tokens is not None and shape.max_tokens < least:
        raise StageError(
            f"max_tokens is {shape.max_tokens}, but {num_texts} texts of one token each with their {shape.frame.kind} "
            f"frame are {least}; raise max_tokens"
        )
    columns = ("id", *_TEXT_COLUMNS[shape.record], "label" if shape.record == "label" else "score")
    return Recipe(
        shape.record,
        (*columns, "source", "split_hint"),
        functools.partial(_encode, shape=shape),
        counts=("num_cut", "num_scored" if shape.record == "pair" else "num_two_texts", *FAULTS[shape.record]),
        faults=shape.faults,
    )


@functools.lru_cache(maxsize=4)
def scan_corpus(corpus: Path, manifest_sha256: str, *, has_labels: bool) -> tuple[tuple[str, ...], int]:
    """(labels in the order of their numbers, sequences of an example) of a finished corpus of label or pair records.

    `has_labels`: look for them, else none are given. `manifest_sha256` tells one corpus in a folder from the next.
    """
    files = corpus_files(corpus)
    if read_manifest(corpus, kind="corpus")["record"] == "pair":
        return (), scan_num_sequences(files)
    return scan_labels(files) if has_labels else (), 1


def scan_labels(files: Sequence[Path]) -> tuple[str, ...]:
    """The distinct labels of a corpus: by number where all are integers, else by text.

    Raises:
        StageError: more than `MAX_LABELS`.
    """
    found: set[str] = set()
    for path in files:
        for batch in iterate_rows(path, columns=["label"]):
            found.update(pc.unique(batch.column("label")).to_pylist())
            if len(found) > MAX_LABELS:
                raise StageError(
                    f"{path}: more than {MAX_LABELS:,} distinct labels ({', '.join(sorted(found)[:5])}, …); is it a "
                    "score? then build the corpus with record: pair and columns: {score: …}; or name the labels to "
                    "take (labels)"
                )
    return tuple(sorted(found, key=_number if all(map(_is_integer, found)) else None))


def _is_integer(label: str) -> bool:
    return label.removeprefix("-").isascii() and label.removeprefix("-").isdigit()


def _number(label: str) -> tuple[int, str]:
    return int(label), label  # "1" and "01" are two labels


def scan_num_sequences(files: Sequence[Path]) -> int:
    """Sequences of an example of a corpus of pairs: 3 where a row has a third text, else 2."""
    for path in files:
        for batch in iterate_rows(path, columns=["text_c"]):
            if batch.column("text_c").null_count < batch.num_rows:
                return 3
    return 2


@dataclass(frozen=True)
class FramedBatch:
    """Examples in their frame, and of each whether something is wrong with its texts.

    `are_emptied`: the tokenizer leaves nothing of a text. `are_long`: a sequence is longer than max_tokens and was not
    cut; `are_cut`: one was.
    """

    framed: Framed
    are_emptied: BoolArray
    are_long: BoolArray
    are_cut: BoolArray


def frame_texts(rows: Sequence[Sequence[str]], encoder: Encoder, shape: ExampleShape) -> FramedBatch:
    """Rows of texts, as `dure predict` reads them, framed as those of a build are. A row may lack its last texts."""
    columns = {
        name: pa.array([row[number] if number < len(row) else None for row in rows], pa.string())
        for number, name in enumerate(_TEXT_COLUMNS[shape.record])
    }
    return _frame_columns(columns, encoder, shape)


def _frame_columns(columns: Mapping[str, pa.Array], encoder: Encoder, shape: ExampleShape) -> FramedBatch:
    sequences = [[_encoded(columns[name], encoder) for name in names] for names in shape.sequences]
    kept, are_long, are_cut = _lengths(sequences, shape)
    # Of a plain frame alone, and that is never found without an EOS.
    framed = put_in_frame(sequences, shape.frame, kept=kept, eos_id=encoder.eos_id or 0)
    texts = [text for each in sequences for text in each]
    are_emptied = np.logical_or.reduce([text.is_there & (text.lengths == 0) for text in texts])
    return FramedBatch(framed, are_emptied, are_long, are_cut)


def _encode(batch: pa.RecordBatch, encoder: Encoder, *, shape: ExampleShape) -> Encoded:
    columns = {name: batch.column(name) for names in shape.sequences for name in names}
    found = _frame_columns(columns, encoder, shape)
    values, is_unknown = _values(batch, shape)
    faults = _faults(batch, found, shape, is_unknown=is_unknown)
    kept = ~np.logical_or.reduce(list(faults.values()))
    sequences = np.full(batch.num_rows, shape.num_sequences, np.int64)
    documents = Documents(
        ids=found.framed.ids.astype(token_dtype(encoder.vocab_size)),
        lengths=found.framed.lengths,
        record_ids=batch.column("id").to_pylist(),
        num_bytes=np.sum([_num_bytes(column) for column in columns.values()], axis=0),
        sources=batch.column("source").to_pylist(),
        ends=Ends(sequences, found.framed.ends.ravel().astype(np.int32)),
        values=values,
    ).where(kept)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(found.framed.lengths)])
    counts = {"num_unk": num_unk(found.framed.ids, offsets, encoder.unk_id), "num_cut": found.are_cut.astype(np.int64)}
    if shape.record == "pair":
        counts["num_scored"] = (~np.isnan(values)).astype(np.int64)
    else:
        counts["num_two_texts"] = columns["text_b"].is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
    return Encoded(documents, {key: numbers[kept] for key, numbers in counts.items()}, faults, kept)


def _encoded(column: pa.Array, encoder: Encoder) -> Texts:
    ids, offsets = encoder.encode_batch(pc.fill_null(column, "").to_pylist())
    check_ids(ids, encoder)
    return Texts(ids, offsets, column.is_valid().to_numpy(zero_copy_only=False))


def _lengths(
    sequences: Sequence[Sequence[Texts]], shape: ExampleShape
) -> tuple[list[list[IntArray]], BoolArray, BoolArray]:
    """(ids that stay of each text, whether an example has a sequence that is too long, or one that was cut)."""
    num_rows = len(sequences[0][0].is_there)
    are_over = np.zeros(num_rows, bool)
    kept: list[list[IntArray]] = []
    for texts in sequences:
        lengths = [text.lengths for text in texts]
        if shape.max_tokens is not None:
            num_texts = sum(text.is_there.astype(np.int64) for text in texts)
            frames = np.array([num_frame_ids(shape.frame, num_texts=number) for number in range(1, len(texts) + 1)])
            room = shape.max_tokens - frames[np.maximum(num_texts, 1) - 1]
            are_over |= sum(lengths) > room
            lengths = cut_lengths(lengths, room) if shape.too_long == "cut" else lengths
        kept.append(lengths)
    nowhere = np.zeros(num_rows, bool)
    return (kept, nowhere, are_over) if shape.too_long == "cut" else (kept, are_over, nowhere)


def _values(batch: pa.RecordBatch, shape: ExampleShape) -> tuple[NDArray[np.float64], BoolArray]:
    """(the class number or score of each row, NaN where there is none; whether its label is none of the labels)."""
    if shape.record == "pair":
        scores = pc.fill_null(batch.column("score"), float("nan")).to_numpy(zero_copy_only=False)
        return scores.astype(np.float64), np.zeros(batch.num_rows, bool)
    places = pc.index_in(batch.column("label"), value_set=pa.array(shape.labels, pa.string()))
    numbers = pc.fill_null(places, -1).to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers, numbers < 0


def _faults(
    batch: pa.RecordBatch, framed: FramedBatch, shape: ExampleShape, *, is_unknown: BoolArray
) -> dict[str, BoolArray]:
    """By name, whether a row has the fault: one fault a row at most, the first that it has."""
    has_less = np.zeros(batch.num_rows, bool)
    if shape.num_sequences == 3:
        has_less = batch.column("text_c").is_null().to_numpy(zero_copy_only=False)
    found = {
        "num_emptied": framed.are_emptied,
        "num_mixed": has_less,
        "num_unknown_label": is_unknown,
        "num_too_long": framed.are_long,
    }
    faults = {key: found[key] for key in FAULTS[shape.record]}
    seen = np.zeros(batch.num_rows, bool)
    for key, has_fault in faults.items():
        faults[key] = has_fault & ~seen
        seen |= has_fault
    return faults


def _num_bytes(column: pa.Array) -> IntArray:
    return pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
