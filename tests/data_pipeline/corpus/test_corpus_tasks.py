"""Question answering, summaries, translation: corpora in AIHub's shapes are taught in the words that ask for them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from aihub_packages import build, rejects, rows

from data_pipeline.corpus.task_rows import TaskName
from launch.question_rows import read_task
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


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "두레는?"}, "row 0: nothing to qa among question; give rows of .*context/question"),
        ({"context": "두레", "question": " "}, "row 0: its text or its question is empty"),
    ],
)
def test_a_row_that_holds_nothing_to_be_asked_is_named(tmp_path: Path, row: dict[str, str], told: str) -> None:
    path = write(tmp_path, "rows.jsonl", row)

    with pytest.raises(RunError, match=told):
        list(read_task(path, "qa"))
