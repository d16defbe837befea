"""What used to go missing without a word: each piece of it is now read, counted or named."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from aihub_packages import book, build, label_json, paragraph, rejects, rows, run, stage_of, texts, write_zip
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.corpus import delimited, plain
from data_pipeline.corpus.delimited import read_csv
from data_pipeline.corpus.encoding import encoding_of_bytes
from data_pipeline.corpus.records import Document
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.stage import StageError


def member(*elements: Any) -> bytes:
    return json.dumps({"paragraphs": list(elements)}, ensure_ascii=False).encode()


def reasons(output: Path) -> list[tuple[str, int | None]]:
    return [(reject["reason"], reject["offset"]) for reject in rejects(output)]


# AIHub 653


def test_odd_elements_before_the_first_good_one_are_rejected_each(tmp_path: Path) -> None:
    odd = [{"id": "x"}, 5]
    data = member(*odd, paragraph(["글."]), {"sentences": None})
    path = write_zip(tmp_path / "TL_1.zip", [("a.json", data)])

    manifest = build(tmp_path / "out", path)

    assert texts(tmp_path / "out") == ["글."]
    starts = [data.index(b"{", 1), data.index(b"5"), data.rindex(b"{")]
    assert reasons(tmp_path / "out") == [("unknown_element", start) for start in starts]
    assert manifest["accounting"]["records"] == {"found": 4, "kept": 1, "dropped": 0, "rejected": 3}


def test_a_sentence_without_text_is_taken_from_the_original_or_named(tmp_path: Path) -> None:
    part = paragraph(["", "", "", "넷.", ""])
    first, second, third, _, fifth = part["sentences"]
    first |= {"text": None, "original_text": "하나."}
    del second["text"]
    second["original_text"] = "둘."
    third |= {"text": 3, "original_text": None}
    fifth |= {"text": " ", "original_text": "다섯."}
    path = write_zip(tmp_path / "TL_1.zip", [("a.json", member(part))])

    manifest = build(tmp_path / "out", path)

    assert texts(tmp_path / "out") == ["하나. 둘. 넷. 다섯."]
    assert manifest["counts"]["changed"]["original_text_instead"] == 3
    (reject,) = rejects(tmp_path / "out")
    assert (reject["reason"], reject["offset"]) == ("no_text", len('{"paragraphs": ['))
    assert "piece 2 of sentences[] has no text" in reject["error"]


def test_an_empty_sentence_is_no_loss(tmp_path: Path) -> None:
    build(tmp_path / "out", write_zip(tmp_path / "TL_1.zip", [("a.json", book("", "글."))]))

    assert rejects(tmp_path / "out") == []


def test_a_paragraph_whose_first_sentence_lacks_text_is_read(tmp_path: Path) -> None:
    part = paragraph(["", "둘.", "셋."])
    part["sentences"][0] = {"id": "x"}
    path = write_zip(tmp_path / "TL_1.zip", [("a.json", member(part))])

    build(tmp_path / "out", path)

    assert texts(tmp_path / "out") == ["둘. 셋."]
    assert [reason for reason, _ in reasons(tmp_path / "out")] == ["no_text"]


def test_a_file_without_paragraphs_is_a_known_one_without_text(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "TL_1.zip", [("a.json", b'{"paragraphs": []}'), ("b.json", book("글."))])

    manifest = build(tmp_path / "out", path)

    assert manifest["counts"]["passed_over"] == {"empty_list": 1}
    assert manifest["counts"]["rejected"] == {}


@pytest.mark.parametrize(
    ("name", "line"), [("only.txt", "1.2.3\t글이다.\n"), ("only.txt", "1.2.3 글이다.\n"), ("a.csv", "1.2.3\t글\n")]
)
def test_source_lines_are_no_text_whatever_their_file_is_called(tmp_path: Path, name: str, line: str) -> None:
    write_zip(tmp_path / "in/라벨링데이터/TL_300.zip", [("a.json", book("글이다."))])
    write_zip(tmp_path / "in/원천데이터/TS_300.zip", [(name, line.encode() * 3)])

    manifest = build(tmp_path / "out", tmp_path / "in")

    assert texts(tmp_path / "out") == ["글이다."]
    assert manifest["counts"]["passed_over"] == {"source_tsv": 1}


def test_source_lines_are_known_by_their_columns_outside_a_source_package(tmp_path: Path) -> None:
    write_zip(tmp_path / "in/x.zip", [("a.txt", "1.2.3\t글\t1\t1\t1\t1\n".encode()), ("b.txt", "글이다.".encode())])

    manifest = build(tmp_path / "out", tmp_path / "in", accept_thin_packages=True)

    assert texts(tmp_path / "out") == ["글이다."]
    assert manifest["counts"]["passed_over"] == {"source_tsv": 1}


@pytest.mark.parametrize("name", ["원천데이터/TS_1.txt", "a.txt"])
@pytest.mark.parametrize("first", ["1.2.3 판을 내며", "naver.com\t글"])
def test_a_text_that_begins_with_dots_is_text(tmp_path: Path, name: str, first: str) -> None:
    (tmp_path / "in" / name).parent.mkdir(parents=True)
    (tmp_path / "in" / name).write_text(f"{first}\n글이다.")

    build(tmp_path / "out", tmp_path / "in")

    assert texts(tmp_path / "out") == [f"{first}\n글이다."]


# Packages and archives


def test_each_package_of_an_input_is_judged_alone(tmp_path: Path) -> None:
    good = [("a.json", book("글이 충분히 길다. " * 9))]
    for name, entries in (("017.하나", good), ("018.둘", [("a_INFO.json", b"{}")])):
        write_zip(tmp_path / f"P/{name}/01.데이터/1.Training/라벨링데이터/TL_1.zip", entries)

    with pytest.raises(StageError, match=r"^inputs\.0: .*P/018\.둘: only INFO files, no label file"):
        run(stage_of(tmp_path / "out", tmp_path / "P"))


def test_the_folders_of_one_package_are_judged_together(tmp_path: Path) -> None:
    for folder, entries in (("TL", [("a.json", book("글이 충분히 길다. " * 9))]), ("source", [("a_INFO.json", b"{}")])):
        write_zip(tmp_path / f"653/{folder}/x.zip", entries)

    assert run(stage_of(tmp_path / "out", tmp_path / "653"))["num_records"] == 1


def test_archives_that_can_not_be_opened_count_against_their_package(tmp_path: Path) -> None:
    write_zip(tmp_path / "in/TL_0.zip", [("a.json", book("글이 충분히 길다. " * 9))])
    for number in (1, 2, 3):
        (tmp_path / f"in/TL_{number}.zip").write_bytes(b"PK\x03\x04 and then nothing")

    with pytest.raises(StageError, match=r"inputs\.0: .*/in: 3 of 4 archives could not be opened.*out/rejects names"):
        run(stage_of(tmp_path / "out", tmp_path / "in"))

    manifest = run(stage_of(tmp_path / "out", tmp_path / "in", accept_thin_packages=True))
    assert manifest["archives"] == {"num_found": 4, "num_lost": 3}
    assert [lost["file"] for lost in manifest["lost"]] == ["in/TL_1.zip", "in/TL_2.zip", "in/TL_3.zip"]


def test_the_bytes_of_a_lost_archive_count_as_label_bytes_without_text(tmp_path: Path) -> None:
    for number in range(2):
        write_zip(tmp_path / f"in/TL_{number}.zip", [("a.json", book(f"{number} 글이 충분히 길다. " * 9))])
    (tmp_path / "in/TL_2.zip").write_bytes(b"x" * (1 << 20))

    with pytest.raises(StageError, match=r"almost no text: 0\.\d+% .*, archives that can't be opened: 1"):
        run(stage_of(tmp_path / "out", tmp_path / "in"))


# Links


def test_links_are_followed_and_a_folder_above_is_not_walked_again(tmp_path: Path) -> None:
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "far/a.txt").write_text("먼 글.")
    (tmp_path / "far/deep/b.txt").write_text("깊은 글.")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "far")
    (tmp_path / "far/deep/back").symlink_to(tmp_path / "in")

    manifest = build(tmp_path / "out", tmp_path / "in")

    assert [row["id"] for row in rows(tmp_path / "out")] == ["in/linked/a.txt#0", "in/linked/deep/b.txt#0"]
    assert manifest["counts"]["passed_over"] == {"link_loop": 1}


def test_what_is_no_file_is_passed_over_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("글.")
    os.mkfifo(tmp_path / "in/b.txt")

    manifest = build(tmp_path / "out", tmp_path / "in")

    assert manifest["counts"]["passed_over"] == {"special_file": 1}


def test_a_link_to_nothing_is_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("글.")
    (tmp_path / "in/b.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "in/c.zip").symlink_to("c.zip")

    manifest = build(tmp_path / "out", tmp_path / "in", accept_thin_packages=True)

    assert [(reject["file"], reject["reason"]) for reject in rejects(tmp_path / "out")] == [
        ("in/b.txt", "dangling_link"),
        ("in/c.zip", "dangling_link"),
    ]
    assert manifest["accounting"]["items"] == {"found": 3, "read": 1, "rejected": 2}


def test_files_are_read_in_the_order_of_their_whole_names(tmp_path: Path) -> None:
    names = ["a.txt", "a/b.txt", "a0.txt", "a-b/c.txt", "가/나.txt"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)

    build(tmp_path / "out", tmp_path / "in")

    assert texts(tmp_path / "out") == sorted(names)


def test_two_spellings_of_one_name_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, text in (("\ud55c.txt", "하나"), ("\u1112\u1161\u11ab.txt", "둘")):
        (tmp_path / "in" / name).write_text(text)

    build(tmp_path / "out", tmp_path / "in")

    assert sorted(texts(tmp_path / "out")) == ["둘", "하나"]


# Encodings


def test_one_broken_byte_does_not_make_a_file_cp949(tmp_path: Path) -> None:
    lines = [f"{number}번째 줄입니다." for number in range(50)]
    data = "\n".join(["text", *lines]).encode().replace("7번째 줄입".encode(), b"7\xb9\xf8", 1)
    (tmp_path / "a.csv").write_bytes(data)
    (tmp_path / "b.jsonl").write_text('{"text": "글"}\n')
    (tmp_path / "c.txt").write_bytes("옛 글입니다.".encode("cp949"))

    manifest = build(tmp_path / "out", *(tmp_path / name for name in ("a.csv", "b.jsonl", "c.txt")))

    assert texts(tmp_path / "out") == [*lines[:7], *lines[8:], "글", "옛 글입니다."]
    assert [(reject["file"], reject["reason"]) for reject in rejects(tmp_path / "out")] == [
        ("a.csv", "invalid_encoding")
    ]
    assert manifest["encodings"] == {"cp949": 1, "utf-8": 2}


def test_utf8_that_cp949_can_read_too_once_a_byte_of_it_is_broken_stays_utf8(tmp_path: Path) -> None:
    lines = ["text", "바다", "강릉", "바다바다", "강릉강릉"]
    data = "\n".join(lines).encode() + b"\n\xb9\xf8"
    assert "諛" in data.decode("cp949")  # mojibake, and no error
    (tmp_path / "a.csv").write_bytes(data)

    build(tmp_path / "out", tmp_path / "a.csv")

    assert texts(tmp_path / "out") == lines[1:]
    assert [reject["error"][:6] for reject in rejects(tmp_path / "out")] == ["line 6"]


WORDS = [
    "강릉에",
    "사는",
    "할머니가",
    "바다를",
    "보았다고",
    "말하자",
    "책상",
    "위의",
    "편지를",
    "찾던",
    "아이도",
    "웃었다",
    "ㅋㅋ",
    "뷁",
    "똠방각하",
    "2024년",
    "(가)",
]


@given(words=st.lists(st.sampled_from(WORDS), min_size=20), at=st.integers(0, 30))
def test_korean_is_told_by_its_bytes_with_one_of_them_broken(words: list[str], at: int) -> None:
    for encoding in ("utf-8", "cp949"):
        data = " ".join(words).encode(encoding) + "가나다라마바사 아자차카타파하".encode(encoding)
        assert encoding_of_bytes(data) == encoding
        assert encoding_of_bytes(data[:at] + b"\xff" + data[at:]) == encoding


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("encoding", ["cp949", "auto"])
def test_the_encoding_of_an_array_is_that_of_its_config(tmp_path: Path, name: str, encoding: str) -> None:
    rows_of_array = [{"instruction": "수도는 어디인가요?", "output": "서울입니다."}]
    (tmp_path / name).write_bytes(json.dumps(rows_of_array, ensure_ascii=False).encode("cp949"))

    build(tmp_path / "out", {"path": tmp_path / name, "encoding": encoding}, record="instruction")

    assert rows(tmp_path / "out")[0]["messages"][1]["content"] == "서울입니다."


def test_an_aihub_file_is_read_in_the_encoding_of_its_config(tmp_path: Path) -> None:
    data = label_json([paragraph(["글이다."])]).decode().encode("cp949")
    path = write_zip(tmp_path / "TL_1.zip", [("a.json", data)])

    build(tmp_path / "out", {"path": path, "encoding": "cp949"})

    assert texts(tmp_path / "out") == ["글이다."]


def test_a_fault_in_a_cp949_array_is_named_by_its_byte(tmp_path: Path) -> None:
    data = json.dumps([{"text": "가나다"}], ensure_ascii=False).encode("cp949")[:-1] + b" oops]"
    (tmp_path / "a.jsonl").write_bytes(data)

    build(tmp_path / "out", {"path": tmp_path / "a.jsonl", "encoding": "cp949"})

    assert reasons(tmp_path / "out") == [("invalid_json", data.index(b"oops"))]


# CSV


def csv_rows(data: str, **options: Any) -> tuple[list[str], list[str]]:
    """The texts, and the errors of what was rejected."""
    found = list(read_csv(io.BytesIO(data.encode()), InputConfig(path=Path("x"), **options)))
    kept = [item.text for item in found if isinstance(item, Document)]
    return kept, [item.error for item in found if not isinstance(item, Document)]


def test_a_stray_quote_costs_its_own_line_and_no_other() -> None:
    kept, errors = csv_rows('id,text\n1,가\n2,"나\n3,다\n4,라\n')

    assert kept == ["가", "다", "라"]
    assert len(errors) == 1
    assert errors[0].startswith("line 3: a quote opens a cell and is not closed well")


def test_a_stray_quote_that_ends_at_another_cell_costs_its_own_line() -> None:
    kept, errors = csv_rows('id,text\n1,"가\n2,나\n3,"다, 라"\n4,마\n')

    assert kept == ["나", "다, 라", "마"]
    assert [error[:6] for error in errors] == ["line 2"]


def test_stray_quotes_that_pair_up_with_the_wrong_number_of_cells_cost_their_own_lines() -> None:
    kept, errors = csv_rows('id,text,n\n1,"가,1\n2,나,2\n3,다",3,4\n4,라,4\n', text_column="text")

    assert kept == ["나", "라"]
    assert [error[:6] for error in errors] == ["line 2", "line 4"]


def test_a_cell_that_goes_on_for_ever_is_one_stray_quote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_RECORD_LINES", 5)
    lines = "".join(f"{number},줄 {number}\n" for number in range(20))

    kept, errors = csv_rows(f'id,text\n0,"가\n{lines}21,"끝\n')

    assert kept == [f"줄 {number}" for number in range(20)]
    assert [error.partition(":")[0] for error in errors] == ["line 2", "line 23"]
    assert "does not end within 5 lines" in errors[0]


def test_quoted_line_breaks_and_text_behind_a_quote_are_read_as_before() -> None:
    kept, errors = csv_rows('id,text\n1,"두 줄\n""글"""\n2,"가" 나\n3,5" 화면\n')

    assert kept == ['두 줄\n"글"', "가 나", '5" 화면']
    assert errors == []


