"""The gate of examples: each fault that trains without a word is found, and sound rows pass."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data_pipeline.shards.format import Frame
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch
from tests.trainer.tiny_run import tiny_config
from trainer.gate_encoders import Seen, check_loss, check_rows, look_at, padding_room, told_padding

LABELLED: Any = SimpleNamespace(labels=("부정", "긍정"), frame=Frame("bert", 2, 3), vocab_size=50)
PAIRED: Any = SimpleNamespace(labels=(), frame=Frame("bert", 2, 3), vocab_size=50)
VOCABULARY: Any = SimpleNamespace(pad_id=1)


def labelled(numbers: list[float], *, text: int = 7) -> ExampleBatch:
    count = len(numbers)
    ids = np.tile(np.array([2, text, 3, 1]), (count, 1))
    return ExampleBatch(ids, np.full(count, 3), np.array(numbers), np.arange(count), num_targets=count)


def paired(pairs: list[tuple[int, int]], scores: list[float]) -> ExampleBatch:
    ids = np.array([[2, text, 3] for pair in pairs for text in pair])
    return ExampleBatch(ids, np.full(len(ids), 3), np.array(scores), np.arange(len(pairs)), num_targets=len(pairs))


def failed(seen: Seen, shards: Any, stage: str, tmp_path: Path) -> list[str]:
    config: Any = SimpleNamespace(stage=stage)
    return [check.name for check in check_rows(seen, config, shards, highest_row=50) if not check.is_ok]


def test_sound_examples_pass(tmp_path: Path) -> None:
    seen = look_at([labelled([0.0, 1.0] * 20)], LABELLED, VOCABULARY)
    pairs = look_at([paired([(7, 8), (9, 10)], [0.5, 1.0])], PAIRED, VOCABULARY)

    assert failed(seen, LABELLED, "classify", tmp_path) == []
    assert failed(pairs, PAIRED, "embed", tmp_path) == []
    assert (seen.num_rows, seen.num_tokens, seen.num_padding) == (40, 120, 40)


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        (labelled([1.0] * 40), "several classes"),
        (labelled([0.0, 2.0]), "labels are classes"),
        (labelled([0.0, 0.5]), "labels are classes"),
        (labelled([0.0, 1.0], text=60), "vocabulary fits the model"),
        (
            ExampleBatch(np.array([[2, 3], [2, 3]]), np.full(2, 2), np.array([0.0, 1.0]), np.arange(2), 2),
            "no emptied texts",
        ),
    ],
)
def test_a_fault_of_labelled_rows_is_found(batch: ExampleBatch, name: str, tmp_path: Path) -> None:
    assert failed(look_at([batch], LABELLED, VOCABULARY), LABELLED, "classify", tmp_path) == [name]


@pytest.mark.parametrize(
    ("batch", "name"),
    [
        (paired([(7, 7), (8, 8), (9, 10)], [np.nan] * 3), "pairs of two texts"),
        (paired([(7, 9), (8, 9)], [np.nan] * 2), "several second texts"),
        (paired([(7, 8 + number % 30) for number in range(40)], [0.5] * 40), "scores tell apart"),
        (paired([(7, 8), (9, 10)], [0.5, np.inf]), "scores tell apart"),
    ],
)
def test_a_fault_of_pairs_is_found(batch: ExampleBatch, name: str, tmp_path: Path) -> None:
    assert failed(look_at([batch], PAIRED, VOCABULARY), PAIRED, "embed", tmp_path) == [name]


def test_padding_of_a_rank_without_a_row_counts_for_nothing() -> None:
    padding = ExampleBatch(np.array([[1]]), np.ones(1, int), np.array([np.nan]), np.array([NO_ROW]), num_targets=0)

    assert look_at([padding], LABELLED, VOCABULARY) == Seen()


def test_a_new_head_may_know_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, stage="mlm", model={"from": "base"})
    shards: Any = SimpleNamespace(vocab_size=32_000, labels=())

    assert not check_loss(10.4, config, shards).is_ok
    assert check_loss(10.4, config, shards, has_new_head=True).is_ok
    assert not check_loss(16.0, config, shards, has_new_head=True).is_ok


def test_a_classifier_of_a_new_head_over_large_features_is_wrong_by_chance(tmp_path: Path) -> None:
    brought = tiny_config(tmp_path, tmp_path, stage="classify", model={"from": "base"})
    new = tiny_config(tmp_path, tmp_path, stage="classify")

    assert check_loss(5.0, brought, LABELLED, has_new_head=True).is_ok
    assert not check_loss(math.inf, brought, LABELLED, has_new_head=True).is_ok
    assert not check_loss(5.0, brought, LABELLED).is_ok
    assert not check_loss(5.0, new, LABELLED).is_ok


def test_padding_is_tried_beyond_the_rows_up_to_the_models_positions() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(model_type="bert", max_position_embeddings=40))
    offset: Any = SimpleNamespace(
        config=SimpleNamespace(model_type="roberta", max_position_embeddings=40, pad_token_id=1)
    )
    endless: Any = SimpleNamespace(config=SimpleNamespace(model_type="bloom"))

    assert [padding_room(model, length=length) for length in (16, 32, 37, 40)] == [8, 8, 3, 0]
    assert [padding_room(offset, length=length) for length in (30, 37, 38)] == [8, 1, 0]
    assert padding_room(endless, length=4096) == 8


def test_padding_that_could_not_be_tried_is_said_to_be_unchecked() -> None:
    tried, moved, untried = (
        told_padding(moved, room=room, tolerance=1e-4) for moved, room in ((0.0, 8), (0.1, 8), (0.0, 0))
    )

    assert [check.is_ok for check in (tried, moved, untried)] == [True, False, True]
    assert tried.value == "the loss moves by 0.0e+00 with 8 more"
    assert untried.value == "not checked: no position is left to pad"
