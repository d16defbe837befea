"""Examples by number: each row of the order is the example that the shards hold, whoever asks for it and how."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.shards.format import read_shards
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch, ExampleRows, ExampleSet
from data_pipeline.stream.stream import ResumeError, Stream
from tests.data_pipeline.shards.example_folders import Row, build, rows_of, stage_of, write_examples, write_plain

# Bytes are tokens: from 1 to 40 of them, and one end.
NUM_ROWS, NUM_HELDOUT = 45, 12
TRAIN = [
    {"text_a": "가나다라"[: 1 + row % 3] + "a" * (row * 7 % 31), "label": "ab"[row % 2]} for row in range(NUM_ROWS)
]
HELDOUT = [{"text_a": "b" * (1 + row), "label": "ab"[row % 2]} for row in range(NUM_HELDOUT)]
SEQ_LEN = 64


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of train of unlike size, and one that is held out."""
    folder = tmp_path_factory.mktemp("examples")
    aside = range(NUM_ROWS, NUM_ROWS + NUM_HELDOUT)
    corpus = write_examples(folder / "c", "label", [TRAIN[:30], TRAIN[30:], HELDOUT], heldout=aside)
    build(stage_of(corpus, write_plain(folder / "t"), folder / "s"))
    return folder / "s"


@pytest.fixture(scope="module")
def whole(shards: Path) -> list[Row]:
    """Every row of train as the shards hold it, in their order."""
    return rows_of(shards)


def open_rows(shards: Path, *, seq_len: int = SEQ_LEN, **keys: Any) -> ExampleRows:
    return ExampleRows(read_shards(shards, split="train"), seq_len=seq_len, **keys)


@functools.cache
def opened(shards: Path) -> ExampleRows:
    """For what changes nothing of it."""
    return open_rows(shards)


def stream_of(shards: Path, *, step: int, is_grouped: bool = True, seed: int = 1) -> Stream:
    rows = opened(shards)
    return Stream(
        rows, seed=seed, global_batch_sequences=step, lengths=np.asarray(rows.lengths) if is_grouped else None
    )


def texts_of(batch: Any) -> list[list[int]]:
    assert isinstance(batch, ExampleBatch)
    return [ids[:length].tolist() for ids, length in zip(batch.input_ids, batch.lengths, strict=True)]


@given(numbers=st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=20))
def test_law_1_a_number_is_always_the_same_example(shards: Path, whole: list[Row], numbers: list[int]) -> None:
    batch = opened(shards).gather(np.array(numbers))

    assert texts_of(batch) == [whole[number]["input_ids"] for number in numbers]
    assert batch.values.tolist() == [whole[number]["value"] for number in numbers]
    assert batch.row_ids.tolist() == numbers and batch.num_targets == len(numbers)


def test_what_is_no_text_is_padding_up_to_the_longest_of_the_batch_and_no_further(shards: Path) -> None:
    rows = open_rows(shards)
    rows.pad_with(7)

    batch = rows.gather(np.array([3, 0, 8]))

    assert batch.input_ids.shape == (3, batch.lengths.max())
    assert all((ids[length:] == 7).all() for ids, length in zip(batch.input_ids, batch.lengths, strict=True))
    assert batch.num_inputs == batch.lengths.sum()


@given(
    step=st.integers(1, 20),
    at=st.integers(0, 12),
    world=st.integers(1, 5),
    micro=st.integers(1, 7),
    group=st.booleans(),
)
def test_law_2_ranks_and_micro_batches_partition_a_step(
    shards: Path, step: int, at: int, world: int, micro: int, group: bool
) -> None:
    stream = stream_of(shards, step=step, is_grouped=group)
    for _ in range(at):
        stream.advance()
    of_ranks = [stream.batches(dp_rank=rank, dp_world_size=world, micro_batch_sequences=micro) for rank in range(world)]

    found = [batch.row_ids for batches in of_ranks for batch in batches]
    real = np.concatenate(found)
    assert sorted(real[real != NO_ROW].tolist()) == sorted(stream.step_row_ids().tolist())
    assert len({len(batches) for batches in of_ranks}) == 1
    assert sum(batch.num_targets for batches in of_ranks for batch in batches) == step


@given(step=st.integers(1, 20), at=st.integers(0, 12), seed=st.integers(0, 5), group=st.booleans())
def test_law_1_a_resumed_stream_goes_on_at_its_step(shards: Path, step: int, at: int, seed: int, group: bool) -> None:
    stream = stream_of(shards, step=step, is_grouped=group, seed=seed)
    for _ in range(at):
        stream.advance()

    resumed = stream_of(shards, step=step, is_grouped=group, seed=seed)
    resumed.load_state_dict(stream.state_dict())

    assert resumed.step_row_ids().tolist() == stream.step_row_ids().tolist()


