"""Label and pair records: every way to spell a row gives the same cells, and a row without a use is named."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aihub_packages import build, rejects, rows, run, stage_of, tree, write_zip
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline import disk
from data_pipeline.config import ConfigError, validate
from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.corpus.examples import LABEL_FORMS, LABELS, PAIR_FORMS, PAIRS, Cell, to_example
from data_pipeline.corpus.inspect import inspect_path
from data_pipeline.corpus.records import SCHEMAS, Example, RecordName, Reject, iterate_documents, text_bytes
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.corpus.turns import FaultyRowError
from data_pipeline.stage import StageError

NLI = {"text_a": "비가 온다", "text_b": "땅이 젖는다", "label": "entailment"}
REVIEW = {"text_a": "정말 좋은 영화", "text_b": None, "label": "1"}
STS = {"text_a": "비가 온다", "text_b": "비가 내린다", "text_c": None, "score": 4.2}
TRIPLET = {"text_a": "강릉 날씨", "text_b": "강릉은 맑다", "text_c": "강릉은 도시다", "score": None}
PAIR = TRIPLET | {"text_c": None}


def jsonl(path: Path, *items: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    return path


def cells(output: Path, names: Any) -> list[dict[str, Any]]:
    return [{name: row[name] for name in names} for row in rows(output)]


def reasons(output: Path) -> list[str]:
    return [reject["reason"] for reject in rejects(output)]


@pytest.mark.parametrize(
    ("record", "row", "form", "expected"),
    [
        ("label", {"id": 3, "document": "정말 좋은 영화", "label": 1}, "nsmc", REVIEW),
        ("label", {"guid": "a", "title": "정말 좋은 영화", "label": 1.0}, "title", REVIEW),
        ("label", {"text": "정말 좋은 영화", "label": "1"}, "text", REVIEW),
        ("label", {"sentence": "정말 좋은 영화", "label": " 1  "}, "sentence", REVIEW),
        ("label", {"premise": "비가 온다", "hypothesis": "땅이 젖는다", "label": "entailment"}, "nli", NLI),
        ("label", {"premise": "비가 온다", "hypothesis": "땅이 젖는다", "gold_label": "entailment"}, "nli_gold", NLI),
        ("label", {"sentence1": "비가 온다", "sentence2": "땅이 젖는다", "label": "entailment"}, "sentence_pair", NLI),
        (
            "label",
            {"sentence1": "비가 온다", "sentence2": "땅이 젖는다", "gold_label": "entailment"},
            "sentence_pair_gold",
            NLI,
        ),
        ("pair", {"genre": "x", "score": "4.2", "sentence1": "비가 온다", "sentence2": "비가 내린다"}, "sts", STS),
        (
            "pair",
            {"sentence1": "비가 온다", "sentence2": "비가 내린다", "labels": {"label": 4, "real-label": 4.2}},
            "klue_sts",
            STS,
        ),
        ("pair", {"anchor": "강릉 날씨", "positive": "강릉은 맑다", "negative": "강릉은 도시다"}, "triplet", TRIPLET),
        ("pair", {"anchor": "강릉 날씨", "positive": "강릉은 맑다", "negative": None}, "triplet", PAIR),
        ("pair", {"anchor": "강릉 날씨", "positive": "강릉은 맑다"}, "anchor_positive", PAIR),
        (
            "pair",
            {"query": "강릉 날씨", "positive": "강릉은 맑다", "negative": "강릉은 도시다"},
            "query_triplet",
            TRIPLET,
        ),
        ("pair", {"query": "강릉 날씨", "positive": "강릉은 맑다"}, "query_positive", PAIR),
        ("pair", {"question": "강릉 날씨", "answer": "강릉은 맑다"}, "question_answer", PAIR),
    ],
)
def test_every_known_form_gives_the_same_cells(
    tmp_path: Path, record: RecordName, row: dict[str, Any], form: str, expected: dict[str, Any]
) -> None:
    manifest = build(tmp_path / "out", jsonl(tmp_path / "a.jsonl", row), record=record)

    assert cells(tmp_path / "out", expected) == [expected]
    assert manifest["forms"] == {form: 1}
    assert manifest["record"] == record


def test_every_form_of_the_tables_is_tested_above() -> None:
    tested = test_every_known_form_gives_the_same_cells.pytestmark[0].args[1]  # type: ignore[attr-defined]

    assert {form.name for form in (*LABEL_FORMS, *PAIR_FORMS)} == {case[2] for case in tested}


def test_every_cell_of_a_table_is_a_column_of_its_schema() -> None:
    for record, table in (("label", LABELS), ("pair", PAIRS)):
        row = {"text_a": "가", "text_b": "나", "text_c": "다", "label": "1", "score": 1}
        names = {name: name for name in row if name in SCHEMAS[record].names}  # type: ignore[index]
        found = table.to_record(row, options(columns=names), 0)

        assert isinstance(found, Example)
        assert ["id", *found.cells, "source", "metadata", "split_hint"] == SCHEMAS[record].names  # type: ignore[index]


def options(**keys: Any) -> InputConfig:
    return validate({"path": "x", **keys}, InputConfig, where="test")


@pytest.mark.parametrize(
    ("record", "columns", "row", "expected"),
    [
        ("label", {"text_a": "Q", "label": "label"}, {"Q": "배고파", "A": "드세요", "label": 0}, ("배고파", None, "0")),
        (
            "label",
            {"text_a": "a.t", "text_b": "b", "label": "c"},
            {"a": {"t": "ㄱ"}, "b": "ㄴ", "c": "x"},
            ("ㄱ", "ㄴ", "x"),
        ),
        (
            "pair",
            {"text_a": "premise", "text_b": "hypothesis"},
            {"premise": "ㄱ", "hypothesis": "ㄴ"},
            ("ㄱ", "ㄴ", None),
        ),
    ],
)
def test_columns_map_rows_of_other_names(
    tmp_path: Path, record: str, columns: dict[str, str], row: dict[str, Any], expected: tuple[str | None, ...]
) -> None:
    item = {"path": jsonl(tmp_path / "a.jsonl", row), "columns": columns}

    manifest = build(tmp_path / "out", item, record=record)

    names = ("text_a", "text_b", "label" if record == "label" else "score")
    assert [tuple(found.values()) for found in cells(tmp_path / "out", names)] == [expected]
    assert manifest["forms"] == {"columns": 1}


FAULTY = [
    ("label", {"document": None, "label": 1}, "empty_text", "'document': the text is empty"),
    ("label", {"document": " \n\t", "label": 1}, "empty_text", "'document': the text is empty"),
    ("label", {"document": 7, "label": 1}, "text_not_string", "'document' is a int, not a string"),
    ("label", {"document": "가", "label": None}, "missing_label", "'label': the row has no label"),
    ("label", {"document": "가", "label": "  "}, "missing_label", "'label': the row has no label"),
    ("label", {"document": "가", "label": math.nan}, "missing_label", "'label': the row has no label"),
    ("label", {"document": "가", "label": 0.5}, "bad_label", "0.5, which is no class; for a score give record: pair"),
    ("label", {"document": "가", "label": math.inf}, "bad_label", "'label' is inf"),
    ("label", {"document": "가", "label": ["x"]}, "bad_label", "'label' is a list, not a string or a whole number"),
    (
        "label",
        {"document": "가"},
        "missing_column",
        "the row has no known form of text and label; its keys are document",
    ),
    ("label", {"premise": "가", "hypothesis": "", "label": 1}, "empty_pair", "'hypothesis': one of the two texts is"),
    ("label", {"premise": None, "hypothesis": "가", "label": 1}, "empty_pair", "'premise': one of the two texts is"),
    ("pair", {"sentence1": "가", "sentence2": " ", "score": 1}, "empty_pair", "'sentence2': one of the two texts is"),
    ("pair", {"sentence1": "가", "sentence2": "나", "score": None}, "missing_score", "'score': the row has no score"),
    ("pair", {"sentence1": "가", "sentence2": "나", "score": ""}, "missing_score", "'score': the row has no score"),
    ("pair", {"sentence1": "가", "sentence2": "나", "score": "높음"}, "bad_score", "'높음', not a finite number"),
    ("pair", {"sentence1": "가", "sentence2": "나", "score": "nan"}, "bad_score", "'nan', not a finite number"),
    ("pair", {"sentence1": "가", "sentence2": "나", "score": math.inf}, "bad_score", "inf, not a finite number"),
    ("pair", {"sentence1": "가", "sentence2": "나", "score": True}, "bad_score", "True, not a finite number"),
    ("pair", {"sentence1": "가", "sentence2": "나", "score": [1]}, "bad_score", "[1], not a finite number"),
    ("pair", {"question": "가", "answer": 3}, "text_not_string", "'answer' is a int, not a string"),
]


@pytest.mark.parametrize(("record", "row", "reason", "says"), FAULTY)
def test_a_row_without_a_use_is_counted_and_named(
    tmp_path: Path, record: str, row: dict[str, Any], reason: str, says: str
) -> None:
    good = {"document": "좋다", "label": 1} if record == "label" else {"question": "가", "answer": "나"}
    path = jsonl(tmp_path / "a.jsonl", good, row)

    manifest = build(tmp_path / "out", path, record=record)

    assert manifest["accounting"]["records"] == {"dropped": 0, "found": 2, "kept": 1, "rejected": 1}
    assert manifest["counts"]["rejected"] == {reason: 1}
    [reject] = rejects(tmp_path / "out")
    assert says in reject["error"]
    assert reject["offset"] == len(json.dumps(good, ensure_ascii=False).encode()) + 1


@pytest.mark.parametrize(
    ("value", "label", "changes"),
    [
        (0, "0", ()),
        (0.0, "0", ()),
        ("0", "0", ()),
        ("2   ", "2", ("label_stripped",)),
        ("0.0", "0", ("label_folded",)),
        (" 12.00", "12", ("label_stripped", "label_folded")),
        ("-1.0", "-1", ("label_folded",)),
        ("0.5", "0.5", ()),
        ("1.0.0", "1.0.0", ()),
        (True, "true", ()),
        (-1, "-1", ()),
        ("매우 좋음", "매우 좋음", ()),
        ("\u1112\u1161\u11ab", "한", ("nfc",)),
    ],
)
def test_a_label_has_one_spelling(value: Any, label: str, changes: tuple[str, ...]) -> None:
    found = LABELS.to_record({"document": "가", "label": value}, options(), 0)

    assert isinstance(found, Example)
    assert found.cells["label"] == label
    assert found.changes == changes


def test_texts_are_normalised_and_their_changes_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"document": "좋다\r\n\u1112\u1161\u11ab", "label": "1 "})

    manifest = build(tmp_path / "out", path, record="label")

    assert cells(tmp_path / "out", ["text_a", "label"]) == [{"text_a": "좋다\n한", "label": "1"}]
    assert {key: count for key, count in manifest["counts"]["changed"].items() if count} == {
        "label_stripped": 1,
        "line_ends": 1,
        "nfc": 1,
    }


def hub_table(path: Path, *labels: int | None, names: tuple[str, ...] = ("entailment", "neutral")) -> Path:
    """As `datasets` writes Parquet."""
    told = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}, "text": {"_type": "Value"}}}}
    columns = {"text": [f"글 {n}" for n in range(len(labels))], "label": pa.array(labels, pa.int64())}
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(told)}), path)
    return path


def test_classes_of_the_hub_bear_their_names(tmp_path: Path) -> None:
    path = hub_table(tmp_path / "a.parquet", 0, 1, -1, None, 7)

    manifest = build(tmp_path / "out", path, record="label")

    assert [row["label"] for row in rows(tmp_path / "out")] == ["entailment", "neutral"]
    assert manifest["counts"]["rejected"] == {"bad_label": 1, "missing_label": 2}


def test_a_config_names_classes(tmp_path: Path) -> None:
    items = [{"text": f"글 {label}", "label": label} for label in (0, 1.0, "1", "2", " 0 ")]
    names = {0: "entailment", "1": "neutral"}

    build(tmp_path / "out", {"path": jsonl(tmp_path / "a.jsonl", *items), "label_names": names}, record="label")

    found = [row["label"] for row in rows(tmp_path / "out")]
    assert found == ["entailment", "neutral", "neutral", "2", "entailment"]


def test_names_of_classes_mean_nothing_to_other_records(tmp_path: Path) -> None:
    with pytest.raises(
        ValidationError, match=r"inputs\.0\.label_names is \{'0': 'a'\}, but record is document; leave it"
    ):
        build(tmp_path / "out", {"path": tmp_path, "label_names": {0: "a"}})


def test_a_workbook_without_its_reader_is_named_and_lies_beside_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    jsonl(tmp_path / "in/b.jsonl", {"text": "가", "label": 0})
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.txt").write_text("글")
    for folder in ("in", "docs"):
        (tmp_path / folder / "a.xlsx").write_bytes(b"PK")

    manifest = build(tmp_path / "labels", tmp_path / "in", record="label")
    documents = build(tmp_path / "documents", tmp_path / "docs")

    assert manifest["counts"]["rejected"] == {"needs_openpyxl": 1}
    assert "pip install openpyxl, or save it as CSV" in rejects(tmp_path / "labels")[0]["error"]
    assert (documents["num_records"], documents["counts"]["passed_over"]) == (1, {"no_reader": 1})


def test_a_workbook_is_read_by_its_first_sheet(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [
        ("글", "종류", None),
        ("가", 1.0, None),
        (None, None, None),
        ("나", "0", "밖"),
        ("다", None),
        ("라", 0),
    ]:
        book.active.append(row)
    book.create_sheet("다른 장").append(("글", "종류"))
    book.save(tmp_path / "a.xlsx")
    (tmp_path / "broken.xlsx").write_bytes(b"PK\x03\x04")

    columns = {"columns": {"text_a": "글", "label": "종류"}}
    manifest = build(
        tmp_path / "out", *({"path": tmp_path / name, **columns} for name in ("a.xlsx", "broken.xlsx")), record="label"
    )

    assert [(row["id"], row["text_a"], row["label"]) for row in rows(tmp_path / "out")] == [
        ("a.xlsx#2", "가", "1"),
        ("a.xlsx#6", "라", "0"),
    ]
    expected = {"broken_workbook": 1, "invalid_row": 1, "missing_label": 1, "other_sheet": 1}
    assert manifest["counts"]["rejected"] == expected


def test_an_nsmc_file_loses_no_row_to_a_quote(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    lines = ['1\t"최고\t1', '2\t"\t0', '3\t그는 "좋다"고 했다\t1', "4\t\t0", '5\t끝"\t0']
    path.write_text("\n".join(["id\tdocument\tlabel", *lines]) + "\n")

    manifest = build(tmp_path / "out", {"path": path, "format": "tsv"}, record="label")

    assert [row["text_a"] for row in rows(tmp_path / "out")] == ['"최고', '"', '그는 "좋다"고 했다', '끝"']
    assert [row["id"] for row in rows(tmp_path / "out")] == [f"ratings.txt#{number}" for number in (1, 2, 3, 5)]
    assert manifest["counts"]["rejected"] == {"empty_text": 1}
    assert manifest["accounting"]["records"]["found"] == len(lines)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "array", "parquet", "zip", "cp949"])
def test_a_format_does_not_change_the_cells(tmp_path: Path, kind: str) -> None:
    items = [{"premise": f"글 {n}", "hypothesis": f"말 {n}", "label": str(n % 3)} for n in range(7)]
    path = write_as(tmp_path / "in", kind, items)

    build(tmp_path / "out", path, record="label")

    expected = [{"text_a": item["premise"], "text_b": item["hypothesis"], "label": item["label"]} for item in items]
    assert cells(tmp_path / "out", NLI) == expected


def write_as(folder: Path, kind: str, items: list[dict[str, str]]) -> Path:
    folder.mkdir()
    path = folder / f"rows.{ {'array': 'json', 'cp949': 'csv'}.get(kind, kind) }"
    if kind in ("csv", "tsv", "cp949"):
        with path.open("w", newline="", encoding="cp949" if kind == "cp949" else "utf-8") as file:
            writer = csv.DictWriter(file, list(items[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(items)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(items), path)
    elif kind == "zip":
        write_zip(path, [("안/rows.json", json.dumps({"data": items}).encode())])
    elif kind == "jsonl":
        jsonl(path, *items)
    else:
        path.write_text(json.dumps(items if kind == "array" else {"version": "1", "data": items}, ensure_ascii=False))
    return path


def test_bytes_that_are_not_of_the_encoding_are_rejected_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes("document\tlabel\n좋다\t1\n".encode() + b"\xff\xfe\t0\n" + "나쁘다\t0\n".encode())

    manifest = build(tmp_path / "out", path, record="label")

    assert manifest["counts"]["rejected"] == {"invalid_encoding": 1}
    assert [row["text_a"] for row in rows(tmp_path / "out")] == ["좋다", "나쁘다"]


def test_equal_rows_are_kept_once_and_contradicting_ones_are_counted(tmp_path: Path) -> None:
    said = [("좋다", 1), ("좋다", 1), ("좋다", 0), ("좋다", 0), ("좋다", 2), ("나쁘다", 0)]
    first = jsonl(tmp_path / "a.jsonl", *({"text": text, "label": label} for text, label in said))
    second = jsonl(tmp_path / "b.jsonl", {"text": "나쁘다", "label": 1})

    manifest = build(tmp_path / "out", first, second, record="label")

    kept = [(row["text_a"], row["label"]) for row in rows(tmp_path / "out")]
    assert kept == [("좋다", "1"), ("좋다", "0"), ("좋다", "2"), ("나쁘다", "0"), ("나쁘다", "1")]
    assert manifest["counts"]["dropped"] == {"duplicate": 2}
    assert manifest["counts"]["changed"]["contradicting_label"] == 3


SPLIT = [("좋다", 1), ("좋다", 0), ("밉다", 0), ("밉다", 0), ("곱다", 1)]
TEST = [("좋다", 1), ("좋다", 1), ("밉다", 1), ("새 글", 0)]


@pytest.mark.parametrize("is_test_first", [False, True])
def test_a_test_set_stays_whole_and_train_loses_what_it_shares(tmp_path: Path, is_test_first: bool) -> None:
    train, test = (
        jsonl(tmp_path / name, *({"text": text, "label": label} for text, label in said))
        for name, said in (("a.jsonl", SPLIT), ("b.jsonl", TEST))
    )
    inputs = [{"path": train}, {"path": test, "split": "heldout"}]

    manifest = build(tmp_path / "out", *(inputs[::-1] if is_test_first else inputs), record="label")

    found = [(row["text_a"], int(row["label"]), row["split_hint"]) for row in rows(tmp_path / "out")]
    assert [row[:2] for row in found if row[2]] == TEST
    assert [row[:2] for row in found if not row[2]] == [("좋다", 0), ("밉다", 0), ("곱다", 1)]
    counts = manifest["counts"]
    assert counts["dropped"] == {"also_held_out": 1, "duplicate": 1}
    assert (counts["changed"]["held_out_again"], counts["changed"]["contradicting_label"]) == (1, 2)
    assert manifest["heldout"] == {"num_records": 4, "reasons": {"split": {"num_files": 1, "num_records": 4}}}
    assert manifest["accounting"]["records"] == {"dropped": 2, "found": 9, "kept": 7}


def test_repeats_are_kept_where_the_config_says_so(tmp_path: Path) -> None:
    train, test = (
        jsonl(tmp_path / name, *({"text": text, "label": label} for text, label in said))
        for name, said in (("a.jsonl", SPLIT), ("b.jsonl", TEST))
    )

    manifest = build(tmp_path / "out", train, {"path": test, "split": "heldout"}, record="label", duplicates="keep")

    assert [(row["text_a"], int(row["label"])) for row in rows(tmp_path / "out")] == [*SPLIT, *TEST]
    assert manifest["counts"]["dropped"] == {}
    assert {name: manifest["counts"]["changed"][name] for name in ("duplicate", "also_held_out")} == {
        "duplicate": 1,
        "also_held_out": 1,
    }
    assert manifest["accounting"]["records"] == {"dropped": 0, "found": 9, "kept": 9}


def test_contradictions_do_not_depend_on_how_the_work_was_cut(tmp_path: Path) -> None:
    items = [{"text": f"글 {n % 5}", "label": n % 3} for n in range(60)]
    path = jsonl(tmp_path / "a.jsonl", *items)

    whole = build(tmp_path / "whole", path, record="label")
    cut = build(tmp_path / "cut", path, record="label", task_bytes=300)

    assert len(cut["files"]) > 1
    assert whole["num_records"] == cut["num_records"] == 15
    assert whole["counts"] == cut["counts"]
    assert whole["counts"]["changed"]["contradicting_label"] == 10


def test_a_pair_with_another_score_is_kept_and_counted(tmp_path: Path) -> None:
    items = [{"sentence1": "가", "sentence2": "나", "score": score} for score in (1, 1.0, "1", 3)]

    manifest = build(tmp_path / "out", jsonl(tmp_path / "a.jsonl", *items), record="pair")

    assert [row["score"] for row in rows(tmp_path / "out")] == [1.0, 3.0]
    assert manifest["counts"]["changed"]["contradicting_score"] == 1


def test_an_input_can_be_held_out_whole(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", {"text": "가", "label": 0})
    test = jsonl(tmp_path / "test.jsonl", {"text": "나", "label": 0})

    build(tmp_path / "out", train, {"path": test, "split": "heldout"}, record="label")

    assert [row["split_hint"] for row in rows(tmp_path / "out")] == ["", "heldout"]


def test_all_bytes_are_accounted_and_texts_measured(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "in/a.jsonl", {"anchor": "강릉", "positive": "바다", "negative": "산"})
    (tmp_path / "in/b.txt").write_text("글")
    (tmp_path / "in/c.pdf").write_bytes(b"%PDF")

    manifest = build(tmp_path / "out", tmp_path / "in", record="pair")

    account = manifest["accounting"]
    assert account["items"] == {"found": 3, "passed_over": 2, "read": 1}
    assert account["item_bytes"]["read"] == first.stat().st_size
    assert manifest["num_text_bytes"] == len("강릉바다산".encode())
    [batch] = [pa.RecordBatch.from_pylist(rows(tmp_path / "out"), schema=SCHEMAS["pair"])]
    assert text_bytes(batch).to_pylist() == [manifest["num_text_bytes"]]


@pytest.mark.parametrize("count", [1, 4])
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"text": f"글 {n}", "label": n % 2} for n in range(20)))
    options: dict[str, Any] = {"record": "label", "task_bytes": 300}
    build(tmp_path / "whole", path, **options)
    stage = stage_of(tmp_path / "out", path, **options)
    tasks = stage.plan()
    for task in tasks[:count]:
        stage.run(task)
    monkeypatch.setattr(disk, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.run(tasks[count])
    monkeypatch.undo()

    run(stage_of(tmp_path / "out", path, **options))

    assert {name: data for name, data in tree(tmp_path / "out").items() if name != "manifest.json"} == {
        name: data for name, data in tree(tmp_path / "whole").items() if name != "manifest.json"
    }


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"record": "document", "columns": {"text_a": "a", "label": "b"}},
            r"inputs\.0\.columns is for record: label, but record is document",
        ),
        (
            {"record": "label", "columns": {"instruction": "q", "output": "a"}},
            r"columns names instruction, output, but record is label, which takes text_a, text_b, label, id; "
            "leave them out, or set record: instruction",
        ),
        (
            {"record": "instruction", "columns": {"text_a": "a", "text_b": "b"}},
            r"columns names text_a, text_b, but record is instruction, .* set record: label",
        ),
        (
            {"record": "label", "columns": {"text_a": "a", "text_b": "b", "score": "s"}},
            r"columns names score, but record is label, .*; leave it out, or set record: pair",
        ),
        (
            {"record": "pair", "columns": {"text_a": "a", "text_b": "b", "label": "s"}},
            r"columns names label, but record is pair, .*; leave it out, or set record: label",
        ),
        (
            {"record": "label", "columns": {"text_a": "a"}},
            r"columns names text_a, but record is label, which needs text_a and label; name what is missing",
        ),
        (
            {"record": "pair", "columns": {"text_a": "a", "score": "s"}},
            r"columns names text_a, score, but record is pair, which needs text_a and text_b",
        ),
        (
            {"record": "label", "columns": {"text_a": "a", "output": "b", "label": "c"}},
            r"columns names output, but record is label, .*; leave it out$",
        ),
        ({"record": "pair", "text_column": "b"}, r"inputs\.0\.text_column is for documents, but record is pair"),
        ({"record": "label", "format": "text"}, r"inputs\.0\.format is text, which has no rows, but record is label"),
    ],
)
def test_columns_that_do_not_fit_the_record_are_refused(keys: dict[str, Any], says: str) -> None:
    item = {"path": "x", **{key: value for key, value in keys.items() if key != "record"}}

    with pytest.raises(ConfigError, match=says):
        validate({"inputs": [item], "output": "y", "record": keys["record"]}, CorpusConfig, where="test")


def test_a_table_without_the_columns_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("본문,갈래\n좋다,1\n")

    with pytest.raises(
        StageError, match="no known form of text and label in the columns 본문, 갈래 .*premise/hypothesis/label"
    ):
        build(tmp_path / "out", path, record="label")
    with pytest.raises(StageError, match=r"no column '번호'; the columns are 본문, 갈래; set columns\.label"):
        build(tmp_path / "out2", {"path": path, "columns": {"text_a": "본문", "label": "번호"}}, record="label")


def test_a_corpus_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "", "label": 1})

    with pytest.raises(StageError, match="not one label was kept .*'empty_text': 1"):
        build(tmp_path / "out", path, record="label")


def test_a_table_that_is_called_txt_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "ratings.txt").write_text("document\tlabel\n좋다\t1\n")

    with pytest.raises(StageError, match="not one label was kept .*a table that is called .txt needs its format"):
        build(tmp_path / "out", tmp_path / "ratings.txt", record="label")


def test_a_corpus_of_labels_is_no_corpus_of_documents(tmp_path: Path) -> None:
    build(tmp_path / "out", jsonl(tmp_path / "a.jsonl", {"text": "가", "label": 1}), record="label")

    with pytest.raises(StageError, match="record is 'label', but 'document' is needed"):
        next(iterate_documents(tmp_path / "out"))


def test_keys_of_later_records_do_not_make_old_corpora_others(tmp_path: Path) -> None:
    item = {"path": jsonl(tmp_path / "a.jsonl", {"q": "가", "a": "나"}), "columns": {"instruction": "q", "output": "a"}}
    config = validate(
        {"inputs": [item], "output": tmp_path / "out", "record": "instruction"}, CorpusConfig, where="test"
    )

    [decides] = CorpusBuild(config).inputs["options"]

    assert list(decides["columns"]) == ["instruction", "output", "input", "system", "messages", "id"]
    assert "split" not in decides


@pytest.mark.parametrize(
    ("row", "record", "says"),
    [
        ({"document": "좋다", "label": 1}, "label", "record     label (분류): 1 nsmc"),
        ({"anchor": "가", "positive": "나"}, "pair", "record     pair (글 쌍): 1 anchor_positive"),
        ({"question": "가", "answer": "나"}, "instruction", "record     instruction (지시 대화): 1 question_answer"),
    ],
)
def test_inspect_tells_the_kind_of_record(tmp_path: Path, row: dict[str, Any], record: str, says: str) -> None:
    report = inspect_path(jsonl(tmp_path / "a.jsonl", row))

    assert report.record == record
    assert says in report.lines()
    assert any(next(iter(row.values())) in line for line in report.lines())


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


@given(
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, st.lists(st.integers(), max_size=1)),
    text=st.one_of(st.none(), TEXT),
)
def test_a_row_gives_whole_cells_or_a_reason(value: Any, text: str | None) -> None:
    for table, row in (
        (LABELS, {"document": text, "label": value}),
        (PAIRS, {"sentence1": text, "sentence2": "나", "score": value}),
    ):
        found = table.to_record(row, options(), 0)
        if isinstance(found, Reject):
            assert found.reason and found.error
        else:
            assert isinstance(found, Example)
            assert str(found.cells["text_a"]).strip()
            said = found.cells["label"] if table is LABELS else found.cells["score"]
            assert math.isfinite(said) if isinstance(said, float) else str(said) == str(said).strip() != ""


def test_a_further_record_is_a_row_of_cells() -> None:
    taken = (Cell("text_a", "text"), Cell("text_b", "text"), Cell("score", "score", may_be_empty=True))
    form = next(form for form in PAIR_FORMS if form.name == "sts")
    row = {"sentence1": "가", "sentence2": "나", "score": None}

    found = to_example(row, form, options(), 0, cells=taken)

    assert found.cells == {"text_a": "가", "text_b": "나", "score": None}
    with pytest.raises(FaultyRowError, match="the row has no score"):
        to_example(row, form, options(), 0, cells=(*taken[:2], Cell("score", "score")))
