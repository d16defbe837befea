"""An audit's figures are those that a person finds by hand, the same each time, and its faults are named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizer import write_texts, write_word_piece
from trained_tokenizer import run

from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.stage import StageError
from data_pipeline.tokenizer.audit import AuditInputs, audit
from data_pipeline.tokenizer.audit_cost import Body
from data_pipeline.tokenizer.audit_sample import MAX_PIECE_CHARS, Text, _Kept, read_sample
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.sample import SampledText, sample_rows

BODY = Body(hidden_size=4, num_layers=2, seq_len=3)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts", a=["강릉에서 바다를", "바다를 Z"], b=["IFC4 IFC4"])


@pytest.fixture
def word_piece(tmp_path: Path) -> Path:
    return write_word_piece(tmp_path / "word-piece")


def audited(tokenizer: Path, texts: Path, *others: Path, **options: Any) -> dict[str, Any]:
    return audit(AuditInputs((tokenizer, *others), texts, **{"body": BODY, **options}))


def test_figures_by_source_are_those_found_by_hand(word_piece: Path, texts: Path) -> None:
    (one,) = audited(word_piece, texts)["tokenizers"]

    # 강릉 ##에서 바다 ##를 | 바다 ##를 [UNK], and IFC ##4 IFC ##4.
    a, b = one["sources"]["a"], one["sources"]["b"]
    counts = ("num_texts", "num_tokens", "num_chars", "num_bytes", "num_words", "num_unk", "num_exact", "num_lost")
    assert [a[name] for name in counts] == [2, 7, 13, 33, 4, 1, 1, 1]
    assert [b[name] for name in counts] == [1, 4, 9, 9, 2, 0, 1, 0]
    assert [one["total"][name] for name in counts] == [3, 11, 22, 42, 6, 1, 2, 1]
    assert one["total"]["chars_per_token"] == 22 / 11
    assert one["total"]["bytes_per_token"] == 42 / 11
    assert one["total"]["words_per_token"] == 6 / 11
    assert one["total"]["tokens_per_word"] == 11 / 6
    assert one["total"]["unk_rate"] == 1 / 11
    assert one["total"]["round_trip_rate"] == 2 / 3
    assert one["total"]["lost_character_rate"] == 1 / (7 + 4 + 8)
    assert one["total"]["vocabulary_loss_rate"] == 1 / (7 + 4 + 8)


def test_unused_vocabulary_by_kind(word_piece: Path, texts: Path) -> None:
    (one,) = audited(word_piece, texts)["tokenizers"]

    kinds = one["vocabulary"]["kinds"]
    assert {kind: (line["num_pieces"], line["num_unused"], line["num_tokens"]) for kind, line in kinds.items()} == {
        "special": (5, 4, 1),
        "character": (4, 2, 4),  # ##를 and ##4; 가 and a are not used
        "word": (4, 0, 6),
    }
    assert kinds["character"]["examples"] == ["가", "a"]
    assert (one["vocabulary"]["num_rows"], one["vocabulary"]["num_pieces"]) == (13, 8)
    assert one["vocabulary"]["unused_share"] == 2 / 8


def test_what_its_own_normaliser_changes_is_no_loss_of_the_vocabulary(tmp_path: Path) -> None:
    lower = write_word_piece(tmp_path / "lower", pieces=("ifc", "##4", "가"), is_lower=True)
    texts = write_texts(tmp_path / "texts", one=["IFC4 Z"])

    (one,) = audited(lower, texts)["tokenizers"]

    assert one["total"]["num_lost"] == 4  # I, F, C, Z
    assert one["total"]["num_lost_by_vocabulary"] == 1  # z


def test_decomposed_hangul_that_comes_back_is_no_loss(tmp_path: Path) -> None:
    jamo = tuple("\u1100\u1161\u11a8") + tuple(f"##{one}" for one in "\u1100\u1161\u11a8")
    accents = write_word_piece(tmp_path / "nfd", pieces=jamo, is_lower=True)  # strips accents by way of NFD
    texts = write_texts(tmp_path / "texts", one=["각가"])

    (one,) = audited(accents, texts)["tokenizers"]

    assert (one["total"]["num_exact"], one["total"]["num_lost"], one["total"]["num_unk"]) == (1, 0, 0)


def test_cost_is_tokens_times_operations(word_piece: Path, texts: Path, tmp_path: Path) -> None:
    spelled = write_word_piece(
        tmp_path / "spelled", pieces=tuple(f"{mark}{one}" for mark in ("", "##") for one in "강릉에서바다를IFC4가a")
    )

    first, second = audited(word_piece, texts, spelled)["tokenizers"]

    # 12 L H² in the body; 6 (body + head) + 12 L H T a token.
    assert first["cost"]["flops_per_token"] == 6 * (12 * 2 * 16 + 13 * 4) + 12 * 2 * 4 * 3
    assert first["cost"]["corpus_tokens"] == 11
    assert first["cost"]["flops"] == 11 * first["cost"]["flops_per_token"]
    assert first["cost"]["vocabulary_parameters"] == 13 * 4
    assert first["cost"]["vocabulary_share"] == 52 / (384 + 52)
    assert first["cost"]["bytes_in_row"] == 3 * 42 / 11
    assert first["cost"]["text_tokens"] == {
        "median": 4.0,
        "p95": 4.0,
        "max": 4,
        "share_longer_than_row": 2 / 3,
    }
    assert second["cost"]["corpus_tokens"] == 7 + 4 + 8  # a token a letter; Z is one that it does not know
    assert first["relative"] == {"tokens": 1.0, "flops": 1.0, "attention": 1.0, "vocabulary_parameters": 1.0}
    assert second["relative"]["tokens"] == 19 / 11
    assert second["relative"]["attention"] == (19 / 11) ** 2
    assert second["relative"]["flops"] == pytest.approx(
        19 * second["cost"]["flops_per_token"] / (11 * first["cost"]["flops_per_token"])
    )


def test_equal_inputs_give_equal_values_but_for_the_speed(byte_level: Path, hash_hash: Path, corpus: Path) -> None:
    first, second = (audited(byte_level, corpus, hash_hash, max_bytes=20_000) for _ in range(2))
    speeds = [one.pop("speed") for tree in (first, second) for one in tree["tokenizers"]]

    assert json.loads(json.dumps(first)) == json.loads(json.dumps(second))
    assert all(speed["megabytes_per_cpu_second"] > 0 for speed in speeds)
    assert [speed["library"] for speed in speeds[:2]] == ["fastokens", "tokenizers"]
    assert len(first["tokenizers"][0]["vocabulary"]["kinds"]["special"]["examples"]) == 4
    assert [one["name"] for one in first["tokenizers"]] == ["byte_level_bpe", "hash_hash_bpe"]
    assert [one["model"] for one in first["tokenizers"]] == ["byte_level_bpe", "hash_hash_bpe"]


def test_a_corpus_and_its_files_give_the_same_figures(corpus: Path, byte_level: Path) -> None:
    built = audited(byte_level, corpus)["tokenizers"][0]["total"]
    raw = audited(byte_level, corpus.parent / "docs.jsonl")["tokenizers"][0]["total"]

    assert built == raw


def test_turns_of_instructions_are_measured(tmp_path: Path, word_piece: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"instruction": "바다를", "input": "IFC4", "output": "강릉에서"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"inputs": [path], "output": tmp_path / "rows", "record": "instruction"}
    run(CorpusBuild(CorpusConfig.model_validate(config)))

    (one,) = audited(word_piece, tmp_path / "rows")["tokenizers"]

    assert (one["total"]["num_tokens"], one["total"]["num_words"]) == (6, 3)


ROWS = {
    "label": {"sentence1": "바다를", "sentence2": "IFC4", "label": "강릉에서"},
    "pair": {"anchor": "바다를", "positive": "IFC4", "negative": "바다를"},
    "preference": {"prompt": "바다를", "chosen": "IFC4", "rejected": "바다를"},
}


@pytest.mark.parametrize("record", ROWS)
def test_a_corpus_of_any_record_has_texts_to_measure_and_to_train_on(
    tmp_path: Path, word_piece: Path, record: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[record]) + "\n")
    run(CorpusBuild(CorpusConfig.model_validate({"inputs": [path], "output": tmp_path / "rows", "record": record})))

    (one,) = audited(word_piece, tmp_path / "rows")["tokenizers"]

    expected = "바다를\nIFC4" if record == "label" else "바다를\nIFC4\n바다를"
    assert one["total"]["num_words"] == len(expected.split())
    (batch,) = sample_rows(tmp_path / "rows", max_bytes=1 << 20, salt="x")
    assert batch == [SampledText(expected, "rows")]
    assert list(sample_rows(tmp_path / "rows", max_bytes=99, salt="x", source_weights={"rows": 1.0})) == [batch]


def test_a_tokenizer_without_an_end_is_audited_and_stays_so_when_pickled(word_piece: Path) -> None:
    encoder = Encoder(word_piece, needs_eos=False)

    again = pickle.loads(pickle.dumps(encoder))

    assert (encoder.eos_id, again.eos_id) == (None, None)
    assert (encoder.pad_id, encoder.unk_id) == (0, 1)
    with pytest.raises(StageError, match="eos_token is None"):
        Encoder(word_piece)


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(sizes=sizes, max_bytes=st.integers(1, 300), order=st.randoms(use_true_random=False))
def test_a_sample_does_not_depend_on_the_order_and_keeps_its_size(sizes: list[int], max_bytes: int, order: Any) -> None:
    items = [(f"id{number}", Text("s", "x" * size), size) for number, size in enumerate(sizes)]
    samples = []
    for _ in range(2):
        kept = _Kept(max_bytes)
        for item in items:
            kept.add(*item)
        samples.append(kept.texts())
        order.shuffle(items)

    assert samples[0] == samples[1]
    assert len(samples[0]) == 1 or sum(len(text.text) for text in samples[0]) <= max_bytes


def test_a_sample_says_what_it_was_taken_from(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts", a=["가나"] * 1, b=[f"글 {number}" for number in range(50)])

    sample = read_sample(folder, max_bytes=60)

    tree = sample.to_tree()
    assert tree["seen"]["sources"] == {
        "a": {"num_documents": 1, "num_bytes": 6},
        "b": {"num_documents": 50, "num_bytes": 50 * 4 + 10 + 2 * 40},
    }
    assert 0 < tree["num_bytes"] <= 60
    assert tree["num_texts"] == len(sample.texts)


def test_a_long_file_of_lines_is_sampled_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    line = "강릉에서 바다를 보았다.\n"
    path.write_text(line * (3 * MAX_PIECE_CHARS // len(line)), encoding="utf-8")

    sample = read_sample(path, max_bytes=MAX_PIECE_CHARS)

    assert sample.seen["long"]["num_documents"] == 1
    assert sample.seen["long"]["num_bytes"] == path.stat().st_size
    assert 0 < sample.num_bytes < path.stat().st_size / 2
    assert all(text.text.startswith("강릉") and text.text.endswith(".\n") for text in sample.texts)


def test_broken_rows_are_counted(tmp_path: Path, word_piece: Path) -> None:
    folder = write_texts(tmp_path / "texts", a=["바다를"])
    with (folder / "a.jsonl").open("a") as file:
        file.write("{broken\n[1]\n")

    tree = audited(word_piece, folder)

    assert tree["corpus"]["rejected"] == {"invalid_json": 1, "not_an_object": 1}
    assert tree["tokenizers"][0]["total"]["num_texts"] == 1


def test_what_can_not_be_audited_is_refused(tmp_path: Path, word_piece: Path, texts: Path) -> None:
    copy = write_word_piece(tmp_path / "copy")
    empty = write_texts(tmp_path / "empty", a=["", "  "])
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"body": "바다를"}\n')
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{x\n")
    (tmp_path / "unfinished" / ".staging").mkdir(parents=True)

    for corpus, says in {
        tmp_path / "none": r"--corpus .*none: does not exist; give a corpus folder",
        empty: r"--corpus .*empty: no text in it \(빈 말뭉치\); give a corpus",
        broken: r"no text in it .*broken\.jsonl: .*at character 1 of the line; give a corpus",
        wrong: r"--corpus: wrong\.jsonl: no column 'text'; the columns are body; name it with --text-column",
        tmp_path / "unfinished": r"an unfinished folder \(no manifest\.json\), but a finished corpus is needed",
    }.items():
        with pytest.raises(StageError, match=says):
            audited(word_piece, corpus)
    with pytest.raises(StageError, match=r"copy: the same tokenizer as .*word-piece \([0-9a-f]{12}…\); give another"):
        audited(word_piece, texts, copy)
    with pytest.raises(StageError, match=r"no tokenizer\.json there"):
        audited(tmp_path / "none", texts)
    assert audited(word_piece, wrong, text_column="body")["tokenizers"][0]["total"]["num_tokens"] == 2
