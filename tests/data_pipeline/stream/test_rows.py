"""Law 3 on shards: every (input, label) pair of every document stands in exactly one row; positions restart."""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.shards.writer import BATCH_OVERHEAD_BYTES, FILE_OVERHEAD_BYTES
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import NO_TARGET, Batch, RowBuffers
from data_pipeline.stream.packing import Packing
from data_pipeline.stream.rows import Rows, open_rows
from tests.data_pipeline.stream.plain import concatenated_rows, pairs_of, scored_pairs, segments_of
from tests.data_pipeline.stream.shard_folder import PAD, write_shards

PACKINGS: tuple[Packing, ...] = ("concatenated", "best_fit")
SMALLEST_SHARD = FILE_OVERHEAD_BYTES + BATCH_OVERHEAD_BYTES


def numbered(parts: list[list[int]]) -> list[list[list[int]]]:
    """Documents of those lengths whose ids are all different, so that a pair tells its place."""
    ids = iter(range(10, 100_000))
    return [[[next(ids) for _ in range(length)] for length in part] for part in parts]


def everything(rows: Rows) -> Batch:
    return rows.gather(np.arange(rows.num_rows))


def open_numbered(folder: Path, parts: list[list[int]], packing: Packing, seq_len: int, *, extra: int = 10**6) -> Rows:
    """Rows over numbered documents in shards of at most `extra` bytes of data each."""
    shards = write_shards(folder / "s", numbered(parts), vocab_size=60_000, max_shard_bytes=SMALLEST_SHARD + extra)
    return open_rows(shards, split="train", seq_len=seq_len, packing=packing)


parts_of_lengths = st.lists(st.lists(st.integers(0, 25), max_size=12), min_size=1, max_size=4).filter(
    lambda parts: any(length for part in parts for length in part)
)


@settings(max_examples=60, deadline=None)
@given(
    parts=parts_of_lengths, packing=st.sampled_from(PACKINGS), seq_len=st.integers(1, 40), extra=st.integers(150, 600)
)
def test_law_3_every_pair_stands_in_exactly_one_row(
    parts: list[list[int]], packing: Packing, seq_len: int, extra: int
) -> None:
    documents = [document for part in numbered(parts) for document in part]
    with tempfile.TemporaryDirectory() as folder:
        rows = open_numbered(Path(folder), parts, packing, seq_len, extra=extra)
        batch = everything(rows)

    assert scored_pairs(batch) == Counter(pair for document in documents for pair in pairs_of(document))
    assert batch.num_targets == rows.counts.num_pairs == sum(len(document) for document in documents)


@settings(max_examples=40, deadline=None)
@given(parts=parts_of_lengths, packing=st.sampled_from(PACKINGS), seq_len=st.integers(1, 40))
def test_law_4_positions_restart_with_each_document_and_no_segment_crosses_one(
    parts: list[list[int]], packing: Packing, seq_len: int
) -> None:
    owner = {id_: number for number, ids in enumerate(d for part in numbered(parts) for d in part) for id_ in ids}
    with tempfile.TemporaryDirectory() as folder:
        batch = everything(open_numbered(Path(folder), parts, packing, seq_len))

    for positions in batch.position_ids.tolist():
        assert positions[0] == 0
        assert all(b in (0, a + 1) for a, b in pairwise(positions))
    for inputs, _ in (segment for row in segments_of(batch) for segment in row):
        assert len({owner[id_] for id_ in inputs}) == 1
        assert inputs == list(range(inputs[0], inputs[0] + len(inputs)))
    padding = batch.labels == NO_TARGET
    assert (batch.input_ids[padding] == PAD).all()


@settings(max_examples=40, deadline=None)
@given(parts=parts_of_lengths, seq_len=st.integers(1, 40), extra=st.integers(150, 600))
def test_concatenated_rows_equal_the_plain_ones(parts: list[list[int]], seq_len: int, extra: int) -> None:
    expected = concatenated_rows([document for part in numbered(parts) for document in part], seq_len)
    with tempfile.TemporaryDirectory() as folder:
        rows = open_numbered(Path(folder), parts, "concatenated", seq_len, extra=extra)
        found = segments_of(everything(rows))

    assert [[list(zip(*segment, strict=True)) for segment in row] for row in found] == expected


