"""Rows to predict: in the order of their file, none left out, and without what is to be predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.config import validate
from data_pipeline.corpus.records import RecordName
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.corpus.texts import RejectedRow, TextRow, read_texts
from data_pipeline.stage import StageError


def options(**keys: Any) -> InputConfig:
    return validate({"path": "unread", **keys}, InputConfig, where="test")


def found(path: Path, record: RecordName = "label", **keys: Any) -> list[TextRow | RejectedRow]:
    return list(read_texts(path, options(**keys), record))


def texts(path: Path, record: RecordName = "label", **keys: Any) -> list[tuple[str, ...]]:
    return [row.texts for row in found(path, record, **keys) if isinstance(row, TextRow)]


def write_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("header", ["document", "sentence", "text", "title", "document,label"])
def test_rows_are_read_with_and_without_their_label(tmp_path: Path, header: str) -> None:
    more = ",1" if "," in header else ""
    path = write_csv(tmp_path / "a.csv", header, f"좋다{more}", f"나쁘다{more}")

    assert texts(path) == [("좋다",), ("나쁘다",)]


@pytest.mark.parametrize(
    ("record", "header"),
    [
        ("label", "premise,hypothesis"),
        ("pair", "sentence1,sentence2"),
        ("pair", "query,positive"),
        ("label", "sentence1,sentence2"),
    ],
)
def test_two_texts_are_read_without_label_and_score(tmp_path: Path, record: RecordName, header: str) -> None:
    path = write_csv(tmp_path / "a.csv", header, "비,땅")

    assert texts(path, record) == [("비", "땅")]


def test_rows_keep_their_place_and_id_and_what_is_faulty_is_yielded_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"id": "가1", "text": "좋다"}', '{"text": ""}', "{", '{"text": "좋다", "label": [1]}', '{"other": 1}']
    path.write_text("\n".join(lines) + "\n")

    rows = found(path)

    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    assert [row.id if isinstance(row, TextRow) else row.reject.reason for row in rows] == [
        "a.jsonl#가1",
        "empty_text",
        "invalid_json",
        f"a.jsonl#{sum(len(line.encode()) + 1 for line in lines[:3])}",
        "missing_column",
    ]


def test_equal_rows_stay_and_the_first_row_may_be_faulty(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.tsv", "document\tlabel", "\t1", "좋다\t1", "좋다\t1", '끝"\t')

    rows = found(path)

    assert isinstance(rows[0], RejectedRow)
    assert texts(path) == [("좋다",), ("좋다",), ('끝"',)]


def test_columns_of_the_config_need_no_label(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", "본문,날짜", "좋다,월")
    columns = {"text_a": "본문", "label": "갈래"}

    assert texts(path, columns=columns) == [("좋다",)]
    [row] = found(path, columns=columns, metadata_columns=["날짜"])
    assert isinstance(row, TextRow)
    assert json.loads(row.metadata) == {"날짜": "월"}


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    items = [{"text": f"글 {number}"} for number in range(4)]
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(items))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    write_csv(tmp_path / "a.csv", "text", *(item["text"] for item in items))
    write_csv(tmp_path / "a.txt", "text\tn", *(f"{item['text']}\t1" for item in items))

    expected = [(item["text"],) for item in items]
    assert [texts(tmp_path / f"a.{kind}") for kind in ("parquet", "json", "jsonl", "csv")] == [expected] * 4
    assert texts(tmp_path / "a.txt", format="tsv") == expected


def test_a_triplet_gives_three_texts(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", "anchor,positive,negative", "가,나,다", "가,나,")

    assert texts(path, "pair") == [("가", "나", "다"), ("가", "나")]


def test_what_can_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("글")
    write_csv(tmp_path / "b.csv", "본문", "좋다")

    with pytest.raises(StageError, match=r"a\.txt: no file with rows; give \.csv, .* format: tsv"):
        found(tmp_path / "a.txt")
    with pytest.raises(StageError, match="does not exist"):
        found(tmp_path / "none.csv")
    with pytest.raises(StageError, match="no known form of text and label in the columns 본문"):
        found(tmp_path / "b.csv")
    with pytest.raises(StageError, match="record is 'document', but rows to predict are label or pair"):
        found(tmp_path / "b.csv", "document")
    with pytest.raises(StageError, match="columns names no text_a"):
        found(tmp_path / "b.csv", columns={"instruction": "본문", "output": "x"})
