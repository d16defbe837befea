"""Instruction rows: packed whole, and only their answers are targets."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.shards import writer as writer_module
from data_pipeline.shards.format import read_shards
from data_pipeline.shards.reader import iterate_instructions, loss_spans, open_shard
from data_pipeline.shards.writer import BATCH_OVERHEAD_BYTES, FILE_OVERHEAD_BYTES
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import NO_TARGET, Batch
from data_pipeline.stream.evaluation import EvaluationSet
from data_pipeline.stream.rows import Rows, open_rows
from data_pipeline.stream.stream import Stream
from data_pipeline.stream.table import TooLong, rows_identity
from tests.data_pipeline.stream.plain import best_fit_rows
from tests.data_pipeline.stream.shard_folder import EOS, PAD, InstructionRow, write_instruction_shards, write_shards

SMALLEST_SHARD = FILE_OVERHEAD_BYTES + BATCH_OVERHEAD_BYTES

# Of each turn: ids of the question, ids of the answer without EOS.
turn_lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=3)
parts_of_turns = st.lists(st.lists(turn_lengths, max_size=8), min_size=1, max_size=4).filter(any)


def numbered(parts: list[list[list[tuple[int, int]]]]) -> list[list[InstructionRow]]:
    """Rows of those turns; all ids but EOS are different, so that an id tells its place."""
    ids = iter(range(10, 60_000))

    def row(turns: list[tuple[int, int]]) -> InstructionRow:
        found: list[int] = []
        spans = []
        for question, answer in turns:
            found += [next(ids) for _ in range(question)]
            spans.append((len(found), len(found) + answer + 1))
            found += [*(next(ids) for _ in range(answer)), EOS]
        return found, spans

    return [[row(turns) for turns in part] for part in parts]


def pairs_and_targets(row: InstructionRow) -> list[tuple[int, int, bool]]:
    """(input, next id, whether that is a target) of a row, in plain Python."""
    ids, spans = row
    return [
        (ids[place], ids[place + 1], any(start <= place + 1 < end for start, end in spans))
        for place in range(len(ids) - 1)
    ]


def target_pairs(row: InstructionRow) -> Counter[tuple[int, int]]:
    return Counter((given, label) for given, label, is_target in pairs_and_targets(row) if is_target)


def open_numbered(
    folder: Path,
    parts: list[list[list[tuple[int, int]]]],
    seq_len: int,
    *,
    extra: int = 10**6,
    too_long: TooLong = "drop",
) -> Rows:
    shards = write_instruction_shards(
        folder / "s", numbered(parts), vocab_size=60_000, max_shard_bytes=SMALLEST_SHARD + extra
    )
    return open_rows(shards, split="train", seq_len=seq_len, packing="best_fit", too_long=too_long)


def everything(rows: Rows) -> Batch:
    return rows.gather(np.arange(rows.num_rows))


def plain_batch(rows: list[InstructionRow], seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, labels and positions of all packed rows, the slow and obvious way."""
    kept = [row for row in rows if len(row[0]) - 1 <= seq_len]
    inputs, labels, positions = [], [], []
    for packed in best_fit_rows([len(ids) - 1 for ids, _ in kept], seq_len):
        row_inputs, row_labels, row_positions = [], [], []
        for number, first, length in packed:
            assert (first, length) == (0, len(kept[number][0]) - 1)
            for place, (given_id, label, is_target) in enumerate(pairs_and_targets(kept[number])):
                row_inputs.append(given_id)
                row_labels.append(label if is_target else NO_TARGET)
                row_positions.append(place)
        rest = seq_len - len(row_inputs)
        inputs.append(row_inputs + [PAD] * rest)
        labels.append(row_labels + [NO_TARGET] * rest)
        positions.append(row_positions + list(range(rest)))
    return np.array(inputs), np.array(labels), np.array(positions)


