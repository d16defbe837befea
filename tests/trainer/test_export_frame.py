"""The tokenizer of an export frames texts as the shards of its training did, and its ids are those of every stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline.shards.format import Frame
from data_pipeline.shards.frames import Texts, find_frame, put_in_frame
from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.fingerprint import tokenizer_fingerprint
from tests.data_pipeline.shards.folders import write_tokenizer
from trainer.export_frame import frame_tokenizer

ROWS = [("강릉은 바다와 커피로 이름난 도시다.", None), ("어디에 사느냐고", "강릉이라고 답했다."), ("가", "나 다")]
EOS, SEP, CLS = 0, 4, 5
FRAMES = {
    "bert": Frame("bert", CLS, SEP),
    "roberta": Frame("roberta", CLS, SEP),
    "plain": Frame("plain"),
    "begun": Frame("plain", 6),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "it")


def framed(folder: Path, frame: Frame) -> list[list[int]]:
    """Ids of the rows as shards hold them."""
    encoder = Encoder(folder)
    columns = []
    for texts in zip(*ROWS, strict=True):
        ids, offsets = encoder.encode_batch([text or "" for text in texts])
        is_there = np.array([text is not None for text in texts])
        columns.append(Texts(np.asarray(ids, np.uint32), np.asarray(offsets, np.int64), is_there))
    found = put_in_frame([columns], frame, kept=[[column.lengths for column in columns]], eos_id=EOS)
    return [part.tolist() for part in np.split(found.ids, np.cumsum(found.lengths)[:-1])]


def exported(tokenizer: Path, folder: Path, frame: Frame, *, has_types: bool = True, **changes: Any) -> Tokenizer:
    shutil.copytree(tokenizer, folder)
    if changes:
        file = folder / "tokenizer.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    frame_tokenizer(folder, frame, eos_id=EOS, has_token_types=has_types)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", FRAMES)
def test_an_exported_tokenizer_frames_texts_as_shards_do(tokenizer: Path, tmp_path: Path, kind: str) -> None:
    found = exported(tokenizer, tmp_path / "it", FRAMES[kind])

    assert [found.encode(first, second).ids for first, second in ROWS] == framed(tokenizer, FRAMES[kind])
    assert {ids[0] for ids in framed(tokenizer, FRAMES[kind])} == {FRAMES[kind].cls_id} or kind == "plain"
    assert tokenizer_fingerprint(tmp_path / "it") == tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_second_text_has_the_second_type_behind_the_first_separator(
    tokenizer: Path, tmp_path: Path, kind: str
) -> None:
    found = exported(tokenizer, tmp_path / "it", FRAMES[kind]).encode(*ROWS[1])

    first = found.ids.index(SEP)
    assert found.type_ids == [0] * (first + 1) + [1] * (len(found.ids) - first - 1)
    without = exported(tokenizer, tmp_path / "without", FRAMES[kind], has_types=False).encode(*ROWS[1])
    assert without.ids == found.ids and set(without.type_ids) == {0}


def test_another_frame_is_replaced_and_what_mends_offsets_stays(tokenizer: Path, tmp_path: Path) -> None:
    offsets = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    other = {"type": "BertProcessing", "sep": ["<|endoftext|>", 0], "cls": ["<|pad|>", 1]}
    before: dict[str, Any] = {"post_processor": {"type": "Sequence", "processors": [offsets, other]}}

    found = exported(tokenizer, tmp_path / "it", FRAMES["bert"], **before)

    assert [found.encode(first, second).ids for first, second in ROWS] == framed(tokenizer, FRAMES["bert"])
    kept = json.loads((tmp_path / "it" / "tokenizer.json").read_text())["post_processor"]["processors"]
    assert [step["type"] for step in kept] == ["ByteLevel", "TemplateProcessing"]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_frame_of_an_export_is_found_again(tokenizer: Path, tmp_path: Path, kind: str) -> None:
    exported(tokenizer, tmp_path / "it", FRAMES[kind])
    settings = tmp_path / "it" / "tokenizer_config.json"
    roles = {"cls_token": "<|cls|>", "sep_token": "<|sep|>"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | roles))

    assert find_frame(tmp_path / "it") == FRAMES[kind]


def test_settings_name_what_the_model_takes(tokenizer: Path, tmp_path: Path) -> None:
    for name, has_types in (("bert", True), ("llama", False)):
        exported(tokenizer, tmp_path / name, FRAMES["bert"], has_types=has_types)
        settings = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        types = ["token_type_ids"] if has_types else []
        assert settings["model_input_names"] == ["input_ids", *types, "attention_mask"]
