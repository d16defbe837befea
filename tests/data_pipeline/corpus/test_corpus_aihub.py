"""AIHub 653 is read in place, whatever its zips look like, and nothing goes missing in silence."""

from __future__ import annotations

import io
import json
import unicodedata
import zipfile
from pathlib import Path

import pytest
from aihub_packages import (
    author,
    book,
    build,
    data_start,
    flip_byte,
    label_json,
    paragraph,
    rejects,
    rows,
    run,
    set_method,
    stage_of,
    texts,
    write_zip,
)

from data_pipeline.corpus.aihub import Schema, read_aihub, select
from data_pipeline.corpus.records import Document
from data_pipeline.corpus.sources import InputConfig
from data_pipeline.stage import StageError

TREE = "017.대규모 구매도서 기반 한국어 말뭉치/01-1.정식개방데이터"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tmp_path / TREE


def test_paragraphs_of_one_author_are_one_document_with_its_metadata(package: Path, tmp_path: Path) -> None:
    first = [paragraph(["가는 봄.", "오는 여름."]), paragraph(["둘째 문단."], number=1)]
    second = [paragraph(["다른 책."], by=1, number=2)]
    write_zip(package / "Training/02.라벨링데이터/TL_800.zip", [("책_001.json", label_json(first + second))])

    build(tmp_path / "out", package)

    found = rows(tmp_path / "out")
    assert [row["text"] for row in found] == ["가는 봄. 오는 여름.\n둘째 문단.", "다른 책."]
    assert json.loads(found[0]["metadata"]) == {
        "author": author(0), "class": 1, "kdc": "813", "member": "책_001.json", "published_year": 2001,
    }  # fmt: skip
    assert {row["source"] for row in found} == {"aihub_653"}
    assert found[0]["id"] == "01-1.정식개방데이터/Training/02.라벨링데이터/TL_800.zip!책_001.json#0"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("member", ["가.\n나.\n다."]), ("author", ["가.\n나.", "다."]), ("paragraph", ["가.", "나.", "다."])],
)
def test_the_unit_of_a_document_is_a_config_key(tmp_path: Path, unit: str, expected: list[str]) -> None:
    data = label_json([paragraph(["가."]), paragraph(["나."]), paragraph(["다."], by=1)])
    path = write_zip(tmp_path / "TL_1.zip", [("a.json", data)])

    build(tmp_path / "out", {"path": path, "aihub_unit": unit})

    assert texts(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "raw",
    ["책/첫째.json".encode("cp949"), "책/첫째.json".encode(), unicodedata.normalize("NFD", "책/첫째.json").encode()],
    ids=["cp949", "utf-8 without its flag", "nfd"],
)
def test_names_are_korean_in_nfc_whatever_the_zip_says(tmp_path: Path, raw: bytes) -> None:
    path = write_zip(tmp_path / "TL_1.zip", [(raw, book("글.", bom=True))])

    build(tmp_path / "out", path)

    assert json.loads(rows(tmp_path / "out")[0]["metadata"])["member"] == "책/첫째.json"


