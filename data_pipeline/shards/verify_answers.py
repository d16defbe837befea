"""What `dure shards verify` checks of rows with answers: where the answers lie, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from data_pipeline.shards.format import ShardSet
from data_pipeline.shards.reader import loss_spans, sequence_ends, values
from data_pipeline.shards.verify_examples import fault_of_ends


def faults_of_answers(batch: pa.RecordBatch, shards: ShardSet, *, where: str) -> Iterator[str]:
    """A line for each kind of fault of a record batch, the first row that has it named."""
    if fault := fault_of_ends(batch, shards, where=where):
        yield fault
        return
    if shards.record == "prompt":
        return
    _, flat = sequence_ends(batch)
    table = flat.reshape(batch.num_rows, shards.num_sequences).astype(np.int64)
    faults = list(_faults_of_spans(batch, shards, table, where=where))
    yield from faults
    if shards.record == "preference" and not faults:
        yield from _faults_of_prompts(batch, table, where=where)
    if shards.record == "feedback":
        is_odd = ~np.isin(values(batch), (0.0, 1.0))
        if is_odd.any():
            place = int(np.argmax(is_odd))
            name = batch.column("record_id")[place].as_py()
            yield (
                f"{where}: example {name!r} has value {values(batch)[place]}, but it must be 1 (desirable) or 0; build "
                "again"
            )


def _faults_of_spans(batch: pa.RecordBatch, shards: ShardSet, table: np.ndarray, *, where: str) -> Iterator[str]:
    """Each sequence has one span: behind a prompt, up to its end, which is EOS."""
    span_offsets, starts, ends = loss_spans(batch)
    expected = np.arange(batch.num_rows + 1) * shards.num_sequences
    names = batch.column("record_id")
    if not np.array_equal(span_offsets, expected) or len(starts) != expected[-1]:
        yield f"{where}: its loss_spans are not one of each sequence ({len(starts):,} of {expected[-1]:,}); build again"
        return
    before = np.concatenate([np.zeros((len(table), 1), np.int64), table[:, :-1]], axis=1)
    spans = starts.reshape(table.shape), ends.reshape(table.shape)
    is_outside = (spans[0] <= before) | (spans[1] <= spans[0]) | (spans[1] != table)
    if is_outside.any():
        row, number = (int(found[0]) for found in np.nonzero(is_outside))
        yield (
            f"{where}: sequence {number} of example {names[row].as_py()!r} has its answer at {spans[0][row, number]} – "
            f"{spans[1][row, number]}, but it must follow a prompt and end at {table[row, number]}; build again"
        )
        return
    column = batch.column("input_ids")
    ids, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    lasts = ids[offsets[:-1, None] + table - 1]
    if (lasts != shards.eos_id).any():
        row, number = (int(found[0]) for found in np.nonzero(lasts != shards.eos_id))
        yield (
            f"{where}: sequence {number} of example {names[row].as_py()!r} ends in id {lasts[row, number]}, not in EOS "
            f"{shards.eos_id}; build again"
        )


def _faults_of_prompts(batch: pa.RecordBatch, table: np.ndarray, *, where: str) -> Iterator[str]:
    """Both answers follow the same ids."""
    column = batch.column("input_ids")
    ids, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    _, starts, _ = loss_spans(batch)
    firsts = starts.reshape(table.shape)
    for row, (start, middle) in enumerate(zip(offsets[:-1].tolist(), table[:, 0].tolist(), strict=True)):
        prompts = ids[start : start + firsts[row, 0]], ids[start + middle : start + firsts[row, 1]]
        if not np.array_equal(*prompts):
            name = batch.column("record_id")[row].as_py()
            yield f"{where}: the prompts of example {name!r} differ before its two answers; build again"
            return
