"""Arrow shards as memory-mapped record batches, held against the manifest when they are opened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.shards.format import ShardFile, ShardSet
from data_pipeline.stage import StageError


def open_shard(file: ShardFile) -> list[pa.RecordBatch]:
    """The record batches of one shard, memory-mapped; raises StageError where they contradict the manifest."""
    try:
        found = file.path.stat().st_size
        if found != file.num_bytes:
            raise StageError(
                f"{file.path}: {found:,} bytes, manifest.json says {file.num_bytes:,}; "
                "restore the shard, or build the shards again"
            )
        with pa.memory_map(str(file.path)) as source:  # closing lets the descriptor go; batches keep the map
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid) as error:
        raise StageError(
            f"{file.path}: cannot be read: {error}; restore the shard, or build the shards again"
        ) from None
    documents = tuple(batch.num_rows for batch in batches)
    tokens = tuple(len(batch.column("input_ids").values) for batch in batches)
    if (documents, tokens) != (file.batch_documents, file.batch_tokens):
        raise StageError(
            f"{file.path}: record batches hold {documents} documents and {tokens} tokens, manifest.json says "
            f"{file.batch_documents} and {file.batch_tokens}; restore the shard, or build the shards again"
        )
    return batches


def document_lengths(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Ids of each document of a record batch, EOS included."""
    return np.diff(batch.column("input_ids").offsets.to_numpy())


def iterate_lengths(shards: ShardSet) -> Iterator[NDArray[np.int64]]:
    """Ids of each document, a record batch at a time in shard order; one shard is open at once."""
    for file in shards.files:
        for batch in open_shard(file):
            yield document_lengths(batch)


def loss_spans(batch: pa.RecordBatch) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Of a record batch of instruction rows: (offsets of each row's spans, their starts, their ends), not copied."""
    column = batch.column("loss_spans")
    starts, ends = (column.values.field(number).to_numpy() for number in range(2))
    return column.offsets.to_numpy(), starts, ends


def sequence_ends(batch: pa.RecordBatch) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Of a record batch of examples: (offsets of each example's ends, ends inside its input_ids), not copied."""
    column = batch.column("ends")
    return column.offsets.to_numpy(), column.values.to_numpy()


def values(batch: pa.RecordBatch) -> NDArray[np.float64]:
    """Of each example: the number of its class, or its score; NaN where it has none. Not copied."""
    found: NDArray[np.float64] = batch.column("value").to_numpy()
    return found


@dataclass(frozen=True)
class InstructionIds:
    """One instruction row: its ids with every EOS, and the spans [start, end) of them that are targets, in order."""

    record_id: str
    ids: NDArray[np.int64]
    spans: tuple[tuple[int, int], ...]


def iterate_instructions(shards: ShardSet) -> Iterator[InstructionIds]:
    """The rows of instruction shards in shard order; raises StageError for shards of documents."""
    if shards.record != "instruction":
        raise StageError(
            f"{shards.folder}: holds {shards.record} records, but instruction rows are needed; give shards that were "
            "built with a template"
        )
    for file in shards.files:
        for batch in open_shard(file):
            ids, offsets = batch.column("input_ids").values.to_numpy(), batch.column("input_ids").offsets.to_numpy()
            span_offsets, starts, ends = loss_spans(batch)
            for number, record_id in enumerate(batch.column("record_id").to_pylist()):
                chosen = slice(span_offsets[number], span_offsets[number + 1])
                yield InstructionIds(
                    record_id=record_id,
                    ids=ids[offsets[number] : offsets[number + 1]].astype(np.int64),
                    spans=tuple(zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True)),
                )
