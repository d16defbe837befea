"""Columns beside the ids: spans, ends and values of each row come back as they were added, alone and together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.shards import format as shards_format
from data_pipeline.shards.format import COLUMNS, ENDS, LOSS_SPANS
from data_pipeline.shards.writer import (
    BATCH_OVERHEAD_BYTES,
    FILE_OVERHEAD_BYTES,
    Documents,
    Ends,
    LossSpans,
    ShardWriter,
)

# A kind of record as a later one may be: rows of two sequences, of which each has its targets.
ALL_COLUMNS = (
    pa.field("loss_spans", LOSS_SPANS, nullable=False),
    pa.field("ends", ENDS, nullable=False),
    pa.field("value", pa.float64(), nullable=False),
)
LENGTHS = st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=3), min_size=1, max_size=25)


def rows(sequences: list[list[int]]) -> Documents:
    """Rows of sequences of those lengths; the targets of each are all ids but its first."""
    lengths = np.array([sum(each) for each in sequences], np.int64)
    ends = [np.cumsum(each) for each in sequences]
    counts = np.array([len(each) for each in sequences], np.int64)
    flat_ends = np.concatenate(ends).astype(np.int32)
    starts = np.concatenate([end - np.array(each) + 1 for end, each in zip(ends, sequences, strict=True)])
    return Documents(
        ids=np.arange(lengths.sum()).astype(np.uint16),
        lengths=lengths,
        record_ids=[f"행-{number}" for number in range(len(lengths))],
        num_bytes=lengths * 3,
        sources=["시험"] * len(lengths),
        loss_spans=LossSpans(counts, starts.astype(np.int32), flat_ends),
        ends=Ends(counts, flat_ends),
        values=np.where(np.arange(len(lengths)) % 2, np.nan, np.arange(len(lengths)) / 4),
    )


def write(folder: Path, chunks: list[Documents], *, max_shard_bytes: int) -> list[dict[str, Any]]:
    (folder / "train").mkdir(parents=True)
    writer = ShardWriter(
        folder, "train/p", split="train", dtype=np.dtype(np.uint16), max_shard_bytes=max_shard_bytes, record="pair"
    )
    for chunk in chunks:
        writer.add(chunk)
    writer.close()
    return writer.files


@settings(max_examples=25, deadline=None)
@given(sequences=LENGTHS, cuts=st.lists(st.integers(0, 25), max_size=3), extra=st.integers(600, 3000))
def test_spans_ends_and_values_stand_side_by_side_however_they_came(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[list[int]], cuts: list[int], extra: int
) -> None:
    folder, whole = tmp_path_factory.mktemp("w"), rows(sequences)
    borders = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    chunks = [whole.slice(start, stop) for start, stop in zip(borders[:-1], borders[1:], strict=True)]
    bound = FILE_OVERHEAD_BYTES + BATCH_OVERHEAD_BYTES + extra

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shards_format.COLUMNS, "pair", ALL_COLUMNS)
        files = write(folder, chunks, max_shard_bytes=bound)

    found = [row for file in files for row in read(folder / file["name"])]
    assert all(file["num_bytes"] <= bound for file in files)
    assert [row["ends"] for row in found] == [np.cumsum(each).tolist() for each in sequences]
    assert [[(span["start"], span["end"]) for span in row["loss_spans"]] for row in found] == [
        [(int(end) - length + 1, int(end)) for end, length in zip(np.cumsum(each), each, strict=True)]
        for each in sequences
    ]
    assert whole.values is not None
    np.testing.assert_array_equal([row["value"] for row in found], whole.values)


def read(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as source:
        found: list[dict[str, Any]] = pa.ipc.open_file(source).read_all().to_pylist()
        return found


def test_short_rows_whose_columns_outweigh_their_ids_stay_within_the_bound(tmp_path: Path) -> None:
    documents = dataclasses.replace(rows([[1, 1, 1]] * 12_000), loss_spans=None)

    files = write(tmp_path, [documents], max_shard_bytes=300_000)

    assert len(files) > 1
    assert all(file["num_bytes"] <= 300_000 for file in files)


@given(sequences=LENGTHS, seed=st.integers(0, 9))
def test_chosen_rows_keep_their_own_columns(sequences: list[list[int]], seed: int) -> None:
    chosen = np.random.default_rng(seed).random(len(sequences)) < 0.5

    found = rows(sequences).where(chosen)

    expected = [np.cumsum(each) for each, keep in zip(sequences, chosen, strict=True) if keep]
    assert found.ends is not None and found.loss_spans is not None and found.values is not None
    assert found.ends.counts.tolist() == found.loss_spans.counts.tolist() == [len(each) for each in expected]
    assert found.ends.ends.tolist() == [int(end) for each in expected for end in each]
    assert len(found.values) == len(found) == int(chosen.sum())


@pytest.mark.parametrize("record", COLUMNS)
def test_a_shard_has_the_columns_of_its_record_and_no_others(record: Any) -> None:
    names = shards_format.shard_schema(np.dtype(np.uint16), record=record).names

    assert names[:4] == ["input_ids", "record_id", "num_bytes", "source"]
    assert names[4:] == [field.name for field in COLUMNS[record]]


def test_a_value_that_is_not_a_number_is_no_null(tmp_path: Path) -> None:
    documents = dataclasses.replace(rows([[2, 2], [2, 3]]), loss_spans=None)

    write(tmp_path, [documents], max_shard_bytes=1 << 20)

    with pa.memory_map(str(tmp_path / "train/p-0000.arrow")) as source:
        column = pa.ipc.open_file(source).read_all()["value"]
    assert column.null_count == 0
    assert np.isnan(column.to_numpy()).tolist() == [False, True]
