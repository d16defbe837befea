"""What stands in the first rows of a run: targets, EOS, BOS and padding, counted by segment. Knows no limits, no model.

Shapes: B rows of T inputs; the arrays below are flat over both, `starts` and `lengths` are those of the segments.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from data_pipeline.stream.batch import NO_ROW, NO_TARGET, Batch


@dataclass(frozen=True)
class SpecialIds:
    """The ids that the checks ask for. `bos` is empty for a tokenizer without one."""

    eos: int
    pad: int
    bos: frozenset[int]


@dataclass(frozen=True)
class Seen:
    """What stands in some rows; counts add up over batches and ranks. A document is a segment that is no padding."""

    num_rows: int = 0
    num_rows_without_target: int = 0
    num_inputs: int = 0
    num_padding: int = 0
    num_targets: int = 0
    num_eos_targets: int = 0
    num_pad_targets: int = 0
    num_documents: int = 0
    num_documents_without_target: int = 0
    num_documents_not_ended: int = 0
    num_documents_with_more_bos: int = 0
    highest_id: int = -1

    def __add__(self, other: Seen) -> Seen:
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return Seen(**sums | {"highest_id": max(self.highest_id, other.highest_id)})


def look_at(batch: Batch, ids: SpecialIds) -> Seen:
    """The counts of one batch. A segment of pad ids alone without a target is padding."""
    is_real_row = batch.row_ids != NO_ROW
    inputs_BT, labels_BT = batch.input_ids[is_real_row], batch.labels[is_real_row]
    inputs, labels = inputs_BT.reshape(-1), labels_BT.reshape(-1)
    if not inputs.size:
        return Seen()
    starts = np.flatnonzero(batch.position_ids[is_real_row].reshape(-1) == 0)
    lengths = np.diff(np.append(starts, inputs.size))
    is_target = labels != NO_TARGET
    targets = np.add.reduceat(is_target.astype(np.int64), starts)
    is_padding = (np.add.reduceat((inputs != ids.pad).astype(np.int64), starts) == 0) & (targets == 0)
    last_label = labels[starts + lengths - 1]
    # Where EOS pads too, an EOS that follows an EOS is padding that is learnt.
    is_pad_target = (labels == ids.pad) & ((inputs == ids.pad) | (ids.pad != ids.eos))
    is_text = np.repeat(~is_padding, lengths)  # a free row that pads is no token
    more_bos = _has_more_bos(inputs, starts, lengths, ids)
    return Seen(
        num_rows=len(inputs_BT),
        num_rows_without_target=int((~(labels_BT != NO_TARGET).any(axis=1)).sum()),
        num_inputs=inputs.size,
        num_padding=int(lengths[is_padding].sum()),
        num_targets=int(is_target.sum()),
        num_eos_targets=int((labels == ids.eos).sum()),
        num_pad_targets=int(is_pad_target.sum()),
        num_documents=int((~is_padding).sum()),
        num_documents_without_target=int(((targets == 0) & ~is_padding).sum()),
        num_documents_not_ended=int(((last_label != ids.eos) & ~is_padding).sum()),
        num_documents_with_more_bos=int((more_bos & ~is_padding).sum()),
        highest_id=int(max(inputs[is_text].max(initial=-1), labels.max(initial=-1))),
    )


def _has_more_bos(inputs: Any, starts: Any, lengths: Any, ids: SpecialIds) -> Any:
    """Whether each segment has more than one BOS; where BOS is EOS too, whether it begins with two."""
    own = np.isin(inputs, list(ids.bos - {ids.eos})).astype(np.int64)
    is_more = np.add.reduceat(own, starts) > 1
    if ids.eos in ids.bos:
        second = np.minimum(starts + 1, inputs.size - 1)
        is_more |= (inputs[starts] == ids.eos) & (inputs[second] == ids.eos) & (lengths > 1)
    return is_more
