"""What `dure shards verify` checks of examples: their sequences, and the class or score of each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from data_pipeline.shards.format import ShardSet
from data_pipeline.shards.reader import document_lengths, sequence_ends, values


def faults_of_examples(batch: pa.RecordBatch, shards: ShardSet, *, where: str) -> Iterator[str]:
    """A line for each kind of fault of a record batch of label or pair records, the first row that has it named."""
    if fault := fault_of_ends(batch, shards, where=where):
        yield fault
        return
    _, ends = sequence_ends(batch)
    table = ends.reshape(batch.num_rows, shards.num_sequences)
    yield from _faults_of_frame(batch, shards, table, where=where)
    yield from _faults_of_values(batch, shards, where=where)


def fault_of_ends(batch: pa.RecordBatch, shards: ShardSet, *, where: str) -> str:
    """What is wrong with the sequences of a record batch of examples; "" where each row has its number of them."""
    offsets, ends = sequence_ends(batch)
    expected = np.arange(batch.num_rows + 1) * shards.num_sequences
    if not np.array_equal(offsets, expected) or len(ends) != expected[-1]:
        says = f"{shards.num_sequences} apart from 0 to {len(ends):,}"
        return f"{where}: the offsets of its ends are not {says}; build again"
    table = ends.reshape(batch.num_rows, shards.num_sequences)
    lengths = document_lengths(batch)
    names = batch.column("record_id")
    is_odd = (np.diff(table, axis=1, prepend=0) < 1).any(axis=1) | (table[:, -1] != lengths)
    if is_odd.any():
        place = int(np.argmax(is_odd))
        return (
            f"{where}: example {names[place].as_py()!r} has ends {table[place].tolist()}, but they must rise to its "
            f"length {lengths[place]}; build again"
        )
    return ""


def _faults_of_frame(batch: pa.RecordBatch, shards: ShardSet, table: np.ndarray, *, where: str) -> Iterator[str]:
    """Each sequence ends in the id that closes its frame, and begins with the one that opens it."""
    column = batch.column("input_ids")
    ids, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    ends = offsets[:-1, None] + table
    starts = ends - np.diff(table, axis=1, prepend=0)
    frame = shards.frame
    if frame is None:
        yield f"{where}: the manifest names no frame; build again"
        return
    opens, closes = frame.cls_id, shards.eos_id if frame.sep_id is None else frame.sep_id
    for places, wanted, verb in ((starts, opens, "begins with"), (ends - 1, closes, "ends in")):
        is_odd = ids[places] != wanted if wanted is not None else np.zeros(places.shape, bool)
        if is_odd.any():
            row, number = (int(found[0]) for found in np.nonzero(is_odd))
            yield (
                f"{where}: sequence {number} of example {batch.column('record_id')[row].as_py()!r} {verb} id "
                f"{ids[places[row, number]]}, its {frame.kind} frame says {wanted}; build again"
            )


def _faults_of_values(batch: pa.RecordBatch, shards: ShardSet, *, where: str) -> Iterator[str]:
    found = values(batch)
    if shards.record == "label":
        is_odd = ~np.isin(found, np.arange(len(shards.labels)))
        wanted = f"the number of one of {len(shards.labels)} classes"
    else:
        is_odd, wanted = np.isinf(found), "a finite score, or NaN where there is none"
    if is_odd.any():
        place = int(np.argmax(is_odd))
        name = batch.column("record_id")[place].as_py()
        yield f"{where}: example {name!r} has value {found[place]}, but it must be {wanted}; build again"
