"""JSONL, CSV, TSV and text: mapped columns, encodings, and every row kept, dropped or named."""

from __future__ import annotations

import gzip
import io
import json
import unicodedata
from hashlib import blake2b
from pathlib import Path

import pytest
from aihub_packages import build, rejects, rows, texts, write_zip
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.corpus.inspect import inspect_path
from data_pipeline.corpus.jsonl import read_jsonl
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.corpus.text import normalise
from data_pipeline.stage import StageError

REPO = Path(__file__).resolve().parents[3]
SHARED_DATA = REPO.parent / "shared" / "data"


def jsonl(path: Path, *items: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    return path


def test_jsonl_rows_are_documents_with_their_ids_and_metadata(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "docs.jsonl", {"id": "ㄱ/1", "text": "하나", "n": 1}, {"text": "둘", "n": [2]})

    build(tmp_path / "out", {"path": path, "metadata_columns": ["n"], "source": "우리 글"})

    assert rows(tmp_path / "out") == [
        {"id": "docs.jsonl#ㄱ/1", "text": "하나", "source": "우리 글", "metadata": '{"n":1}', "split_hint": ""},
        {"id": "docs.jsonl#42", "text": "둘", "source": "우리 글", "metadata": '{"n":[2]}', "split_hint": ""},
    ]


def test_each_broken_line_is_named_with_its_byte_and_the_others_are_read(tmp_path: Path) -> None:
    good = '{"text": "글 %d"}\n'
    lines = [
        (good % 1).encode(), b'{"text": broken}\n', b"\n", b'["a row"]\n', '{"txt": "글"}\n'.encode(),
        b'{"text": 5}\n', b'{"text": "\xff"}\n', b'{"text": null}\n', (good % 2).encode().rstrip(),
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))

    manifest = build(tmp_path / "out", tmp_path / "a.jsonl")

    starts = [sum(map(len, lines[:number])) for number in range(len(lines))]
    assert texts(tmp_path / "out") == ["글 1", "글 2"]
    assert [(reject["offset"], reject["reason"]) for reject in rejects(tmp_path / "out")] == [
        (starts[1], "invalid_json"),
        (starts[3], "not_an_object"),
        (starts[4], "missing_column"),
        (starts[5], "text_not_string"),
        (starts[6] + 10, "invalid_encoding"),
    ]
    records = manifest["accounting"]["records"]
    assert records == {"found": 8, "kept": 2, "dropped": 1, "rejected": 5}
    assert manifest["counts"]["dropped"] == {"duplicate": 0, "empty": 1}


@given(
    lines=st.lists(st.binary(max_size=6).map(lambda piece: piece.replace(b"\n", b"")), max_size=12),
    size=st.integers(1, 20),
)
def test_byte_ranges_of_a_jsonl_file_see_each_line_once(lines: list[bytes], size: int) -> None:
    data = b"".join(b'{"text": "%s"}\n' % piece.hex().encode() for piece in lines)
    options = InputConfig(path=Path("x"))

    found = []
    for start in range(0, len(data), size):
        found += read_jsonl(io.BytesIO(data), options, start=start, stop=min(start + size, len(data)))

    assert found == list(read_jsonl(io.BytesIO(data), options))
    assert [document.text for document in found] == [piece.hex() for piece in lines]


def test_a_json_array_named_jsonl_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps([{"text": "가"}, 5, {"text": "나"}]).encode())

    manifest = build(tmp_path / "out", tmp_path / "a.jsonl")

    assert texts(tmp_path / "out") == ["가", "나"]
    assert manifest["counts"]["rejected"] == {"not_an_object": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_csv_is_read_in_the_encodings_that_korean_files_have(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "talk.csv").write_bytes(
        'Q,A,label\r\n"12시, 땡!",하루가 또 가네요.,0\r\n둘,"두 줄\n글",1\r\n'.encode(encoding)
    )

    build(tmp_path / "out", {"path": tmp_path / "talk.csv", "text_column": "A", "metadata_columns": ["label"]})

    assert texts(tmp_path / "out") == ["하루가 또 가네요.", "두 줄\n글"]
    assert json.loads(rows(tmp_path / "out")[0]["metadata"]) == {"label": "0"}


def test_bytes_that_are_not_in_the_encoding_reject_their_row_only(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\n가\n".encode() + b"\xb0\xff\n" + "나\n짧은,줄\n".encode())

    build(tmp_path / "out", {"path": tmp_path / "a.csv", "encoding": "utf-8"})

    assert texts(tmp_path / "out") == ["가", "나"]
    named = rejects(tmp_path / "out")
    assert [reject["reason"] for reject in named] == ["invalid_encoding", "invalid_row"]
    assert "line 3" in named[0]["error"]
    assert "line 5: 2 cells, the header has 1" in named[1]["error"]


def test_a_quote_in_tsv_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "ratings.txt").write_text('id\tdocument\tlabel\n1\t"최고\t1\n2\t별로\t0\n')

    build(tmp_path / "out", {"path": tmp_path / "ratings.txt", "format": "tsv", "text_column": "document"})

    assert texts(tmp_path / "out") == ['"최고', "별로"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        (
            {"text_column": "documnet"},
            r"no column 'documnet' \(did you mean 'document'\?\); .* id, document; set text_c",
        ),
        (
            {"text_column": "document", "id_column": "key"},
            "no column 'key'; the columns are id, document; set id_column",
        ),
        ({"text_column": "document", "metadata_columns": ["x"]}, "no column 'x'; .*; set metadata_columns"),
    ],
)
def test_a_missing_column_names_those_that_exist(tmp_path: Path, name: str, mapping: dict, says: str) -> None:
    (tmp_path / "a.csv").write_text("id,document\n1,글\n")
    jsonl(tmp_path / "a.jsonl", {"id": 1, "document": "글"})

    with pytest.raises(StageError, match=rf"inputs\.0: {name}: {says}"):
        build(tmp_path / "out", {"path": tmp_path / name, **mapping})


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("file", {"a.txt#0": "가\n나\n\n \n다\n"}), ("paragraph", {"a.txt#0": "가\n나", "a.txt#18": "다"})],
)
def test_text_is_a_document_a_file_or_a_paragraph(tmp_path: Path, unit: str, expected: dict[str, str]) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff가\r\n나\r\n\r\n \r\n다\r\n".encode())

    build(tmp_path / "out", {"path": tmp_path / "a.txt", "text_unit": unit})

    assert {row["id"]: row["text"] for row in rows(tmp_path / "out")} == expected


