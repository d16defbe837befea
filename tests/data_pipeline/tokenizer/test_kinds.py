"""Unigram and WordPiece: what each promises beyond what every kind does."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer_encode import korean_text
from trained_tokenizer import KINDS, OF_WORDS, VOCAB_SIZE, run, stage_of

from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.stage import StageError
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.measure import measure, measure_hostile
from data_pipeline.tokenizer.probes import HOSTILE
from data_pipeline.tokenizer.special import SPECIAL_TOKENS
from data_pipeline.tokenizer.unigram import BYTES, MAX_TRAINED_CHARS, _settled, _trainable

bytes_in_words = st.lists(
    st.sampled_from(["<0x41>", "<0x", "▁", " ", "  ", "\n\n", "\t", "\x00", "뷁", "\u3000", "강릉", "大", "ㅋ", "👍🏽"])
).map("".join)


@pytest.fixture(scope="module")
def unigram(trained: dict[str, Path]) -> Encoder:
    return Encoder(trained["unigram"])


@pytest.fixture(scope="module")
def wordpiece(trained: dict[str, Path]) -> Encoder:
    return Encoder(trained["wordpiece"])


def tokens(encoder: Encoder, text: str) -> list[str]:
    return [str(encoder.tokenizer.id_to_token(number)) for number in encoder.encode_batch([text])[0].tolist()]


@given(text=korean_text | bytes_in_words)
def test_unigram_gives_back_every_nfc_text(unigram: Encoder, text: str) -> None:
    assert unigram.decode_batch(*unigram.encode_batch([text])) == [unicodedata.normalize("NFC", text)]


def test_unigram_loses_nothing_of_the_hostile_list(unigram: Encoder) -> None:
    figures = measure_hostile(unigram)

    assert {name for name, one in figures.items() if one.num_exact != 1 or one.num_lost or one.num_unk} == set()
    assert set(figures) == set(HOSTILE)


def test_a_character_without_a_token_is_spelled_in_bytes(unigram: Encoder) -> None:
    assert tokens(unigram, "뷁") == [f"<0x{byte:02X}>" for byte in "뷁".encode()]
    assert "<0x41>" not in tokens(unigram, "<0x41> A<0x41>")


def test_unigram_begins_with_the_special_tokens_and_the_bytes(trained: dict[str, Path]) -> None:
    model = json.loads((trained["unigram"] / "tokenizer.json").read_text())["model"]

    pieces = [piece for piece, _ in model["vocab"]]
    scores = [score for _, score in model["vocab"]]
    num_fixed = len(SPECIAL_TOKENS) + len(BYTES)
    assert pieces[:num_fixed] == [*SPECIAL_TOKENS, *BYTES]
    assert scores[num_fixed:] == sorted(scores[num_fixed:], reverse=True)
    assert set(scores[:num_fixed]) == {scores[-1]}
    assert (model["unk_id"], model["byte_fallback"]) == (2, True)


def test_scores_do_not_depend_on_the_order_of_the_trainers_map() -> None:
    """The trainer gives characters without a score the lowest one and 0.0001 more from one to the next."""
    one = [("가나", -1.00000000001), ("가", -2.0), ("나", -9.0), ("다", -8.9999), ("라", -8.9998), ("라라", -8.9999)]
    two = [("가나", -1.00000000002), ("가", -2.0), ("나", -8.9998), ("다", -9.0), ("라", -8.9999), ("라라", -8.9999)]

    assert _settled(one) == _settled(two)
    assert _settled(one) == [("가나", -1.0), ("가", -2.0), ("라라", -8.9999), ("나", -9.0), ("다", -9.0), ("라", -9.0)]


def test_unigram_is_trained_on_stretches_that_the_trainer_can_take() -> None:
    texts = [["가나뷁다 라", "a" * (2 * MAX_TRAINED_CHARS + 1), ""]]

    found = [part for batch in _trainable(lambda: iter(texts), list("가나다라a ")) for part in batch]

    assert found == ["가나", "다 라", "a" * MAX_TRAINED_CHARS, "a" * MAX_TRAINED_CHARS, "a"]


def test_a_unigram_without_room_for_pieces_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"vocab_size: 400, but 294 special tokens and \d+ forms of .*max_alphabet"):
        run(stage_of(corpus, tmp_path / "out", kind="unigram", vocab_size=400))


def test_a_unigram_that_the_text_can_not_fill_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"vocab_size: 9,000 was asked for, .* gave \d{3}.*set vocab_size: \d{3} or"):
        run(stage_of(corpus, tmp_path / "out", kind="unigram", vocab_size=9_000))

    assert not (tmp_path / "out/manifest.json").exists()


def test_characters_beyond_the_alphabet_of_a_unigram_are_bytes(corpus: Path, tmp_path: Path) -> None:
    run(stage_of(corpus, tmp_path / "out", kind="unigram", vocab_size=600, max_alphabet=200))
    encoder = Encoder(tmp_path / "out")

    rare = [character for character in "강릉할머니" if encoder.tokenizer.token_to_id(character) is None]

    assert rare
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert (card["corpus_sample"]["round_trip_rate"], card["corpus_sample"]["unk_rate"]) == (1.0, 0.0)


def test_the_unknown_of_a_foreign_unigram_is_counted(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    shutil.copytree(trained["unigram"], folder)
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["byte_fallback"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tree))

    encoder = Encoder(folder)

    assert encoder.unk_id == 2
    assert measure(encoder, ["강릉 뷁"]).num_unk == 1


def test_a_word_with_an_unknown_character_is_unknown_as_a_whole(wordpiece: Encoder) -> None:
    assert tokens(wordpiece, "강릉에서")[-1].startswith("##")
    assert tokens(wordpiece, "강릉뷁에서 1년") == ["<|unk|>", *tokens(wordpiece, "1년")]
    assert tokens(wordpiece, "가" * 101) == ["<|unk|>"]
    figures = measure(wordpiece, ["강릉뷁에서 바다"])
    assert figures.num_unk == 1
    assert figures.num_lost == 5


def test_wordpiece_takes_the_longest_piece_from_the_left(wordpiece: Encoder) -> None:
    vocabulary = wordpiece.tokenizer.get_vocab()

    for word in ("강릉에서", "할머니를", "돌아왔다"):
        start = 0
        for token in tokens(wordpiece, word):
            piece = token.removeprefix("##")
            longer = [word[start : start + size] for size in range(len(piece) + 1, len(word) - start + 1)]
            assert not {("##" if start else "") + one for one in longer} & vocabulary.keys()
            start += len(piece)
        assert start == len(word)


def test_both_kinds_of_words_share_a_vocabulary(trained: dict[str, Path]) -> None:
    first, second = (json.loads((trained[kind] / "tokenizer.json").read_text())["model"] for kind in OF_WORDS)

    assert first["vocab"] == second["vocab"]
    assert (first["type"], second["type"]) == ("BPE", "WordPiece")


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_library_gives_the_same_ids_or_stands_back(trained: dict[str, Path], kind: str) -> None:
    encoder, reference = Encoder(trained[kind]), Encoder(trained[kind], backend="tokenizers")
    texts = [*HOSTILE.values(), "강릉에서 바다를 보았다. 뷁!"]

    assert encoder.backend == ("fastokens" if kind == "byte_level_bpe" else "tokenizers")
    assert encoder.encode_batch(texts)[0].tolist() == reference.encode_batch(texts)[0].tolist()


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_shards_are_built_with_it(corpus: Path, trained: dict[str, Path], tmp_path: Path, kind: str) -> None:
    config = {"corpus": corpus, "tokenizer": trained[kind], "output": tmp_path / "shards", "heldout_fraction": 0}

    manifest = run(ShardsBuild(ShardsConfig.model_validate(config)))

    assert manifest["tokenizer_fingerprint"] == Encoder(trained[kind]).fingerprint
    assert Encoder(tmp_path / "shards/tokenizer").vocab_size == VOCAB_SIZE
