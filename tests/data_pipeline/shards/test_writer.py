"""Shards hold what was added, in order, in bounded files whose borders do not depend on how it came."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.shards import writer as writer_module
from data_pipeline.shards.format import token_dtype
from data_pipeline.shards.writer import BATCH_OVERHEAD_BYTES, FILE_OVERHEAD_BYTES, Documents, ShardWriter
from data_pipeline.stage import StageError

OVERHEAD = FILE_OVERHEAD_BYTES + BATCH_OVERHEAD_BYTES


def documents(lengths: list[int], *, first: int = 0, vocab_size: int = 1000) -> Documents:
    """Documents of those lengths, EOS included, numbered from `first`."""
    ids = [np.array([*([5 + (first + number) % 900] * (length - 1)), 0]) for number, length in enumerate(lengths)]
    return Documents(
        ids=np.concatenate([np.empty(0, np.int64), *ids]).astype(token_dtype(vocab_size)),
        lengths=np.array(lengths, np.int64),
        record_ids=[f"문서-{first + number}" for number in range(len(lengths))],
        num_bytes=np.array(lengths, np.int64) * 3,
        sources=["원천"] * len(lengths),
    )


def write(folder: Path, chunks: list[Documents], *, max_shard_bytes: int = 10**8) -> ShardWriter:
    (folder / "train").mkdir(parents=True)
    found = ShardWriter(folder, "train/p", split="train", dtype=np.dtype(np.uint16), max_shard_bytes=max_shard_bytes)
    for chunk in chunks:
        found.add(chunk)
    found.close()
    return found


def read(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def chunked(lengths: list[int], sizes: list[int]) -> list[Documents]:
    chunks, first = [], 0
    for size in [*sizes, len(lengths)]:
        chunks.append(documents(lengths[first : first + size], first=first))
        first += size
    return chunks


def test_a_shard_is_an_uncompressed_arrow_file_that_datasets_would_read(tmp_path: Path) -> None:
    (entry,) = write(tmp_path, [documents([3, 1, 2])]).files

    table = read(tmp_path / entry["name"])

    assert table.schema.field("input_ids").type == pa.large_list(pa.field("item", pa.uint16(), nullable=False))
    assert table.to_pydict() == {
        "input_ids": [[5, 5, 0], [0], [7, 0]],
        "record_id": ["문서-0", "문서-1", "문서-2"],
        "num_bytes": [9, 3, 6],
        "source": ["원천"] * 3,
    }
    # Uncompressed: the ids lie in the file as they are.
    assert np.array([5, 5, 0, 0, 7, 0], np.uint16).tobytes() in (tmp_path / entry["name"]).read_bytes()


@settings(max_examples=40, deadline=None)
@example(lengths=[200] * 30, sizes=[13, 11], extra=2000)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    sizes=st.lists(st.integers(0, 15), max_size=5),
    extra=st.integers(800, 3000),
)
def test_borders_of_shards_do_not_depend_on_chunks(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], sizes: list[int], extra: int
) -> None:
    folder = tmp_path_factory.mktemp("w")

    one = write(folder / "one", [documents(lengths)], max_shard_bytes=OVERHEAD + extra)
    many = write(folder / "many", chunked(lengths, sizes), max_shard_bytes=OVERHEAD + extra)

    assert one.files == many.files
    assert all(entry["num_bytes"] <= OVERHEAD + extra for entry in one.files)
    ids = [row for entry in one.files for row in read(folder / "one" / entry["name"])["input_ids"].to_pylist()]
    assert [len(row) for row in ids] == lengths
    assert [sum(entry[key] for entry in one.files) for key in ("num_documents", "num_tokens")] == [
        len(lengths),
        sum(lengths),
    ]


def test_a_record_batch_holds_so_many_records_and_the_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "RECORDS_PER_BATCH", 4)

    (entry,) = write(tmp_path, chunked([2] * 10, [3, 3])).files

    with pa.memory_map(str(tmp_path / entry["name"])) as source:
        reader = pa.ipc.open_file(source)
        assert [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)] == [4, 4, 2]
    assert entry["batch_documents"] == [4, 4, 2]
    assert entry["batch_tokens"] == [8, 8, 4]


def test_many_record_batches_stay_within_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "RECORDS_PER_BATCH", 2)

    files = write(tmp_path, [documents([1] * 300)], max_shard_bytes=60_000).files

    assert len(files) > 1
    assert all(entry["num_bytes"] <= 60_000 for entry in files)


def test_short_documents_whose_columns_outweigh_their_ids_stay_within_the_bound(tmp_path: Path) -> None:
    files = write(tmp_path, [documents([1] * 20_000)], max_shard_bytes=500_000).files

    assert len(files) > 1
    assert all(entry["num_bytes"] <= 500_000 for entry in files)


def test_a_document_larger_than_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"document '문서-1' has 9,000 tokens, more than a shard of max_shard_bytes="):
        write(tmp_path, [documents([5, 9000])], max_shard_bytes=OVERHEAD + 2000)


def test_no_documents_leave_no_file(tmp_path: Path) -> None:
    assert write(tmp_path, [documents([])]).files == []
    assert list((tmp_path / "train").iterdir()) == []
