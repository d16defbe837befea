"""Merge rules: applied by every library, said on the card, and refused where their outcome would not last."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from trained_tokenizer import KINDS, OF_WORDS, run, stage_of

from data_pipeline.config import load
from data_pipeline.stage import StageError
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.fingerprint import tokenizer_fingerprint
from data_pipeline.tokenizer.merge_rules import MAX_RULES, MergeRules, measure_rules, read_merge_rules
from data_pipeline.tokenizer.train import TokenizerConfig

RULES = ("할머니 바다 → 할머니바다", "new word -> newword", "딥 러닝 모델 → 딥러닝모델", "딥 러닝 → 딥러닝")
TEXTS = ["new word 하나", "강릉 딥 러닝 모델을 new wordnew word", "할머니 바다에서\n딥  러닝", "그대로"]


@pytest.fixture(scope="module")
def with_rules(corpus: Path) -> dict[str, Path]:
    folders = {kind: corpus.parent / f"rules-{kind}" for kind in KINDS}
    for kind, folder in folders.items():
        run(stage_of(corpus, folder, kind=kind, merge_rules=RULES))
    return folders


@pytest.mark.parametrize("kind", KINDS)
def test_every_library_applies_the_rules_of_the_file(with_rules: dict[str, Path], kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    new_forms = [read_merge_rules(RULES).normalise(text) for text in TEXTS]
    encoder = Encoder(with_rules[kind])
    reference = Tokenizer.from_file(str(with_rules[kind] / "tokenizer.json"))
    theirs = transformers.AutoTokenizer.from_pretrained(with_rules[kind])

    ids, offsets = encoder.encode_batch(TEXTS)
    ours = [ids[start:stop].tolist() for start, stop in zip(offsets, offsets[1:], strict=False)]

    assert new_forms[1] == "강릉 딥러닝모델을 newwordnewword"
    assert ours == [reference.encode(text, add_special_tokens=False).ids for text in TEXTS] == theirs(TEXTS).input_ids
    assert ours == [reference.encode(text, add_special_tokens=False).ids for text in new_forms]
    if kind not in OF_WORDS:
        assert encoder.decode_batch(ids, offsets) == new_forms


@pytest.fixture(scope="module")
def lossless(with_rules: dict[str, Path]) -> dict[str, Encoder]:
    return {kind: Encoder(with_rules[kind], backend="tokenizers") for kind in KINDS if kind not in OF_WORDS}


@pytest.mark.parametrize("kind", ["byte_level_bpe", "unigram"])
@given(words=st.lists(st.sampled_from(["new", "word", "딥", "러닝", "모델", "할머니", "바다", " ", "  ", "\n", "x"])))
def test_what_comes_back_is_the_text_with_the_new_forms_and_stays_so(
    lossless: dict[str, Encoder], kind: str, words: list[str]
) -> None:
    encoder, text = lossless[kind], "".join(words)

    (once,) = encoder.decode_batch(*encoder.encode_batch([text]))
    (twice,) = encoder.decode_batch(*encoder.encode_batch([once]))

    assert once == twice == read_merge_rules(RULES).normalise(text)


def test_the_fast_library_agrees_on_what_the_rules_change_or_does_not_encode(with_rules: dict[str, Path]) -> None:
    fastest = Encoder(with_rules["byte_level_bpe"])
    reference = Encoder(with_rules["byte_level_bpe"], backend="tokenizers")

    assert fastest.encode_batch(TEXTS)[0].tolist() == reference.encode_batch(TEXTS)[0].tolist()


def test_a_fast_library_that_misses_the_rules_does_not_encode(
    with_rules: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ids differ on no text but those that hold an old form, which the probes lack."""
    fastokens = pytest.importorskip("fastokens")
    folder = with_rules["byte_level_bpe"]
    tree = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree | {"normalizer": {"type": "NFC"}}))
    without = fastokens.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(fastokens, "Tokenizer", SimpleNamespace(from_file=lambda path: without))

    assert Encoder(folder).backend == "tokenizers"


def test_the_card_says_what_the_rules_changed(corpus: Path, tmp_path: Path) -> None:
    run(stage_of(corpus, tmp_path, merge_rules=("강릉 → 江陵시", "없는 말 → 없는말")))

    card = json.loads((tmp_path / "card.json").read_text())
    assert card["merge_rules"] == [["강릉", "江陵시"], ["없는 말", "없는말"]]
    sample = card["rules_sample"]
    assert 0 < sample["num_changed"] <= sample["num_replacements"]
    assert sample["num_exact"] == sample["num_texts"] == 120
    assert card["corpus_sample"]["num_exact"] == 120 - sample["num_changed"]
    assert "`강릉` → `江陵시`" in (tmp_path / "README.md").read_text()


def test_the_measure_counts_texts_and_places(with_rules: dict[str, Path]) -> None:
    rules = read_merge_rules(RULES)

    found = measure_rules(Encoder(with_rules["byte_level_bpe"]), [TEXTS], rules)

    assert found == {"num_texts": 4, "num_changed": 3, "num_replacements": 5, "num_exact": 4, "num_unstable": 0}
    of_words = measure_rules(Encoder(with_rules["wordpiece"]), [["강릉에서\n바다"]], rules)
    assert (of_words["num_texts"], of_words["num_exact"]) == (1, 0)


def test_a_rule_that_meets_itself_is_taken_and_what_it_leaves_undone_is_counted(with_rules: dict[str, Path]) -> None:
    rules = read_merge_rules(["가 나 가 → 가나가"])

    found = measure_rules(Encoder(with_rules["byte_level_bpe"]), [["가 나 가", "가 나 가 나 가"]], rules)

    assert rules.normalise("가 나 가 나 가") == "가나가 나 가"
    assert (found["num_texts"], found["num_unstable"]) == (2, 1)


