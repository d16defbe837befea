"""Law 11 on a model whose embedding and head were made larger: what it says of old texts, beside what it said.

Two figures. Through the old rows: the head multiplies by as many rows as before, so that the library takes the kernel
that it took; whatever differs then was disturbed, and is refused. Through all rows: a wider product may add up in
another order, which is told, for transformers multiplies by all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from trainer.errors import RunError
from trainer.new_rows import RowsPlan
from trainer.new_rows_proof import ROWS_AT_ONCE

MAX_ROUNDING = 1e-5  # of a wider product; more is no rounding

Outputs = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Difference:
    """The largest of any output for old texts; of logits over the vocabulary those of old tokens count."""

    old_rows: float
    all_rows: float

    def __str__(self) -> str:
        if self.old_rows:
            return f"but for {self.old_rows:.3g} through the old rows"
        rounded = f" through the old rows; all rows at once round otherwise here, by up to {self.all_rows:.3g}"
        return f"to the bit{rounded if self.all_rows else ''}"


def check_difference(found: Difference, *, source: str, accepts_rounding: bool) -> None:
    """Raise RunError where old texts are not what they were."""
    largest = max(found.old_rows, found.all_rows)
    if largest > MAX_ROUNDING:
        raise RunError(
            f"{source}: with new rows its outputs for old texts differ by {largest:.3g}, more than {MAX_ROUNDING:g}; "
            "this is a fault of this model's class: report it"
        )
    if found.old_rows and not accepts_rounding:
        raise RunError(
            f"{source}: with new rows its outputs for old texts differ by {found.old_rows:.3g} through its old rows, "
            "where they should be equal to the bit; give --accept-rounding to write it all the same"
        )


def compare(before: Outputs, model: Any, rows: np.ndarray, places: RowsPlan, *, num_rows: int) -> Difference:
    """How far the enlarged `model` is from `before` on `rows`; it had `num_rows` rows."""
    with old_rows_only(model, num_rows):
        narrow = outputs(model, rows)
    wide = outputs(model, rows)
    return Difference(_largest(before, narrow, places), _largest(before, wide, places))


@contextmanager
def old_rows_only(model: Any, num_rows: int) -> Iterator[None]:
    """Within the block the head multiplies by its first `num_rows` rows alone, as it did before there were more."""
    head = model.get_output_embeddings()
    if head is None or head.weight.shape[0] == num_rows:
        yield
        return
    weight, bias = head.weight[:num_rows], None if head.bias is None else head.bias[:num_rows]
    head.forward = lambda hidden: functional.linear(hidden, weight, bias)
    try:
        yield
    finally:
        del head.forward


@torch.no_grad()
def outputs(model: Any, rows: np.ndarray) -> Outputs:
    """All tensors that the model gives for the rows, some at once."""
    found = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        told: Mapping[str, Any] = model(input_ids=torch.from_numpy(rows[start : start + ROWS_AT_ONCE]))
        found.append({name: value for name, value in told.items() if isinstance(value, torch.Tensor)})
    return found


def _largest(before: Outputs, after: Outputs, places: RowsPlan) -> float:
    """Infinity where a number became none."""
    largest = 0.0
    for one, two in zip(before, after, strict=True):
        for name, value in one.items():
            other = two[name]
            if other.shape[-1] != value.shape[-1] or value.shape[-1] == places.total:
                value, other = value[..., : places.first], other[..., : places.first]
            is_same = (value == other) | (value.isnan() & other.isnan())
            far = (value.float() - other.float()).abs().nan_to_num(nan=math.inf, posinf=math.inf)
            largest = max(largest, float(far.masked_fill(is_same, 0).max()))
    return largest
