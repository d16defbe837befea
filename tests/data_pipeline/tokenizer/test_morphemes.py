"""Morphemes: borders between characters of the text, the same each time, and tokens that do not cross them."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import textwrap
import unicodedata
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from test_tokenizer_encode import korean_text
from trained_tokenizer import KINDS, OF_WORDS, make_corpus, run, stage_of, write_documents

from data_pipeline.stage import StageError
from data_pipeline.tokenizer import morphemes
from data_pipeline.tokenizer.cut_words import train_cut_words
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.measure import measure_hostile
from data_pipeline.tokenizer.merge_rules import MergeRules
from data_pipeline.tokenizer.morphemes import MAX_RUN_CHARS, Agreement, Morphemes, agreement
from data_pipeline.tokenizer.probes import HOSTILE
from data_pipeline.tokenizer.recipe import Recipe, train_byte_level
from data_pipeline.tokenizer.special import SPECIAL_TOKENS
from data_pipeline.tokenizer.words import train_hash_hash

REPO = Path(__file__).resolve().parents[3]


def cut_at_bars(borders: dict[str, list[int]]):
    """A cut as Kiwi's, told by hand."""

    def cut(texts: list[str]) -> list[list[str]]:
        found = []
        for text in texts:
            places = [0, *borders.get(text, []), len(text)]
            found.append([text[start:stop] for start, stop in zip(places, places[1:], strict=False)])
        return found

    return cut


TEXT = "강릉에서 바다에서 서울에서 집에서"
BORDERS = [2, 7, 12, 16]  # before each 에서


def test_no_token_is_learned_across_a_border() -> None:
    def texts():
        yield [TEXT] * 50

    options = {"vocab_size": 38 + 256 + 40, "min_frequency": 2}
    plain = train_byte_level(texts, Recipe(**options))
    aware = train_byte_level(texts, Recipe(**options, cut=cut_at_bars({TEXT: BORDERS})))

    def written(tokenizer, text: str) -> list[str]:
        return [text[start:stop] for start, stop in tokenizer.encode(text).offsets]

    assert written(plain, TEXT)[0] == "강릉에서"
    assert written(aware, TEXT) == ["강릉", "에서", " 바다", "에서", " 서울", "에서", " 집", "에서"]
    assert aware.decode(aware.encode(TEXT).ids) == TEXT
    assert str(aware.pre_tokenizer) == str(plain.pre_tokenizer)


def test_hash_marks_what_continues_a_word_not_what_begins_a_morpheme() -> None:
    def texts():
        yield [TEXT] * 50

    recipe = Recipe(vocab_size=420, min_frequency=2, cut=cut_at_bars({TEXT: BORDERS}))

    tokenizer = train_hash_hash(texts, recipe)

    assert tokenizer.encode(TEXT).tokens == ["강릉", "##에서", "바다", "##에서", "서울", "##에서", "집", "##에서"]
    assert "에서" not in tokenizer.get_vocab()


def test_a_word_goes_on_after_a_character_without_a_token_and_ends_at_punctuation() -> None:
    def texts():
        yield ["가뷁나나.다다"] * 50

    recipe = Recipe(vocab_size=60, min_frequency=2, cut=cut_at_bars({}))

    vocab = train_cut_words(texts, recipe, specials=list(SPECIAL_TOKENS), alphabet=list(".가나다"))["vocab"]

    assert {token for token in vocab if len(token.removeprefix("##")) == 2} == {"##나나", "다다"}
    assert list(vocab)[38:45] == [".", "가", "나", "다", "##가", "##나", "##다"]


def test_agreement_counts_borders_that_tokens_keep() -> None:
    class Told:
        def split(self, texts: list[str]) -> None:
            """Nothing to look up."""

        def borders(self, text: str) -> list[int]:
            return BORDERS

    def texts():
        yield [TEXT] * 50

    plain = train_byte_level(texts, Recipe(vocab_size=38 + 256 + 40))
    aware = train_byte_level(texts, Recipe(vocab_size=38 + 256 + 40, cut=cut_at_bars({TEXT: BORDERS})))

    assert agreement(aware, [[TEXT]], Told()) == Agreement(num_borders=4, num_cuts=4, num_shared=4)  # type: ignore[arg-type]
    assert agreement(plain, [[TEXT]], Told()).num_shared < 4  # type: ignore[arg-type]
    assert Agreement(4, 2, 1).tree() == {
        "num_borders": 4, "num_cuts": 2, "num_shared": 1, "kept_share": 0.25, "cut_share": 0.5
    }  # fmt: skip
    assert Agreement(0, 0, 0).tree()["kept_share"] == 0


