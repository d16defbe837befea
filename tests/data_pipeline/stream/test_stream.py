"""Laws 1, 2 and the data half of law 7: one order for any ranks, and a state that is one integer."""

from __future__ import annotations

import copy
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.stream.batch import NO_ROW, NO_TARGET, Batch
from data_pipeline.stream.rows import Rows, open_rows
from data_pipeline.stream.stream import ResumeError, Stream
from tests.data_pipeline.stream.shard_folder import PAD, write_shards

NUM_ROWS = 23
SEQ_LEN = 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """23 rows of 4 in three shards; row r begins with id 10 + 4 * r, so a batch shows which rows it holds."""
    ids = list(range(10, 10 + NUM_ROWS * SEQ_LEN))
    documents = [ids[first : first + 2 * SEQ_LEN] for first in range(0, len(ids), 2 * SEQ_LEN)]
    shards = write_shards(tmp_path_factory.mktemp("rows") / "s", [documents[:4], documents[4:9], documents[9:]])
    found = open_rows(shards, split="train", seq_len=SEQ_LEN, packing="concatenated")
    assert found.num_rows == NUM_ROWS
    return found


def make_stream(rows: Rows, *, seed: int = 1, global_batch_sequences: int = 5) -> Stream:
    return Stream(rows, seed=seed, global_batch_sequences=global_batch_sequences)


def take(stream: Stream, num_steps: int) -> list[list[int]]:
    """Rows of the next steps, as the ids in their batches show them."""
    seen = []
    for _ in range(num_steps):
        seen.append(shown_rows(stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=2)))
        stream.advance()
    return seen


def shown_rows(batches: list[Batch]) -> list[int]:
    firsts = [id_ for batch in batches for id_ in batch.input_ids[:, 0].tolist() if id_ != PAD]
    return [(id_ - 10) // SEQ_LEN for id_ in firsts]


def all_ranks(stream: Stream, dp_world_size: int, micro_batch_sequences: int) -> list[list[Batch]]:
    return [
        stream.batches(dp_rank=rank, dp_world_size=dp_world_size, micro_batch_sequences=micro_batch_sequences)
        for rank in range(dp_world_size)
    ]


worlds = st.integers(1, 9)
micro_batches = st.integers(1, 7)


def test_batches_hold_the_rows_that_they_name(rows: Rows) -> None:
    batches = make_stream(rows).batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=2)

    assert shown_rows(batches) == [row for batch in batches for row in batch.row_ids.tolist()]
    assert [len(batch.input_ids) for batch in batches] == [2, 2, 1]


@settings(deadline=None)  # the first example compiles
@given(seed=st.integers(0, 2**40), global_batch_sequences=st.integers(1, 23), num_epochs=st.integers(1, 3))
def test_law_1_each_epoch_sees_each_row_once(
    rows: Rows, seed: int, global_batch_sequences: int, num_epochs: int
) -> None:
    stream = make_stream(rows, seed=seed, global_batch_sequences=global_batch_sequences)

    seen = [row for step in take(stream, num_epochs * NUM_ROWS) for row in step]

    for epoch in range(num_epochs):
        assert sorted(seen[epoch * NUM_ROWS : (epoch + 1) * NUM_ROWS]) == list(range(NUM_ROWS))


def test_law_1_the_order_is_a_function_of_rows_seed_and_epoch(rows: Rows) -> None:
    reopened = open_rows(rows.shards.folder, split="train", seq_len=SEQ_LEN, packing="concatenated", build=False)

    assert take(make_stream(rows), 20) == take(make_stream(reopened), 20)
    assert take(make_stream(rows, seed=1), 5) != take(make_stream(rows, seed=2), 5)
    # Epoch 1 of seed 0 is not epoch 0 of seed 1.
    second_epoch = make_stream(rows, seed=0, global_batch_sequences=NUM_ROWS)
    second_epoch.advance()
    assert take(second_epoch, 1) != take(make_stream(rows, seed=1, global_batch_sequences=NUM_ROWS), 1)


@pytest.mark.parametrize("next_row", [0, NUM_ROWS * 10**12, NUM_ROWS * 10**12 + NUM_ROWS - 2])
def test_law_1_any_position_costs_what_the_first_costs(rows: Rows, next_row: int) -> None:
    make_stream(rows).step_row_ids()  # compiles
    stream = make_stream(rows)
    stream.load_state_dict(stream.state_dict() | {"next_row": next_row})
    tracemalloc.start()

    found = stream.step_row_ids()

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.epoch == next_row // NUM_ROWS
    assert len(found) == 5
    assert peak < 16_384


