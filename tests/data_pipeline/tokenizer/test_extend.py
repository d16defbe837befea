"""A text without a new token keeps its ids; what can't be a token is counted and named."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained_tokenizer import sentence

from data_pipeline import disk
from data_pipeline.stage import StageError
from data_pipeline.tokenizer import extend as extending
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.extend import ExtendConfig, is_done, make_plan
from data_pipeline.tokenizer.extend_choose import choose_tokens
from data_pipeline.tokenizer.extend_descent import new_tokens
from data_pipeline.tokenizer.extend_write import write_candidates, write_plan
from data_pipeline.tokenizer.probes import PROBES
from launch.cli import main

TERMS = ["IfcBuilding", "KT-13982", "가격표", "[newtoken]"]
KINDS = ("byte_level", "hash_hash")


def write_list(folder: Path, lines: list[str], name: str = "terms.txt") -> Path:
    file = folder / name
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def extend(base: Path, output: Path, terms: Path, **options: Any) -> Path:
    config = ExtendConfig.model_validate({"tokenizer": base, "output": output, "tokens": terms, **options})
    write_plan(make_plan(config), output)
    return output


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base: Path = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    return base, extend(base, folder / "extended", write_list(folder, TERMS))


def test_texts_without_new_tokens_keep_their_ids(pair: tuple[Path, Path]) -> None:
    generator = random.Random(5)
    texts = [*PROBES, *(sentence(generator) for _ in range(300))]

    before, after = (Encoder(folder).encode_batch(texts) for folder in pair)

    assert all(np.array_equal(*each) for each in zip(before, after, strict=True))


def test_a_new_token_is_one_id_wherever_it_stands(pair: tuple[Path, Path]) -> None:
    base, extended = (Encoder(folder, backend="tokenizers") for folder in pair)
    texts = [form for term in TERMS for form in (term, f"앞{term}은 {term}", unicodedata.normalize("NFD", f"가{term}"))]

    ids, offsets = extended.encode_batch(texts)

    found = [ids[start:stop] for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]
    expected = [number for number in range(4) for _ in range(3)]
    new = [[int(each) - base.vocab_size for each in row if each >= base.vocab_size] for row in found]
    assert [set(row) for row in new] == [{number} for number in expected]
    assert extended.vocab_size == base.vocab_size + len(TERMS)


def test_the_fast_encoder_agrees_on_new_tokens(pair: tuple[Path, Path]) -> None:
    texts = [f"앞 {term}은{term} <|endoftext|>" for term in TERMS]

    fast, reference = (Encoder(pair[1], backend=name).encode_batch(texts) for name in ("fastest", "tokenizers"))  # type: ignore[arg-type]

    assert all(np.array_equal(*each) for each in zip(fast, reference, strict=True))


def test_the_extended_tokenizer_is_another_one_and_tells_what_it_came_from(pair: tuple[Path, Path]) -> None:
    base, extended = pair
    told = json.loads((extended / "extension.json").read_text())

    assert Encoder(base).fingerprint != Encoder(extended).fingerprint
    assert told["base"]["fingerprint"] == Encoder(base).fingerprint
    assert [token["text"] for token in told["tokens"]] == TERMS
    pieces = [Encoder(base).encode_batch([term])[0].tolist() for term in TERMS]
    assert [token["pieces"] for token in told["tokens"]] == pieces
    assert Encoder(extended).special_ids == Encoder(base).special_ids


def test_descent_is_told_from_the_files_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, extended = pair
    found = new_tokens(base, extended)
    assert found is not None
    assert [token.text for token in found] == TERMS
    assert new_tokens(base, base) == []
    assert new_tokens(extended, base) is None, "the other way round a token is missing"

    tree = json.loads((extended / "tokenizer.json").read_text())
    tree["added_tokens"][-1]["id"] += 1
    altered = tmp_path / "tokenizer.json"
    altered.write_text(json.dumps(tree))
    assert new_tokens(base, altered) is None, "ids with a hole"
    tree["added_tokens"][-1]["id"] -= 1
    tree["normalizer"] = None
    altered.write_text(json.dumps(tree))
    assert new_tokens(base, altered) is None, "another normalizer"


def test_terms_that_cannot_be_tokens_are_counted_and_named(byte_level: Path, tmp_path: Path) -> None:
    terms = ["IfcBuilding", "가격표", "IfcBuilding", "", "a", "<|endoftext|>", "café", "가" * 200, "나\u0007다"]
    file = tmp_path / "terms.txt"
    file.write_bytes("\n".join(terms).encode() + "\n벽체마감\n".encode() + b"\xff\xfe\n")

    plan = make_plan(ExtendConfig(tokenizer=byte_level, output=tmp_path / "out", tokens=file))

    assert [token.text for token in plan.tokens] == ["IfcBuilding", "가격표", "벽체마감"]
    reasons = {refused.text[:20]: refused.reason for refused in plan.refused}
    assert len(plan.refused) == 7
    assert reasons["IfcBuilding"] == f"is there twice, first at {file}: line 1"
    assert reasons["<|endoftext|>"] == "is a token already: id 0"
    assert reasons["a"].startswith("is a token already: id ")
    assert reasons["café"].startswith("would come back as")
    assert reasons["가" * 20] == "has 200 characters, more than 128"
    assert reasons["나\u0007다"] == "holds a control character"
    assert any("is no utf-8" in reason for reason in reasons.values())


def test_an_emptied_list_is_refused(byte_level: Path, tmp_path: Path) -> None:
    file = write_list(tmp_path, ["a", "<|pad|>"])

    with pytest.raises(StageError, match=r"(?s)line 1: 'a': is a token already.*no new token is left"):
        make_plan(ExtendConfig(tokenizer=byte_level, output=tmp_path / "out", tokens=file))


def test_a_list_in_cp949_is_read(byte_level: Path, tmp_path: Path) -> None:
    file = tmp_path / "terms.txt"
    file.write_bytes("가격표\r\n벽체마감\r\n".encode("cp949"))

    plan = make_plan(ExtendConfig(tokenizer=byte_level, output=tmp_path / "out", tokens=file, spaced=True))

    assert [token.text for token in plan.tokens] == ["가격표", " 가격표", "벽체마감", " 벽체마감"]


def test_extending_twice_descends_from_each(byte_level: Path, tmp_path: Path) -> None:
    once = extend(byte_level, tmp_path / "once", write_list(tmp_path, TERMS))
    twice = extend(once, tmp_path / "twice", write_list(tmp_path, ["벽체마감"], "more.txt"))

    from_first, from_base = new_tokens(once, twice), new_tokens(byte_level, twice)

    assert from_first is not None
    assert from_base is not None
    assert [token.text for token in from_first] == ["벽체마감"]
    assert [token.text for token in from_base] == [*TERMS, "벽체마감"]


def test_equal_inputs_do_nothing_and_others_are_refused(byte_level: Path, tmp_path: Path) -> None:
    terms = write_list(tmp_path, TERMS)
    output = extend(byte_level, tmp_path / "out", terms)
    config = ExtendConfig(tokenizer=byte_level, output=output, tokens=terms)
    assert is_done(config)

    write_list(tmp_path, ["벽체마감"])
    with pytest.raises(StageError, match="holds another tokenizer: tokens_sha256"):
        is_done(config)
    shutil.rmtree(output)
    output.mkdir()
    with pytest.raises(StageError, match="is no finished tokenizer"):
        is_done(config)
    with pytest.raises(StageError, match="exists already"):
        write_plan(make_plan(config), output)


def test_a_failed_write_leaves_nothing(byte_level: Path, tmp_path: Path) -> None:
    plan = make_plan(ExtendConfig(tokenizer=byte_level, output=tmp_path / "out", tokens=write_list(tmp_path, TERMS)))

    def full(operation: disk.Operation, moment: disk.Moment, path: Path) -> None:
        if path.name.startswith("manifest.json"):
            raise OSError(28, "No space left on device")

    disk.set_probe(full)
    try:
        with pytest.raises(OSError, match="No space left"):
            write_plan(plan, tmp_path / "out")
    finally:
        disk.set_probe(None)

    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_text_whose_ids_would_change_is_refused(
    byte_level: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = extending.loaded

    def altered(tree: dict[str, Any]) -> Any:
        if len(tree["added_tokens"]) > 40:  # the extended one
            tree = tree | {"normalizer": {"type": "Lowercase"}}
        return loaded(tree)

    monkeypatch.setattr(extending, "loaded", altered)
    with pytest.raises(StageError, match="holds no new token, but its ids would change"):
        make_plan(ExtendConfig(tokenizer=byte_level, output=tmp_path / "o", tokens=write_list(tmp_path, TERMS)))


def words_of(*pairs: tuple[str, int]) -> list[list[str]]:
    return [[f"{word} " * number] for word, number in pairs]


def test_tokens_that_decoding_sets_apart_are_named(pair: tuple[Path, Path]) -> None:
    told = json.loads((pair[1] / "extension.json").read_text())["set_apart_by_decoding"]

    loses_spaces = "##" in Encoder(pair[0]).tokenizer.to_str()
    assert told == (TERMS if loses_spaces else [])


def test_choices_save_what_they_say(byte_level: Path) -> None:
    base = Encoder(byte_level, backend="tokenizers")
    texts = words_of(("나 컴포넌트를", 40), ("나 컴포넌트가", 30), ("나 IfcWall", 25), ("나 리액트", 3))
    choices = choose_tokens(base.tokenizer, texts, count=3, min_count=10)

    # Each choice beside those before it, encoded by a tokenizer that has them.
    from data_pipeline.tokenizer.extend_tokens import Term, add_tokens

    tree, lengths = json.loads(base.tokenizer.to_str()), []
    for number in range(len(choices) + 1):
        added = add_tokens(tree, [Term(choice.text, "") for choice in choices[:number]])
        tokenizer = extending.loaded(added.tree)
        lengths.append(sum(len(tokenizer.encode(text).ids) for batch in texts for text in batch))
    assert [choice.text for choice in choices][:2] == [" 컴포넌트", " IfcWall"]
    assert [choice.num_saved for choice in choices] == (-np.diff(lengths)).tolist()
    assert choices[0].count == 70
    assert all(choice.num_saved > 0 for choice in choices)


def test_choices_are_the_same_every_time_with_few_words_in_memory(byte_level: Path) -> None:
    tokenizer = Encoder(byte_level, backend="tokenizers").tokenizer
    generator = random.Random(3)
    texts = [[sentence(generator) for _ in range(200)] for _ in range(3)]

    one, two = (choose_tokens(tokenizer, texts, count=5, min_count=2) for _ in range(2))
    few = choose_tokens(tokenizer, texts, count=5, min_count=2, max_words=50)

    assert one == two
    assert len(one) == 5
    assert few


def test_a_corpus_chooses_and_measures(byte_level: Path, corpus: Path, tmp_path: Path) -> None:
    config = ExtendConfig(tokenizer=byte_level, output=tmp_path / "out", corpus=corpus, count=8, min_count=3)
    plan = make_plan(config)
    write_plan(plan, config.output)
    write_candidates(plan, tmp_path / "look")

    assert 0 < len(plan.tokens) <= 8
    assert plan.sizes["num_tokens_after"] < plan.sizes["num_tokens_before"]
    assert plan.sizes["num_texts_checked"] > 100
    listed = (tmp_path / "look" / "tokens.txt").read_text().splitlines()
    assert listed == [choice.text for choice in plan.choices]
    assert json.loads((config.output / "candidates.json").read_text())[0]["num_saved"] == plan.choices[0].num_saved


def test_the_verb_shows_before_it_writes(
    byte_level: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tokenizer", "extend", str(byte_level), "--corpus", str(corpus), "--count", "5", "--min-count", "3"]

    assert main([*words, "--output", str(tmp_path / "look"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "sample: tokens saved" in shown
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == ["candidates.json", "tokens.txt"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert "tokenizer done (완료)" in capsys.readouterr().out
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert "up to date" in capsys.readouterr().out


def test_the_verb_refuses_what_would_change_nothing(
    byte_level: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tokenizer", "extend", str(byte_level), "--output", str(tmp_path / "out")]
    terms = ["--tokens", str(write_list(tmp_path, TERMS))]
    for flags, told in (
        ([], "no new token is named: give a list by --tokens FILE"),
        (["--count", "3"], "count is 3, but there is no corpus to choose on"),
        (["--tokens", str(tmp_path / "none.txt")], "none.txt: no such file"),
        ([*terms, "--dry-run"], "--count chooses nothing"),
        ([*terms, "--init", "random"], "--init: 'random' is about a model's rows"),
        (["--spaced", "--corpus", "c", "--count", "3"], "--spaced: is about the terms of a list"),
        (["--corpus", "c", "--count", "3", "--dry-run", "--model", "m"], "--dry-run writes no model"),
    ):
        assert main([*words, *flags]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.stages
def test_transformers_gives_equal_ids(pair: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    extended = AutoTokenizer.from_pretrained(str(pair[1]))
    ours = Encoder(pair[1])
    for text in (*(f"앞{term}은 {term}" for term in TERMS), "어디에 사느냐고 묻자"):
        assert extended(text, add_special_tokens=False).input_ids == ours.encode_batch([text])[0].tolist()
    assert len(extended) == ours.vocab_size
