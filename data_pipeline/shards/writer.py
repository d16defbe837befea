"""Encoded documents -> Arrow shards of one split and one corpus part. Each shard appears whole or not at all.

Knows nothing of text and tokenizers. Where a shard or a record batch ends depends on the documents alone, not on the
chunks in which they arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline import disk
from data_pipeline.shards.format import ENDS, LOSS_SPANS, RECORDS_PER_BATCH, RecordKind, shard_schema
from data_pipeline.stage import StageError

# Arrow's metadata: measured 1.2 KB for schema and footer, 0.6 KB a record batch with its padding to 64 bytes.
FILE_OVERHEAD_BYTES = 8_192
BATCH_OVERHEAD_BYTES = 2_048
RECORD_OVERHEAD_BYTES = 8 + 8 + 4 + 4  # list offset, num_bytes, two string offsets
LIST_OVERHEAD_BYTES = 4  # list offset, of spans and of ends
SPAN_BYTES = 4 + 4
END_BYTES = 4
VALUE_BYTES = 8


@dataclass(frozen=True)
class LossSpans:
    """The targets of a chunk of documents: flat ids [start, end) inside each document, `counts` of them a document."""

    counts: NDArray[np.int64]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]

    def where(self, chosen: NDArray[np.bool_]) -> LossSpans:
        inside = np.repeat(chosen, self.counts)
        return LossSpans(self.counts[chosen], self.starts[inside], self.ends[inside])

    def slice(self, start: int, stop: int) -> LossSpans:
        first, last = int(self.counts[:start].sum()), int(self.counts[:stop].sum())
        return LossSpans(self.counts[start:stop], self.starts[first:last], self.ends[first:last])


@dataclass(frozen=True)
class Ends:
    """Where the sequences of a chunk of documents end inside each document, `counts` of them a document, flat."""

    counts: NDArray[np.int64]
    ends: NDArray[np.int32]

    def where(self, chosen: NDArray[np.bool_]) -> Ends:
        return Ends(self.counts[chosen], self.ends[np.repeat(chosen, self.counts)])

    def slice(self, start: int, stop: int) -> Ends:
        first, last = int(self.counts[:start].sum()), int(self.counts[:stop].sum())
        return Ends(self.counts[start:stop], self.ends[first:last])


@dataclass(frozen=True)
class Documents:
    """A chunk of encoded documents. `ids`: flat, each document's EOS included; `lengths`: ids of each document.

    `loss_spans`: of rows with targets; None for documents, where every id but the first is a target. `ends`: of rows of
    several sequences. `values`: of examples, the number of a class or a score. Which of them a shard has is told by its
    kind of record.
    """

    ids: NDArray[Any]
    lengths: NDArray[np.int64]
    record_ids: Sequence[str]
    num_bytes: NDArray[np.int64]
    sources: Sequence[str]
    loss_spans: LossSpans | None = None
    ends: Ends | None = None
    values: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def where(self, chosen: NDArray[np.bool_]) -> Documents:
        """The documents for which `chosen` is true, in order."""
        if chosen.all():
            return self
        return Documents(
            ids=self.ids[np.repeat(chosen, self.lengths)],
            lengths=self.lengths[chosen],
            record_ids=[record_id for record_id, keep in zip(self.record_ids, chosen, strict=True) if keep],
            num_bytes=self.num_bytes[chosen],
            sources=[source for source, keep in zip(self.sources, chosen, strict=True) if keep],
            loss_spans=None if self.loss_spans is None else self.loss_spans.where(chosen),
            ends=None if self.ends is None else self.ends.where(chosen),
            values=None if self.values is None else self.values[chosen],
        )

    def slice(self, start: int, stop: int) -> Documents:
        first, last = int(self.lengths[:start].sum()), int(self.lengths[:stop].sum())
        return Documents(
            ids=self.ids[first:last],
            lengths=self.lengths[start:stop],
            record_ids=self.record_ids[start:stop],
            num_bytes=self.num_bytes[start:stop],
            sources=self.sources[start:stop],
            loss_spans=None if self.loss_spans is None else self.loss_spans.slice(start, stop),
            ends=None if self.ends is None else self.ends.slice(start, stop),
            values=None if self.values is None else self.values[start:stop],
        )


@dataclass
class _Shard:
    """What will become one file: finished record batches and the chunks of the next one."""

    batches: list[pa.RecordBatch] = field(default_factory=list)
    chunks: list[Documents] = field(default_factory=list)
    num_bytes: int = FILE_OVERHEAD_BYTES + BATCH_OVERHEAD_BYTES

    @property
    def num_pending(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


class ShardWriter:
    """Writes `<name>-0000.arrow`, `<name>-0001.arrow`, … below `folder`, each at most `max_shard_bytes`.

    Holds one shard in memory. `files` tells what has been committed, as the manifest spells it.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        split: str,
        dtype: np.dtype[Any],
        max_shard_bytes: int,
        record: RecordKind = "document",
    ) -> None:
        self.files: list[dict[str, Any]] = []
        self._folder = folder
        self._name = name
        self._split = split
        self._schema = shard_schema(dtype, record=record)
        self._itemsize = dtype.itemsize
        self._max_shard_bytes = max_shard_bytes
        self._shard = _Shard()

    def add(self, documents: Documents) -> None:
        """Take documents in order; commits shards that are full."""
        ends = np.cumsum(self._bytes_of_each(documents))
        start = 0
        while start < len(documents):
            before = int(ends[start - 1]) if start else 0
            fitting = int(np.searchsorted(ends, before + self._max_shard_bytes - self._shard.num_bytes, side="right"))
            stop = min(fitting, start + RECORDS_PER_BATCH - self._shard.num_pending)
            if stop > start:
                self._shard.chunks.append(documents.slice(start, stop))
                self._shard.num_bytes += int(ends[stop - 1]) - before
                self._end_full_batch()
            elif self._shard.num_pending or self._shard.batches:
                self._commit()
            else:
                self._refuse(documents, start)
            start = max(start, stop)

    def close(self) -> None:
        """Commit what is left. A split without documents leaves no file."""
        if self._shard.num_pending or self._shard.batches:
            self._commit()

    def _bytes_of_each(self, documents: Documents) -> NDArray[np.int64]:
        texts = [
            len(record_id.encode()) + len(source.encode())
            for record_id, source in zip(documents.record_ids, documents.sources, strict=True)
        ]
        found = documents.lengths * self._itemsize + np.array(texts, np.int64) + RECORD_OVERHEAD_BYTES
        if documents.loss_spans is not None:
            found += LIST_OVERHEAD_BYTES + SPAN_BYTES * documents.loss_spans.counts
        if documents.ends is not None:
            found += LIST_OVERHEAD_BYTES + END_BYTES * documents.ends.counts
        return found if documents.values is None else found + VALUE_BYTES

    def _refuse(self, documents: Documents, number: int) -> None:
        raise StageError(
            f"{self._folder / self._name}: document {documents.record_ids[number]!r} has "
            f"{int(documents.lengths[number]):,} tokens, more than a shard of max_shard_bytes="
            f"{self._max_shard_bytes:,} holds; raise max_shard_bytes, or split the document in the corpus"
        )

    def _end_full_batch(self) -> None:
        if self._shard.num_pending == RECORDS_PER_BATCH:
            self._end_batch()
            self._shard.num_bytes += BATCH_OVERHEAD_BYTES

    def _end_batch(self) -> None:
        chunks, self._shard.chunks = self._shard.chunks, []
        lengths = np.concatenate([chunk.lengths for chunk in chunks])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        values = pa.array(np.concatenate([chunk.ids for chunk in chunks]))
        columns = [
            pa.LargeListArray.from_arrays(pa.array(offsets), values, type=self._schema.field("input_ids").type),
            pa.array([record_id for chunk in chunks for record_id in chunk.record_ids], pa.string()),
            pa.array(np.concatenate([chunk.num_bytes for chunk in chunks])),
            pa.array([source for chunk in chunks for source in chunk.sources], pa.string()),
        ]
        more = [_COLUMNS[name](chunks) for name in self._schema.names if name in _COLUMNS]
        self._shard.batches.append(pa.RecordBatch.from_arrays([*columns, *more], schema=self._schema))

    def _commit(self) -> None:
        if self._shard.chunks:
            self._end_batch()
        shard, self._shard = self._shard, _Shard()
        path = self._folder / f"{self._name}-{len(self.files):04d}.arrow"
        with disk.durable_file(path) as file, pa.ipc.new_file(file, self._schema) as writer:
            for batch in shard.batches:
                writer.write_batch(batch)
        record = file.record(path.relative_to(self._folder).as_posix())
        self.files.append(asdict(record) | {"split": self._split} | _batch_counts(shard.batches))