@settings(max_examples=40)
@given(parts=parts_of_turns, seq_len=st.integers(57, 90), extra=st.integers(200, 800))
def test_masks_equal_a_slow_reference(parts: list[list[list[tuple[int, int]]]], seq_len: int, extra: int) -> None:
    rows = [row for part in numbered(parts) for row in part]
    expected = plain_batch(rows, seq_len)
    with tempfile.TemporaryDirectory() as folder:
        found = everything(open_numbered(Path(folder), parts, seq_len, extra=extra))

    assert np.array_equal(found.input_ids, expected[0])
    assert np.array_equal(found.labels, expected[1])
    assert np.array_equal(found.position_ids, expected[2])
    assert found.num_targets == int((expected[1] != NO_TARGET).sum())


@settings(max_examples=40)
@given(parts=parts_of_turns, seq_len=st.integers(10, 60), extra=st.integers(200, 800))
@example(parts=[[[(3, 2)], [(9, 9), (9, 9)]]], seq_len=10, extra=200)
def test_law_3_packing_loses_no_target_of_a_row_that_fits_and_never_cuts_one(
    parts: list[list[list[tuple[int, int]]]], seq_len: int, extra: int
) -> None:
    rows = [row for part in numbered(parts) for row in part]
    fitting = [row for row in rows if len(row[0]) - 1 <= seq_len]
    with tempfile.TemporaryDirectory() as folder:
        if not fitting:
            with pytest.raises(StageError, match="longer than seq_len"):
                open_numbered(Path(folder), parts, seq_len)
            return
        opened = open_numbered(Path(folder), parts, seq_len, extra=extra)
        batch, counts = everything(opened), opened.counts

    shown = Counter(
        (int(given_id), int(label))
        for given_id, label in zip(batch.input_ids.ravel(), batch.labels.ravel(), strict=True)
        if label != NO_TARGET
    )
    assert shown == sum((target_pairs(row) for row in fitting), Counter())
    assert batch.num_targets == sum(end - start for _, spans in fitting for start, end in spans)
    assert counts.num_documents_too_long == len(rows) - len(fitting)
    assert counts.num_documents_cut == 0
    assert opened.shards.num_targets == sum(end - start for _, spans in rows for start, end in spans)
    assert counts.num_pairs == sum(len(ids) - 1 for ids, _ in fitting)
    assert counts.num_padding == counts.num_rows * seq_len - counts.num_pairs
    for inputs, positions in zip(batch.input_ids.tolist(), batch.position_ids.tolist(), strict=True):
        starts = [place for place, position in enumerate(positions) if position == 0]
        segments = [inputs[first:end] for first, end in pairwise([*starts, seq_len])]
        whole = [list(ids[:-1]) for ids, _ in fitting]
        assert all(segment in whole or set(segment) == {PAD} for segment in segments)


def test_a_row_longer_than_seq_len_is_refused_unless_told_to_drop_it(tmp_path: Path) -> None:
    parts = [[[(3, 4)], [(9, 9), (9, 9)]], [[(5, 5)]]]
    with pytest.raises(
        StageError,
        match=r"1 of 3 instruction rows of 'train' are longer than seq_len 12 \(the longest 37\), and none is ever "
        r"cut; raise seq_len, or leave them out with data.too_long=drop",
    ):
        open_numbered(tmp_path, parts, 12, too_long="refuse")
    assert not (tmp_path / "s" / "rows").exists()

    dropped = open_rows(tmp_path / "s", split="train", seq_len=12, packing="best_fit", too_long="drop")
    whole = open_rows(tmp_path / "s", split="train", seq_len=37, packing="best_fit")

    assert (dropped.counts.num_documents_too_long, whole.counts.num_documents_too_long) == (1, 0)


def test_a_row_that_just_fits_is_kept(tmp_path: Path) -> None:
    rows = open_numbered(tmp_path, [[[(3, 4)]]], 7, too_long="refuse")

    assert everything(rows).labels.tolist() == [[NO_TARGET, NO_TARGET, 13, 14, 15, 16, EOS]]
    with pytest.raises(StageError, match="longer than seq_len 6"):
        open_rows(rows.shards.folder, split="train", seq_len=6, packing="best_fit")


