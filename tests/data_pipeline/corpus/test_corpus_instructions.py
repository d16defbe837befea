"""Instruction records: every way to spell a row gives the same turns, and a row that can't be taught is named."""

from __future__ import annotations

import datetime
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aihub_packages import build, rejects, rows, run, stage_of, tree, write_zip
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import disk
from data_pipeline.config import ConfigError, to_tree, validate
from data_pipeline.corpus.build import CorpusConfig
from data_pipeline.corpus.inspect import inspect_path
from data_pipeline.corpus.instructions import FORMS, INSTRUCTIONS
from data_pipeline.corpus.records import iterate_documents, text_bytes
from data_pipeline.corpus.turns import FaultyRowError, Turns
from data_pipeline.stage import StageError

REPO = Path(__file__).resolve().parents[3]
SHARED_DATA = REPO.parent / "shared" / "data"


def jsonl(path: Path, *items: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    return path


def turn(role: str, content: str, given: str = "") -> dict[str, str]:
    return {"role": role, "content": content, "input": given}


def build_instructions(output: Path, *inputs: Any, **options: Any) -> dict[str, Any]:
    return build(output, *inputs, record="instruction", **options)


def messages(output: Path) -> list[list[dict[str, str]]]:
    return [row["messages"] for row in rows(output)]


def reasons(output: Path) -> list[str]:
    return [reject["reason"] for reject in rejects(output)]


ONE = [turn("user", "수도는?"), turn("assistant", "서울입니다.")]
ABOUT = [turn("user", "요약해 줘", "긴 글"), turn("assistant", "짧은 글")]
TWICE = [turn("system", "짧게."), *ONE, turn("user", "인구는?"), turn("assistant", "약 천만.")]
CHAT = [{"role": one["role"], "content": one["content"]} for one in TWICE]
SHARED_CHAT = [
    {"from": {"system": "system", "user": "human", "assistant": "gpt"}[one["role"]], "value": one["content"]}
    for one in TWICE
]


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        ({"instruction": "수도는?", "output": "서울입니다.", "url": "x"}, "alpaca", ONE),
        ({"instruction": "요약해 줘", "input": "긴 글", "output": "짧은 글"}, "alpaca", ABOUT),
        ({"instruction": "요약해 줘", "context": "긴 글", "response": "짧은 글"}, "dolly", ABOUT),
        ({"question": "수도는?", "answer": "서울입니다."}, "question_answer", ONE),
        ({"question": "수도는?", "answer": {"contents": "서울입니다."}}, "question_answer", ONE),
        ({"prompt": "수도는?", "completion": "서울입니다.", "tokens": 7}, "prompt_completion", ONE),
        ({"prompt": CHAT[:4], "completion": CHAT[4:]}, "prompt_completion", TWICE),
        ({"Q": "수도는?", "A": "서울입니다."}, "q_a", ONE),
        ({"messages": CHAT, "prompt": "수도는?", "completion": "x"}, "chat", TWICE),
        ({"messages": CHAT[1:], "system": "짧게."}, "chat", TWICE),
        ({"messages": [{"role": one["role"], "content": [{"text": one["content"]}]} for one in ONE]}, "chat", ONE),
        ({"conversations": SHARED_CHAT}, "sharegpt", TWICE),
        ({"conversations": {"from": ["human", "gpt"], "value": ["수도는?", "서울입니다."]}}, "sharegpt", ONE),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "array", "json", "root", "parquet"])
def test_every_known_form_of_a_row_gives_its_turns_in_every_file(
    tmp_path: Path, row: dict[str, Any], form: str, expected: list[dict[str, str]], kind: str
) -> None:
    path = tmp_path / {"array": "a.jsonl", "root": "a.json"}.get(kind, f"a.{kind}")
    text = json.dumps({"jsonl": row, "root": row, "json": {"version": 1, "data": [row]}}.get(kind, [row]))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())

    manifest = build_instructions(tmp_path / "out", path)

    assert messages(tmp_path / "out") == [expected]
    assert manifest["record"] == "instruction"
    assert manifest["forms"] == {form: 1}
    assert manifest["num_text_bytes"] == sum(len((t["content"] + t["input"]).encode()) for t in expected)


