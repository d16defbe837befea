"""One Parquet part of a corpus -> its shards of train and heldout, with counts.

What a batch of records becomes is the business of the function that encodes it: `encode_documents` here, and those of
`instructions.py`, `examples.py` and `preferences.py`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_pipeline.corpus.records import iterate_rows
from data_pipeline.shards.format import SPLITS, RecordKind, token_dtype
from data_pipeline.shards.writer import Documents, ShardWriter
from data_pipeline.stage import StageError

if TYPE_CHECKING:
    from data_pipeline.tokenizer.encode import Encoder

IntArray = NDArray[np.int64]

COUNTS = ("num_documents", "num_tokens", "num_bytes", "num_unk", "num_empty")


@dataclass(frozen=True)
class Encoded:
    """What a batch of records became.

    `counts`: by name, one number a document. `faults`: by name, for each record of the batch whether it has the fault;
    a record with one became no document. `documents` and `counts` are of the others, `kept`.
    """

    documents: Documents
    counts: dict[str, IntArray]
    faults: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    kept: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Recipe:
    """How the records of one kind become documents: the columns that it takes, and what it counts beside `COUNTS`.

    `faults`: the counts of records that a build refuses unless it is told to leave them out, and what each means.
    `split_keys`: of each record of a batch, what decides with its split hint whether it is held out; None is its id.
    """

    record: RecordKind
    columns: tuple[str, ...]
    encode: Callable[[pa.RecordBatch, Encoder], Encoded]
    counts: tuple[str, ...] = ()
    faults: dict[str, str] = field(default_factory=dict)
    split_keys: Callable[[pa.RecordBatch], list[str]] | None = None


@dataclass(frozen=True)
class PartResult:
    """What one part became: files as the manifest spells them, the counts of each split, and an id for each fault.

    `sources`: the documents of each source in each split. `classes`: of label records the examples of each class number
    in each split.
    """

    files: list[dict[str, Any]]
    counts: dict[str, dict[str, int]]
    sources: dict[str, dict[str, int]]
    examples: dict[str, str]
    classes: dict[str, dict[int, int]]


def write_part(
    path: Path,
    *,
    recipe: Recipe,
    encoder: Encoder,
    output: Path,
    name: str,
    max_shard_bytes: int,
    is_heldout: Callable[[str, str], bool],
) -> PartResult:
    """Encode the records of the Parquet file at `path` and commit them as `<split>/<name>-0000.arrow`, ….

    `is_heldout` decides from a record's split key and split hint.
    """
    dtype = token_dtype(encoder.vocab_size)
    counts = {split: Counter(dict.fromkeys((*COUNTS, *recipe.counts), 0)) for split in SPLITS}
    sources: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    classes: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    examples: dict[str, str] = {}
    writers = {}
    for split in SPLITS:
        (output / split).mkdir(parents=True, exist_ok=True)
        writers[split] = ShardWriter(
            output,
            f"{split}/{name}",
            split=split,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            record=recipe.record,
        )
    for batch in _read(path, recipe.columns):
        found = recipe.encode(batch, encoder)
        ids, hints = batch.column("id").to_pylist(), batch.column("split_hint").to_pylist()
        keys = ids if recipe.split_keys is None else recipe.split_keys(batch)
        held = np.array([is_heldout(key, hint) for key, hint in zip(keys, hints, strict=True)], bool)
        for fault, has_fault in found.faults.items():
            if has_fault.any():
                examples.setdefault(fault, ids[int(np.argmax(has_fault))])
        for split, chosen in (("train", ~held), ("heldout", held)):
            of_kept = chosen if found.kept is None else chosen[found.kept]
            part = found.documents.where(of_kept)
            writers[split].add(part)
            counts[split].update(_counts(part))
            sources[split].update(part.sources)
            if recipe.record == "label" and part.values is not None:
                classes[split].update(part.values.astype(np.int64).tolist())
            counts[split].update({key: int(values[of_kept].sum()) for key, values in found.counts.items()})
            counts[split].update({key: int((values & chosen).sum()) for key, values in found.faults.items()})
    for writer in writers.values():
        writer.close()
    files = [entry for writer in writers.values() for entry in writer.files]
    return PartResult(
        files=files,
        counts={split: dict(counts[split]) for split in SPLITS},
        sources={split: dict(sources[split]) for split in SPLITS},
        examples=examples,
        classes={split: dict(classes[split]) for split in SPLITS},
    )


def is_heldout(key: str, fraction: float) -> bool:
    """Whether a record is held out: the same answer for the same key in every corpus, order and process."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") < fraction * 2**64


def encode_documents(batch: pa.RecordBatch, encoder: Encoder) -> Encoded:
    """Texts with an EOS behind each."""
    assert encoder.eos_id is not None  # an Encoder refuses a tokenizer without an end of text
    flat, offsets = encoder.encode_batch(batch.column("text").to_pylist())
    check_ids(flat, encoder)
    documents = _documents(batch, flat, offsets, eos_id=encoder.eos_id, dtype=token_dtype(encoder.vocab_size))
    return Encoded(documents, {"num_unk": num_unk(flat, offsets, encoder.unk_id)})


DOCUMENTS = Recipe("document", ("id", "text", "source", "split_hint"), encode_documents)


def _read(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from iterate_rows(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise StageError(f"{path}: cannot be read: {error}; restore it, or build the corpus again") from None


def check_ids(flat: NDArray[np.uint32], encoder: Encoder) -> None:
    """Raise StageError for an id that the tokenizer can't have."""
    if len(flat) and int(flat.max()) >= encoder.vocab_size:
        raise StageError(
            f"{encoder.folder}: the tokenizer gave id {int(flat.max())}, but its vocabulary has {encoder.vocab_size} "
            "ids; the tokenizer is damaged: train or fetch it again"
        )


def _documents(
    batch: pa.RecordBatch, flat: NDArray[np.uint32], offsets: IntArray, *, eos_id: int, dtype: np.dtype[Any]
) -> Documents:
    """Encoded texts with an EOS behind each."""
    num_documents = len(offsets) - 1
    ids = np.empty(len(flat) + num_documents, dtype)
    is_eos = np.zeros(len(ids), bool)
    is_eos[offsets[1:] + np.arange(num_documents)] = True
    ids[is_eos] = eos_id
    ids[~is_eos] = flat
    return Documents(
        ids=ids,
        lengths=np.diff(offsets) + 1,
        record_ids=batch.column("id").to_pylist(),
        num_bytes=pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False).astype(np.int64),
        sources=batch.column("source").to_pylist(),
    )


def num_unk(flat: NDArray[np.uint32], offsets: IntArray, unk_id: int | None) -> IntArray:
    """Unknown ids of each document."""
    if unk_id is None:
        return np.zeros(len(offsets) - 1, np.int64)
    before = np.concatenate([[0], np.cumsum(flat == unk_id)])
    return before[offsets[1:]] - before[offsets[:-1]]


def _counts(documents: Documents) -> dict[str, int]:
    return {
        "num_documents": len(documents),
        "num_tokens": int(documents.lengths.sum()),
        "num_bytes": int(documents.num_bytes.sum()),
        "num_empty": int(np.count_nonzero(documents.lengths == 1)),
    }
