"""Law 1: the order of rows is a keyed permutation, computed a row at a time."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.stream.order import RowOrder, permute_plainly

GOLDEN = Path(__file__).parents[2] / "golden" / "row_order.json"

seeds = st.integers(-(2**63), 2**63)
epochs = st.integers(0, 10**6)


def whole_epoch(order: RowOrder) -> list[int]:
    return order.rows_at(np.arange(order.num_rows)).tolist()


@settings(deadline=None)  # the first example compiles
@given(num_rows=st.integers(1, 3000), seed=seeds, epoch=epochs)
def test_law_1_an_epoch_visits_each_row_once(num_rows: int, seed: int, epoch: int) -> None:
    assert sorted(whole_epoch(RowOrder("rows", seed, epoch, num_rows))) == list(range(num_rows))


@settings(deadline=None)  # the first example compiles
@given(num_rows=st.integers(1, 2**62), seed=seeds, epoch=epochs, data=st.data())
def test_law_1_compiled_order_equals_the_plain_one(num_rows: int, seed: int, epoch: int, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, num_rows - 1))
    order = RowOrder("rows", seed, epoch, num_rows)

    expected = permute_plainly(position, num_rows=num_rows, keys=[int(key) for key in order.keys])

    assert order.rows_at(np.array([position])).tolist() == [expected]


@settings(deadline=None)  # the first example compiles
@given(num_rows=st.integers(2, 500), seed=seeds, epoch=epochs, data=st.data())
def test_law_1_a_row_does_not_depend_on_what_is_asked_beside_it(
    num_rows: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1))
    everything = whole_epoch(RowOrder("rows", seed, epoch, num_rows))

    alone = RowOrder("rows", seed, epoch, num_rows).rows_at(np.array(positions)).tolist()

    assert alone == [everything[position] for position in positions]


def test_law_1_the_order_is_pinned() -> None:
    for case in json.loads(GOLDEN.read_text()):
        order = RowOrder(case["identity"], case["seed"], case["epoch"], case["num_rows"])
        assert order.rows_at(np.arange(10)).tolist() == case["first_ten"]


def test_law_1_epochs_differ_and_seed_and_epoch_cannot_stand_in_for_each_other() -> None:
    orders = [
        tuple(whole_epoch(RowOrder(identity, seed, epoch, 1000)))
        for identity, seed, epoch in [
            ("rows", 0, 0),
            ("rows", 0, 1),
            ("rows", 1, 0),
            ("rows", 1, 1),
            ("rows", 0, 2),
            ("rows", -1, 1),
            ("other rows", 0, 0),
        ]
    ]

    assert len(set(orders)) == len(orders)
    # Different is little; unrelated is meant: two permutations of 1,000 agree at 1 position on average, at 8 never.
    for one, two in itertools.combinations(orders, 2):
        assert sum(a == b for a, b in zip(one, two, strict=True)) < 8


@pytest.mark.parametrize("num_rows", [2, 3, 4, 5])
def test_law_1_small_sets_reach_every_permutation_alike(num_rows: int) -> None:
    num_permutations = math.factorial(num_rows)
    num_keys = 60 * num_permutations

    seen = Counter(tuple(whole_epoch(RowOrder("rows", 0, epoch, num_rows))) for epoch in range(num_keys))

    assert len(seen) == num_permutations
    chi_squared = sum((count - 60) ** 2 / 60 for count in seen.values())
    # The mean is num_permutations - 1, its deviation sqrt(2 * that); the keys are fixed, so this never flickers.
    degrees = num_permutations - 1
    assert chi_squared < degrees + 5 * math.sqrt(2 * degrees)


def test_law_1_neighbours_are_not_kept_together() -> None:
    rows = np.array(whole_epoch(RowOrder("rows", 3, 0, 100_000)))

    steps = np.diff(rows)

    # Of 99,999 steps half go up (deviation 91 for a random permutation) and 2 on average join neighbours.
    assert abs(int((steps > 0).sum()) - 50_000) < 500
    assert int((np.abs(steps) == 1).sum()) < 12


@pytest.mark.parametrize("position", [0, 5 * 10**11, 10**12 - 1])
def test_law_1_any_position_of_a_trillion_costs_no_memory(position: int) -> None:
    RowOrder("rows", 0, 0, 10**12).rows_at(np.array([0]))  # compiles
    tracemalloc.start()

    RowOrder("rows", 0, 7, 10**12).rows_at(np.arange(position, position + 1))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_384
