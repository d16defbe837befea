"""Instruction rows in KoAlpaca's shape: look-ups in a given passage first of all, then grammar and facts of the world.

`instruction_row(config, split, index)` depends on the seed, the split and the index alone. A held-out row's combination
stands in no training row; if it is about a person, in no training document either. A held-out fact of the world is
taught by training documents and asked by no training row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

from data_pipeline.synthetic import portraits, things, verbs, world
from data_pipeline.synthetic.config import SyntheticConfig
from data_pipeline.synthetic.counting import counted
from data_pipeline.synthetic.exercises import answer_to, draw_facts, draw_wish, passage, question_about
from data_pipeline.synthetic.facts import (
    Combination,
    Fact,
    Split,
    allowed_values,
    draw_fact,
    is_heldout,
)
from data_pipeline.synthetic.frames import COPULA, Clause, Frame, Subject, put, sentence_part
from data_pipeline.synthetic.particles import attach, forms
from data_pipeline.synthetic.verbs import asked, finite, quoted

WORLD_HELDOUT_SHARE = 0.2
_ACTIVITY_SHARE = 0.7
# (people, things told of each): in most passages an answer has a rival of its kind, in the others one of another.
PASSAGE_SIZES = {(1, 2): 0.2, (1, 3): 0.1, (2, 1): 0.3, (2, 2): 0.25, (3, 1): 0.15}
_POLITE = partial(finite, level="polite")
_FORMAL = partial(finite, level="formal")


class InstructionRow(TypedDict):
    """One row as it is written to JSONL."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Instruction:
    """A row, what it exercises (`kind`), and the combinations that the split of a row decides."""

    kind: str
    row: InstructionRow
    combinations: frozenset[Combination]


def instruction_rows(config: SyntheticConfig, split: Split) -> Iterator[InstructionRow]:
    """All rows of a split, in order."""
    count = config.num_instructions if split == "train" else config.num_heldout_instructions
    return (instruction(config, split=split, index=index).row for index in range(count))


def instruction(config: SyntheticConfig, *, split: Split, index: int) -> Instruction:
    """Row `index` of a split."""
    rng = random.Random(f"{config.seed}/instruction/{split}/{index}")
    make = rng.choices(list(_MAKERS), weights=list(_MAKERS.values()))[0]
    return make(rng, split)


def _instruction(kind: str, instruction: str, given: str, output: str, about: frozenset[Combination]) -> Instruction:
    return Instruction(kind, InstructionRow(instruction=instruction, input=given, output=output), about)


def _lookup(rng: random.Random, split: Split) -> Instruction:
    """A page of one question: the passage and the question are the row's input, as Alpaca's tasks have theirs."""
    facts = draw_facts(rng, PASSAGE_SIZES, split=split)
    fact = rng.choice(facts)
    question = rng.choice(fact.frame.questions)
    about = frozenset[Combination]().union(*(known.combinations for known in facts))
    wish, said = draw_wish(rng)
    given = f"글: {passage(rng, facts)}\n물음: {question_about(rng, fact, question)}"
    answer = answer_to(fact, question, wish)
    if wish == "word":
        return _instruction("lookup", said, given, answer, about)
    return _instruction("lookup_sentence", said, given, f"{answer}.", about)


def _said(fact: Fact, clause: Clause, form: Callable[[verbs.Predicate], str]) -> str:
    return sentence_part(clause, fact.owner, fact.binding, form, particle="은", names_owner=True)


def _fact_to_rewrite(rng: random.Random, split: Split, owner: Subject) -> tuple[Fact, Clause]:
    """A fact told by a verb in the present, without words that tie it to the present; or something that people do."""
    if rng.random() < _ACTIVITY_SHARE:
        phrase = rng.choice(allowed_values(str(owner.name), "activity.phrase", "activity", split))
        words_before, _, verb = phrase.rpartition(" ")
        clause = Clause(words_before, verb)
        return Fact(owner, Frame("activity", {"phrase": "activity"}, (clause,), ()), (phrase,)), clause
    frames = [frame for frame in portraits.FRAMES if _is_rewritable(frame.tell[0])]
    fact = draw_fact(rng, owner, rng.choice(frames), split=split, others=[])
    return fact, fact.frame.tell[0]


def _is_rewritable(clause: Clause) -> bool:
    is_plain_verb = clause.tense == "present" and clause.topic is None and clause.verb != COPULA
    return is_plain_verb and "요즘" not in clause.arguments