def sft_label(number: int, answer: str = "답", **more: Any) -> dict[str, Any]:
    return {
        "data_id": f"SFT_{number}", "data_category": {"main": "지식", "middle": "사회"}, "question_type": "1",
        "question": f"{number}째 질문", "answer": {"contents": answer, "answer_count": 1}, **more,
    }  # fmt: skip


def test_aihub_71748_is_read_from_its_zips_and_its_other_records_are_passed_over(tmp_path: Path) -> None:
    package = tmp_path / "121.한국어 성능이 개선된 초거대AI 언어모델 개발 및 데이터/3.개방데이터/1.데이터"
    for split, numbers in (("Training", (1, 2)), ("Validation", (3,))):
        data = {"data_info": [sft_label(number) for number in numbers]}
        ranked = {"data_info": [{"question": "질문", "answer01": {"contents": "ㄱ", "ranking": 1}}]}
        corpus = {"data_info": [{"data_title": "제목", "contents": "말뭉치 글 " * 400}]}
        entries = [
            ("/SFTlabel.json", json.dumps(data, ensure_ascii=False).encode()),
            ("/RMlabel.json", json.dumps(ranked).encode()),
            ("/PPOdata.json", b'{"data_info": [{"question": "x"}]}'),
            ("/corpus.json", json.dumps(corpus).encode()),
        ]
        write_zip(package / f"{split}/02.라벨링데이터/{split[0]}L_02.RLHF데이터.zip", entries)

    manifest = build_instructions(tmp_path / "out", package, min_text_share=0.02)

    found = rows(tmp_path / "out")
    assert [(row["id"].rsplit("/", 1)[1], row["split_hint"]) for row in found] == [
        ("TL_02.RLHF데이터.zip!SFTlabel.json#SFT_1", ""),
        ("TL_02.RLHF데이터.zip!SFTlabel.json#SFT_2", ""),
        ("VL_02.RLHF데이터.zip!SFTlabel.json#SFT_3", "heldout"),
    ]
    assert found[0]["messages"] == [turn("user", "1째 질문"), turn("assistant", "답")]
    assert {row["source"] for row in found} == {"aihub_71748"}
    assert json.loads(found[0]["metadata"]) == {
        "category": {"main": "지식", "middle": "사회"}, "member": "SFTlabel.json", "question_type": "1",
    }  # fmt: skip
    assert manifest["counts"]["passed_over"] == {"preference_file": 2, "prompt_file": 2}
    assert manifest["counts"]["rejected"] == {"unknown_schema": 2}  # the corpus, which is no fault of the package
    items = manifest["accounting"]["items"]
    assert items["found"] == 8 == items["read"] + items["passed_over"] + items["rejected"]


def test_a_package_of_which_only_the_sample_is_there_is_refused(tmp_path: Path) -> None:
    data = json.dumps({"data_info": [sft_label(1)]}).encode()
    path = write_zip(tmp_path / "3.개방데이터/4.Sample/라벨링데이터.zip", [("SFTlabel.json", data)])

    with pytest.raises(StageError, match="only the sample"):
        build_instructions(tmp_path / "out", path)


def test_elements_of_a_json_file_that_are_no_rows_are_each_named(tmp_path: Path) -> None:
    items = [{"question": "답이 없다"}, sft_label(1), "글", sft_label(2, answer=" "), sft_label(3)]
    text = json.dumps({"info": {"a": 1}, "data_info": items}, ensure_ascii=False)
    (tmp_path / "SFTlabel.json").write_text(text)

    manifest = build_instructions(tmp_path / "out", tmp_path / "SFTlabel.json")

    assert [row["id"] for row in rows(tmp_path / "out")] == ["SFTlabel.json#SFT_1", "SFTlabel.json#SFT_3"]
    places = [text.encode().index(json.dumps(items[at], ensure_ascii=False).encode()) for at in (0, 2, 3)]
    assert [(reject["reason"], reject["offset"]) for reject in rejects(tmp_path / "out")] == [
        ("missing_column", places[0]), ("missing_column", places[1]), ("empty_answer", places[2]),
    ]  # fmt: skip
    assert manifest["accounting"]["records"] == {"dropped": 0, "found": 5, "kept": 2, "rejected": 3}