def test_a_stream_that_groups_by_length_goes_on_in_steps_of_the_same_size_alone(shards: Path) -> None:
    saved = stream_of(shards, step=8).state_dict()
    other, ungrouped = stream_of(shards, step=9), stream_of(shards, step=8, is_grouped=False)

    for stream in (other, ungrouped):
        with pytest.raises(ResumeError, match="the checkpoint orders rows by length in steps of 8"):
            stream.load_state_dict(saved)
        assert stream.next_row == 0
    stream_of(shards, step=9, is_grouped=False).load_state_dict(ungrouped.state_dict())


@given(step=st.integers(1, NUM_ROWS), epochs=st.integers(1, 10))
def test_an_epoch_ends_once_for_each_time_that_all_rows_were_consumed(shards: Path, step: int, epochs: int) -> None:
    stream = stream_of(shards, step=step)
    ends = []
    for number in range(1, -(-epochs * NUM_ROWS // step) + 1):
        stream.advance()
        ends += [number] * stream.has_ended_epoch

    assert ends == sorted({-(-epoch * NUM_ROWS // step) for epoch in range(1, epochs + 1)})


@pytest.mark.filterwarnings("ignore:global_batch_sequences is 100")
def test_a_step_that_holds_several_epochs_ends_one(shards: Path) -> None:
    stream = stream_of(shards, step=100)
    stream.advance()

    assert stream.has_ended_epoch


def test_no_epoch_has_ended_before_the_first_step(shards: Path) -> None:
    assert not stream_of(shards, step=8).has_ended_epoch


def test_law_1_equal_rows_have_one_order_wherever_they_lie_and_however_fast_they_were_made(tmp_path: Path) -> None:
    orders = []
    for place, speed in (("here", 1.5), ("elsewhere", 2.5)):
        corpus = write_examples(tmp_path / place / "c", "label", [TRAIN, HELDOUT], heldout=range(NUM_ROWS, 60))
        tokenizer = write_plain(tmp_path / place / "t")
        (tokenizer / "card.json").write_text(json.dumps({"mb_per_second": speed, "corpus": str(corpus)}))
        build(stage_of(corpus, tokenizer, tmp_path / place / "s"))
        stream = stream_of(tmp_path / place / "s", step=NUM_ROWS)
        held = ExampleSet(tmp_path / place / "s", split="heldout", seq_len=SEQ_LEN, max_documents=5)
        scored = [batch.row_ids.tolist() for batch in held.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=9)]
        orders.append((stream.rows.identity, stream.step_row_ids().tolist(), scored))

    assert orders[0] == orders[1]


def test_examples_that_are_too_long_are_refused_or_left_out_and_counted(shards: Path, whole: list[Row]) -> None:
    fits = [row for row in whole if len(row["input_ids"]) <= 20]
    assert 0 < len(fits) < NUM_ROWS
    num_lost = NUM_ROWS - len(fits)
    with pytest.raises(StageError, match=rf"{num_lost} of 45 examples of split 'train' are longer than seq_len 20"):
        open_rows(shards, seq_len=20)
    with pytest.raises(StageError, match="all 45 examples of split 'train' are longer than seq_len 1, so none is left"):
        open_rows(shards, seq_len=1, too_long="drop")

    rows = open_rows(shards, seq_len=20, too_long="drop")

    assert texts_of(rows.gather(np.arange(rows.num_rows))) == [row["input_ids"] for row in fits]
    assert [rows.record_id(number) for number in range(rows.num_rows)] == [row["record_id"] for row in fits]
    assert rows.values().tolist() == [row["value"] for row in fits]
    assert rows.lengths.tolist() == [len(row["input_ids"]) for row in fits]
    counts = dataclasses.asdict(rows.counts)
    assert (counts["num_rows"], counts["num_documents_too_long"]) == (len(fits), num_lost)
    assert rows.identity not in {open_rows(shards).identity, open_rows(shards, too_long="drop").identity}


def test_a_number_that_is_no_row_is_refused(shards: Path) -> None:
    for number in (-1, NUM_ROWS):
        with pytest.raises(IndexError, match="row number out of range"):
            open_rows(shards).gather(np.array([0, number]))


def test_padding_is_one_example_that_counts_for_nothing(shards: Path) -> None:
    batch = open_rows(shards).padding()

    assert (batch.num_targets, batch.num_inputs, batch.row_ids.tolist()) == (0, 0, [NO_ROW])
    assert np.isnan(batch.values).all() and batch.input_ids.shape == (1, 1)


@given(world=st.integers(1, 5), micro=st.integers(1, 7), most=st.none() | st.integers(1, 20))
def test_each_held_out_example_is_scored_once_by_one_rank(
    shards: Path, world: int, micro: int, most: int | None
) -> None:
    held = ExampleSet(shards, split="heldout", seq_len=SEQ_LEN, max_documents=most)

    of_ranks = [
        list(held.batches(dp_rank=rank, dp_world_size=world, micro_batch_sequences=micro)) for rank in range(world)
    ]

    rows = np.concatenate([batch.row_ids for batches in of_ranks for batch in batches])
    real = rows[rows != NO_ROW].tolist()
    assert len(set(real)) == len(real) == held.num_documents == min(NUM_HELDOUT, most or NUM_HELDOUT)
    assert len({len(batches) for batches in of_ranks}) == 1
