"""Compiled gathering: ids of memory-mapped shards -> inputs, labels and positions of rows, without a Python loop.

Addresses are those of Arrow buffers that ShardMaps keeps alive. A kernel stops at the first record batch that is
not open and says which, so that the caller opens it and goes on from the row where it stopped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from data_pipeline.stream.compiled import compiled

DONE = -1  # every row is written
DAMAGED = -2  # a shard's offsets contradict the manifest
NO_SUCH_ROW = -3


class BatchTable(NamedTuple):
    """One entry a record batch of the split (`first_*` have one more, the total). Address 0: not open."""

    first_token: NDArray[np.int64]
    first_pair: NDArray[np.int64]
    num_documents: NDArray[np.int64]
    file_number: NDArray[np.int64]
    values_address: NDArray[np.uint64]
    offsets_address: NDArray[np.uint64]
    last_used: NDArray[np.int64]  # one entry a file: the tick of the last gather that read it


class SpanTable(NamedTuple):
    """Where the targets of instruction rows stand; one entry a record batch. Address 0: not open."""

    num_spans: NDArray[np.int64]
    offsets_address: NDArray[np.uint64]  # int32: the spans of each document
    starts_address: NDArray[np.uint64]  # int32: ids [start, end) of a document
    ends_address: NDArray[np.uint64]


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), code


@compiled
def _copy(ids: Any, start: int, length: int, inputs: Any, labels: Any, positions: Any, at: int) -> None:
    source = ids[start : start + length + 1]
    inputs, labels, positions = inputs[at : at + length], labels[at : at + length], positions[at : at + length]
    for i in range(length):
        inputs[i] = source[i]
        labels[i] = source[i + 1]
        positions[i] = i


@compiled
def _pad(pad_id: int, inputs: Any, labels: Any, positions: Any, at: int) -> None:
    for i in range(at, len(inputs)):
        inputs[i] = pad_id
        labels[i] = -100
        positions[i] = i - at


@compiled
def _document_at(offsets: Any, num_documents: int, pair: int) -> int:
    """The last document whose first pair is at or before `pair`; documents without a pair never are."""
    low, high = 0, num_documents - 1
    while low < high:
        middle = (low + high + 1) >> 1
        if offsets[middle] - middle <= pair:
            low = middle
        else:
            high = middle - 1
    return low


@compiled
def gather_concatenated(
    row_numbers: Any,
    first: int,
    table: Any,
    like: Any,
    tick: int,
    pad_id: int,
    inputs: Any,
    labels: Any,
    positions: Any,
) -> Any:
    """Write rows `first`.. of the endless sequence of pairs; returns (rows done, DONE or why not, targets written)."""
    seq_len = inputs.shape[1]
    num_pairs = table.first_pair[-1]
    num_targets = 0
    for r in range(first, len(row_numbers)):
        pair = row_numbers[r] * seq_len
        if pair < 0 or pair >= num_pairs:
            return r, NO_SUCH_ROW, num_targets
        end = min(pair + seq_len, num_pairs)
        at = 0
        b = np.searchsorted(table.first_pair, pair, side="right") - 1
        while pair < end:
            while table.first_pair[b + 1] <= pair:
                b += 1
            if table.values_address[b] == 0:
                return r, b, num_targets
            table.last_used[table.file_number[b]] = tick
            num_documents = table.num_documents[b]
            num_ids = table.first_token[b + 1] - table.first_token[b]
            ids = carray(_pointer(table.values_address[b]), num_ids, like.dtype)
            offsets = carray(_pointer(table.offsets_address[b]), num_documents + 1, np.int64)
            d = _document_at(offsets, num_documents, pair - table.first_pair[b])
            start = offsets[d] + (pair - table.first_pair[b]) - (offsets[d] - d)
            while d < num_documents and pair < end:
                length = min(offsets[d + 1] - 1 - start, end - pair)
                if length > 0:
                    if start < 0 or start + length >= num_ids:
                        return r, DAMAGED, num_targets
                    _copy(ids, start, length, inputs[r], labels[r], positions[r], at)
                    at += length
                    pair += length
                d += 1
                start = offsets[d]
            if pair < end and pair < table.first_pair[b + 1]:
                return r, DAMAGED, num_targets
        _pad(pad_id, inputs[r], labels[r], positions[r], at)
        num_targets += at
    return len(row_numbers), DONE, num_targets


@compiled
def gather_segments(
    row_numbers: Any,
    first: int,
    row_ends: Any,
    starts: Any,
    lengths: Any,
    table: Any,
    like: Any,
    tick: int,
    pad_id: int,
    inputs: Any,
    labels: Any,
    positions: Any,
) -> Any:
    """Write rows `first`.. of a table of segments; returns what `gather_concatenated` returns.

    Row r is segments `row_ends[r - 1]`.. `row_ends[r]`; a segment is `lengths[s]` pairs from token `starts[s]` of
    the split on.
    """
    seq_len = inputs.shape[1]
    num_targets = 0
    b = 0
    for r in range(first, len(row_numbers)):
        row = row_numbers[r]
        if row < 0 or row >= len(row_ends):
            return r, NO_SUCH_ROW, num_targets
        at = 0
        for s in range(row_ends[row - 1] if row else 0, row_ends[row]):
            start, length = starts[s], int(lengths[s])
            if start < table.first_token[b] or start >= table.first_token[b + 1]:
                b = np.searchsorted(table.first_token, start, side="right") - 1
            if b < 0 or b >= len(table.values_address):
                return r, DAMAGED, num_targets
            if start + length >= table.first_token[b + 1] or length < 1 or at + length > seq_len:
                return r, DAMAGED, num_targets
            if table.values_address[b] == 0:
                return r, b, num_targets
            table.last_used[table.file_number[b]] = tick
            num_ids = table.first_token[b + 1] - table.first_token[b]
            ids = carray(_pointer(table.values_address[b]), num_ids, like.dtype)
            _copy(ids, start - table.first_token[b], length, inputs[r], labels[r], positions[r], at)
            at += length
        _pad(pad_id, inputs[r], labels[r], positions[r], at)
        num_targets += at
    return len(row_numbers), DONE, num_targets


@compiled
def _copy_framed(ids: Any, start: int, cls_id: int, sep_id: int, inputs: Any, labels: Any, positions: Any) -> None:
    last = len(inputs) - 1
    inputs[0], labels[0], positions[0] = cls_id, -100, 0
    for i in range(1, last):
        inputs[i] = ids[start + i - 1]
        labels[i] = inputs[i]
        positions[i] = i
    inputs[last], labels[last], positions[last] = sep_id, -100, last


@compiled
def gather_framed(
    row_numbers: Any,
    first: int,
    row_ends: Any,
    starts: Any,
    lengths: Any,
    table: Any,
    like: Any,
    tick: int,
    cls_id: int,
    sep_id: int,
    pad_id: int,
    inputs: Any,
    labels: Any,
    positions: Any,
) -> Any:
    """Write rows `first`.. of framed pieces; returns what `gather_segments` returns.

    A piece is `lengths[s]` places: CLS, ids from token `starts[s]` of the split on, SEP. The label of an id is itself.
    """
    seq_len = inputs.shape[1]
    num_targets = 0
    b = 0
    for r in range(first, len(row_numbers)):
        row = row_numbers[r]
        if row < 0 or row >= len(row_ends):
            return r, NO_SUCH_ROW, num_targets
        at, of_row = 0, 0
        for s in range(row_ends[row - 1] if row else 0, row_ends[row]):
            start, length = starts[s], int(lengths[s])
            if start < table.first_token[b] or start >= table.first_token[b + 1]:
                b = np.searchsorted(table.first_token, start, side="right") - 1
            if b < 0 or b >= len(table.values_address):
                return r, DAMAGED, num_targets
            if start + length - 2 >= table.first_token[b + 1] or length < 3 or at + length > seq_len:
                return r, DAMAGED, num_targets
            if table.values_address[b] == 0:
                return r, b, num_targets
            table.last_used[table.file_number[b]] = tick
            num_ids = table.first_token[b + 1] - table.first_token[b]
            ids = carray(_pointer(table.values_address[b]), num_ids, like.dtype)
            of_inputs, of_labels, of_positions = inputs[r], labels[r], positions[r]
            end = at + length
            _copy_framed(
                ids,
                start - table.first_token[b],
                cls_id,
                sep_id,
                of_inputs[at:end],
                of_labels[at:end],
                of_positions[at:end],
            )
            at = end
            of_row += length - 2
        _pad(pad_id, inputs[r], labels[r], positions[r], at)
        num_targets += of_row
    return len(row_numbers), DONE, num_targets


@compiled
def _document_of(offsets: Any, num_documents: int, token: int) -> int:
    """The document that holds id `token` of a record batch."""
    low, high = 0, num_documents - 1
    while low < high:
        middle = (low + high + 1) >> 1
        if offsets[middle] <= token:
            low = middle
        else:
            high = middle - 1
    return low


@compiled
def hide_what_is_no_target(
    row_numbers: Any, first: int, row_ends: Any, starts: Any, lengths: Any, table: Any, spans: Any, labels: Any
) -> Any:
    """Of rows that `gather_segments` wrote, take the labels away that lie in no loss span; same answers as it gives.

    The label at input i of a document is its id i + 1, so a span of ids [start, end) keeps labels [start - 1, end - 1).
    """
    num_targets = 0
    for r in range(first, len(row_numbers)):
        row = row_numbers[r]
        of_row = labels[r]
        at, num_kept = 0, 0
        for s in range(row_ends[row - 1] if row else 0, row_ends[row]):
            start, length = starts[s], int(lengths[s])
            b = np.searchsorted(table.first_token, start, side="right") - 1
            if table.values_address[b] == 0:
                return r, b, num_targets
            num_documents, num_spans = table.num_documents[b], spans.num_spans[b]
            offsets = carray(_pointer(table.offsets_address[b]), num_documents + 1, np.int64)
            span_offsets = carray(_pointer(spans.offsets_address[b]), num_documents + 1, np.int32)
            span_starts = carray(_pointer(spans.starts_address[b]), num_spans, np.int32)
            span_ends = carray(_pointer(spans.ends_address[b]), num_spans, np.int32)
            token = start - table.first_token[b]
            d = _document_of(offsets, num_documents, token)
            inner = token - offsets[d]  # of the segment's first id inside its document
            num_ids = offsets[d + 1] - offsets[d]
            low, high = span_offsets[d], span_offsets[d + 1]
            if inner < 0 or inner + length >= num_ids or low < 0 or low > high or high > num_spans:
                return r, DAMAGED, num_targets
            done = 0  # labels of the segment that are settled
            for span in range(low, high):
                if span_starts[span] < 1 or span_ends[span] < span_starts[span] or span_ends[span] > num_ids:
                    return r, DAMAGED, num_targets
                begin = min(max(span_starts[span] - 1 - inner, done), length)
                end = min(max(span_ends[span] - 1 - inner, begin), length)
                for i in range(done, begin):
                    of_row[at + i] = -100
                num_kept += end - begin
                done = end
            for i in range(done, length):
                of_row[at + i] = -100
            at += length
        num_targets += num_kept
    return len(row_numbers), DONE, num_targets