def test_gzip_is_read_in_place_and_a_cut_one_is_named_after_what_it_held(tmp_path: Path) -> None:
    data = b"".join(b'{"text": "%s"}\n' % blake2b(b"%d" % number).hexdigest().encode() for number in range(2000))
    whole = gzip.compress(data, mtime=0)
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    (tmp_path / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])

    build(tmp_path / "whole", tmp_path / "a.jsonl.gz")
    build(tmp_path / "cut", tmp_path / "b.jsonl.gz")

    assert len(texts(tmp_path / "whole")) == 2000
    kept = texts(tmp_path / "cut")
    assert kept == texts(tmp_path / "whole")[: len(kept)]
    assert len(kept) > 100
    (reject,) = rejects(tmp_path / "cut")
    assert (reject["file"], reject["reason"]) == ("b.jsonl.gz", "broken_stream")


def test_a_gzip_bomb_is_stopped(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(b'{"text": "one"}\n')
        for _ in range(40):
            file.write(b" " * (1 << 20))

    build(tmp_path / "out", tmp_path / "a.jsonl.gz")

    assert texts(tmp_path / "out") == ["one"]
    assert [reject["reason"] for reject in rejects(tmp_path / "out")] == ["compress_ratio"]


def test_line_formats_are_read_inside_zips(tmp_path: Path) -> None:
    entries = [("a.jsonl", '{"text": "가"}\n'.encode()), ("b.csv", "text\n나\n".encode())]

    build(tmp_path / "out", write_zip(tmp_path / "a.zip", entries))

    assert texts(tmp_path / "out") == ["가", "나"]


def test_notes_beside_data_are_passed_over_and_text_alone_is_read(tmp_path: Path) -> None:
    jsonl(tmp_path / "in/data/a.jsonl", {"text": "글"})
    (tmp_path / "in/data/SOURCE.txt").write_text("where this is from")
    (tmp_path / "in/books").mkdir()
    (tmp_path / "in/books/book.txt").write_text("책")
    (tmp_path / "in/LICENSE").write_text("MIT")

    manifest = build(tmp_path / "out", tmp_path / "in")

    assert texts(tmp_path / "out") == ["책", "글"]
    assert manifest["counts"]["passed_over"] == {"no_reader": 1, "text_beside_data": 1}


def test_text_is_changed_only_in_named_ways_each_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "\\u1112\\u1161\\u11ab ㅋ"}\n{"text": "a\\u0000b"}\n{"text": "줄\\r\\n끝"}\n'
        '{"text": "\\ud83d!"}\n{"text": "ㅋㅋ ① ㈜"}\n'
    )

    manifest = build(tmp_path / "out", tmp_path / "a.jsonl")

    assert texts(tmp_path / "out") == ["한 ㅋ", "ab", "줄\n끝", "\ufffd!", "ㅋㅋ ① ㈜"]
    assert manifest["counts"]["changed"] == {
        "control_characters": 1, "line_ends": 1, "lone_surrogates": 1, "nfc": 1, "repeated_id": 0,
    }  # fmt: skip


@given(text=st.text(st.characters(exclude_categories=()), max_size=20))
def test_a_normalised_text_is_nfc_utf8_and_stays_as_it_is(text: str) -> None:
    result, changes = normalise(text)

    assert normalise(result) == (result, ())
    assert unicodedata.is_normalized("NFC", result)
    assert (result == text) == (not changes)
    result.encode("utf-8")


def test_inspect_shows_what_would_be_read_and_writes_nothing(tmp_path: Path) -> None:
    jsonl(tmp_path / "in/a.jsonl", *({"text": f"글 {number}"} for number in range(500)))
    (tmp_path / "in/x.png").write_bytes(b"x")

    report = inspect_path(tmp_path / "in", num_samples=2)

    assert [record.text for record in report.samples] == ["글 0", "글 1"]
    assert report.kinds == {"jsonl": 1, "no_reader": 1}
    assert not report.is_whole
    assert any("in/a.jsonl#0" in line for line in report.lines())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.jsonl", "in", "x.png"]


def test_the_real_documents_are_all_kept(tmp_path: Path) -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data/docs_ko")

    manifest = build(tmp_path / "out", SHARED_DATA / "docs_ko")

    assert manifest["counts"]["kept"] == 208 + 105
    assert manifest["counts"]["passed_over"] == {"text_beside_data": 1}
    assert manifest["counts"]["rejected"] == {}
