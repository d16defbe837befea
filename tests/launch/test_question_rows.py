"""Rows as people have them become what a model is asked; a row without a question stops all before any is asked."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from launch.question_rows import read_questions
from trainer.errors import RunError


def turns_of(tmp_path: Path, *rows: Any) -> list[list[tuple[str, str, str]]]:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return [[(turn["role"], turn["content"], turn["input"]) for turn in row.messages] for row in read_questions(file)]


def test_every_known_form_asks_its_question_with_or_without_its_answer(tmp_path: Path) -> None:
    asked = turns_of(
        tmp_path,
        {"instruction": "요약해라", "input": "긴 글"},
        {"instruction": "요약해라", "output": "짧은 글"},
        {"question": "어디?", "answer": {"contents": "서울"}},
        {"prompt": "누구?", "system": "짧게 답하라"},
        {"messages": [{"role": "user", "content": "왜?"}, {"role": "assistant", "content": "그냥"}]},
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "human", "value": "c"},
            ]
        },
        {"Q": "뭐해?", "A": "공부해"},
    )

    assert asked == [
        [("user", "요약해라", "긴 글")],
        [("user", "요약해라", "")],
        [("user", "어디?", "")],
        [("system", "짧게 답하라", ""), ("user", "누구?", "")],
        [("user", "왜?", "")],
        [("user", "a", ""), ("assistant", "b", ""), ("user", "c", "")],
        [("user", "뭐해?", "")],
    ]


def test_questions_are_normalised_as_a_corpus_is(tmp_path: Path) -> None:
    assert turns_of(tmp_path, {"prompt": "\u1112\u1161\u11ab"}) == [[("user", "\ud55c", "")]]


def test_an_array_a_mark_and_blank_lines_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_bytes(b"\xef\xbb\xbf" + b'\n[{"prompt": "a"},\n {"prompt": "b"}]\n')
    assert [row.row["prompt"] for row in read_questions(file)] == ["a", "b"]
    file.write_text('{"prompt": "a\u2028b"}\n\n{"prompt": "c"}\n', encoding="utf-8")
    assert [(row.number, row.row["prompt"]) for row in read_questions(file)] == [(0, "a\u2028b"), (1, "c")]


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_file_of_any_size_is_read_a_row_at_a_time(tmp_path: Path, form: str) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [json.dumps({"prompt": "가" * 20_000}) for _ in range(100)]  # 12 MB as they are escaped
    file.write_text("\n".join(rows) if form == "lines" else f"[{','.join(rows)}]", encoding="utf-8")
    tracemalloc.start()

    count = sum(1 for _ in read_questions(file))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 100
    assert peak < file.stat().st_size / 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"text": "b"}', r"row 1: no question among the keys text; write rows like"),
        ('{"prompt": "  "}', "row 0: its prompt holds no question; mend the row"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "row 0: its messages holds no question"),
        ('{"messages": [{"role": "poet", "content": "a"}]}', "row 0: the role 'poet' is none of"),
        ('{"prompt": 3}', "row 0: a int stands where a text should; mend the row"),
        ('{"prompt": "a"}\nnonsense', "'nonsense': not JSON: .*; write one object a line"),
        ('["a"]', "row 0 is a str, not an object"),
        ('[{"prompt": "a"}, {"prompt"', "byte 27: not JSON: .*; write an array, or one object a line"),
        ("[" * 100_000, "not JSON: .*; write an array"),
        ('{"a":' * 100_000, "not JSON: .*; write one object a line"),
    ],
)
def test_a_row_without_a_question_is_refused_by_its_number(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(RunError, match=message):
        list(read_questions(file))


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"prompt": "가"}'.encode("cp949"))

    with pytest.raises(RunError, match="rows.jsonl: byte 12 is not UTF-8; save the file as UTF-8"):
        list(read_questions(file))