def test_rules_change_the_fingerprint_and_so_does_their_order(corpus: Path, byte_level: Path, tmp_path: Path) -> None:
    for number, rules in enumerate([("가 나 → 가나", "라 마 → 라마"), ("라 마 → 라마", "가 나 → 가나")]):
        run(stage_of(corpus, tmp_path / str(number), merge_rules=rules))

    prints = {tokenizer_fingerprint(folder) for folder in (byte_level, tmp_path / "0", tmp_path / "1")}
    assert len(prints) == 3


def test_a_file_of_rules_is_the_same_as_a_list(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "rules.txt"
    path.write_text("\ufeff# 우리 용어\n\n" + "\n".join(RULES) + "\n")
    (tmp_path / "config.yaml").write_text(f"corpus: {corpus}\noutput: {tmp_path / 'out'}\nmerge_rules: {path}\n")
    config = load(tmp_path / "config.yaml", [], TokenizerConfig)

    assert config.merge_rules == path
    assert read_merge_rules(path).tree() == read_merge_rules(RULES).tree()
    by_file, by_list = (stage_of(corpus, tmp_path / "out", merge_rules=rules) for rules in (path, RULES))
    assert by_file.inputs_sha256 == by_list.inputs_sha256
    path.write_text("가 나 → 가나")
    assert stage_of(corpus, tmp_path / "out", merge_rules=path).inputs_sha256 != by_list.inputs_sha256


def test_both_forms_are_taken_in_nfc() -> None:
    (rule,) = read_merge_rules([unicodedata.normalize("NFD", "새 말 → 새말")]).rules

    assert (rule.old, rule.new) == ("새 말", "새말")


def test_no_rules_are_nfc_alone() -> None:
    assert read_merge_rules(()) == MergeRules()
    assert str(MergeRules().normalizer()) == "NFC()"


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (["새 말"], r"merge_rules\.0: '새 말' has not exactly one arrow"),
        (["a → b → c"], "has not exactly one arrow"),
        (["a -> b → c"], "has not exactly one arrow"),
        ([" → 새말"], "the old form is empty"),
        (["새 말 →  "], "the new form is empty"),
        (["새말 → 새말"], "both forms are equal in NFC"),
        (["새\t말 → 새말"], "holds a control character or a line break"),
        (["\u1161나 → 나"], "begins or ends with half a syllable"),
        (["나라 → \u0301나"], "begins or ends with half a syllable or a combining mark"),
        (["나라 → 나\u1100"], "begins or ends with half a syllable"),
        (["끝이다 → <|endoftext|>"], r"holds the special token or marker '<\|endoftext\|>'"),
        (["<|pad|> → 채움"], r"holds the special token or marker '<\|pad\|>'"),
        (["질문: → 물음:"], "'질문:' is a part of the special token or marker '### 질문:'"),
        (["a b → ab", "a b → ab"], r"merge_rules\.1: 'a b' → 'ab': the same rule stands at merge_rules\.0 already"),
        (["a b → ab", "a b → a_b"], r"'a b' → 'ab' stands at merge_rules\.0 already; keep one"),
        (
            ["가나 → 다라", "다라 → 가나"],
            r"'가나' → '다라': its new form is changed again, to '가나' \(a chain or a circle",
        ),
        (["다라 → 마바", "가나 → 다라"], "'가나' → '다라': its new form is changed again, to '마바'"),
        (["가 → 가 가"], "'가' → '가 가': its new form is changed again, to '가 가 가 가'"),
        (["딥 러닝 → 딥러닝", "딥 러닝 모델 → 딥러닝모델"], "never applies, an earlier rule makes '딥러닝 모델' of"),
        (
            ["딥러닝 모델 → 딥러닝모델", "딥 러닝 → 딥러닝"],
            "'딥 러닝 모델' becomes '딥러닝 모델', and that '딥러닝모델'",
        ),
        ([f"가 {n} → 가{n}" for n in range(1000, 1001 + MAX_RULES)], f"501 rules, at most {MAX_RULES} are taken"),
    ],
)
def test_a_rule_that_would_not_last_is_refused_with_its_place(rules: list[str], says: str) -> None:
    with pytest.raises(StageError, match=says):
        read_merge_rules(rules)


def test_every_faulty_rule_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rules.txt"
    path.write_text("# 용어\n새 말\n좋은 말 → 좋은말\n→ x\n")

    with pytest.raises(StageError) as caught:
        read_merge_rules(path)

    assert [line.partition(": '")[0] for line in str(caught.value).splitlines()] == [
        f"{path}: line 2",
        f"{path}: line 4",
    ]
    path.write_text("새말\n" * 30)
    with pytest.raises(StageError, match=r"… and 10 more$"):
        read_merge_rules(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "holds no rule"), (b"# nothing\n\n", "holds no rule"), (b"\xb0\xa1 \xb3\xaa", "cannot be read")],
)
def test_a_file_without_rules_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "rules.txt").write_bytes(content)

    with pytest.raises(StageError, match=says):
        read_merge_rules(tmp_path / "rules.txt")


def test_a_missing_file_of_rules_is_an_error_before_anything_is_written(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"merge_rules: .*none\.txt: cannot be read"):
        run(stage_of(corpus, tmp_path / "out", merge_rules=tmp_path / "none.txt"))

    assert not (tmp_path / "out").exists()