def test_odd_members_are_passed_over_or_named_and_all_are_accounted_for(package: Path, tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x.json", book("안쪽."))
    label = package / "Training/라벨링데이터/TL_1.zip"
    entries: list[tuple[str | bytes, bytes]] = [
        ("책/", b""),
        ("/머리.json", book("빗금.")),
        ("책_INFO.json", b'{"info": []}'),
        ("빈.json", b""),
        ("__MACOSX/._a.json", b"x"),
        ("안.zip", inner.getvalue()),
        ("깨짐.json", b'{"paragraphs": [{"id": 1} {"id": 2}]}'),
        ("다른.json", b'{"entries": [1]}'),
        ("그림.png", b"x"),
        ("설명.txt", "읽어 보세요".encode()),
    ]
    write_zip(label, entries)
    source = write_zip(package / "Training/원천데이터/TS_1.zip", [("책.tsv", "1.2.3\t글.\t1\t1\t1\t1\n".encode())])

    manifest = build(tmp_path / "out", package)

    assert texts(tmp_path / "out") == ["빗금."]
    assert rows(tmp_path / "out")[0]["id"].endswith("TL_1.zip!머리.json#0")
    assert manifest["counts"]["passed_over"] == {
        "directory": 1, "empty_member": 1, "info_file": 1, "no_reader": 1,
        "source_tsv": 1, "system_file": 1, "text_beside_data": 1,
    }  # fmt: skip
    assert manifest["counts"]["rejected"] == {"invalid_json": 1, "nested_archive": 1, "unknown_schema": 1}
    named = {(reject["member"], reject["reason"]): reject for reject in rejects(tmp_path / "out")}
    assert named["깨짐.json", "invalid_json"]["offset"] == 26
    assert named["깨짐.json", "invalid_json"]["file"].endswith("라벨링데이터/TL_1.zip")
    assert "entries" in named["다른.json", "unknown_schema"]["error"]
    items, item_bytes = manifest["accounting"]["items"], manifest["accounting"]["item_bytes"]
    assert items["found"] == len(entries) + 1 == items["read"] + items["passed_over"] + items["rejected"]
    num_bytes = sum(len(data) for _, data in entries) + zipfile.ZipFile(source).infolist()[0].file_size
    assert num_bytes == item_bytes["found"] == item_bytes["read"] + item_bytes["passed_over"] + item_bytes["rejected"]


def break_crc(path: Path) -> None:
    flip_byte(path, data_start(path, "b.json") + 40)


def break_deflate(path: Path) -> None:
    flip_byte(path, data_start(path, "b.json"))


def break_header(path: Path) -> None:
    flip_byte(path, data_start(path, "b.json") - 3)


def use_deflate64(path: Path) -> None:
    set_method(path, "b.json", 9)


@pytest.mark.parametrize(
    ("damage", "method", "reason", "says"),
    [
        (break_crc, zipfile.ZIP_STORED, "broken_member", "CRC-32"),
        (break_deflate, zipfile.ZIP_DEFLATED, "broken_member", "Error -3"),
        (break_header, zipfile.ZIP_STORED, "broken_member", "differ"),
        (use_deflate64, zipfile.ZIP_DEFLATED, "deflate64", "7z"),
    ],
)
def test_a_broken_member_is_named_and_the_rest_of_its_zip_is_read(tmp_path, damage, method, reason, says) -> None:
    entries = [(f"{name}.json", book(f"{name}의 글.")) for name in "abc"]
    path = write_zip(tmp_path / "TL_1.zip", entries, method=method)
    damage(path)

    manifest = build(tmp_path / "out", path)

    assert texts(tmp_path / "out") == ["a의 글.", "c의 글."]
    assert manifest["counts"]["rejected"] == {reason: 1}
    (reject,) = rejects(tmp_path / "out")
    assert (reject["file"], reject["member"], reject["reason"]) == ("TL_1.zip", "b.json", reason)
    assert says in reject["error"]
    assert reject["offset"] == zipfile.ZipFile(path).getinfo("b.json").header_offset


@pytest.mark.parametrize("in_memory_bytes", [10, 1 << 20])
def test_a_member_that_breaks_late_gives_no_document_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory_bytes: int
) -> None:
    monkeypatch.setattr("data_pipeline.corpus.archive.IN_MEMORY_BYTES", in_memory_bytes)
    sound = label_json([paragraph(["온전한 문단."], by=number) for number in range(3)])
    broken = sound.rstrip()[:-2] + b', {"id": oops}]}'
    path = write_zip(tmp_path / "TL_1.zip", [("a.json", broken), ("b.json", book("다른 글."))])

    build(tmp_path / "out", path)

    assert texts(tmp_path / "out") == ["다른 글."]