GOOD = {"instruction": "수도는?", "output": "서울."}


@pytest.mark.parametrize(
    ("row", "reason", "says"),
    [
        ({"instruction": "수도는?", "output": ""}, "empty_answer", "the answer is empty"),
        ({"instruction": "수도는?", "output": " \n\x00"}, "empty_answer", "space alone"),
        ({"instruction": "수도는?", "output": None}, "empty_answer", "the answer is empty"),
        ({"instruction": "", "input": "긴 글", "output": "서울."}, "empty_question", "the question is empty"),
        ({"instruction": "수도는?"}, "missing_column", "has no known form .* its keys are instruction"),
        ({"instruction": "수도는?", "output": 5}, "text_not_string", "a int stands where a text should"),
        ({"messages": []}, "no_answer", "no turn is an answer"),
        ({"messages": None}, "no_answer", "no turns"),
        ({"messages": "수도는?"}, "bad_turns", "the turns are a str, not a list"),
        ({"messages": ["수도는?"]}, "bad_turns", "a turn is a str"),
        ({"messages": CHAT[:2]}, "no_answer", "no turn is an answer"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "bad_role", "the role 'tool' is none of system"),
        ({"messages": [{"content": "x"}]}, "bad_role", "the role None is none of"),
        ({"messages": [CHAT[2], CHAT[1]]}, "bad_turns", "turn 1 is assistant, where user should be"),
        ({"messages": [CHAT[1], CHAT[1], CHAT[2]]}, "bad_turns", "turn 2 is user, where assistant should be"),
        ({"messages": [*CHAT, CHAT[0]]}, "bad_turns", "turn 5 is system, where user should be"),
        ({"messages": [*CHAT[:3], CHAT[1], {"role": "assistant", "content": ""}]}, "empty_answer", "is empty"),
    ],
)
def test_a_row_that_holds_no_conversation_is_rejected_with_its_reason(
    tmp_path: Path, row: dict[str, Any], reason: str, says: str
) -> None:
    manifest = build_instructions(tmp_path / "out", jsonl(tmp_path / "a.jsonl", GOOD, row, GOOD | {"output": "셋"}))

    (reject,) = rejects(tmp_path / "out")
    assert (reject["reason"], reject["file"]) == (reason, "a.jsonl")
    assert reject["offset"] == len(json.dumps(GOOD, ensure_ascii=False).encode()) + 1
    assert re.search(says, reject["error"])
    assert manifest["counts"]["rejected"] == {reason: 1}
    assert manifest["accounting"]["records"] == {"dropped": 0, "found": 3, "kept": 2, "rejected": 1}


def test_a_question_without_an_answer_is_cut_behind_those_that_have_one(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", {"messages": [*CHAT, {"role": "user", "content": "또?"}]}, {"messages": CHAT[1:]}
    )

    manifest = build_instructions(tmp_path / "out", path)

    assert messages(tmp_path / "out") == [TWICE, TWICE[1:]]
    assert manifest["counts"]["changed"]["last_question_cut"] == 1


def test_an_empty_system_turn_is_none_and_a_row_s_own_stands_before_its_column(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"messages": [{"role": "developer", "content": " "}, *CHAT[1:3]]},
        {"messages": CHAT, "system": "길게."},
        {"messages": [{"role": "system", "content": " "}, *CHAT[1:]], "system": "길게."},
    )

    build_instructions(tmp_path / "out", path)

    assert messages(tmp_path / "out") == [ONE, TWICE, [turn("system", "길게."), *TWICE[1:]]]


def test_texts_are_nfc_and_what_changed_is_counted_once_a_row(tmp_path: Path) -> None:
    nfd = "\u1112\u1161\u11ab"
    path = jsonl(tmp_path / "a.jsonl", {"instruction": nfd, "input": f"{nfd}\r\n", "output": f" {nfd} ㅋ"})

    manifest = build_instructions(tmp_path / "out", path)

    assert messages(tmp_path / "out") == [[turn("user", "한", "한\n"), turn("assistant", " 한 ㅋ")]]
    assert manifest["counts"]["changed"] == {"line_ends": 1, "nfc": 1, "repeated_id": 0}