@settings(max_examples=40, deadline=None)
@given(parts=parts_of_lengths, packing=st.sampled_from(PACKINGS), seq_len=st.integers(1, 40))
def test_law_3_counts_equal_what_the_rows_show(parts: list[list[int]], packing: Packing, seq_len: int) -> None:
    documents = [document for part in numbered(parts) for document in part]
    first_ids = {document[0] for document in documents if document}
    with tempfile.TemporaryDirectory() as folder:
        rows = open_numbered(Path(folder), parts, packing, seq_len)
        batch = everything(rows)

    segments = [inputs for row in segments_of(batch) for inputs, _ in row]
    owner = {id_: number for number, ids in enumerate(documents) for id_ in ids}
    pieces = Counter(owner[inputs[0]] for inputs in segments)
    assert rows.counts.num_rows == rows.num_rows == len(batch.row_ids)
    assert rows.counts.num_documents == len(documents)
    assert rows.counts.num_documents_cut == sum(count > 1 for count in pieces.values())
    assert rows.counts.num_documents_without_pair == len(documents) - len(first_ids)
    assert rows.counts.num_padding == int((batch.labels == NO_TARGET).sum())


def test_law_3_best_fit_cuts_only_documents_longer_than_seq_len(tmp_path: Path) -> None:
    rows = open_numbered(tmp_path, [[3, 9, 8, 17], [8, 1, 7]], "best_fit", 8)

    assert rows.counts.num_documents_cut == 2
    lengths = Counter(len(inputs) for row in segments_of(everything(rows)) for inputs, _ in row)
    assert lengths == Counter({8: 5, 1: 3, 3: 1, 7: 1})


def test_windows_of_best_fit_reach_over_batches_and_shards(tmp_path: Path) -> None:
    many = open_numbered(tmp_path / "many", [[5], [3], [5], [3]], "best_fit", 8)
    one = open_numbered(tmp_path / "one", [[5, 3, 5, 3]], "best_fit", 8)

    assert many.num_rows == one.num_rows == 2
    assert np.array_equal(everything(many).input_ids, everything(one).input_ids)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_large_vocabularies_keep_their_ids(tmp_path: Path, packing: Packing, vocab_size: int, dtype: str) -> None:
    top = vocab_size - 1
    shards = write_shards(tmp_path / "s", [[[top, top - 1, 5]]], vocab_size=vocab_size)

    rows = open_rows(shards, split="train", seq_len=4, packing=packing)

    assert rows.shards.dtype == dtype
    assert everything(rows).input_ids.tolist() == [[top, top - 1, 5, PAD]]
    assert everything(rows).labels.tolist() == [[top - 1, 5, 0, NO_TARGET]]


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_document_shorter_than_a_row_is_one_padded_row(tmp_path: Path, packing: Packing) -> None:
    shards = write_shards(tmp_path / "s", [[[7, 8]]])

    batch = everything(open_rows(shards, split="train", seq_len=5, packing=packing))

    assert batch.input_ids.tolist() == [[7, 8, PAD, PAD, PAD]]
    assert batch.labels.tolist() == [[8, 0, NO_TARGET, NO_TARGET, NO_TARGET]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2]]
    assert batch.num_targets == 2


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_go_into_the_buffers_that_are_given(tmp_path: Path, packing: Packing) -> None:
    rows = open_numbered(tmp_path, [[5, 6, 7]], packing, 4)
    out = RowBuffers.empty(3, 4)

    batch = rows.gather(np.array([2, 0]), out=out)

    assert np.shares_memory(batch.input_ids, out.input_ids)
    assert np.array_equal(batch.input_ids, everything(rows).input_ids[[2, 0]])
    assert batch.row_ids.tolist() == [2, 0]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_that_does_not_exist_is_refused(tmp_path: Path, packing: Packing, row: int) -> None:
    rows = open_numbered(tmp_path, [[5, 6, 7]], packing, 4)
    assert rows.num_rows == 5

    with pytest.raises(IndexError, match="row number out of range"):
        rows.gather(np.array([0, row]))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("max_open_shards", [1, 2, 3])
def test_few_open_shards_give_the_same_rows(tmp_path: Path, packing: Packing, max_open_shards: int) -> None:
    rows = open_numbered(tmp_path, [[5, 2], [9], [3, 3], [1], [12]], packing, 4)
    expected = everything(rows)
    bounded = open_rows(rows.shards.folder, split="train", seq_len=4, packing=packing)
    bounded._maps.max_open_shards = max_open_shards

    found = np.concatenate([bounded.gather(np.array([row])).input_ids for row in range(rows.num_rows)])

    assert np.array_equal(found, expected.input_ids)
    assert bounded._maps.num_open_shards <= max(
        max_open_shards, 3
    )  # one concatenated row of these lies in three shards
    assert np.array_equal(everything(bounded).labels, expected.labels)