def test_a_border_that_another_morpheme_covers_is_none() -> None:
    """그래 = 그렇 (both characters) + 어 (the second); 했다 = 하 + 었 (the first) + 다."""

    def said(*places: tuple[int, int]) -> list[SimpleNamespace]:
        return [SimpleNamespace(start=start, len=size) for start, size in places]

    assert morphemes._inner_borders(said((0, 2), (1, 1)), 2) == ()
    assert morphemes._inner_borders(said((0, 1), (0, 1), (1, 1)), 2) == (1,)
    assert morphemes._inner_borders(said(), 2) == ()


@pytest.mark.parametrize("blocked", ["import", "version"])
def test_a_missing_package_is_named_with_what_to_install(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    def missing_import(name: str, *rest: Any, **options: Any) -> Any:
        if name == "kiwipiepy":
            raise ImportError("No module named 'kiwipiepy'")
        return real_import(name, *rest, **options)

    def missing_version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    real_import = builtins.__import__
    morphemes._load_kiwi.cache_clear()
    morphemes.shared_morphemes.cache_clear()
    monkeypatch.setattr(morphemes.metadata, "version", missing_version if blocked == "version" else lambda name: "1")
    monkeypatch.setattr(builtins, "__import__", missing_import if blocked == "import" else real_import)

    with pytest.raises(StageError, match=r"needs the package kiwipiepy, .*pip install 'dure\[morphemes\]'"):
        run(stage_of(corpus, tmp_path / "out", morphemes="kiwi"))

    assert not (tmp_path / "out/manifest.json").exists()


def test_without_morphemes_the_package_is_not_needed(corpus: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "kiwipiepy", None)

    assert run(stage_of(corpus, tmp_path / "out"))["vocab_size"] == 800


@pytest.fixture(scope="module")
def kiwi() -> Morphemes:
    pytest.importorskip("kiwipiepy", reason="needs kiwipiepy: pip install 'dure[morphemes]'")
    return Morphemes(num_threads=1)


@pytest.fixture(scope="module")
def with_kiwi(kiwi: Morphemes, corpus: Path) -> dict[str, Path]:
    """A tokenizer of each kind; the little corpus gives a Unigram fewer pieces."""
    folders = {kind: corpus.parent / f"kiwi-{kind}" for kind in KINDS}
    for kind, folder in folders.items():
        run(stage_of(corpus, folder, kind=kind, morphemes="kiwi", vocab_size=680 if kind == "unigram" else 800))
    return folders


@pytest.mark.stages
def test_borders_fall_between_characters_of_the_text_never_inside_a_contraction(kiwi: Morphemes) -> None:
    assert kiwi.split(["강릉에서는 영화를 했다."]) == [["강릉", "에서", "는 영화", "를 했", "다."]]
    assert kiwi.borders("갔다") == [1]
    assert kiwi.borders("") == kiwi.borders("abc 123") == kiwi.borders("가" * (MAX_RUN_CHARS + 1)) == []


@pytest.mark.stages
@given(text=korean_text)
@hypothesis_settings(deadline=None)
def test_the_pieces_of_a_text_are_the_text(kiwi: Morphemes, text: str) -> None:
    (pieces,) = kiwi.split([text])

    assert "".join(pieces) == text
    assert all(pieces) or text == ""


@pytest.mark.stages
def test_borders_depend_on_nothing_but_the_word(kiwi: Morphemes, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "강릉에서는 할머니가 영화를 보셨다",
        "영화를 좋아하시는 할머니께서는 강릉에서",
        "재밌었음ㅋㅋ 이해하기쉬웠어요",
    ] * 30
    expected = kiwi.split(texts)

    assert Morphemes(num_threads=3).split(texts) == expected
    monkeypatch.setattr(morphemes, "MAX_CACHED_RUNS", 4)
    small = Morphemes(num_threads=1)
    assert [small.split([text])[0] for text in texts[::-1]] == expected[::-1]
    assert len(small._cache) <= 8


@pytest.mark.stages
@given(text=korean_text)
@hypothesis_settings(deadline=None)
def test_every_nfc_text_comes_back_from_a_vocabulary_of_morphemes(with_kiwi: dict[str, Path], text: str) -> None:
    for kind in ("byte_level_bpe", "unigram"):
        encoder = opened(with_kiwi[kind])
        assert encoder.decode_batch(*encoder.encode_batch([text])) == [unicodedata.normalize("NFC", text)], kind


_opened: dict[Path, Encoder] = {}


def opened(folder: Path) -> Encoder:
    return _opened.setdefault(folder, Encoder(folder))


@pytest.mark.stages
def test_the_files_stand_alone(with_kiwi: dict[str, Path]) -> None:
    """Encoding and loading need no Kiwi, and every library gives the same ids."""
    script = f"""
        import sys
        sys.path[:0] = [{str(REPO)!r}]
        sys.modules["kiwipiepy"] = None
        from transformers import AutoTokenizer
        from data_pipeline.tokenizer.encode import Encoder
        from data_pipeline.tokenizer.probes import HOSTILE
        texts = [text for name, text in HOSTILE.items() if name not in ("template", "chatml", "special_tokens")]
        for folder in {[str(folder) for folder in with_kiwi.values()]!r}:
            encoder, theirs = Encoder(folder), AutoTokenizer.from_pretrained(folder)
            ids, offsets = encoder.encode_batch(texts)
            ours = [ids[start:stop].tolist() for start, stop in zip(offsets, offsets[1:])]
            assert ours == theirs(texts).input_ids, folder
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


@pytest.mark.stages
@pytest.mark.parametrize("kind", KINDS)
def test_the_card_says_how_many_borders_tokens_keep(with_kiwi: dict[str, Path], kind: str) -> None:
    card = json.loads((with_kiwi[kind] / "card.json").read_text())

    assert card["morphemes"].startswith("kiwipiepy 0.")
    assert card["border_sample"]["num_borders"] > 1000
    assert card["border_sample"]["kept_share"] > 0.95
    assert f"{card['border_sample']['kept_share']:.1%}" in (with_kiwi[kind] / "README.md").read_text()
    figures = measure_hostile(Encoder(with_kiwi[kind]))
    assert sum(one.num_exact for one in figures.values()) == (2 if kind in OF_WORDS else len(HOSTILE))


@pytest.mark.stages
def test_training_again_in_another_process_with_other_threads_gives_the_same_files(
    corpus: Path, with_kiwi: dict[str, Path], tmp_path: Path
) -> None:
    script = f"""
        import sys
        sys.path[:0] = {[str(REPO), str(Path(__file__).parent)]!r}
        from pathlib import Path
        from data_pipeline.tokenizer import morphemes
        from trained_tokenizer import run, stage_of
        morphemes._num_threads = lambda: 3
        for kind in {KINDS!r}:
            options = dict(kind=kind, morphemes="kiwi", vocab_size=680 if kind == "unigram" else 800)
            run(stage_of(Path({str(corpus)!r}), Path({str(tmp_path)!r}) / kind, **options))
    """
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env=environment)

    for kind, folder in with_kiwi.items():
        for name in ("tokenizer.json", "card.json", "README.md"):
            assert (tmp_path / kind / name).read_bytes() == (folder / name).read_bytes(), (kind, name)


@pytest.mark.stages
def test_rules_are_applied_before_morphemes_are_looked_for(kiwi: Morphemes, tmp_path: Path) -> None:
    folder = make_corpus(tmp_path / "corpus", write_documents(tmp_path / "docs.jsonl"))

    run(stage_of(folder, tmp_path / "out", morphemes="kiwi", merge_rules=["강릉에서 → 강릉에선"]))

    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["rules_sample"]["num_exact"] == card["rules_sample"]["num_texts"]
    assert MergeRules() != stage_of(folder, tmp_path, merge_rules=["강릉에서 → 강릉에선"]).rules