def test_nothing_left_after_dropping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="all 2 instruction rows of split 'train' are longer than seq_len 3, so none"):
        open_numbered(tmp_path, [[[(3, 4)], [(9, 9)]]], 3, too_long="drop")


def test_the_identity_includes_what_becomes_of_long_rows_and_documents_keep_theirs(tmp_path: Path) -> None:
    rows = open_numbered(tmp_path / "i", [[[(3, 4)]]], 16)
    documents = read_shards(write_shards(tmp_path / "d", [[[5, 6]]]), split="train")

    def identity(too_long: TooLong) -> str:
        return rows_identity(rows.shards, packing="best_fit", seq_len=16, too_long=too_long)

    assert identity("drop") == rows.identity != identity("refuse")
    both = {rows_identity(documents, packing="best_fit", seq_len=16, too_long=name) for name in ("drop", "refuse")}
    assert len(both) == 1


def test_concatenated_instruction_rows_are_refused(tmp_path: Path) -> None:
    shards = write_instruction_shards(tmp_path / "s", numbered([[[(3, 4)]]]))

    with pytest.raises(StageError, match="holds instruction rows, but packing is 'concatenated', which would cut them"):
        open_rows(shards, split="train", seq_len=16, packing="concatenated")


@pytest.mark.parametrize("max_open_shards", [1, 2])
def test_few_open_shards_and_many_record_batches_give_the_same_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_open_shards: int
) -> None:
    parts = [[[(2, 3)], [(4, 1)], [(3, 3), (2, 2)]], [[(5, 5)]], [[(1, 1)], [(1, 6)]], [[(7, 0)]]]
    expected = everything(open_numbered(tmp_path / "one", parts, 16))
    monkeypatch.setattr(writer_module, "RECORDS_PER_BATCH", 2)
    rows = open_numbered(tmp_path / "many", parts, 16)
    rows._maps.max_open_shards = max_open_shards

    labels = np.concatenate([rows.gather(np.array([row])).labels for row in range(rows.num_rows)])

    assert np.array_equal(labels, expected.labels)
    assert np.array_equal(everything(rows).labels, expected.labels)


def test_ranks_share_the_targets_of_a_step(tmp_path: Path) -> None:
    rows = open_numbered(tmp_path, [[[(2, number)] for number in range(9)]], 12)
    stream = Stream(rows, seed=3, global_batch_sequences=rows.num_rows)

    for dp_world_size in (1, 2, 3):
        batches = [
            batch
            for rank in range(dp_world_size)
            for batch in stream.batches(dp_rank=rank, dp_world_size=dp_world_size, micro_batch_sequences=2)
        ]
        assert sum(batch.num_targets for batch in batches) == sum(number + 1 for number in range(9))
        assert sum(int((batch.labels != NO_TARGET).sum()) for batch in batches) == 45


@pytest.mark.parametrize(
    ("column", "value"), [("offsets", 10**9), ("offsets", -3), ("starts", 0), ("ends", 10**6), ("ends", -1)]
)
def test_damaged_spans_never_lead_outside_a_shard(tmp_path: Path, column: str, value: int) -> None:
    rows = open_numbered(tmp_path, [[[(2, 3), (4, 1)], [(3, 3)]]], 32)
    path = rows.shards.files[0].path
    batch = open_shard(rows.shards.files[0])[0]
    arrays = dict(zip(("offsets", "starts", "ends"), loss_spans(batch), strict=True))
    data = bytearray(path.read_bytes())
    place = data.index(arrays[column].tobytes()) + 4
    data[place : place + 4] = value.to_bytes(4, "little", signed=True)
    del batch, arrays
    path.write_bytes(data)

    with pytest.raises(StageError, match=r"contradict manifest.json; `dure shards verify` names the file"):
        everything(rows)