@settings(deadline=None)  # the first example compiles
@given(
    dp_world_size=worlds, micro_batch_sequences=micro_batches, global_batch=st.integers(1, 40), step=st.integers(0, 9)
)
def test_law_2_ranks_partition_the_order(
    rows: Rows, dp_world_size: int, micro_batch_sequences: int, global_batch: int, step: int
) -> None:
    with warnings.catch_warnings(action="ignore"):  # of more sequences than rows
        stream = make_stream(rows, global_batch_sequences=global_batch)
    for _ in range(step):
        stream.advance()

    ranks = all_ranks(stream, dp_world_size, micro_batch_sequences)

    in_order = [batch for micro_step in zip(*ranks, strict=True) for batch in micro_step]
    assert shown_rows(in_order) == stream.step_row_ids().tolist()
    assert [row for batch in in_order for row in batch.row_ids.tolist() if row != NO_ROW] == shown_rows(in_order)


@settings(deadline=None)  # the first example compiles
@given(dp_world_size=worlds, micro_batch_sequences=micro_batches, global_batch=st.integers(1, 23))
def test_law_2_the_last_micro_step_is_ragged_and_every_rank_joins_it(
    rows: Rows, dp_world_size: int, micro_batch_sequences: int, global_batch: int
) -> None:
    ranks = all_ranks(make_stream(rows, global_batch_sequences=global_batch), dp_world_size, micro_batch_sequences)

    num_micro_steps = -(-global_batch // (dp_world_size * micro_batch_sequences))
    assert {len(batches) for batches in ranks} == {num_micro_steps}
    assert {len(batch.row_ids) for batches in ranks for batch in batches[:-1]} <= {micro_batch_sequences}
    last = [len(batch.row_ids) for batches in ranks for batch in batches[-1:] if batch.num_targets]
    assert max(last) - min(last) <= 1
    fillers = [batch for batches in ranks for batch in batches if not batch.num_targets]
    assert all((batch.labels == NO_TARGET).all() and batch.row_ids.tolist() == [NO_ROW] for batch in fillers)
    assert all(batch.input_ids.tolist() == [[PAD] * SEQ_LEN] for batch in fillers)


@settings(max_examples=50, deadline=None)
@given(
    legs=st.lists(st.tuples(worlds, micro_batches, st.integers(0, 4), st.integers(1, 23)), max_size=5),
    seed=st.integers(0, 99),
)
def test_law_2_a_run_over_changing_ranks_sees_each_row_once_an_epoch(
    rows: Rows, legs: list[tuple[int, int, int, int]], seed: int
) -> None:
    seen: list[int] = []
    state = make_stream(rows, seed=seed).state_dict()
    for dp_world_size, micro_batch_sequences, num_steps, global_batch in [*legs, (1, 1, 2, 23)]:
        stream = make_stream(rows, seed=seed, global_batch_sequences=global_batch)
        stream.load_state_dict(state)
        for _ in range(num_steps):
            ranks = all_ranks(stream, dp_world_size, micro_batch_sequences)
            seen += shown_rows([batch for batches in ranks for batch in batches])
            stream.advance()
        state = stream.state_dict()

    assert state["next_row"] == len(seen)
    counts = Counter(seen)
    num_whole, rest = divmod(len(seen), NUM_ROWS)
    assert all(num_whole <= counts[row] <= num_whole + 1 for row in range(NUM_ROWS))
    assert sum(counts[row] == num_whole + 1 for row in range(NUM_ROWS)) == rest


def test_law_2_eight_four_six_eight_ranks_see_the_uninterrupted_epoch(rows: Rows) -> None:
    uninterrupted = make_stream(rows, global_batch_sequences=6)
    elastic = make_stream(rows, global_batch_sequences=6)

    for dp_world_size in (8, 4, 6, 8):
        expected = take(uninterrupted, 1)[0]
        ranks = all_ranks(elastic, dp_world_size, micro_batch_sequences=1)
        found = shown_rows([batch for micro_step in zip(*ranks, strict=True) for batch in micro_step])
        assert found == expected
        elastic.advance()
        restarted = make_stream(rows, global_batch_sequences=6)
        restarted.load_state_dict(elastic.state_dict())
        elastic = restarted


@settings(deadline=None)  # the first example compiles
@given(first=st.integers(0, 12), second=st.integers(0, 12))
def test_law_7_two_resumes_continue_the_uninterrupted_stream(rows: Rows, first: int, second: int) -> None:
    expected = take(make_stream(rows), first + second + 5)
    stream, seen = make_stream(rows), []

    for count in (first, second, 5):
        seen += take(stream, count)
        restarted = make_stream(rows)
        restarted.load_state_dict(stream.state_dict())
        stream = restarted

    assert seen == expected


def test_a_state_is_plain_json_and_its_own(rows: Rows) -> None:
    stream = make_stream(rows)
    take(stream, 2)
    state = stream.state_dict()
    kept = copy.deepcopy(state)

    take(stream, 2)

    assert state == kept == {"next_row": 10, "rows_identity": rows.identity, "num_rows": NUM_ROWS, "seed": 1}
    assert all(type(value) in (int, str) for value in state.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "data.seed: checkpoint has 2, this run 1; restore it, or start a new run"),
        ({"rows_identity": "f00"}, "data.rows_identity: checkpoint has 'f00', this run '{identity}'; restore it, or"),
        ({"num_rows": 24}, "data.num_rows: checkpoint has 24, this run 23; restore it, or start a new run"),
        ({"next_row": -1}, "data.next_row: checkpoint has -1, a count of rows is needed; it is damaged"),
        ({"next_row": 2.5}, "data.next_row: checkpoint has 2.5, a count of rows is needed; it is damaged"),
        ({"next_row": True}, "data.next_row: checkpoint has True, a count of rows is needed; it is damaged"),
    ],
)
def test_refused_state_changes_nothing(rows: Rows, change: dict[str, Any], message: str) -> None:
    stream = make_stream(rows)
    take(stream, 3)
    before = stream.state_dict()

    with pytest.raises(ResumeError) as caught:
        stream.load_state_dict(before | {"next_row": 0} | change)

    assert str(caught.value).startswith(message.format(identity=rows.identity))
    assert stream.state_dict() == before
    assert take(stream, 4) == take(make_stream(rows), 7)[3:]


