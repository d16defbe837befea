"""`dure shards inspect` shows what a model will see."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.shards.inspect import describe
from data_pipeline.stage import StageError
from data_pipeline.stream.packing import Packing
from data_pipeline.stream.rows import open_rows
from tests.data_pipeline.shards.folders import (
    TEXTS,
    turns,
    write_corpus,
    write_instruction_corpus,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpus, tokenizer and shards of five documents, one of them held out by its hint."""
    found = tmp_path_factory.mktemp("inspect")
    write_corpus(found / "corpus", [TEXTS[:3], TEXTS[3:]], heldout=TEXTS[4:])
    write_tokenizer(found / "tokenizer")
    stage = ShardsBuild(
        ShardsConfig(
            corpus=found / "corpus", tokenizer=found / "tokenizer", output=found / "shards", heldout_fraction=0
        )
    )
    for task in stage.plan():
        stage.run(task)
    stage.finish()
    return found


def test_counts_and_lengths_are_shown(folder: Path) -> None:
    lines = describe(folder / "shards").splitlines()

    train = next(line for line in lines if line.startswith("train")).split()
    heldout = next(line for line in lines if line.startswith("heldout")).split()
    assert train[1:4] == ["2", "4", "0"]
    assert heldout[1:4] == ["1", "1", "0"]
    histogram = [line for line in lines if "█" in line]
    assert sum(int(line.split()[3]) for line in histogram) == 4


def test_the_first_row_is_decoded_with_its_documents_and_positions(folder: Path) -> None:
    text = describe(folder / "shards", tokenizer=folder / "tokenizer", seq_len=400, num_rows=1)

    for document in TEXTS[:4]:
        assert repr(document + "<|endoftext|>") in text
    assert "[    0 – " in text
    assert text.count("positions 0 – ") == 4
    assert "padding" in text


@pytest.mark.parametrize("packing", ["concatenated", "best_fit"])
def test_shown_rows_are_those_of_the_stream(folder: Path, tmp_path: Path, packing: Packing) -> None:
    shards = shutil.copytree(folder / "shards", tmp_path / "s", ignore=shutil.ignore_patterns("tokenizer"))
    text = describe(shards, seq_len=16, packing=packing, num_rows=3)  # ids, for there is no tokenizer
    batch = open_rows(shards, split="train", seq_len=16, packing=packing).gather(np.arange(3))

    shown = [line.split(": ", 1)[1] for line in text.splitlines() if "positions 0" in line]
    expected = []
    for inputs, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids, strict=True):
        firsts = np.flatnonzero(positions == 0).tolist()
        for first, end in zip(firsts, [*firsts[1:], 16], strict=True):
            expected += [str([*inputs[first:end].tolist(), int(labels[end - 1])])] * int(labels[first] != -100)
    assert shown == expected


def test_inspection_writes_nothing(folder: Path) -> None:
    before = sorted(path for path in (folder / "shards").rglob("*"))

    describe(folder / "shards", tokenizer=folder / "tokenizer", seq_len=24, packing="best_fit")

    assert sorted(path for path in (folder / "shards").rglob("*")) == before


def test_colour_is_there_when_asked_for(folder: Path) -> None:
    assert "\x1b[" not in describe(folder / "shards")
    assert "\x1b[36m" in describe(folder / "shards", colour=True)


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other", vocab_size=350)

    with pytest.raises(StageError, match=r"other: the tokenizer is [0-9a-f]{16}…, but .*shards was made with [0-9a-f]"):
        describe(folder / "shards", tokenizer=other)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two conversations, one of two turns, and a long one."""
    found = tmp_path_factory.mktemp("answered")
    rows = [turns("수도는?", "서울"), turns("하나", "둘", "셋", "넷\n다섯"), turns("긴 물음 " * 60, "답")]
    write_instruction_corpus(found / "corpus", [rows])
    write_tokenizer(found / "tokenizer")
    stage = ShardsBuild(
        ShardsConfig(
            corpus=found / "corpus",
            tokenizer=found / "tokenizer",
            output=found / "shards",
            heldout_fraction=0,
            template="koalpaca",
        )
    )
    for task in stage.plan():
        stage.run(task)
    stage.finish()
    return found / "shards"


def test_answers_stand_in_brackets_where_there_is_no_colour(answered: Path) -> None:
    text = describe(answered, seq_len=200, num_rows=1)

    assert "shards of instruction records" in text and "template koalpaca, " in text
    assert "### 질문: 수도는?↵\n    ↵\n    ### 답변:⟦ 서울<|endoftext|>⟧\n" in text
    assert "### 답변:⟦ 둘<|endoftext|>⟧↵\n    ↵\n    ### 질문: 셋" in text
    assert "⟦ 넷↵\n    다섯<|endoftext|>⟧" in text
    assert "(1 of the first 3 rows are longer than seq_len: not shown)" in text
    assert "best_fit" in text and "\x1b[" not in text


def test_targets_are_green_and_their_eos_stands_on_green(answered: Path) -> None:
    text = describe(answered, seq_len=200, num_rows=1, colour=True)

    assert "### 답변:\x1b[32m 서울\x1b[0m\x1b[30;42m<|endoftext|>\x1b[0m\n" in text
    assert "⟦" not in text


def test_the_marked_ids_are_the_targets_of_the_stream(answered: Path, tmp_path: Path) -> None:
    shards = shutil.copytree(answered, tmp_path / "s", ignore=shutil.ignore_patterns("tokenizer"))
    text = describe(shards, seq_len=200, num_rows=1)
    labels = (
        open_rows(shards, split="train", seq_len=200, packing="best_fit", too_long="drop").gather(np.arange(1)).labels
    )

    marked = [int(number) for part in text.split("⟦")[1:] for number in re.findall(r"\d+", part.split("⟧")[0])]
    assert marked == labels[labels != -100].tolist()


def test_instruction_rows_are_never_shown_concatenated(answered: Path) -> None:
    with pytest.raises(
        StageError, match="holds instruction rows, which are packed best_fit only, but packing is 'conc"
    ):
        describe(answered, packing="concatenated")