def test_a_file_that_is_no_zip_is_rejected_and_the_others_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_zip(folder / "TL_1.zip", [("a.json", book("글."))])
    truncated = write_zip(folder / "TL_2.zip", [("a.json", book("글이다."))])
    truncated.write_bytes(truncated.read_bytes()[:60])
    (folder / "TL_3.zip").write_text("<html>502</html>")

    build(tmp_path / "out", folder, accept_thin_packages=True)

    assert texts(tmp_path / "out") == ["글."]
    named = {reject["file"]: reject for reject in rejects(tmp_path / "out")}
    assert named["in/TL_2.zip"]["reason"] == "broken_archive"
    assert named["in/TL_3.zip"]["reason"] == "html_answer"
    assert "신청" in named["in/TL_3.zip"]["error"]


def test_a_build_of_only_a_broken_zip_fails_with_its_counts(tmp_path: Path) -> None:
    (tmp_path / "TL_1.zip").write_bytes(b"PK\x03\x04 and then nothing")

    with pytest.raises(StageError, match=r"not one document was kept.*broken_archive.*rejects"):
        build(tmp_path / "out", tmp_path / "TL_1.zip")

    assert not (tmp_path / "out/manifest.json").exists()


def test_aihubshell_parts_are_read_as_one_zip_by_their_byte_offsets(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "whole.zip", [(f"{n}.json", book(f"{n}째 글.")) for n in range(30)]).read_bytes()
    folder = tmp_path / "in"
    folder.mkdir()
    for start in range(0, len(whole), 200):  # part1000 sorts before part200 by name
        (folder / f"TL_1.zip.part{start}").write_bytes(whole[start : start + 200])

    build(tmp_path / "out", folder)

    assert texts(tmp_path / "out") == [f"{n}째 글." for n in range(30)]
    assert rows(tmp_path / "out")[0]["id"] == "in/TL_1.zip!0.json#0"


def test_a_missing_part_is_said_once(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "whole.zip", [(f"{n}.json", book(f"{n}째 글.")) for n in range(30)]).read_bytes()
    folder = tmp_path / "in"
    write_zip(folder / "TL_2.zip", [("a.json", book("글."))])
    for start in (0, 2000):
        (folder / f"TL_1.zip.part{start}").write_bytes(whole[start : start + 1000])

    build(tmp_path / "out", folder, accept_thin_packages=True)

    (reject,) = rejects(tmp_path / "out")
    assert (reject["file"], reject["reason"]) == ("in/TL_1.zip", "missing_part")
    assert "the part at byte 2,000 follows 1,000 bytes" in reject["error"]


def test_parts_beside_their_joined_zip_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    path = write_zip(folder / "TL_1.zip", [("a.json", book("글."))])
    (folder / "TL_1.zip.part0").write_bytes(path.read_bytes())

    manifest = build(tmp_path / "out", folder)

    assert manifest["counts"]["passed_over"] == {"part_of_joined_archive": 1}
    assert texts(tmp_path / "out") == ["글."]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("1.Training/라벨링데이터/TL_1.zip", ""),
        ("2.Validation/라벨링데이터/VL_1.zip", "heldout"),
        ("2. Validation/1. 라벨링데이터_231101_add/validation_논문.zip", "heldout"),
    ],
)
def test_validation_is_held_out_wherever_the_path_says_so(tmp_path: Path, path: str, hint: str) -> None:
    zipped = write_zip(tmp_path / "validation_runs" / path, [("a.json", book("글."))])

    for number, given in enumerate([tmp_path / "validation_runs", zipped]):
        build(tmp_path / f"out{number}", given)

    assert rows(tmp_path / "out1")[0]["split_hint"] == hint
    # The user's own folder is named validation_runs: no reason to hold its data out.
    assert rows(tmp_path / "out0")[0]["split_hint"] == hint


def test_validation_trains_where_the_config_says_so(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "2.Validation/VL_1.zip", [("a.json", book("글."))])

    build(tmp_path / "out", {"path": path, "validation_is_heldout": False})

    assert rows(tmp_path / "out")[0]["split_hint"] == ""


def lost_text() -> list[tuple[str, bytes]]:
    return [("a.json", label_json([paragraph([]) for _ in range(100)] + [paragraph(["글."])]))]


