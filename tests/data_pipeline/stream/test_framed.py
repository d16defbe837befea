"""Framed rows: every id once between CLS and SEP, whatever is packed, and the same rows for every rank."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.shards.format import read_shards
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import NO_ROW, NO_TARGET, Batch
from data_pipeline.stream.framed import FramedRows, FramedSet, open_framed_rows
from data_pipeline.stream.stream import Stream
from data_pipeline.stream.table import rows_identity
from tests.data_pipeline.stream.shard_folder import PAD, write_shards
from tests.data_pipeline.stream.small_tokenizer import CLS, FIRST_ORDINARY, ROLES, SEP, write_tokenizer

Piece = tuple[int, ...]


def documents_of(lengths: list[int]) -> list[list[int]]:
    generator = np.random.default_rng(sum(lengths))
    return [generator.integers(FIRST_ORDINARY, 1000, length).tolist() for length in lengths]


def pieces_of(document: list[int], seq_len: int) -> list[Piece]:
    room = seq_len - 2
    return [tuple(document[start : start + room]) for start in range(0, len(document), room)]


def pieces_in(batch: Batch) -> list[Piece]:
    """The texts of the pieces, each checked for its frame, its positions and its labels."""
    found = []
    for ids, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids, strict=True):
        starts = np.flatnonzero(positions == 0).tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            assert positions[start:end].tolist() == list(range(end - start))
            if ids[start] == PAD:
                assert end == len(ids) and set(ids[start:]) == {PAD} and set(labels[start:]) == {NO_TARGET}
                continue
            assert (ids[start], ids[end - 1]) == (CLS, SEP)
            assert (labels[start], labels[end - 1]) == (NO_TARGET, NO_TARGET)
            assert labels[start + 1 : end - 1].tolist() == ids[start + 1 : end - 1].tolist()
            found.append(tuple(ids[start + 1 : end - 1].tolist()))
    return found


def open_rows(folder: Path, *, seq_len: int = 16, build: bool = True) -> FramedRows:
    return open_framed_rows(folder, split="train", seq_len=seq_len, build=build)


def folder_of(folder: Path, documents: list[list[int]], *, split: str = "train") -> Path:
    middle = len(documents) // 2
    write_shards(folder, [documents[:middle], documents[middle:]], split=split, max_shard_bytes=16_384)
    return write_tokenizer(folder)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    seq_len=st.integers(8, 24),
)
def test_every_id_stands_in_one_row_between_cls_and_sep(lengths: list[int], seq_len: int) -> None:
    documents = documents_of(lengths)
    with TemporaryDirectory() as folder:
        rows = open_rows(folder_of(Path(folder) / "shards", documents), seq_len=seq_len)

        batch = rows.gather(np.arange(rows.num_rows))

    expected = Counter(piece for document in documents for piece in pieces_of(document, seq_len))
    assert Counter(pieces_in(batch)) == expected
    assert batch.num_targets == rows.counts.num_pairs == sum(lengths)
    assert rows.counts.num_documents_cut == sum(length > seq_len - 2 for length in lengths)
    assert rows.counts.num_documents_without_pair == lengths.count(0)
    assert rows.counts.num_padding == int((batch.input_ids == PAD).sum())


def test_rows_are_packed_full(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = open_rows(folder_of(tmp_path / "shards", documents_of(generator.integers(1, 20, 400).tolist())), seq_len=64)

    assert rows.counts.num_padding < 0.02 * rows.num_rows * rows.seq_len


def test_the_table_is_committed_once_and_found_again(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shards", documents_of([3, 9, 30]))
    with pytest.raises(StageError, match="train-framed-16: no row table of these shards for this packing and seq_len"):
        open_rows(folder, build=False)

    built = open_rows(folder)
    again = open_rows(folder, build=False)

    assert (folder / "rows/train-framed-16/manifest.json").is_file()
    assert built.identity == again.identity
    order = np.arange(built.num_rows)[::-1]
    assert np.array_equal(built.gather(order).input_ids, again.gather(order).input_ids)


def test_the_identity_tells_frames_lengths_and_packings_apart(tmp_path: Path) -> None:
    shards = read_shards(folder_of(tmp_path / "shards", documents_of([3, 9])), split="train")
    identities = [
        rows_identity(shards, packing="framed", seq_len=16, frame=(4, 3)),
        rows_identity(shards, packing="framed", seq_len=16, frame=(3, 4)),
        rows_identity(shards, packing="framed", seq_len=17, frame=(4, 3)),
        rows_identity(shards, packing="best_fit", seq_len=16),
    ]

    assert len(set(identities)) == len(identities)


def test_padding_is_what_pad_with_says(tmp_path: Path) -> None:
    rows = open_rows(folder_of(tmp_path / "shards", documents_of([3])))

    rows.pad_with(999)

    assert rows.gather(np.zeros(1, np.int64)).input_ids[0, 5:].tolist() == [999] * 11
    assert rows.padding().input_ids.tolist() == [[999] * 16] and rows.padding().num_targets == 0


@pytest.mark.parametrize("number", [-1, 2])
def test_a_row_that_there_is_not_is_refused(tmp_path: Path, number: int) -> None:
    rows = open_rows(folder_of(tmp_path / "shards", documents_of([14, 14])))

    with pytest.raises(IndexError, match="row number out of range"):
        rows.gather(np.array([number]))


def test_a_tokenizer_without_a_role_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [documents_of([3])])
    write_tokenizer(
        folder, roles={role: number for role, number in ROLES.items() if role in ("eos_token", "sep_token")}
    )

    with pytest.raises(StageError, match=r"names no cls_token, mask_token in its vocabulary, which a masked language"):
        open_rows(folder)


def test_documents_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the 3 documents of split 'train' hold no token beside their EOS"):
        open_rows(folder_of(tmp_path / "train", [[], [], []]))
    with pytest.raises(StageError, match="the 3 documents of split 'heldout' chosen for evaluation hold no token"):
        FramedSet(folder_of(tmp_path / "heldout", [[], [], []], split="heldout"), "heldout", 16)


def test_a_stream_tells_the_epoch_of_each_row(tmp_path: Path) -> None:
    rows = open_rows(folder_of(tmp_path / "shards", documents_of([14] * 5)))
    stream = Stream(rows, seed=0, global_batch_sequences=4)
    epochs = []
    for _ in range(3):
        (batch,) = stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=4)
        assert isinstance(batch, Batch) and batch.epochs is not None
        epochs += batch.epochs.tolist()
        stream.advance()

    assert epochs == [0] * 5 + [1] * 5 + [2] * 2


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_evaluation_shows_each_document_once_over_all_ranks(tmp_path: Path, ranks: int) -> None:
    documents = documents_of([30, 3, 0, 17, 5, 9])
    held = FramedSet(folder_of(tmp_path / "shards", documents, split="heldout"), "heldout", 16)

    batches = [list(held.batches(dp_rank=rank, dp_world_size=ranks, micro_batch_sequences=2)) for rank in range(ranks)]

    assert len({len(of_rank) for of_rank in batches}) == 1
    real = [batch for of_rank in batches for batch in of_rank if batch.row_ids[0] != NO_ROW]
    assert sorted(number for batch in real for number in batch.row_ids.tolist()) == list(range(held.num_rows))
    expected = Counter(piece for document in documents for piece in pieces_of(document, 16))
    assert Counter(piece for batch in real for piece in pieces_in(batch)) == expected
    assert all(batch.epochs is None for batch in real)
    assert (held.num_documents, held.num_bytes) == (6, 3 * 64)


def test_an_evaluation_takes_the_same_documents_each_time(tmp_path: Path) -> None:
    documents = documents_of(list(range(1, 14)))
    folder = folder_of(tmp_path / "shards", documents, split="heldout")

    def taken() -> set[Piece]:
        held = FramedSet(folder, "heldout", 16, max_documents=5)
        assert held.num_documents == 5
        batches = held.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=2)
        return {piece for batch in batches for piece in pieces_in(batch)}

    chosen = taken()
    assert taken() == chosen
    assert len(chosen) == 5 and chosen != {tuple(document) for document in documents[:5]}
    assert FramedSet(folder, "heldout", 16, max_documents=5).num_bytes == 3 * sum(map(len, chosen))
