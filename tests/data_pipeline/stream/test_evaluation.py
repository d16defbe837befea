"""Evaluation sees whole documents, scores each target once, and gives every rank the same number of batches."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.stage import StageError
from data_pipeline.stream import evaluation
from data_pipeline.stream.batch import NO_TARGET, Batch
from data_pipeline.stream.evaluation import EvaluationSet
from tests.data_pipeline.stream.plain import pairs_of, scored_pairs
from tests.data_pipeline.stream.shard_folder import write_shards


def numbered(lengths: list[int]) -> list[list[int]]:
    ids = iter(range(10, 100_000))
    return [[next(ids) for _ in range(length)] for length in lengths]


def make_set(
    folder: Path, lengths: list[int], seq_len: int, *, stride: int | None = None, max_documents: int | None = None
) -> EvaluationSet:
    documents = numbered(lengths)
    half = len(documents) // 2
    shards = write_shards(folder / "s", [documents[:half], documents[half:]], split="heldout", vocab_size=60_000)
    return EvaluationSet(shards, "heldout", seq_len, stride=stride, max_documents=max_documents)


def on_ranks(found: EvaluationSet, dp_world_size: int, micro_batch_sequences: int) -> list[list[Batch]]:
    return [
        list(found.batches(dp_rank=rank, dp_world_size=dp_world_size, micro_batch_sequences=micro_batch_sequences))
        for rank in range(dp_world_size)
    ]


lengths_with_text = st.lists(st.integers(0, 60), min_size=1, max_size=15).filter(any)


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths_with_text,
    seq_len=st.integers(1, 20),
    stride_share=st.floats(0, 1),
    dp_world_size=st.integers(1, 5),
    micro_batch_sequences=st.integers(1, 4),
)
def test_each_target_is_scored_once_on_any_ranks(
    lengths: list[int], seq_len: int, stride_share: float, dp_world_size: int, micro_batch_sequences: int
) -> None:
    stride = max(1, round(seq_len * stride_share))
    with tempfile.TemporaryDirectory() as folder:
        found = make_set(Path(folder), lengths, seq_len, stride=stride)
        ranks = on_ranks(found, dp_world_size, micro_batch_sequences)

    batches = [batch for rank in ranks for batch in rank]
    seen = sum((scored_pairs(batch) for batch in batches), Counter())
    assert seen == Counter(pair for document in numbered(lengths) for pair in pairs_of(document))
    assert found.num_targets == sum(lengths) == sum(batch.num_targets for batch in batches)
    assert found.num_documents == len(lengths)
    assert found.num_bytes == 3 * sum(lengths)
    assert len({len(rank) for rank in ranks}) == 1


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_with_text, seq_len=st.integers(2, 20), data=st.data())
def test_every_target_of_a_later_window_sees_the_context_that_the_stride_leaves(
    lengths: list[int], seq_len: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, seq_len))
    first_id = {document[0]: document for document in numbered(lengths) if document}
    owner = {id_: document for document in first_id.values() for id_ in document}
    with tempfile.TemporaryDirectory() as folder:
        found = make_set(Path(folder), lengths, seq_len, stride=stride)
        batches = on_ranks(found, 1, 4)[0]

    for batch in batches:
        for row, column in zip(*np.nonzero(batch.labels != NO_TARGET), strict=True):
            position = int(batch.position_ids[row, column])
            document = owner[int(batch.input_ids[row, column])]
            place = document.index(int(batch.input_ids[row, column]))
            # The ids before it in its window are those of its own document, as many as the window says.
            before = batch.input_ids[row, column - position : column + 1].tolist()
            assert before == document[place - position : place + 1]
            assert position >= min(place, seq_len - stride)


def test_half_a_window_is_the_stride_when_none_is_given(tmp_path: Path) -> None:
    found = make_set(tmp_path, [10, 4], 4)

    assert found.stride == 2
    (batches,) = on_ranks(found, 1, 8)
    assert sum(len(batch.row_ids) for batch in batches) == 5  # windows at 0, 2, 4, 6 and the short document


def test_short_documents_share_rows(tmp_path: Path) -> None:
    (batches,) = on_ranks(make_set(tmp_path, [3, 5, 2, 6], 8), 1, 8)

    assert [batch.input_ids.shape for batch in batches] == [(2, 8)]


def test_rows_of_different_windows_of_documents_keep_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "WINDOW_DOCUMENTS", 2)
    found = make_set(tmp_path, [4, 4, 4, 4, 4], 4)

    (batches,) = on_ranks(found, 1, 2)

    assert [batch.row_ids.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert sum(batch.num_targets for batch in batches) == 20


def test_some_documents_are_chosen_evenly_and_always_the_same(tmp_path: Path) -> None:
    lengths = [3] * 200
    found = make_set(tmp_path, lengths, 8, max_documents=20)
    again = EvaluationSet(tmp_path / "s", "heldout", 8, max_documents=20)

    pairs = [sum((scored_pairs(batch) for batch in on_ranks(one, 1, 4)[0]), Counter()) for one in (found, again)]

    assert pairs[0] == pairs[1]
    assert (found.num_documents, found.num_targets, found.num_bytes) == (20, 60, 180)
    assert pairs[0].total() == 60
    owners = {(id_ - 10) // 3 for id_, _ in pairs[0]}
    assert len(owners) == 20
    assert 70 < sum(owners) / 20 < 130  # spread over the set, not its first 20


def test_more_documents_than_there_are_means_all(tmp_path: Path) -> None:
    assert make_set(tmp_path, [3, 4], 8, max_documents=99).num_documents == 2


def test_an_empty_heldout_split_is_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [[[5]]])

    with pytest.raises(StageError, match=r"split 'heldout' holds 0 documents; raise heldout_fraction or add text"):
        EvaluationSet(shards, "heldout", 8)


def test_documents_without_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"the 2 documents of split 'heldout' chosen for evaluation hold no target"):
        make_set(tmp_path, [0, 0], 8)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_outside_the_window_is_refused(tmp_path: Path, stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride is {stride}, but seq_len is 8; it must be from 1 to seq_len"):
        make_set(tmp_path, [3], 8, stride=stride)


def test_no_documents_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_documents is 0; it must be at least 1"):
        make_set(tmp_path, [3], 8, max_documents=0)