def test_equal_turns_are_kept_once_and_another_input_makes_another_row(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        GOOD, {"messages": [{"role": "user", "content": "수도는?"}, {"role": "assistant", "content": "서울."}]},
        GOOD | {"input": "프랑스"}, GOOD | {"input": " \n", "id": "x"},
    )  # fmt: skip

    manifest = build_instructions(tmp_path / "out", path)

    assert [row["messages"][0]["input"] for row in rows(tmp_path / "out")] == ["", "프랑스"]
    assert manifest["counts"]["dropped"] == {"duplicate": 2}
    assert manifest["forms"] == {"alpaca": 3, "chat": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_table_is_read_by_mapped_columns(tmp_path: Path, encoding: str, name: str, comma: str) -> None:
    lines = [
        ("번호", "물음", "본문", "대답", "역할"),
        ("7", "수도는?", "", "서울.", "짧게."),
        ("8", "요약", "긴 글", "글", ""),
    ]
    (tmp_path / name).write_bytes("\r\n".join(comma.join(cells) for cells in lines).encode(encoding))
    columns = {"instruction": "물음", "output": "대답", "input": "본문", "system": "역할", "id": "번호"}

    build_instructions(tmp_path / "out", {"path": tmp_path / name, "columns": columns, "metadata_columns": ["번호"]})

    first, second = rows(tmp_path / "out")
    assert first["messages"] == [turn("system", "짧게."), turn("user", "수도는?"), turn("assistant", "서울.")]
    assert second["messages"] == [turn("user", "요약", "긴 글"), turn("assistant", "글")]
    assert (first["id"], json.loads(first["metadata"]), first["source"]) == (f"{name}#7", {"번호": "7"}, "a")


def test_a_mapped_column_may_be_a_path_into_an_object(tmp_path: Path) -> None:
    row = {"id": 1, "taskinfo": {"instruction": "수도는?", "output": "서울입니다."}, "a.b": "점"}
    columns = {"instruction": "taskinfo.instruction", "output": "taskinfo.output"}
    path = jsonl(tmp_path / "a.jsonl", row, {"id": 2, "taskinfo": {}}, {"id": 3})

    build_instructions(tmp_path / "out", {"path": path, "columns": columns, "metadata_columns": ["a.b"]})

    assert [(row["messages"], row["metadata"]) for row in rows(tmp_path / "out")] == [(ONE, '{"a.b":"점"}')]
    assert reasons(tmp_path / "out") == ["empty_question", "missing_column"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"instruction": "물음", "output": "대담"}, r"no column '대담'.*; set columns\.output"),
        ({"instruction": "물음", "output": "대답", "input": "본문"}, r"no column '본문'; .* set columns\.input"),
        ({"messages": "대화"}, r"no column '대화'; the columns are 물음, 대답; set columns\.messages"),
        (None, "no known form of question and answer in the columns 물음, 대답 .*set columns: .*instruction/output"),
    ],
)
def test_columns_that_are_not_there_are_named_with_those_that_are(
    tmp_path: Path, name: str, mapping: dict[str, str] | None, says: str
) -> None:
    (tmp_path / "a.csv").write_text("물음,대답\n수도는?,서울\n")
    jsonl(tmp_path / "a.jsonl", {"물음": "수도는?", "대답": "서울"})
    pq.write_table(pa.table({"물음": ["수도는?"], "대답": ["서울"]}), tmp_path / "a.parquet")

    with pytest.raises(StageError, match=rf"inputs\.0: {name}: {says}"):
        build_instructions(tmp_path / "out", {"path": tmp_path / name, "columns": mapping})


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.csv", "Q,A\n물음,답\n".encode("utf-16"), "invalid_encoding"),
        ("a.csv", "물음,대답\n물음,답\n".encode("cp949"), "invalid_encoding"),
        ("a.jsonl", '{"Q": "물음", "A": "답"}\n'.encode("cp949"), "invalid_encoding"),
        ("a.json", '[{"Q": "물음", "A": "답"}]'.encode("cp949"), "invalid_json"),
    ],
    ids=["utf-16", "cp949 header", "cp949 line", "cp949 json"],
)
def test_what_is_not_in_its_encoding_is_rejected_by_name(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    jsonl(tmp_path / "in/b.jsonl", {"Q": "수도는?", "A": "서울입니다."})

    build_instructions(tmp_path / "out", {"path": tmp_path / "in", "encoding": "utf-8"})

    assert messages(tmp_path / "out") == [ONE]
    (reject,) = rejects(tmp_path / "out")
    assert (reject["file"], reject["reason"]) == (f"in/{name}", reason)
    assert "not utf-8" in reject["error"].lower()


def test_a_string_of_parquet_that_is_not_utf8_rejects_its_row_only(tmp_path: Path) -> None:
    answers = [b"\xed\x95\x9c", b"\xb0\xa1", "셋".encode()]
    column = pa.Array.from_buffers(pa.string(), 3, pa.array(answers, pa.binary()).buffers())
    pq.write_table(pa.table({"Q": ["하나", "둘", "셋"], "A": column}), tmp_path / "a.parquet")

    build_instructions(tmp_path / "out", tmp_path / "a.parquet")

    assert [row["id"] for row in rows(tmp_path / "out")] == ["a.parquet#1", "a.parquet#3"]
    assert reasons(tmp_path / "out") == ["invalid_encoding"]


def test_parquet_keeps_what_stands_before_a_fault_and_reads_no_other_column(tmp_path: Path) -> None:
    rng = random.Random(1)
    table = pa.table(
        {
            "Q": [f"{number}째 질문 {rng.random()}" for number in range(4000)],
            "A": ["답"] * 4000,
            "image": [rng.randbytes(40) for _ in range(4000)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000, compression="zstd")
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    for group, column in ((2, 0), (0, 2)):  # of the images, whose first bytes are broken, none is looked at
        start = metadata.row_group(group).column(column).dictionary_page_offset
        data[start : start + 64] = bytes(64)
    (tmp_path / "a.parquet").write_bytes(data)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not at all")

    manifest = build_instructions(tmp_path / "out", tmp_path / "a.parquet", tmp_path / "b.parquet")

    assert 1000 <= manifest["num_records"] <= 2000
    assert [(one["file"], one["reason"]) for one in rejects(tmp_path / "out")] == [
        ("a.parquet", "broken_parquet"), ("b.parquet", "broken_parquet"),
    ]  # fmt: skip


def test_parquet_is_read_as_documents_too(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", None], "body": ["하나", "둘"], "day": [datetime.date(2020, 1, 2)] * 2, "x": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")

    build(tmp_path / "out", {"path": tmp_path / "a.parquet", "text_column": "body", "metadata_columns": ["day"]})

    assert [(row["id"], row["text"], row["metadata"]) for row in rows(tmp_path / "out")] == [
        ("a.parquet#a", "하나", '{"day":"2020-01-02"}'),
        ("a.parquet#2", "둘", '{"day":"2020-01-02"}'),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"record": "document", "columns": {"messages": "m"}}, r"inputs\.0\.columns is for record: instruction"),
        (
            {"record": "instruction", "text_column": "q"},
            r"inputs\.0\.text_column is for documents, .*inputs\.0\.columns",
        ),
        ({"record": "instruction", "id_column": "q"}, r"inputs\.0\.id_column is for documents, .*columns\.id"),
        ({"record": "instruction", "format": "text"}, r"inputs\.0\.format is text, which has no rows"),
        ({"record": "instruction", "columns": {"instruction": "q"}}, "got instruction: q; name instruction and output"),
        ({"record": "instruction", "columns": {"id": "q"}}, "name instruction and output, or messages alone"),
        (
            {"record": "instruction", "columns": {"messages": "m", "input": "i"}},
            "got input: i, messages: m; name instruction and output, or messages alone",
        ),
    ],
)
def test_keys_that_mean_nothing_to_the_record_are_refused(options: dict[str, Any], says: str) -> None:
    record = options.pop("record")

    with pytest.raises(ConfigError, match=says):
        validate({"inputs": [{"path": "a", **options}], "output": "o", "record": record}, CorpusConfig, where="test")