def test_rows_are_read_back_with_their_spans(tmp_path: Path) -> None:
    parts = numbered([[[(2, 3), (4, 1)]], [[(3, 3)], [(1, 0)]]])
    shards = read_shards(write_instruction_shards(tmp_path / "s", parts), split="train")

    found = list(iterate_instructions(shards))

    assert [(row.ids.tolist(), list(row.spans)) for row in found] == [row for part in parts for row in part]
    assert [row.record_id for row in found] == ["0-0", "1-0", "1-1"]
    documents = read_shards(write_shards(tmp_path / "d", [[[5, 6]]]), split="train")
    with pytest.raises(StageError, match="holds document records, but instruction rows are needed"):
        list(iterate_instructions(documents))


def heldout_set(
    folder: Path, parts: list[list[list[tuple[int, int]]]], seq_len: int, **arguments: int
) -> EvaluationSet:
    shards = write_instruction_shards(folder / "s", numbered(parts), split="heldout", vocab_size=60_000)
    return EvaluationSet(shards, "heldout", seq_len, **arguments)


@settings(max_examples=25)
@given(parts=parts_of_turns, seq_len=st.integers(10, 60), dp_world_size=st.integers(1, 3))
def test_evaluation_scores_each_target_of_a_row_that_fits_once(
    parts: list[list[list[tuple[int, int]]]], seq_len: int, dp_world_size: int
) -> None:
    rows = [row for part in numbered(parts) for row in part]
    fitting = [row for row in rows if len(row[0]) - 1 <= seq_len]
    with tempfile.TemporaryDirectory() as folder:
        if not fitting:
            with pytest.raises(StageError, match=rf"all {len(rows)} instruction rows of split 'heldout' chosen for"):
                heldout_set(Path(folder), parts, seq_len)
            return
        found = heldout_set(Path(folder), parts, seq_len)
        batches = [
            batch
            for rank in range(dp_world_size)
            for batch in found.batches(dp_rank=rank, dp_world_size=dp_world_size, micro_batch_sequences=2)
        ]

    shown = Counter(
        (int(given_id), int(label))
        for batch in batches
        for given_id, label in zip(batch.input_ids.ravel(), batch.labels.ravel(), strict=True)
        if label != NO_TARGET
    )
    num_targets = sum(end - start for _, spans in fitting for start, end in spans)
    assert shown == sum((target_pairs(row) for row in fitting), Counter())
    assert found.num_targets == num_targets == sum(batch.num_targets for batch in batches)
    assert (found.num_documents, found.num_documents_too_long) == (len(fitting), len(rows) - len(fitting))
    assert found.num_bytes == 3 * num_targets
    assert found.record == "instruction"


def test_a_chosen_part_of_the_rows_is_counted_as_it_is_scored(tmp_path: Path) -> None:
    found = heldout_set(tmp_path, [[[(2, number % 5)] for number in range(40)]], 5, max_documents=10)

    batches = list(found.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=4))
    assert found.num_documents + found.num_documents_too_long == 10
    assert found.num_documents_too_long > 0
    assert sum(batch.num_targets for batch in batches) == found.num_targets


def test_documents_are_what_they_were(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [[[5, 6, 7], [8]]])
    rows = open_rows(shards, split="train", seq_len=2, packing="best_fit", too_long="drop")

    assert rows.counts.num_documents_too_long == 0
    assert everything(rows).num_targets == rows.shards.num_targets == 4
    assert dataclasses.asdict(rows.counts)["num_documents_cut"] == 1
    assert EvaluationSet(write_shards(tmp_path / "h", [[[5]]], split="heldout"), "heldout", 4).record == "document"


def test_ids_behind_and_between_spans_are_no_targets(tmp_path: Path) -> None:
    row: InstructionRow = ([10, 11, 12, EOS, 13, 14, EOS, 15, 16], [(2, 4), (6, 7)])
    shards = write_instruction_shards(tmp_path / "s", [[row, ([20, 21], [])]])

    batch = everything(open_rows(shards, split="train", seq_len=10, packing="best_fit"))

    hidden = NO_TARGET
    assert batch.labels.tolist() == [[hidden, 12, EOS, hidden, hidden, EOS, hidden, hidden, hidden, hidden]]
    assert batch.num_targets == 3
