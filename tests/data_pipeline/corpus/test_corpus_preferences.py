"""Preference, feedback and prompt records: every way to spell a row gives the same, and what is left out is named."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aihub_packages import build, rejects, rows, run, stage_of, write_zip
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import ConfigError, validate
from data_pipeline.corpus.build import CorpusConfig
from data_pipeline.corpus.inspect import inspect_path
from data_pipeline.corpus.rankings import pairs_of, scores_of_ranks
from data_pipeline.corpus.records import RecordName, iterate_records, text_bytes
from data_pipeline.corpus.turns import FaultyRowError, Turns
from data_pipeline.stage import StageError

Row = dict[str, Any]


def jsonl(path: Path, *items: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    return path


def turn(role: str, content: str, given: str = "") -> dict[str, str]:
    return {"role": role, "content": content, "input": given}


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def told(output: Path) -> list[Row]:
    """Rows without what stands beside them."""
    beside = ("id", "source", "metadata", "split_hint")
    return [{name: cell for name, cell in row.items() if name not in beside} for row in rows(output)]


def reasons(output: Path) -> list[str]:
    return [reject["reason"] for reject in rejects(output)]


ASKED = [turn("user", "수도는?")]
TWICE = [turn("system", "짧게."), *ASKED, turn("assistant", "서울"), turn("user", "인구는?")]
SAID = [{"role": "system", "content": "짧게."}, *chat("수도는?", "서울", "인구는?")]
PAIR = {"prompt": ASKED, "chosen": "서울", "rejected": "부산"}
LATER = {"prompt": TWICE, "chosen": "천만", "rejected": "백만"}
HUMAN = "\n\nHuman: 수도는?\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        ({"prompt": "수도는?", "chosen": "서울", "rejected": "부산", "score": 3}, "prompt_chosen", PAIR),
        ({"question": "수도는?", "chosen": "서울", "rejected": "부산"}, "question_chosen", PAIR),
        (
            {"instruction": "요약", "input": "긴 글", "chosen": "서울", "rejected": "부산"},
            "instruction_chosen",
            PAIR | {"prompt": [turn("user", "요약", "긴 글")]},
        ),
        (
            {"prompt": "수도는?", "system": "짧게.", "chosen": "서울", "rejected": "부산"},
            "prompt_chosen",
            PAIR | {"prompt": TWICE[:2]},
        ),
        ({"prompt": SAID, "chosen": chat("", "천만")[1:], "rejected": chat("", "백만")[1:]}, "prompt_chosen", LATER),
        (
            {"prompt": "수도는?", "chosen": chat("수도는?", "서울"), "rejected": chat("수도는?", "부산")},
            "prompt_chosen",
            PAIR,
        ),
        (
            {"chosen": [*SAID, {"role": "assistant", "content": "천만"}], "rejected": [*SAID, *chat("", "백만")[1:]]},
            "chosen",
            LATER,
        ),
        (
            {"conversations": 1, "chosen": {"role": ["user", "assistant"], "content": ["수도는?", "서울"]}}
            | {"rejected": chat("수도는?", "부산")},
            "chosen",
            PAIR,
        ),
        ({"chosen": f"{HUMAN} 서울", "rejected": f"{HUMAN} 부산"}, "chosen", PAIR),
        ({"prompt": HUMAN, "chosen": "서울", "rejected": "부산"}, "prompt_chosen", PAIR),
        (
            {"prompt": "수도는?", "completion_0": "부산", "completion_1": "서울", "ranking": [1, 0]},
            "kochatgpt",
            PAIR,
        ),
        ({"prompt": "수도는?", "responses": ["부산", "서울"], "ranking": [2, 1]}, "prompt_responses_ranking", PAIR),
        (
            {"instruction": "수도는?", "answers": ["부산", "서울"], "scores": [1, 4.5]},
            "instruction_answers_scores",
            PAIR,
        ),
        (
            {"question": "수도는?", "completions": ["서울", "부산"], "rewards": [2, -1]},
            "question_completions_rewards",
            PAIR,
        ),
        (
            {"instruction": "수도는?"}
            | {"completions": [{"response": "부산", "overall_score": 2}, {"response": "서울", "overall_score": 9}]},
            "ultrafeedback",
            PAIR,
        ),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "root", "parquet"])
def test_every_known_form_of_a_comparison_gives_its_pair_in_every_file(
    tmp_path: Path, row: Row, form: str, expected: Row, kind: str
) -> None:
    path = tmp_path / {"root": "a.json"}.get(kind, f"a.{kind}")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        text = json.dumps({"json": {"version": 1, "data": [row]}}.get(kind, row))
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())

    manifest = build(tmp_path / "out", path, record="preference")

    assert told(tmp_path / "out") == [expected]
    assert manifest["forms"] == {form: 1}
    texts = [expected["chosen"], expected["rejected"], *(one["content"] + one["input"] for one in expected["prompt"])]
    assert manifest["num_text_bytes"] == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize(
    ("record", "row", "expected"),
    [
        ("feedback", {"prompt": "수도는?", "completion": "서울", "label": True}, [("서울", True)]),
        ("feedback", {"prompt": "수도는?", "response": "서울", "label": 0}, [("서울", False)]),
        ("feedback", {"prompt": "수도는?", "response": "서울", "label": 1.0}, [("서울", True)]),
        ("feedback", {"instruction": "수도는?", "output": "서울", "label": "👎"}, [("서울", False)]),
        ("feedback", {"messages": chat("수도는?", "서울"), "label": "False"}, [("서울", False)]),
        ("feedback", {"prompt": chat("수도는?"), "completion": chat("", "서울")[1:], "label": -1}, [("서울", False)]),
        ("feedback", PAIR | {"prompt": "수도는?"}, [("서울", True), ("부산", False)]),
        (
            "feedback",
            {"prompt": "수도는?", "answers": ["가", "나", "다"], "scores": [2, 3, 1]},
            [("나", True), ("다", False)],
        ),
        ("prompt", {"prompt": "수도는?"}, [None]),
        ("prompt", {"질문": "수도는?"}, [None]),
        ("prompt", PAIR | {"prompt": "수도는?"}, ["서울"]),
        ("prompt", {"prompt": "수도는?", "completion_0": "부산", "completion_1": "서울", "ranking": [1, 0]}, ["서울"]),
        ("prompt", {"prompt": "수도는?", "completion": "서울", "label": True}, ["서울"]),
        ("prompt", {"prompt": "수도는?", "completion": "서울", "label": False}, [None]),
        ("prompt", {"instruction": "수도는?", "output": "서울"}, ["서울"]),
        ("prompt", {"instruction": "수도는?", "output": " "}, [None]),
        ("prompt", {"question": "수도는?", "answer": {"contents": "서울"}}, ["서울"]),
        ("prompt", {"messages": chat("수도는?", "서울")}, ["서울"]),
        ("prompt", {"messages": chat("수도는?")}, [None]),
    ],
)
def test_a_row_is_read_as_every_kind_of_record_that_it_has_enough_for(
    tmp_path: Path, record: RecordName, row: Row, expected: list[Any]
) -> None:
    build(tmp_path / "out", jsonl(tmp_path / "a.jsonl", row), record=record)

    found = told(tmp_path / "out")
    assert [one["prompt"] for one in found] == [ASKED] * len(expected)
    answers = [one["answer"] if record == "prompt" else (one["answer"], one["is_desirable"]) for one in found]
    assert answers == expected


def rm_label(number: int, ranks: Sequence[Any], **more: Any) -> Row:
    answers = {
        f"answer{place + 1:02}": {"contents": f"{number}의 {place + 1}번째 답", "ranking": rank, "answer_count": 1}
        for place, rank in enumerate(ranks)
    }
    said = {"data_category": {"main": "지식", "middle": "사회"}, "question_type": "1", "question": f"{number}째 질문"}
    return {"data_id": f"RM_{number}", **said, **answers, **more}


def aihub(folder: Path) -> Path:
    """Two zips of 71748 with the files of all three records."""
    package = folder / "121.한국어 성능이 개선된 초거대AI 언어모델 개발 및 데이터/3.개방데이터/1.데이터"
    for split, number in (("Training", 1), ("Validation", 2)):
        tuning = {"data_id": "SFT", "question": "지시", "question_type": "1", "answer": {"contents": "답"}}
        entries = [
            ("/RMlabel.json", {"data_info": [rm_label(number, [3, 1, 5, 2, 4])]}),
            ("/SFTlabel.json", {"data_info": [tuning]}),
            (
                "/PPOdata.json",
                {"data_info": [{"data_id": f"PPO_{number}", "question": "질문만", "question_type": "2"}]},
            ),
        ]
        data = [(name, json.dumps(tree, ensure_ascii=False).encode()) for name, tree in entries]
        write_zip(package / f"{split}/02.라벨링데이터/{split[0]}L_02.RLHF데이터.zip", data)
    return package


def test_aihub_71748_gives_ten_pairs_of_five_answers_and_its_other_files_are_passed_over(tmp_path: Path) -> None:
    manifest = build(tmp_path / "out", aihub(tmp_path), record="preference")

    found = rows(tmp_path / "out")
    assert len(found) == 20
    assert [row["split_hint"] for row in found] == [""] * 10 + ["heldout"] * 10
    assert found[0]["id"].endswith("TL_02.RLHF데이터.zip!RMlabel.json#RM_1-2-4")
    assert (found[0]["chosen"], found[0]["rejected"]) == ("1의 2번째 답", "1의 4번째 답")
    assert found[9]["id"].endswith("#RM_1-5-3")
    assert len({row["id"] for row in found}) == 20
    assert {row["source"] for row in found} == {"aihub_71748"}
    assert json.loads(found[0]["metadata"]) == {
        "category": {"main": "지식", "middle": "사회"}, "member": "RMlabel.json", "question_type": "1",
    }  # fmt: skip
    assert manifest["forms"] == {"aihub_71748_rm": 20}
    assert manifest["counts"]["passed_over"] == {"instruction_file": 2, "prompt_file": 2}


def test_aihub_71748_read_as_prompts_takes_all_three_files(tmp_path: Path) -> None:
    manifest = build(tmp_path / "out", aihub(tmp_path), record="prompt")

    assert manifest["forms"] == {"aihub_71748": 2, "aihub_71748_ppo": 2, "aihub_71748_rm": 2}
    assert sorted({(row["prompt"][0]["content"], row["answer"]) for row in told(tmp_path / "out")}, key=str) == [
        ("1째 질문", "1의 2번째 답"), ("2째 질문", "2의 2번째 답"), ("지시", "답"), ("질문만", None),
    ]  # fmt: skip


RANKED = {"prompt": "q", "responses": ["가", "나", "다", "라"], "ranking": [2, 1, 2, 4]}


@pytest.mark.parametrize(
    ("options", "pairs", "dropped"),
    [
        ({}, ["나가", "나다", "나라", "가라", "다라"], {"tied_answers": 1}),
        ({"pairs": "best_worst"}, ["나라"], {}),
        ({"pairs": "adjacent"}, ["나가", "다라"], {"tied_answers": 1}),
        ({"min_margin": 2}, ["나라", "가라", "다라"], {"small_margin": 2, "tied_answers": 1}),
        ({"pairs": "best_worst", "min_margin": 9}, [], {"small_margin": 1}),
    ],
)
def test_a_ranking_becomes_the_pairs_that_the_config_names(
    tmp_path: Path, options: Row, pairs: list[str], dropped: dict[str, int]
) -> None:
    good = {"prompt": "다른 질문", "chosen": "c", "rejected": "r"}

    manifest = build(
        tmp_path / "out", {"path": jsonl(tmp_path / "a.jsonl", RANKED, good), **options}, record="preference"
    )

    assert [row["chosen"] + row["rejected"] for row in told(tmp_path / "out")] == [*pairs, "cr"]
    assert manifest["counts"]["dropped"] == {"duplicate": 0, **dropped}
    found = manifest["accounting"]["records"]
    assert (
        found["found"]
        == found["kept"] + found["dropped"] + found.get("rejected", 0)
        == len(pairs) + 1 + sum(dropped.values())
    )


def test_a_row_with_a_tie_may_be_rejected_as_a_whole(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", RANKED, RANKED | {"ranking": [1, 2, 3, 4]})

    build(tmp_path / "out", {"path": path, "ties": "reject", "pairs": "best_worst"}, record="preference")

    assert reasons(tmp_path / "out") == ["tied_answers"]
    assert [row["chosen"] for row in told(tmp_path / "out")] == ["가"]


GOOD = {"prompt": "q", "chosen": "c", "rejected": "r"}
TWO = {"prompt": "q", "responses": ["가", "나"]}


@pytest.mark.parametrize(
    ("row", "reason", "says"),
    [
        (GOOD | {"prompt": " \n"}, "empty_prompt", "there is no prompt"),
        (GOOD | {"prompt": None}, "empty_prompt", "there is no prompt"),
        (GOOD | {"prompt": []}, "empty_prompt", "there is no prompt"),
        ({"chosen": "c", "rejected": "r"}, "empty_prompt", "there is no prompt"),
        (GOOD | {"chosen": ""}, "empty_chosen", "the chosen answer is empty"),
        (GOOD | {"rejected": None}, "empty_rejected", "the rejected answer is empty"),
        (GOOD | {"rejected": " c\n"}, "equal_answers", "the chosen and the rejected answer are equal"),
        (GOOD | {"chosen": {"role": [], "content": []}}, "empty_chosen", "the chosen answer is empty"),
        (GOOD | {"prompt": {"role": [], "content": []}}, "empty_prompt", "there is no prompt"),
        (GOOD | {"chosen": 5}, "text_not_string", "a int stands where a text should"),
        (GOOD | {"chosen": chat("q")}, "no_answer", "chosen: the last turn is user"),
        (GOOD | {"chosen": chat("다른 질문", "c")}, "different_prompts", "chosen: its conversation does not hold"),
        (
            {"chosen": chat("q", "c"), "rejected": chat("p", "r")},
            "different_prompts",
            "rejected: its conversation differs before the last answer",
        ),
        (GOOD | {"prompt": chat("q", "a")}, "no_question", "the last turn is an answer"),
        (GOOD | {"prompt": [{"role": "tool", "content": "q"}]}, "bad_role", "the role 'tool'"),
        ({"prompt": "q", "chosen": "c"}, "missing_column", "has no known form of prompt and compared answers"),
        (TWO | {"ranking": [1, 2, 3]}, "ranking_length", "'ranking' has 3 numbers, but there are 2 answers"),
        (TWO | {"ranking": [1, 5]}, "bad_ranking", r"is \[1, 5\], which ranks no 2 answers"),
        (TWO | {"ranking": [2, 3]}, "bad_ranking", "which ranks no 2 answers"),
        (TWO | {"ranking": [0.5, 1]}, "bad_ranking", "which ranks no 2 answers"),
        (TWO | {"ranking": ["a", 1]}, "bad_ranking", "'ranking' holds 'a', which is no finite number"),
        (TWO | {"ranking": None}, "bad_ranking", "'ranking' is a NoneType, not a list"),
        (TWO | {"scores": [1, None]}, "bad_rating", "'scores' holds None, which is no finite number"),
        (TWO | {"scores": [True, 1]}, "bad_rating", "'scores' holds True"),
        (TWO | {"scores": [1]}, "rating_length", "'scores' has 1 numbers"),
        (TWO | {"scores": "높음"}, "bad_rating", "'scores' is a str, not a list"),
        ({"prompt": "q", "responses": ["가"], "scores": [1]}, "one_answer", "has 1 answers"),
        ({"prompt": "q", "responses": "가", "scores": [1]}, "bad_answers", "is a str, not a list of answers"),
        ({"prompt": "q", "responses": ["가", ""], "scores": [1, 2]}, "empty_chosen", "the chosen answer of pair 2-1"),
        ({"prompt": "q", "responses": ["가", "가"], "scores": [1, 2]}, "equal_answers", "answer of pair 2-1 are equal"),
    ],
)
def test_a_comparison_that_says_nothing_is_rejected_with_its_reason(
    tmp_path: Path, row: Row, reason: str, says: str
) -> None:
    first, last = GOOD | {"prompt": "first"}, GOOD | {"prompt": "last"}

    manifest = build(tmp_path / "out", jsonl(tmp_path / "a.jsonl", first, row, last), record="preference")

    (reject,) = rejects(tmp_path / "out")
    assert (reject["reason"], reject["offset"]) == (reason, len(json.dumps(first)) + 1)
    assert re.search(says, reject["error"])
    assert manifest["counts"]["rejected"] == {reason: 1}
    assert manifest["accounting"]["records"] == {"dropped": 0, "found": 3, "kept": 2, "rejected": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": {"role": [], "content": []}, "label": True}, "bad_turns"),
        ({"prompt": "q", "completion": " ", "label": True}, "empty_answer"),
        ({"prompt": "", "completion": "a", "label": True}, "empty_prompt"),
        ({"prompt": "q", "completion": "a", "label": None}, "missing_verdict"),
        ({"prompt": "q", "completion": "a", "label": ""}, "missing_verdict"),
        ({"prompt": "q", "completion": "a", "label": 2}, "bad_verdict"),
        ({"prompt": "q", "completion": "a", "label": "음"}, "bad_verdict"),
        ({"messages": chat("q"), "label": True}, "no_answer"),
        ({"messages": "q", "label": True}, "bad_turns"),
        ({"prompt": "q", "completion": "a"}, "missing_column"),
        (GOOD | {"rejected": "c"}, "equal_answers"),
    ],
)
def test_feedback_that_says_nothing_is_rejected_with_its_reason(tmp_path: Path, row: Row, reason: str) -> None:
    good = {"prompt": "good", "completion": "a", "label": True}

    build(tmp_path / "out", jsonl(tmp_path / "a.jsonl", good, row), record="feedback")

    assert reasons(tmp_path / "out") == [reason]
    assert len(rows(tmp_path / "out")) == 1


def test_of_a_row_with_one_empty_answer_the_pairs_of_the_others_stay(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["가", " ", "다"], "scores": [1, 2, 3]}

    manifest = build(tmp_path / "out", jsonl(tmp_path / "a.jsonl", row), record="preference")

    assert [(one["chosen"], one["rejected"]) for one in told(tmp_path / "out")] == [("다", "가")]
    assert manifest["counts"]["rejected"] == {"empty_chosen": 1, "empty_rejected": 1}


def test_columns_of_other_names_are_mapped_and_a_table_may_hold_lists_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('번호,물음,답1,답2,답10,순위\n7,q,가,나,다,"[2, 1, 3]"\n')
    columns = {"prompt": "물음", "answers": "답*", "ranking": "순위", "id": "번호"}
    told_stars = {"q": "q", "replies": [{"text": "라", "stars": 1}, {"text": "마", "stars": 5}]}
    stars = {"prompt": "q", "answers": "replies[].text", "ratings": "replies[].stars"}
    inputs = [
        {"path": tmp_path / "a.csv", "columns": columns, "pairs": "adjacent", "metadata_columns": ["번호"]},
        {"path": jsonl(tmp_path / "b.jsonl", told_stars), "columns": stars | {"prompt": "q"}},
    ]

    build(tmp_path / "out", *inputs, record="preference")

    found = rows(tmp_path / "out")
    assert [(row["id"], row["chosen"], row["rejected"]) for row in found] == [
        ("a.csv#7-2-1", "나", "가"), ("a.csv#7-1-3", "가", "다"), ("b.jsonl#0-2-1", "마", "라"),
    ]  # fmt: skip
    assert json.loads(found[0]["metadata"]) == {"번호": "7"}


@pytest.mark.parametrize("record", ["feedback", "prompt"])
def test_a_table_of_verdicts_is_read_in_its_encoding(tmp_path: Path, record: RecordName) -> None:
    (tmp_path / "a.csv").write_bytes("물음,대답,평가\r\nq,가,👍\r\n".replace("👍", "up").encode("cp949"))
    columns = {"prompt": "물음", "answer": "대답", "is_desirable": "평가"}

    build(tmp_path / "out", {"path": tmp_path / "a.csv", "columns": columns}, record=record)

    assert told(tmp_path / "out")[0]["answer"] == "가"


def test_what_is_not_in_its_encoding_is_rejected_by_name(tmp_path: Path) -> None:
    lines = [json.dumps(GOOD).encode(), '{"prompt": "물음", "chosen": "c", "rejected": "r"}'.encode("cp949")]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))

    build(tmp_path / "out", {"path": tmp_path / "a.jsonl", "encoding": "utf-8"}, record="preference")

    assert reasons(tmp_path / "out") == ["invalid_encoding"]


def test_answers_that_were_preferred_the_other_way_are_kept_and_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", GOOD, {"prompt": "q", "chosen": "r", "rejected": "c"}, GOOD)
    judged = jsonl(tmp_path / "b.jsonl", *({"prompt": "q", "completion": "a", "label": yes} for yes in (1, 0, 1)))

    first = build(tmp_path / "p", path, record="preference")
    second = build(tmp_path / "f", judged, record="feedback")

    assert first["counts"]["changed"]["contradicting_preference"] == 1
    assert second["counts"]["changed"]["contradicting_feedback"] == 1
    assert first["counts"]["dropped"]["duplicate"] == second["counts"]["dropped"]["duplicate"] == 1


def test_texts_are_nfc_and_what_changed_is_counted_once_a_row(tmp_path: Path) -> None:
    nfd = "\u1112\u1161\u11ab"
    row = {"prompt": nfd, "responses": [nfd, f"{nfd}\r\n둘", "셋"], "scores": [1, 2, 3]}

    manifest = build(tmp_path / "out", jsonl(tmp_path / "a.jsonl", row), record="preference")

    assert {row["prompt"][0]["content"] for row in told(tmp_path / "out")} == {"한"}
    assert {row["rejected"] for row in told(tmp_path / "out")} == {"한", "한\n둘"}
    changed = manifest["counts"]["changed"]
    assert (changed["nfc"], changed["line_ends"]) == (1, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"record": "instruction", "pairs": "adjacent"}, r"inputs\.0\.pairs is 'adjacent', but record is instruction"),
        ({"record": "feedback", "pairs": "adjacent"}, r"leave it out, or set record: preference"),
        ({"record": "document", "min_margin": 1}, r"inputs\.0\.min_margin is 1\.0, but record is document"),
        ({"record": "prompt", "ties": "reject"}, r"inputs\.0\.ties is 'reject'"),
        (
            {"record": "preference", "columns": {"prompt": "q", "chosen": "c"}},
            "needs chosen and rejected, or prompt and",
        ),
        (
            {"record": "preference", "columns": {"prompt": "q", "answer": "c"}},
            "takes prompt, input, .*set record: feedback",
        ),
        ({"record": "feedback", "columns": {"prompt": "q", "answer": "c"}}, "needs prompt and answer and is_desirable"),
        ({"record": "prompt", "columns": {"answer": "c"}}, "which needs prompt, or messages"),
        (
            {"record": "preference", "columns": {"prompt": "q", "answers": "a", "ranking": "r", "ratings": "s"}},
            "got ranking: r and ratings: s; name the one",
        ),
        (
            {"record": "instruction", "columns": {"prompt": "q", "chosen": "c", "rejected": "r"}},
            "set record: preference",
        ),
    ],
)
def test_keys_that_mean_nothing_to_the_record_are_refused(options: Row, says: str) -> None:
    record = options.pop("record")

    with pytest.raises(ConfigError, match=says):
        validate({"inputs": [{"path": "a", **options}], "output": "o", "record": record}, CorpusConfig, where="test")


def test_columns_of_no_known_form_are_named_with_the_forms_that_there_are(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"물음": "q", "대답": "a"})

    with pytest.raises(StageError, match=r"in the columns 물음, 대답 .*set columns: .*prompt/chosen/rejected.*, …"):
        build(tmp_path / "out", path, record="preference")


def test_a_ranking_changes_no_corpus_of_before(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"instruction": "q", "output": "a"})

    manifest = build(tmp_path / "out", path, record="instruction")

    (options,) = manifest["inputs"]["options"]
    assert not options.keys() & {"pairs", "ties", "min_margin"}
    assert not options.get("columns")


@pytest.mark.parametrize(
    ("row", "record", "shown"),
    [
        (GOOD, "preference", "rejected   r"),
        ({"prompt": "q", "completion": "a", "label": True}, "feedback", "is_desirable True"),
        ({"prompt": "q"}, "prompt", "user       q"),
        ({"prompt": "q", "completion": "a"}, "instruction", "assistant  a"),
        ({"question": "q", "text": "긴 글"}, "document", "긴 글"),
    ],
)
def test_inspect_tells_which_record_the_rows_are(tmp_path: Path, row: Row, record: str, shown: str) -> None:
    inspection = inspect_path(jsonl(tmp_path / "a.jsonl", row))

    assert inspection.record == record
    assert shown in "\n".join(inspection.lines())


def test_preferences_are_the_same_however_the_work_is_cut_and_ordered(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    jsonl(folder / "a.jsonl", *(RANKED | {"prompt": f"{n % 20}째 질문"} for n in range(60)), {"prompt": 5})
    jsonl(folder / "b.jsonl", *(GOOD | {"prompt": f"{n % 7}째 질문"} for n in range(20)))
    expected = build(tmp_path / "one", folder, record="preference")

    stage = stage_of(tmp_path / "many", folder, record="preference", task_bytes=900)
    found = run(stage, shuffle=1)

    assert len(found["files"]) > 2
    assert told(tmp_path / "many") == told(tmp_path / "one")
    assert [row["id"] for row in rows(tmp_path / "many")] == [row["id"] for row in rows(tmp_path / "one")]
    assert found["counts"] == expected["counts"]
    assert found["num_text_bytes"] == sum(
        sum(text_bytes(batch).to_pylist()) for batch in iterate_records(tmp_path / "one")
    )


@given(st.lists(st.integers(0, 5), min_size=2, max_size=7), st.integers(0, 3))
def test_every_pair_of_a_rating_is_made_tied_or_too_close(scores: list[int], margin: int) -> None:
    found = pairs_of(scores, choose="all", min_margin=margin)

    num_pairs = len(scores) * (len(scores) - 1) // 2
    assert len(found.pairs) + found.num_tied + found.num_close == num_pairs
    assert len({frozenset(pair) for pair in found.pairs}) == len(found.pairs)
    assert all(scores[better] - scores[worse] >= max(margin, 1) for better, worse in found.pairs)
    assert found.num_tied == sum(scores.count(score) * (scores.count(score) - 1) // 2 for score in set(scores))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=7))
def test_a_chain_is_part_of_all_pairs_and_spans_from_best_to_worst(scores: list[float]) -> None:
    every = set(pairs_of(scores, choose="all").pairs)

    chain, ends = pairs_of(scores, choose="adjacent"), pairs_of(scores, choose="best_worst")

    assert set(chain.pairs) <= every
    assert len(chain.pairs) + chain.num_tied == len(scores) - 1
    assert all(scores[better] == max(scores) and scores[worse] == min(scores) for better, worse in ends.pairs)
    assert bool(ends.pairs) == bool(every)


@given(st.permutations(range(5)), st.integers(0, 1))
def test_ranks_from_zero_and_from_one_say_the_same(ranks: list[int], first: int) -> None:
    scores = scores_of_ranks([rank + first for rank in ranks], num_answers=5, column="r")

    best, worst = pairs_of(scores, choose="best_worst").pairs[0]
    assert (ranks[best], ranks[worst]) == (0, 4)
    assert len(pairs_of(scores, choose="all").pairs) == 10


def test_turns_that_ask_end_with_a_question() -> None:
    turns = Turns()
    turns.add_chat(SAID)
    turns.close_prompt()

    assert turns.messages == TWICE
    with pytest.raises(FaultyRowError, match="no turn is a question"):
        Turns().close_prompt(system="짧게.")
