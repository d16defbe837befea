"""Terms: each once, what is left out is counted and named; pieces are legible, and put together they are the term."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizer import write_texts, write_word_piece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_pipeline.stage import StageError
from data_pipeline.tokenizer import audit_terms
from data_pipeline.tokenizer.audit import AuditInputs, audit
from data_pipeline.tokenizer.audit_terms import MAX_TERM_CHARS, count_terms, read_terms
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.spelling import Spelling, readable

TERMS = ["IfcBuilding", "KT-13982", "아세트아미노펜", "개인정보 보호법"]


def test_pieces_and_counts_are_those_found_by_hand(tmp_path: Path) -> None:
    folder = write_word_piece(tmp_path / "word-piece")
    texts = write_texts(tmp_path / "texts", a=["강릉에서 바다를", "바다를 Z"], b=["IFC4 IFC4"])
    (tmp_path / "terms.txt").write_text("IFC4\n바다\nKT-13982\nZ\n", encoding="utf-8")

    tree = audit(AuditInputs((folder,), texts, terms=tmp_path / "terms.txt"))

    (one,) = tree["tokenizers"]
    assert tree["terms"]["rows"] == [
        {"term": "IFC4", "count": 2},
        {"term": "바다", "count": 2},
        {"term": "KT-13982", "count": 0},
        {"term": "Z", "count": 1},
    ]
    assert [broken["in_text"] for broken in one["term_pieces"]] == [["IFC", "4"], ["바다"], ["[UNK]"] * 3, ["[UNK]"]]
    assert [broken["has_unknown"] for broken in one["term_pieces"]] == [False, False, True, True]
    assert one["terms"] == {
        "num_terms": 4,
        "num_occurrences": 5,
        "mean_pieces": 7 / 4,
        "mean_pieces_alone": 7 / 4,
        "mean_pieces_by_occurrence": (2 * 2 + 2 * 1 + 1) / 5,
        "median_pieces": 1.5,
        "max_pieces": 3,
        "num_whole": 1,
        "broken_share": 0.0,
        "num_unknown": 2,
        "num_saved": 2,
    }


def test_byte_level_pieces_put_together_are_the_term(byte_level: Path) -> None:
    encoder = Encoder(byte_level)
    spelling = Spelling(encoder)

    for term in TERMS:
        ids, _ = encoder.encode_batch([term])
        assert b"".join(spelling.bytes_of(number) for number in ids.tolist()).decode() == term


def test_behind_a_space_the_space_is_part_of_the_pieces(byte_level: Path) -> None:
    encoder = Encoder(byte_level)

    alone, behind = (audit_terms.break_terms(encoder, Spelling(encoder), TERMS)[1][key] for key in ("alone", "in_text"))

    assert "".join(alone) == "KT-13982"
    assert "".join(behind) == "␣KT-13982"


def test_a_piece_that_is_no_whole_character_shows_its_bytes() -> None:
    half = "안".encode()[:2]

    assert readable(half) == "⟨EC 95⟩"
    assert readable(" 안".encode() + half) == "␣안⟨EC 95⟩"
    assert readable(b"\n\t\r\x00\xe2\x80\x8b") == "⏎⇥⟨U+000D⟩⟨U+0000⟩⟨U+200B⟩"


@given(data=st.binary(max_size=12))
def test_every_piece_can_be_printed(data: bytes) -> None:
    assert readable(data).isprintable()


def test_metaspace_and_fallback_bytes_are_read(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "▁": 1, "▁가": 2, "나": 3, "<0xEC>": 4, "<0x95>": 5, "<0x88>": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    spelling = Spelling(Encoder(tmp_path, needs_eos=False))

    assert [spelling.show(number) for number in range(7)] == ["<unk>", "␣", "␣가", "나", "⟨EC⟩", "⟨95⟩", "⟨88⟩"]
    kinds = ["special", "character", "character", "character", "byte", "byte", "byte"]
    assert [spelling.kind_of(number) for number in range(7)] == kinds


def test_a_low_line_that_is_text_stays_one(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, " 가": 2}, [], unk_token="<unk>"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    spelling = Spelling(Encoder(tmp_path, needs_eos=False))

    assert [spelling.show(number) for number in (1, 2)] == ["▁", "␣가"]


def test_every_byte_level_piece_has_its_kind(byte_level: Path) -> None:
    encoder = Encoder(byte_level)
    spelling = Spelling(encoder)
    kinds = [spelling.kind_of(number) for number in spelling.token_ids]

    assert kinds.count("special") == 38
    assert kinds.count("byte") == 256 - 95 - 2  # printable ASCII, newline and tab are characters
    for number, kind in zip(spelling.token_ids, kinds, strict=True):
        assert ("⟨" in spelling.show(number)) == (kind in ("byte", "partial"))


def test_words_are_counted_with_their_particles_but_not_inside_latin_words() -> None:
    texts = ["IFC를 IFC4 IFC, KIFC (IFC)\nIFC", "반응형 데이터를 반응형\n데이터", "aaa aa ㅋㅋㅋ"]

    assert count_terms(["IFC", "반응형 데이터", "반응형", "aa", "없음", "ㅋㅋ"], texts) == [4, 2, 2, 1, 0, 1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_a_list_in_any_of_the_encodings_gives_the_same_terms(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "terms.txt"
    path.write_bytes("\r\n".join(TERMS).encode(encoding))

    assert read_terms(path).terms == tuple(TERMS)


@pytest.mark.parametrize(("name", "comma"), [("terms.csv", ","), ("terms.tsv", "\t")])
def test_a_table_gives_its_column(tmp_path: Path, name: str, comma: str) -> None:
    path = tmp_path / name
    path.write_text("\n".join(["code" + comma + "용어", *(f"1{comma}{term}" for term in TERMS)]), encoding="utf-8-sig")

    assert read_terms(path, column="용어").terms == tuple(TERMS)
    with pytest.raises(
        StageError, match=r"terms\..sv: no column 'term'; the columns are code, 용어; name it with --te"
    ):
        read_terms(path)


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "terms.txt"
    lines = ["약관", "", " 약관 ", "  ", "가" * (MAX_TERM_CHARS + 1), "법"]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")

    terms = read_terms(path)

    assert terms.terms == ("약관", "법")
    assert terms.faults == {"blank": 2, "duplicate": 1, "not_readable": 1, "too_long": 1}
    assert terms.named["duplicate"] == ("line 3: 약관 (as line 1)",)
    assert terms.named["blank"] == ("line 2", "line 4")
    assert terms.named["too_long"] == (f"line 5: {'가' * 20}… ({MAX_TERM_CHARS + 1} characters, at most 100)",)
    assert terms.named["not_readable"] == ("line 7",)


def test_nfd_is_the_same_term(tmp_path: Path) -> None:
    path = tmp_path / "terms.txt"
    path.write_text("\u1100\u1161\n가\n", encoding="utf-8")

    assert read_terms(path).terms == ("가",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file; give a text file with one term a line"),
        (b"", "no term left of 0 lines: the file is empty"),
        (b"\n \n", "no term left of 2 lines: 2 blank"),
        ("약관".encode("utf-16"), r"zero bytes in it, so it is no UTF-8 \(UTF-16\?\); save it as UTF-8"),
    ],
)
def test_a_list_without_a_term_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "terms.txt"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(StageError, match=rf"--terms .*terms\.txt: {says}"):
        read_terms(path)


def test_a_list_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "terms.txt"
    path.write_text("가\n나\n다\n")

    monkeypatch.setattr(audit_terms, "MAX_TERMS", 2)
    with pytest.raises(StageError, match=r"3 terms, at most 2; give those that matter"):
        read_terms(path)
    monkeypatch.setattr(audit_terms, "MAX_FILE_BYTES", 5)
    with pytest.raises(StageError, match=r"12 bytes, at most 5; is it a list of terms\?"):
        read_terms(path)
