"""Tokenizers of the hub, and of a vocab.txt alone: the ids of transformers, and one plain message where none is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import BertTokenizer

from data_pipeline.shards.format import Frame
from data_pipeline.shards.frames import find_frame
from data_pipeline.stage import StageError
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.fingerprint import tokenizer_file, tokenizer_fingerprint
from data_pipeline.tokenizer.found import _fetched

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "강릉", "##에서", "Sea", "sea", "##s", "cafe", ".", "中", "é"]
TEXTS = ["강릉에서 Sea seas.", "café 中文 [SEP] é", " 강릉\t에서 ", "없는 말", ""]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def vocabulary(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"do_lower_case": False, "strip_accents": True}])
def test_a_vocab_txt_gives_the_ids_of_transformers(tmp_path: Path, settings: dict[str, bool]) -> None:
    folder = vocabulary(tmp_path / "it", **settings)
    theirs = BertTokenizer.from_pretrained(folder)

    encoder = Encoder(folder)

    ids, offsets = encoder.encode_batch([text.replace("[SEP]", "") for text in TEXTS])
    found = [ids[start:stop].tolist() for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]
    expected = [theirs(text.replace("[SEP]", ""), add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert found == expected and encoder.eos_is_sep and encoder.pad_id == 0
    assert find_frame(folder) == Frame("bert", 2, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer_config.json"] * bool(settings) + ["vocab.txt"]


def test_equal_vocabularies_are_one_tokenizer(tmp_path: Path, own_cache: Path) -> None:
    first, second = (tokenizer_file(vocabulary(tmp_path / name)) for name in ("a", "b"))

    assert first == second and [path.name for path in (own_cache / "dure/tokenizers").iterdir()] == [first.parent.name]
    assert tokenizer_fingerprint(tmp_path / "a") != tokenizer_fingerprint(
        vocabulary(tmp_path / "c", do_lower_case=False)
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "of a BertJapaneseTokenizer, which is opened by its own code"),
        ({"mask_token": "<mask>"}, r"vocab.txt has no mask_token '<mask>'; is it"),
    ],
)
def test_what_is_no_vocabulary_of_bert_is_refused(tmp_path: Path, settings: dict[str, str], told: str) -> None:
    with pytest.raises(StageError, match=told):
        tokenizer_file(vocabulary(tmp_path / "it", **settings))


def hub_cache(folder: Path, *, has_files: bool = True) -> None:
    """What huggingface_hub leaves of no-team/no-model at its newest commit."""
    commit = "0" * 40
    root = folder / "models--no-team--no-model"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(commit)
    (root / "snapshots" / commit).mkdir(parents=True)
    if has_files:
        vocabulary(folder / "made").joinpath("vocab.txt").rename(root / "snapshots" / commit / "vocab.txt")


@pytest.mark.parametrize("name", ["no-team/no-model", "hf:no-team/no-model", "hf:no-team/no-model@main"])
def test_a_name_of_the_hub_is_taken_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    hub_cache(tmp_path / "hub")
    offline(monkeypatch, tmp_path / "hub")

    assert tokenizer_file(name) == tokenizer_file(vocabulary(tmp_path / "same"))


def test_a_name_that_the_hub_does_not_give_is_told_with_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(monkeypatch, tmp_path / "hub")
    with pytest.raises(StageError, match=r"no-team/other: no folder here, .* is a network: hf download no-team"):
        tokenizer_file("no-team/other")
    hub_cache(tmp_path / "hub", has_files=False)
    with pytest.raises(StageError, match=r"neither tokenizer.json nor vocab.txt is in the hub's cache"):
        tokenizer_file("no-team/no-model")


def test_a_path_in_a_folder_of_here_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()

    with pytest.raises(StageError, match=r"data/tokeniser: no tokenizer.json there; give a folder .* klue/bert-base"):
        tokenizer_file("data/tokeniser")


def offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    import huggingface_hub._snapshot_download as downloads
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(downloads.constants, "HF_HUB_CACHE", str(cache))
    _fetched.cache_clear()