@pytest.mark.parametrize("key", ["next_row", "rows_identity", "num_rows", "seed"])
def test_a_state_without_a_key_is_refused(rows: Rows, key: str) -> None:
    stream = make_stream(rows)
    saved = stream.state_dict()
    del saved[key]

    with pytest.raises(ResumeError, match=rf"data.{key}: the checkpoint has none; it is damaged"):
        stream.load_state_dict(saved)


def test_a_changed_global_batch_goes_on_where_the_state_ended(rows: Rows) -> None:
    stream = make_stream(rows, global_batch_sequences=5)
    seen = [row for step in take(stream, 2) for row in step]
    larger = make_stream(rows, global_batch_sequences=13)

    larger.load_state_dict(stream.state_dict())

    assert sorted(seen + take(larger, 1)[0]) == list(range(NUM_ROWS))


def test_a_step_may_straddle_two_epochs(rows: Rows) -> None:
    stream = make_stream(rows, global_batch_sequences=10)
    stream.advance()
    stream.advance()

    straddling = stream.step_row_ids().tolist()

    epochs = [take(make_stream(rows, global_batch_sequences=23), 2)[epoch] for epoch in range(2)]
    assert straddling == epochs[0][20:] + epochs[1][:7]


def test_fewer_rows_than_a_global_batch_are_repeated_with_a_warning(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [[[10, 11, 12, 13, 14]]])
    few = open_rows(shards, split="train", seq_len=4, packing="concatenated")

    with pytest.warns(UserWarning, match="global_batch_sequences is 7, but there are only 2 rows: every step repeats"):
        stream = Stream(few, seed=0, global_batch_sequences=7)

    assert [sorted(stream.step_row_ids().tolist()[first : first + 2]) for first in (0, 2, 4)] == [[0, 1]] * 3
    stream.advance()
    assert stream.epoch == 3
    assert Counter(stream.step_row_ids().tolist()).total() == 7


@pytest.mark.parametrize("global_batch_sequences", [0, -3])
def test_an_empty_global_batch_is_refused(rows: Rows, global_batch_sequences: int) -> None:
    with pytest.raises(ValueError, match=f"global_batch_sequences is {global_batch_sequences}; it must be at least 1"):
        make_stream(rows, global_batch_sequences=global_batch_sequences)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 2, 1), "dp_rank is 2, but dp_world_size is 2"),
        ((-1, 2, 1), "dp_rank is -1, but dp_world_size is 2"),
        ((0, 1, 0), "micro_batch_sequences is 0; it must be at least 1"),
    ],
)
def test_ranks_and_micro_batches_out_of_range_are_refused(
    rows: Rows, arguments: tuple[int, int, int], message: str
) -> None:
    dp_rank, dp_world_size, micro_batch_sequences = arguments

    with pytest.raises(ValueError, match=message):
        make_stream(rows).batches(
            dp_rank=dp_rank, dp_world_size=dp_world_size, micro_batch_sequences=micro_batch_sequences
        )


def test_a_batch_that_is_held_never_changes(rows: Rows) -> None:
    stream = make_stream(rows, global_batch_sequences=4)
    held, copies = [], []
    for _ in range(12):
        for batch in stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=2):
            held.append((batch.input_ids[:1], batch.labels, batch.position_ids[0]))
            copies.append([array.copy() for array in held[-1]])
        stream.advance()

    for arrays, expected in zip(held, copies, strict=True):
        assert all(np.array_equal(array, copied) for array, copied in zip(arrays, expected, strict=True))