cells = st.text(st.sampled_from('가, "\n'), max_size=6)


@given(values=st.lists(cells.filter(lambda text: text.strip()), max_size=8))
def test_well_written_csv_is_read_back(values: list[str]) -> None:
    quoted = ['"' + value.replace('"', '""') + '"' for value in values]

    kept, errors = csv_rows("id,text\n" + "".join(f"{number},{cell}\n" for number, cell in enumerate(quoted)))

    assert (kept, errors) == (values, [])


# Text


def test_text_is_a_document_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff가\r\n\r\n나\n다".encode())

    build(tmp_path / "out", {"path": tmp_path / "a.txt", "text_unit": "line"})

    assert [(row["id"], row["text"]) for row in rows(tmp_path / "out")] == [
        ("a.txt#0", "가"), ("a.txt#10", "나"), ("a.txt#14", "다"),
    ]  # fmt: skip


@pytest.mark.parametrize("unit", ["file", "paragraph", "line"])
def test_a_broken_line_of_a_text_is_rejected_alone(tmp_path: Path, unit: str) -> None:
    lines = ["\ufeff하나다.\n".encode(), "둘이다.\n".encode()[:-2] + b"\xff\n", "셋이다.\n".encode()]
    (tmp_path / "a.txt").write_bytes(b"".join(lines))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff\n" * 5 + b"PK\n")

    build(tmp_path / "out", {"path": tmp_path / "a.txt", "text_unit": unit}, tmp_path / "b.txt")

    assert [line for text in texts(tmp_path / "out") for line in text.splitlines()] == ["하나다.", "셋이다."]
    assert reasons(tmp_path / "out") == [("invalid_encoding", len(lines[0]) + 9), ("invalid_encoding", 0)]


