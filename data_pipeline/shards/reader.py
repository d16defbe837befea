"""Arrow shards as memory-mapped record batches, held against the manifest when they are opened."""

from __future__ import annotations

from collections.abc import Iterator

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