SOURCE_ROW = "1.2.3\t글이다.\t1\t1\t1\t1\n".encode()
THIN = {
    "lost text": ("Training/라벨링데이터/TL_1.zip", lost_text(), "almost no text: 0"),
    "sample": ("4.Sample/라벨링데이터/TL_1.zip", [("a.json", book("글이 충분히 길다. " * 9))], "only the sample"),
    "info": ("Training/라벨링데이터/TL_1.zip", [("a_INFO.json", b"{}")], "only INFO files, no label file"),
    "source": ("Training/원천데이터/TS_1.zip", [("a.tsv", SOURCE_ROW)], "only 원천데이터"),
    "source by its look": ("x/some.zip", [("a.tsv", SOURCE_ROW)], "only 원천데이터"),
}


@pytest.mark.parametrize("kind", THIN)
def test_a_package_of_almost_no_text_is_an_error_that_says_what_was_found(tmp_path: Path, kind: str) -> None:
    path, entries, says = THIN[kind]
    write_zip(tmp_path / "653" / path, entries)

    with pytest.raises(StageError, match=rf"inputs\.0: .*653(/x)?: {says}.* INFO files, .*원천 files"):
        run(stage_of(tmp_path / "out", tmp_path / "653"))


def test_a_thin_package_is_named_though_another_input_is_sound(tmp_path: Path) -> None:
    good = write_zip(tmp_path / "good/TL_1.zip", [("a.json", book("글이 충분히 길다. " * 9))])
    write_zip(tmp_path / "653/TL_1.zip", lost_text())

    with pytest.raises(StageError, match=r"^inputs\.1: .*653: almost no text"):
        run(stage_of(tmp_path / "out", good, tmp_path / "653"))


def test_a_thin_package_can_be_accepted(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "TL_1.zip", lost_text())

    manifest = run(stage_of(tmp_path / "out", path, accept_thin_packages=True))

    assert manifest["num_records"] == 1


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"max_member_bytes": 1000}, "too_large"), ({"max_compress_ratio": 50.0}, "compress_ratio")],
)
def test_expansion_is_bounded(tmp_path: Path, limits: dict[str, float], reason: str) -> None:
    bomb = book("가" * (6 << 20))
    path = write_zip(tmp_path / "TL_1.zip", [("bomb.json", bomb), ("a.json", book("글."))])

    build(tmp_path / "out", path, limits=limits, accept_thin_packages=True)

    assert texts(tmp_path / "out") == ["글."]
    (reject,) = rejects(tmp_path / "out")
    assert (reject["member"], reject["reason"]) == ("bomb.json", reason)


def test_large_members_are_streamed_to_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [("a.json", label_json([paragraph([f"{n}째 글."], by=n) for n in range(50)])), ("b.json", book("끝."))]
    path = write_zip(tmp_path / "TL_1.zip", entries)
    build(tmp_path / "out", path)

    monkeypatch.setattr("data_pipeline.corpus.archive.IN_MEMORY_BYTES", 10)
    build(tmp_path / "streamed", path)

    assert rows(tmp_path / "streamed") == rows(tmp_path / "out")


def test_a_further_corpus_is_a_row_of_the_table() -> None:
    nikl = Schema(
        name="nikl_written", title="모두의 말뭉치", root="document", text="paragraph[].form",
        metadata={"title": "metadata.title"},
    )  # fmt: skip
    data = {"id": "N1", "document": [{"metadata": {"title": "봄"}, "paragraph": [{"form": "가."}, {"form": "나."}]}]}

    found = list(read_aihub(io.BytesIO(json.dumps(data).encode()), InputConfig(path=Path("x")), schemas=[nikl]))

    assert found == [Document("0", "가.\n나.", 0, source="nikl_written", metadata={"title": "봄"})]


def test_select_goes_through_lists_of_lists() -> None:
    node = {"text": [[{"sentence": "가"}, {"sentence": "나"}], [], [{"other": 1}, {"sentence": "다"}]]}

    assert list(select(node, "text[][].sentence")) == ["가", "나", "다"]
