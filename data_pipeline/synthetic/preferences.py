"""Preference rows of the made-up world: a right answer in the style of writing above the same answer in that of speech.

Both say the same of the same passage, so that manner alone tells them apart: 산다 is chosen, 살아요 rejected. The
instruction rows teach to answer as one speaks; what these rows teach is seen in the ending of each sentence.
`preference(config, split=…, index=…)` depends on the seed, the split and the index alone, and a held-out row's
combinations stand in no training text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

from data_pipeline.synthetic import things
from data_pipeline.synthetic.config import SyntheticConfig
from data_pipeline.synthetic.exercises import WISHES, draw_facts, passage, question_about
from data_pipeline.synthetic.facts import Combination, Fact, Split
from data_pipeline.synthetic.frames import Question
from data_pipeline.synthetic.instructions import PASSAGE_SIZES, is_heldout_fact
from data_pipeline.synthetic.passages import tell
from data_pipeline.synthetic.verbs import finite

# 문어체 and 구어체: how each ends a sentence.
WRITTEN_END, SPOKEN_END, _FORMAL_END = "다.", "요.", "니다."
_WORLD_SHARE = 0.15
_SPOKEN = partial(finite, level="polite")


class PreferenceRow(TypedDict):
    """One row as it is written to JSONL; `chosen` and `rejected` answer the instruction about its input."""

    instruction: str
    input: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Preference:
    """A row, and the combinations that the split of a row decides."""

    row: PreferenceRow
    combinations: frozenset[Combination]


def is_written(answer: str) -> bool:
    """Whether an answer ends as one writes: 산다, but not 살아요, nor 삽니다.

    >>> [is_written(answer) for answer in ("부산에 산다.", "부산에 살아요.", "부산에 삽니다.", "부산")]
    [True, False, False, False]
    """
    said = answer.strip()
    return said.endswith(WRITTEN_END) and not said.endswith(_FORMAL_END)


def preference_rows(config: SyntheticConfig, split: Split, *, count: int) -> Iterator[PreferenceRow]:
    """The first `count` rows of a split, in order."""
    return (preference(config, split=split, index=index).row for index in range(count))


def preference(config: SyntheticConfig, *, split: Split, index: int) -> Preference:
    """Row `index` of a split: a look-up in a passage, or a fact of the world without one."""
    rng = random.Random(f"{config.seed}/preference/{split}/{index}")
    return _world(rng, split) if rng.random() < _WORLD_SHARE else _lookup(rng, split)


def _lookup(rng: random.Random, split: Split) -> Preference:
    facts = draw_facts(rng, PASSAGE_SIZES, split=split)
    fact = rng.choice(facts)
    question = rng.choice(fact.frame.questions)
    said = rng.choice(WISHES["sentence"])
    given = f"글: {passage(rng, facts)}\n물음: {question_about(rng, fact, question)}"
    about = frozenset[Combination]().union(*(known.combinations for known in facts))
    return _compared(said, given, fact, question, about)


def _world(rng: random.Random, split: Split) -> Preference:
    known = rng.choice([fact for fact in things.WORLD_FACTS if is_heldout_fact(fact) == (split == "heldout")])
    fact = Fact(known.subject, known.frame, (str(known.value),))
    question = known.frame.questions[0]
    about = frozenset({Combination(str(known.subject.name), f"world.{known.frame.key}", str(known.value))})
    return _compared(question_about(rng, fact, question), "", fact, question, about)


def _compared(said: str, given: str, fact: Fact, question: Question, about: frozenset[Combination]) -> Preference:
    written, spoken = (f"{tell(fact, question.reply, form)}." for form in (finite, _SPOKEN))
    return Preference(PreferenceRow(instruction=said, input=given, chosen=written, rejected=spoken), about)
