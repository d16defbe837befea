"""Laws of the preference rows: manner alone tells the answers apart, and held-out combinations stay unseen."""

from __future__ import annotations

import pytest

from data_pipeline.synthetic.config import SyntheticConfig
from data_pipeline.synthetic.documents import Document
from data_pipeline.synthetic.instructions import Instruction
from data_pipeline.synthetic.preferences import (
    SPOKEN_END,
    WRITTEN_END,
    Preference,
    preference,
    preference_rows,
)

NUM_ROWS, NUM_HELDOUT = 600, 150


@pytest.fixture(scope="module")
def train_preferences(config: SyntheticConfig) -> list[Preference]:
    return [preference(config, split="train", index=index) for index in range(NUM_ROWS)]


@pytest.fixture(scope="module")
def heldout_preferences(config: SyntheticConfig) -> list[Preference]:
    return [preference(config, split="heldout", index=index) for index in range(NUM_HELDOUT)]


def test_a_row_can_be_made_alone(config: SyntheticConfig, train_preferences: list[Preference]) -> None:
    rows = list(preference_rows(config, "train", count=20))

    assert rows == [made.row for made in train_preferences[:20]]
    assert preference(config, split="train", index=271) == train_preferences[271]
    assert preference(SyntheticConfig(seed=5), split="train", index=271) != train_preferences[271]


def test_both_answers_say_the_same_in_another_manner(train_preferences: list[Preference]) -> None:
    for row in (made.row for made in train_preferences):
        chosen, rejected = row["chosen"].split(), row["rejected"].split()

        assert chosen[:-1] == rejected[:-1]
        assert chosen[-1].endswith(WRITTEN_END)
        assert rejected[-1].endswith(SPOKEN_END)


def test_neither_answer_is_the_longer_one_by_rule(train_preferences: list[Preference]) -> None:
    """Characters: 산다 and 살아요, 만났다 and 만났어요."""
    lengths = [(len(made.row["chosen"]), len(made.row["rejected"])) for made in train_preferences]
    mean_chosen, mean_rejected = (sum(side) / len(lengths) for side in zip(*lengths, strict=True))

    assert abs(mean_chosen - mean_rejected) < 1


def test_most_rows_are_about_a_passage_and_some_about_the_world(train_preferences: list[Preference]) -> None:
    share = sum(not made.row["input"] for made in train_preferences) / NUM_ROWS

    assert 0.1 < share < 0.2


def test_heldout_preferences_share_no_combination_with_any_training_text(
    train_documents: list[Document],
    train_instructions: list[Instruction],
    train_preferences: list[Preference],
    heldout_preferences: list[Preference],
) -> None:
    held_out = frozenset().union(*(made.combinations for made in heldout_preferences))
    of_people = frozenset(found for found in held_out if not found.slot.startswith("world."))
    trained_texts = frozenset().union(*(one.combinations for one in train_documents))

    assert len(of_people) > 300
    assert not held_out & frozenset().union(*(made.combinations for made in train_preferences))
    assert not held_out & frozenset().union(*(made.combinations for made in train_instructions))
    assert not of_people & trained_texts