def _span_column(chunks: list[Documents]) -> pa.ListArray:
    spans_of = [chunk.loss_spans for chunk in chunks if chunk.loss_spans is not None]
    counts = np.concatenate([np.zeros(1, np.int64), *(spans.counts for spans in spans_of)])
    starts, ends = (np.concatenate([getattr(spans, name) for spans in spans_of]) for name in ("starts", "ends"))
    spans = pa.StructArray.from_arrays(
        [pa.array(starts, pa.int32()), pa.array(ends, pa.int32())], fields=list(LOSS_SPANS.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(np.cumsum(counts), pa.int32()), spans, type=LOSS_SPANS)


def _end_column(chunks: list[Documents]) -> pa.ListArray:
    ends_of = [chunk.ends for chunk in chunks if chunk.ends is not None]
    counts = np.concatenate([np.zeros(1, np.int64), *(ends.counts for ends in ends_of)])
    flat = pa.array(np.concatenate([ends.ends for ends in ends_of]), pa.int32())
    return pa.ListArray.from_arrays(pa.array(np.cumsum(counts), pa.int32()), flat, type=ENDS)


def _value_column(chunks: list[Documents]) -> pa.Array:
    # from_pandas=False: NaN is a value here, not a null.
    return pa.array(np.concatenate([chunk.values for chunk in chunks if chunk.values is not None]), from_pandas=False)


_COLUMNS = {"loss_spans": _span_column, "ends": _end_column, "value": _value_column}


def _batch_counts(batches: list[pa.RecordBatch]) -> dict[str, Any]:
    tokens = [len(batch.column("input_ids").values) for batch in batches]
    documents = [batch.num_rows for batch in batches]
    return {
        "num_documents": sum(documents),
        "num_tokens": sum(tokens),
        "batch_documents": documents,
        "batch_tokens": tokens,
    }
