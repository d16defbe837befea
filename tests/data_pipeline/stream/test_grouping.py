"""The order that groups rows by length: a permutation, the same for all, whose steps are rows of about one length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.stream.grouping import GroupedOrder
from data_pipeline.stream.order import RowOrder


def grouped(num_rows: int, *, block: int, epoch: int = 0, seed: int = 1) -> GroupedOrder:
    lengths = np.random.default_rng(num_rows).integers(1, 200, num_rows).astype(np.int32)
    return GroupedOrder(RowOrder("rows", seed, epoch, num_rows), lengths, block=block)


@given(num_rows=st.integers(1, 3000), block=st.integers(1, 70), epoch=st.integers(0, 5))
def test_law_1_every_epoch_visits_each_row_once(num_rows: int, block: int, epoch: int) -> None:
    rows = grouped(num_rows, block=block, epoch=epoch).rows_at(np.arange(num_rows))

    assert sorted(rows.tolist()) == list(range(num_rows))


@given(num_rows=st.integers(1, 3000), block=st.integers(1, 70), start=st.integers(0, 2999), count=st.integers(0, 200))
def test_law_1_any_position_is_reached_by_itself(num_rows: int, block: int, start: int, count: int) -> None:
    positions = np.arange(min(start, num_rows), min(start + count, num_rows))

    apart = grouped(num_rows, block=block, epoch=1).rows_at(positions)

    assert apart.tolist() == grouped(num_rows, block=block, epoch=1).rows_at(np.arange(num_rows))[positions].tolist()


def test_seeds_and_epochs_give_other_orders() -> None:
    orders = [
        grouped(500, block=10, **keys).rows_at(np.arange(500)).tolist() for keys in ({}, {"seed": 2}, {"epoch": 1})
    ]

    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("epoch", [0, 1, 2, 7])
def test_the_steps_of_every_epoch_are_rows_of_about_one_length(epoch: int) -> None:
    num_rows, block = 10_007, 64
    order = grouped(num_rows, block=block, epoch=epoch)
    # A step stands where it does in the endless stream, not where its epoch begins.
    head = -epoch * num_rows % block
    lengths = order.lengths[order.rows_at(np.arange(num_rows))][head:]
    steps = lengths[: len(lengths) // block * block].reshape(-1, block)

    padding = (steps.max(axis=1, keepdims=True) - steps).sum() / (steps.max(axis=1) * block).sum()

    assert padding < 0.05
