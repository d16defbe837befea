"""Pages of a schoolbook: a short passage with questions and answers beneath it, and sentences copied word for word.

A page asks for every fact of its passage, so that a few words hold many look-ups. The smallest passages state one fact:
what a model finds there with ease it finds among more of them later.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import Literal

from data_pipeline.synthetic.facts import Fact, Split, draw_frames, draw_people, passage_facts
from data_pipeline.synthetic.frames import Clause, Form, Question, sentence_part
from data_pipeline.synthetic.lexicon import words
from data_pipeline.synthetic.particles import Word
from data_pipeline.synthetic.passages import introduction, sentence, told
from data_pipeline.synthetic.verbs import asked, finite

Wish = Literal["word", "sentence"]

# What is wished for -> how that is said.
WISHES: dict[Wish, tuple[str, ...]] = {
    "word": (
        "다음 글을 읽고 물음에 짧게 답하세요.",
        "글에서 답을 찾아 짧게 쓰세요.",
        "글을 읽고 알맞은 말을 찾아 쓰세요.",
    ),
    "sentence": (
        "다음 글을 읽고 물음에 문장으로 답하세요.",
        "글에서 답을 찾아 문장으로 쓰세요.",
        "글을 읽고 온전한 문장으로 답하세요.",
    ),
}
_WORD_SHARE = 0.6
_LABELS = (("물음", "답"), ("질문", "답변"))

# (people, things told of each) -> the share of such passages.
Sizes = Mapping[tuple[int, int], float]
PAGE_SIZES: Sizes = {(1, 1): 0.15, (1, 2): 0.15, (1, 3): 0.05, (2, 1): 0.25, (3, 1): 0.15, (2, 2): 0.25}
_MAX_QUESTIONS = 6

_READERS = tuple(Word(reader) for reader in words("선생님 할머니 언니 아버지 형 고모"))
_ECHOES = (
    "{reader:이} 먼저 읽었다. “{first}” 아이들이 따라 읽었다. “{first}” {reader:이} 다시 읽었다. “{second}” "
    "아이들도 따라 읽었다. “{second}”",
    "칠판에는 이렇게 적혀 있었다. {first} {second} 아이들은 공책에 그대로 옮겨 적었다. {first} {second}",
    "{reader:은} 천천히 불러 주었다. {first} {second} 아이는 또박또박 받아 적었다. {first} {second}",
    "{reader:은} 책을 소리 내어 읽었다. {first} {second} 아이는 한 번 더 읽어 보았다. {first} {second}",
)


def draw_facts(rng: random.Random, sizes: Sizes, *, split: Split) -> list[Fact]:
    """Facts of one passage: the same things told of each of its people."""
    num_people, num_frames = rng.choices(list(sizes), weights=list(sizes.values()))[0]
    people = draw_people(rng, num_people)
    return passage_facts(rng, people, draw_frames(rng, people, num_frames), split=split)


def passage(rng: random.Random, facts: list[Fact]) -> str:
    """The facts as connected prose."""
    people = list(dict.fromkeys(fact.owner for fact in facts))
    return " ".join([*introduction(rng, people), *told(rng, facts)])


def draw_wish(rng: random.Random) -> tuple[Wish, str]:
    """A kind of answer, and the sentence that asks for it."""
    wish: Wish = "word" if rng.random() < _WORD_SHARE else "sentence"
    return wish, rng.choice(WISHES[wish])


def question_about(rng: random.Random, fact: Fact, question: Question) -> str:
    """The question, politely: 김민지 씨는 어디에 사나요?"""
    return f"{_said(fact, question.ask, rng.choice((asked, _polite)))}?"


def answer_to(fact: Fact, question: Question, wish: Wish) -> str:
    """강릉, or 김민지 씨는 강릉 시내에 살아요, without the full stop."""
    return str(fact.answer(question)) if wish == "word" else _said(fact, question.reply, _polite)


def page(rng: random.Random, facts: list[Fact]) -> list[tuple[str, ...]]:
    """Paragraphs: what is to be done, the passage, and a question with its answer for each slot of each fact."""
    wish, said = draw_wish(rng)
    ask, answer = rng.choice(_LABELS)
    every = [(fact, slot) for fact in facts for slot in dict.fromkeys(q.slot for q in fact.frame.questions)]
    paragraphs: list[tuple[str, ...]] = [(said,), (f"글: {passage(rng, facts)}",)]
    for fact, slot in rng.sample(every, min(len(every), _MAX_QUESTIONS)):
        question = rng.choice([q for q in fact.frame.questions if q.slot == slot])
        line = f"{ask}: {question_about(rng, fact, question)} {answer}: {answer_to(fact, question, wish)}"
        paragraphs.append((sentence(line),))
    return paragraphs


def copied(rng: random.Random, facts: list[Fact]) -> str:
    """Two sentences that are read aloud or dictated, and said or written again word for word."""
    first, second = (sentence(_said(fact, fact.frame.tell[0], finite)) for fact in rng.sample(facts, 2))
    parts = {"reader": rng.choice(_READERS), "first": Word(first), "second": Word(second)}
    return rng.choice(_ECHOES).format_map(parts)


_polite = partial(finite, level="polite")


def _said(fact: Fact, clause: Clause, form: Form) -> str:
    return sentence_part(clause, fact.owner, fact.binding, form, particle="은", names_owner=True)