@pytest.mark.parametrize("unit", ["file", "paragraph"])
def test_a_text_that_is_too_long_goes_on_in_another_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    monkeypatch.setattr(plain, "MAX_DOCUMENT_BYTES", 40)
    lines = [f"{number}째 줄이다.\n" for number in range(9)]
    long_line = "가" * 20 + "\n"
    (tmp_path / "a.txt").write_text("".join([*lines[:5], long_line, *lines[5:]]))

    manifest = build(tmp_path / "out", {"path": tmp_path / "a.txt", "text_unit": unit})

    found = texts(tmp_path / "out")
    assert "".join(text.rstrip("\n") + "\n" for text in found) == "".join(lines)
    assert len(found) == 3 + 2
    assert manifest["counts"]["changed"]["long_text_cut"] == 3
    assert reasons(tmp_path / "out") == [("too_large", len("".join(lines[:5]).encode()))]


def test_a_big_text_is_never_held_whole() -> None:
    class Counted(io.BytesIO):
        num_read = 0

        def readline(self, size: int | None = -1) -> bytes:
            line = super().readline(size)
            self.num_read += len(line)
            return line

    stream = Counted("한 줄이다.\n".encode() * 1000)
    options = InputConfig(path=Path("x"), text_unit="line", encoding="utf-8")

    next(iter(plain.read_text(stream, options)))

    assert stream.num_read < 100
