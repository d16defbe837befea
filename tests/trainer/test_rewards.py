"""Rewards: what a function is given and may return, and how one that can't be used is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.trainer.tiny_run import REPO
from trainer.errors import BadRollout, RunError
from trainer.generate import Answer
from trainer.policy_config import GrpoConfig, RewardSourceConfig
from trainer.rewards import FunctionJudge, Texts, load_function
from trainer.rollout import Sample

FUNCTIONS = f"{REPO}/tests/trainer/reward_functions.py"
WHERE = "ppo.reward.function"
LETTERS = "_abcdefghij"


class Spelled(Texts):
    """Ids as the letters of those numbers, so that no tokenizer is needed; a template adds a space before an answer."""

    def __init__(self) -> None:
        pass

    def prompt(self, ids: Sequence[int]) -> str:
        return "".join(LETTERS[number] for number in ids)

    def answer(self, ids: Sequence[int]) -> str:
        return self.prompt(ids).strip("_")


def sample(row: int, answer: Sequence[int], *, reference: Sequence[int] | None = None, ended: bool = True) -> Sample:
    return Sample(row=row, group=row, prompt=(1, 2), reference=reference, answer=Answer(tuple(answer), ended))


def judge(name: str) -> FunctionJudge:
    return FunctionJudge(load_function(f"{FUNCTIONS}:{name}", where=WHERE), Spelled(), name, WHERE)


def test_a_function_gets_prompts_answers_and_references_as_text() -> None:
    seen: list[Any] = []

    def remember(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
        seen.append((prompts, answers, references))
        return [1, 0.5]

    rewards = FunctionJudge(remember, Spelled(), "remember", WHERE)(
        [sample(7, (0, 3, 4), reference=(5,)), sample(9, (6,))]
    )

    assert seen == [(["ab", "ab"], ["cd", "f"], ["e", None])]
    assert rewards == [1.0, 0.5]


def test_a_rank_without_prompts_asks_for_no_reward() -> None:
    assert judge("raises")([]) == []


def test_a_function_may_compare_with_the_reference() -> None:
    assert judge("overlap")([sample(0, (1, 2), reference=(2, 3)), sample(1, (1,), reference=(2, 3))]) == [0.5, 0.0]


def faulty_at_row_5(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
    return [1 / answers[place].count("c") for place in range(len(answers))]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("always_nan", "ppo.reward.function: always_nan returned nan for row 3 (answer 'c'); return a finite number"),
        ("raises", "raises raised KeyError: '정답' at row 3 (answer 'c'); mend it"),
        ("too_few", "too_few returned 1 rewards for 2 answers (rows 3, 5); return one an answer"),
        ("says_words", "says_words returned \"['good', 'good']\" for rows 3, 5, which are not numbers"),
    ],
)
def test_a_reward_that_cant_be_used_is_named_with_its_function_and_row(name: str, message: str) -> None:
    with pytest.raises(BadRollout, match=re.escape(message)):
        judge(name)([sample(3, (3,)), sample(5, (4,))])


def test_the_row_is_named_at_which_a_function_raises() -> None:
    asked = FunctionJudge(faulty_at_row_5, Spelled(), "faulty_at_row_5", WHERE)

    with pytest.raises(BadRollout, match=re.escape("raised ZeroDivisionError: division by zero at row 5 (answer 'd')")):
        asked([sample(3, (3,)), sample(5, (4,))])


def test_a_long_answer_is_cut_in_a_message() -> None:
    with pytest.raises(BadRollout, match=re.escape(f"(answer '{'c' * 60}…')")):
        judge("always_nan")([sample(3, [3] * 200)])


def test_a_file_or_function_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=re.escape(f"{WHERE}: {tmp_path}/none.py:f: there is no file")):
        load_function(f"{tmp_path}/none.py:f", where=WHERE)
    with pytest.raises(RunError, match="has no function 'none'; it has round_shapes, overlap"):
        load_function(f"{FUNCTIONS}:none", where=WHERE)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(RunError, match=r"broken\.py raised ModuleNotFoundError: .* when it was read"):
        load_function(f"{tmp_path}/broken.py:f", where=WHERE)


@pytest.mark.parametrize("name", ["score", "score.py", "score.py:", "score.py:not a name", ":f"])
def test_what_names_no_function_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="names no function; write path/to/file.py:name"):
        RewardSourceConfig(function=name)


def test_two_sources_of_a_reward_are_refused() -> None:
    with pytest.raises(ValidationError, match="a reward has one source; give one of them"):
        GrpoConfig.model_validate({"reward": {"function": "a.py:f", "model": "runs/reward"}})