def test_shards_are_opened_when_a_row_needs_them(tmp_path: Path) -> None:
    rows = open_numbered(tmp_path, [[4], [4], [4]], "concatenated", 4)
    assert rows._maps.num_open_shards == 0

    rows.gather(np.array([1]))

    assert rows._maps.num_open_shards == 1


@pytest.mark.parametrize("packing", PACKINGS)
def test_identity_tells_apart_what_gives_other_rows(tmp_path: Path, packing: Packing) -> None:
    one = write_shards(tmp_path / "one", [[[5, 6, 7]]])
    same = write_shards(tmp_path / "same", [[[5, 6, 7]]])
    other = write_shards(tmp_path / "other", [[[5, 6, 8]]])

    def identity(shards: Path, seq_len: int, packing: Packing) -> str:
        return open_rows(shards, split="train", seq_len=seq_len, packing=packing).identity

    assert identity(one, 4, packing) == identity(same, 4, packing)
    distinct = {identity(one, 4, packing), identity(one, 5, packing), identity(other, 4, packing)}
    assert len(distinct | {identity(one, 4, name) for name in PACKINGS}) == 4


def test_documents_without_a_target_are_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [[[], []]])

    with pytest.raises(StageError, match=r"the 2 documents of split 'train' hold no token beside their EOS"):
        open_rows(shards, split="train", seq_len=4, packing="concatenated")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [[[5]]])

    with pytest.raises(StageError, match=r"split 'heldout' holds 0 documents; raise heldout_fraction"):
        open_rows(shards, split="heldout", seq_len=4, packing="concatenated")


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [[[5]]])

    with pytest.raises(StageError, match=r"split 'test' does not exist; the splits are train, heldout"):
        open_rows(shards, split="test", seq_len=4, packing="concatenated")


def offset_place(path: Path, number: int) -> int:
    """Where in the file the offset of document `number` of the first record batch stands."""
    data = path.read_bytes()
    with pa.memory_map(str(path)) as source:
        offsets = pa.ipc.open_file(source).get_batch(0).column("input_ids").offsets.to_numpy()
    return data.index(offsets.tobytes()) + 8 * number


@pytest.mark.parametrize(("number", "value"), [(3, -(10**9)), (3, -(10**18)), (4, 10**9), (4, 10**18), (4, 5)])
def test_damaged_offsets_never_lead_outside_a_shard(tmp_path: Path, number: int, value: int) -> None:
    rows = open_numbered(tmp_path, [[5, 6, 7, 9], [3]], "concatenated", 4)
    path = rows.shards.files[0].path
    data = bytearray(path.read_bytes())
    place = offset_place(path, number)
    data[place : place + 8] = value.to_bytes(8, "little", signed=True)
    path.write_bytes(data)

    with pytest.raises(StageError, match=r"contradict manifest.json; `dure shards verify` names the file"):
        everything(rows)


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    rows = open_numbered(tmp_path, [[5, 6]], "concatenated", 4)
    path = rows.shards.files[0].path
    path.write_bytes(path.read_bytes()[:-8])

    with pytest.raises(StageError, match=r"part-00000-0000.arrow: [\d,]+ bytes, manifest.json says [\d,]+; restore"):
        everything(rows)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    rows = open_numbered(tmp_path, [[5, 6]], "concatenated", 4)
    rows.shards.files[0].path.unlink()

    with pytest.raises(StageError, match=r"part-00000-0000.arrow: cannot be read: .*No such file"):
        everything(rows)


def test_a_shard_of_other_documents_is_refused(tmp_path: Path) -> None:
    rows = open_numbered(tmp_path / "one", [[5, 6]], "concatenated", 4)
    other = open_numbered(tmp_path / "two", [[6, 5, 0]], "concatenated", 4)
    data = other.shards.files[0].path.read_bytes()
    rows.shards.files[0].path.write_bytes(data)
    object.__setattr__(rows.shards.files[0], "num_bytes", len(data))

    with pytest.raises(
        StageError, match=r"record batches hold \(3,\) documents and \(14,\) tokens, manifest.json says"
    ):
        everything(rows)