def _tense(rng: random.Random, split: Split) -> Instruction:
    fact, clause = _fact_to_rewrite(rng, split, rng.choice(world.PEOPLE))
    output = f"{_said(fact, clause, lambda base: finite(verbs.past(base)))}."
    given = f"{_said(fact, clause, finite)}."
    return _instruction("tense", "다음 문장을 과거형으로 바꾸세요.", given, output, fact.combinations)


def _level(rng: random.Random, split: Split) -> Instruction:
    fact, clause = _fact_to_rewrite(rng, split, rng.choice(world.PEOPLE))
    wish, form = rng.choice((("해요체", _POLITE), ("합쇼체", _FORMAL)))
    given, output = f"{_said(fact, clause, finite)}.", f"{_said(fact, clause, form)}."
    return _instruction("level", f"다음 문장을 {wish}로 바꾸세요.", given, output, fact.combinations)


def _honorific(rng: random.Random, split: Split) -> Instruction:
    fact, clause = _fact_to_rewrite(rng, split, rng.choice(world.ELDERS))
    given = f"{fact.owner.name:은} {put(clause, fact.binding, finite)}."
    output = f"{fact.owner.name}께서는 {put(clause, fact.binding, finite, is_honoured=True)}."
    return _instruction("honorific", "다음 문장을 높임말로 바꾸세요.", given, output, fact.combinations)


def _reported(rng: random.Random, split: Split) -> Instruction:
    fact, clause = _fact_to_rewrite(rng, split, rng.choice(world.PEOPLE))
    given = f"{fact.owner.name:은} “저는 {put(clause, fact.binding, _POLITE)}.”라고 말했다."
    output = f"{fact.owner.name:은} {put(clause, fact.binding, quoted)} 말했다."
    return _instruction("reported", "다음 문장을 간접 인용으로 바꾸세요.", given, output, fact.combinations)


# Particle -> the list of words it is tried on, and the sentence.
_PARTICLE_SENTENCES = {
    "을": ("item", "시장에서 {} 샀다."),
    "이": ("item", "책상 위에 {} 있다."),
    "은": ("gift", "{} 값이 비싸다."),
    "과": ("gift", "{} 바구니를 들고 왔다."),
    "으로": ("city", "내일 {} 떠난다."),
}


def _particle(rng: random.Random, split: Split) -> Instruction:
    options = [(word, name) for name, (values, _) in _PARTICLE_SENTENCES.items() for word in world.VALUES[values]]
    word, name = rng.choice(_of_split(options, "particle", split))
    template, (after_final, after_vowel) = _PARTICLE_SENTENCES[name][1], forms(name)
    given = template.format(f"{word}({after_final}/{after_vowel})")
    output = template.format(attach(word, name))
    about = frozenset({Combination(word, "particle", name)})
    return _instruction("particle", "알맞은 조사를 골라 문장을 다시 쓰세요.", given, output, about)


def _counting(rng: random.Random, split: Split) -> Instruction:
    options = [(item, str(number)) for item in world.COUNTERS for number in range(1, 31)]
    item, number = rng.choice(_of_split(options, "count", split))
    counter = world.COUNTERS[item]
    given, output = f"{item} {number}{counter}", f"{item} {counted(int(number), counter)}"
    about = frozenset({Combination(item, "count", number)})
    return _instruction("counting", "숫자를 우리말로 풀어 쓰세요.", given, output, about)


def _of_split(pairs: list[tuple[str, str]], kind: str, split: Split) -> list[tuple[str, str]]:
    return [pair for pair in pairs if is_heldout(kind, *pair) == (split == "heldout")]


def _world(rng: random.Random, split: Split) -> Instruction:
    known = rng.choice([fact for fact in things.WORLD_FACTS if is_heldout_fact(fact) == (split == "heldout")])
    fact = Fact(known.subject, known.frame, (str(known.value),))
    question = known.frame.questions[0]
    about = frozenset({Combination(str(known.subject.name), f"world.{known.frame.key}", str(known.value))})
    asks = f"{_said(fact, question.ask, rng.choice((asked, _POLITE)))}?"
    return _instruction("world", asks, "", f"{_said(fact, question.reply, _POLITE)}.", about)


def is_heldout_fact(fact: things.WorldFact) -> bool:
    """True for a fact of the world that documents teach and only held-out rows ask."""
    return is_heldout("world", str(fact.subject.name), fact.frame.key, share=WORLD_HELDOUT_SHARE)


_MAKERS: dict[Callable[[random.Random, Split], Instruction], float] = {
    _lookup: 0.64,
    _tense: 0.05,
    _level: 0.07,
    _honorific: 0.05,
    _reported: 0.05,
    _particle: 0.05,
    _counting: 0.03,
    _world: 0.06,
}