def test_a_config_of_instructions_survives_its_own_tree(tmp_path: Path) -> None:
    item = {"path": "data/x", "columns": {"instruction": "Q", "output": "A"}, "files": ["*.csv"]}
    config = CorpusConfig.model_validate({"inputs": [item], "output": tmp_path, "record": "instruction"})

    assert validate(to_tree(config), CorpusConfig, where="test") == config


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Several formats, repeats over files, and faults."""
    folder = tmp_path / "in"
    jsonl(folder / "a.jsonl", *({"instruction": f"{n % 30}째 질문", "output": f"{n % 30}째 답"} for n in range(90)), [])
    jsonl(folder / "chat.jsonl", *({"messages": CHAT[: 1 + n % 5]} for n in range(20)))
    (folder / "b.csv").write_text("Q,A\n" + "\n".join(f"{n % 5}째 질문,{n % 6}째 답" for n in range(20)))
    (folder / "README.md").write_text("about")
    data = {"data_info": [sft_label(number, answer=str(number % 3)) for number in range(9)]}
    write_zip(folder / "TL_1.zip", [("SFTlabel.json", json.dumps(data).encode()), ("노트.txt", b"x")])
    return folder


def test_instructions_are_the_same_however_the_work_is_cut_and_ordered(tmp_path: Path, inputs: Path) -> None:
    expected = build_instructions(tmp_path / "one", inputs)
    for seed in (1, 2):
        stage = stage_of(tmp_path / "out", inputs, record="instruction", min_text_share=0.001, task_bytes=700)
        run(stage, shuffle=seed)
        shutil.move(tmp_path / "out", tmp_path / f"out-{seed}")

    assert tree(tmp_path / "out-1") == tree(tmp_path / "out-2")
    assert len(list((tmp_path / "out-1/data").iterdir())) > 4
    assert rows(tmp_path / "out-1") == rows(tmp_path / "one")
    found = expected["accounting"]["records"]
    assert found["found"] == 91 + 20 + 20 + 9 == found["kept"] + found["dropped"] + found["rejected"]
    assert expected["counts"]["rejected"] == {"no_answer": 8, "not_an_object": 1}
    assert expected["counts"]["passed_over"] == {"text_beside_data": 1, "text_has_no_rows": 1}
    assert expected["num_text_bytes"] == sum(
        len((one["content"] + one["input"]).encode()) for row in messages(tmp_path / "one") for one in row
    )


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_build_of_instructions_goes_on_from_any_kill(tmp_path: Path) -> None:
    write_zip(tmp_path / "in/TL_1.zip", [("SFTlabel.json", json.dumps({"data_info": [sft_label(1)]}).encode())])
    jsonl(tmp_path / "in/a.jsonl", GOOD, GOOD, {"instruction": "수도는?", "output": ""})
    build_instructions(tmp_path / "out", tmp_path / "in")
    expected = tree(tmp_path / "out")
    num_killed = 0

    def die(*_: object) -> None:
        if next(moments, None) is None:
            raise Killed

    for at in range(0, 10_000, 13):
        shutil.rmtree(tmp_path / "out")
        moments = iter(range(at))
        disk.set_probe(die)
        try:
            build_instructions(tmp_path / "out", tmp_path / "in")
            break
        except Killed:
            num_killed += 1
        finally:
            disk.set_probe(None)
        build_instructions(tmp_path / "out", tmp_path / "in")
        assert tree(tmp_path / "out") == expected, at

    assert num_killed > 5


@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["system", "user", "gpt", "Human"]), st.text(" 가", max_size=2)), max_size=6
    )
)
def test_turns_that_are_taken_can_be_taught(turns: list[tuple[str, str]]) -> None:
    taken = Turns()
    try:
        taken.add_chat([{"role": role, "content": content} for role, content in turns])
        taken.close()
    except FaultyRowError:
        return

    roles = [one["role"] for one in taken.messages]
    rest = roles[roles[:1] == ["system"] :]
    assert rest == ["user", "assistant"] * (len(rest) // 2)
    assert len(rest) >= 2
    assert all(one["content"].strip() for one in taken.messages)
    assert len(turns) - len(taken.messages) <= 2  # an empty system turn and a last question, no more


def test_bytes_of_turns_are_counted_in_every_slice_of_a_batch() -> None:
    conversations = [[turn("user", "가", "나나")], [turn("user", "a"), turn("assistant", "다")], [turn("user", "")]]
    batch = pa.RecordBatch.from_pydict({"messages": conversations})

    assert text_bytes(batch).to_pylist() == [9, 4, 0]
    assert text_bytes(batch.slice(1, 1)).to_pylist() == [4]
    assert text_bytes(batch.slice(1, 0)).to_pylist() == []


def test_a_corpus_of_instructions_is_not_read_as_documents(tmp_path: Path, inputs: Path) -> None:
    build_instructions(tmp_path / "out", inputs)

    with pytest.raises(StageError, match="record is 'instruction', but 'document' is needed"):
        next(iterate_documents(tmp_path / "out"))


def test_no_instruction_at_all_is_an_error_with_its_counts(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"Q": "", "A": "답"}, {"Q": "질문", "A": ""})

    with pytest.raises(StageError, match=r"not one instruction was kept .*'empty_answer': 1, 'empty_question': 1"):
        build_instructions(tmp_path / "out", path)


def test_files_can_be_chosen_by_their_names(tmp_path: Path, inputs: Path) -> None:
    manifest = build_instructions(tmp_path / "out", {"path": inputs, "files": ["*.csv", "ch*"]})

    assert {row["id"].split("#")[0] for row in rows(tmp_path / "out")} == {"in/b.csv", "in/chat.jsonl"}
    assert manifest["counts"]["passed_over"] == {"not_chosen": 3}


def test_each_form_is_reached_by_no_earlier_one() -> None:
    for at, form in enumerate(FORMS):
        keys = [name for _, name in form.needed]
        assert not any(earlier.fits(keys, form.root) for earlier in FORMS[:at] if earlier.root in ("", form.root)), form
    assert INSTRUCTIONS.known_forms().startswith("messages, conversations, instruction/output")


def test_inspect_tells_instructions_from_documents(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", {"instruction": "요약해 줘", "input": "긴 글" * 99, "output": "짧은 글", "text": "x"}
    )
    label = json.dumps({"data_info": [sft_label(1)]}).encode()
    zipped = write_zip(tmp_path / "TL_02.RLHF데이터.zip", [("SFTlabel.json", label)])
    documents = jsonl(tmp_path / "docs.jsonl", {"text": "글"})

    report = inspect_path(path)

    assert report.record == "instruction"
    assert "record     instruction (지시 대화): 1 alpaca" in report.lines()
    assert report.lines()[-3:] == ["user       요약해 줘", f"(input)    {('긴 글' * 99)[:200]}…", "assistant  짧은 글"]
    assert inspect_path(zipped).tally["forms"] == {"aihub_71748": 1}
    assert (inspect_path(documents).record, inspect_path(documents).tally["forms"]) == ("document", {})


def test_inspect_of_columns_that_no_form_has_says_how_to_map_them(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"물음": "수도는?", "대답": "서울"})

    with pytest.raises(StageError, match=r"the columns are 물음, 대답; set text_column; .*columns: {instruction: …"):
        inspect_path(path)


def test_the_real_questions_are_all_accounted_for(tmp_path: Path) -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data/chatbot_ko")

    manifest = build_instructions(tmp_path / "out", SHARED_DATA / "chatbot_ko")

    assert manifest["accounting"]["records"] == {"dropped": 73, "found": 11823, "kept": 11750}
    assert manifest["forms"] == {"q_a": 11823}
    assert messages(tmp_path / "out")[0] == [turn("user", "12시 땡!"), turn("assistant", "하루가 또 가네요.")]
