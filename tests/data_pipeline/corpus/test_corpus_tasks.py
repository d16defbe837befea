"""Question answering, summaries, translation: corpora in AIHub's shapes are taught in the words that ask for them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aihub_packages import build, rejects, rows

from data_pipeline.corpus.task_rows import TaskName
from launch.question_rows import read_task
from launch.verb_generate import Source
from trainer.errors import RunError


def question(number: int, asked: str, answer: Any) -> dict[str, Any]:
    return {"question_id": f"q-{number}", "question": asked, "answers": answer}


READING = {
    "data": [
        {
            "title": "강릉",
            "paragraphs": [
                {
                    "context": "강릉은 동해에 있다. 커피로 이름났다.",
                    "qas": [
                        question(1, "강릉은 어디에 있는가?", [{"text": "동해", "answer_start": 5}]),
                        question(2, "무엇으로 이름났는가?", {"text": "커피", "answer_start": 14}),
                    ],
                }
            ],
        },
        {
            "title": "두레",
            "paragraphs": [
                {"context": "두레는 모임이다.", "qas": [question(3, "두레는 무엇인가?", [{"text": "모임"}])]}
            ],
        },
    ]
}
SUMMARIES = {
    "name": "문서요약",
    "documents": [
        {
            "id": "340626877",
            "text": [
                [{"index": 0, "sentence": "비가 왔다."}, {"index": 1, "sentence": "길이 젖었다."}],
                [{"sentence": "끝."}],
            ],
            "abstractive": ["비에 길이 젖었다."],
        }
    ],
}


def write(folder: Path, name: str, tree: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    return path


def write_translations(folder: Path) -> Path:
    path = folder / "translations.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows(
            [("SID", "원문", "번역문"), ("1", "비가 온다.", "It rains."), ("2", "춥다.", "It is cold.")]
        )
    return path


def taught(folder: Path, path: Path) -> list[tuple[str, str, str]]:
    """(question, input, answer) of the rows of a corpus that is built of `path`."""
    build(folder / "corpus", path, record="instruction")
    assert not rejects(folder / "corpus")
    turns = [row["messages"] for row in rows(folder / "corpus")]
    return [(asked["content"], asked["input"], told["content"]) for asked, told in turns]


def asked(path: Path, task: TaskName) -> list[tuple[str, str, str]]:
    found = list(read_task(path, task))
    assert [row.number for row in found] == list(range(len(found)))
    return [(row.messages[0]["content"], row.messages[0]["input"], row.row["answer"]) for row in found]


def test_each_question_of_a_paragraph_is_a_row(tmp_path: Path) -> None:
    path = write(tmp_path, "reading.json", READING)

    found = taught(tmp_path, path)

    assert [(text, answer) for _, text, answer in found] == [
        ("강릉은 동해에 있다. 커피로 이름났다.", "동해"),
        ("강릉은 동해에 있다. 커피로 이름났다.", "커피"),
        ("두레는 모임이다.", "모임"),
    ]
    assert "강릉은 어디에 있는가?" in found[0][0] and "무엇으로 이름났는가?" in found[1][0]
    assert asked(path, "qa") == found


def test_sentences_of_a_document_become_its_text(tmp_path: Path) -> None:
    path = write(tmp_path, "summaries.json", SUMMARIES)

    found = taught(tmp_path, path)

    assert [(text, answer) for _, text, answer in found] == [("비가 왔다. 길이 젖었다.\n끝.", "비에 길이 젖었다.")]
    assert asked(path, "summarize") == found


def test_a_translation_says_into_which_language(tmp_path: Path) -> None:
    path = write_translations(tmp_path)

    found = taught(tmp_path, path)

    assert [(text, answer) for _, text, answer in found] == [("비가 온다.", "It rains."), ("춥다.", "It is cold.")]
    assert "영어로" in found[0][0]
    assert asked(path, "translate") == found


def test_rows_without_answers_are_asked_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"context": "두레는 모임이다.", "question": "두레는?"}, ensure_ascii=False))

    (row,) = read_task(path, "qa")

    assert row.messages[0]["input"] == "두레는 모임이다." and "두레는?" in row.messages[0]["content"]
    assert "answer" not in row.row


def test_a_bad_row_stands_in_its_place_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = {"context": "두레", "question": "무엇?"}
    trees = [
        good,
        {"question": "두레는?"},
        {"context": "두레", "question": " "},
        {"context": "", "question": "왜?"},
        good,
    ]
    path.write_text("\n".join(json.dumps(tree) for tree in trees) + "\n[1\n")

    found = list(read_task(path, "qa"))

    assert [row.number for row in found] == [0, 1, 2, 3, 4, 5]
    faults = {row.number: row.fault.reason for row in found if row.fault is not None}
    assert faults == {1: "missing_column", 2: "empty_question", 3: "empty_text", 5: "invalid_json"}


def test_a_stray_quote_of_a_table_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('원문\t번역문\n하나\ta\n"둘\tb\n셋\tc\n넷"\td\n', encoding="utf-8")

    assert [text for _, text, _ in asked(path, "translate")] == ["하나", '"둘', "셋", '넷"']


def test_a_table_of_excel_is_read_in_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("SID,원문,번역문\n1,비가 온다.,It rains.\n2,,\n3,춥다.,It is cold.\n".encode("cp949"))

    found = list(read_task(path, "translate"))

    assert [row.messages[0]["input"] for row in found if row.fault is None] == ["비가 온다.", "춥다."]
    assert [row.fault.reason for row in found if row.fault is not None] == ["empty_text"]
    assert found[0].row == {"SID": "1", "원문": "비가 온다.", "번역문": "It rains.", "answer": "It rains."}


def test_every_format_asks_the_same(tmp_path: Path) -> None:
    trees = [{"passage": "두레는 모임이다.", "summary": "모임"}, {"passage": "비가 온다.", "summary": "비"}]
    pq.write_table(pa.Table.from_pylist(trees), tmp_path / "rows.parquet")
    write(tmp_path, "rows.json", trees)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(tree) + "\n" for tree in trees)
    paths = [tmp_path / name for name in ("rows.parquet", "rows.json", "rows.jsonl.gz")]

    first, *others = ([(row.messages, row.row) for row in read_task(path, "summarize")] for path in paths)

    assert len(first) == 2 and all(other == first for other in others)


def test_a_table_without_the_columns_of_a_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")

    with pytest.raises(RunError, match=r"rows\.csv: .*no known form of what qa asks about .*columns a, b"):
        list(read_task(path, "qa"))


def test_a_source_counts_what_it_can_not_ask_and_refuses_where_that_is_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('원문\n비가 온다.\n춥다" ,x\n')

    source = Source.of(path, task="translate")

    assert (source.num_rows, source.faulty.num_rejected) == (2, 1)
    assert list(source.faulty.lines()) == ["  1 invalid_row: row 1: line 3: 2 cells, the header has 1"]
    write(tmp_path, "rows.jsonl", {"원문": " "})
    with pytest.raises(
        RunError, match=r"none of its 1 rows can be asked; mend them\n  1 empty_text: row 0: the text is"
    ):
        Source.of(tmp_path / "rows.jsonl", task="translate")
