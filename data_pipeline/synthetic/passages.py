"""Facts told as connected prose: who comes first, what is joined into one sentence, where the subject is left out.

Every fact is told once, in its own order, so that a reader of the passage can answer any question about it.
"""

from __future__ import annotations

import random
from functools import partial

from data_pipeline.synthetic.facts import Fact
from data_pipeline.synthetic.frames import Clause, Form, Subject, sentence_part
from data_pipeline.synthetic.particles import Word
from data_pipeline.synthetic.verbs import connect, finite

OPENINGS = (
    "봄비가 그친 아침이었다.",
    "바람이 부는 오후였다.",
    "장날이라 거리가 붐볐다.",
    "첫눈이 내린 날이었다.",
    "마을 회관에 사람들이 모였다.",
    "찻집에는 손님이 많았다.",
    "긴 여름도 끝나 가고 있었다.",
    "창밖에는 비가 내렸다.",
    "오랜만에 하늘이 맑았다.",
    "기차는 조용히 달렸다.",
    "단풍이 곱게 든 가을이었다.",
    "저녁 바람이 시원했다.",
    "운동장에는 아이들이 뛰놀았다.",
    "모임은 일찍 시작되었다.",
    "뜰에는 꽃이 활짝 피었다.",
    "골목에는 햇볕이 따뜻했다.",
)
TIES = (
    "오랫동안 서로 알고 지냈다",
    "한 모임에서 처음 만났다",
    "같은 기차를 탔다",
    "나란히 앉아 이야기를 나누었다",
    "산책길에서 자주 마주쳤다",
    "오랜만에 다시 만났다",
)


_SUMMARIES = ("정리하면", "다시 말해", "그러니까")


def sentence(text: str) -> str:
    return f"{text}."


def listed(names: list[Word]) -> str:
    """Names joined by 과/와: 민지와 서준과 하은.

    >>> listed([Word("민지"), Word("서준"), Word("하은")])
    '민지와 서준과 하은'
    """
    return " ".join([*(f"{name:과}" for name in names[:-1]), str(names[-1])])


def tell(fact: Fact, clause: Clause, form: Form, *, names_owner: bool = True) -> str:
    """The clause with its subject; without the owner where the text has just named him."""
    return sentence_part(clause, fact.owner, fact.binding, form, particle="은", names_owner=names_owner)


def choose_clause(rng: random.Random, fact: Fact) -> Clause:
    """How a fact is told: mostly by the first clause, in which the value follows the owner's name."""
    first, *others = fact.frame.tell
    return rng.choice(others) if others and rng.random() < 0.15 else first


def introduction(rng: random.Random, people: list[Subject]) -> list[str]:
    """A sentence or two that set the scene and name the people."""
    opening = [rng.choice(OPENINGS)] if rng.random() < 0.35 else []
    if len(people) == 1 or rng.random() < 0.6:
        return opening
    return [*opening, sentence(f"{Word(listed([person.name for person in people])):은} {rng.choice(TIES)}")]


def told(rng: random.Random, facts: list[Fact]) -> list[str]:
    """Sentences that state each fact once; `facts` hold the same frames for each of several people."""
    people = list(dict.fromkeys(fact.owner for fact in facts))
    frames = list(dict.fromkeys(fact.frame.key for fact in facts))
    by_place = {(fact.owner, fact.frame.key): fact for fact in facts}
    if len(people) > 1 and rng.random() < 0.4:
        rows = [[by_place[person, key] for person in people] for key in frames]
        return [text for row in rows for text in _compared(rng, row)]
    return [text for person in people for text in _portrayed(rng, [by_place[person, key] for key in frames])]


def retelling(rng: random.Random, facts: list[Fact]) -> str:
    """A closing sentence that states some of the facts again: 정리하면 서준은 부산에 살고, 민지는 강릉에 산다."""
    again = rng.sample(facts, min(len(facts), rng.randint(2, 3)))
    clauses = [(fact, choose_clause(rng, fact)) for fact in sorted(again, key=lambda fact: fact.owner.name)]
    said: list[str] = []
    before: tuple[Fact, Clause] | None = None
    for fact, clause in clauses:
        form = finite if len(said) == len(clauses) - 1 else partial(connect, ending="고")
        may_drop = before is not None and before[0].owner == fact.owner and _have_like_subjects(before[1], clause)
        said.append(tell(fact, clause, form, names_owner=not may_drop or rng.random() < 0.5))
        before = (fact, clause)
    return sentence(f"{rng.choice(_SUMMARIES)} {', '.join(said)}")


def _compared(rng: random.Random, row: list[Fact]) -> list[str]:
    """One kind of fact, person after person: 민지는 강릉에 살고 서준은 부산에 산다."""
    clause = choose_clause(rng, row[0])
    if rng.random() < 0.4:
        return [sentence(tell(fact, clause, finite)) for fact in row]
    contrasts = len(row) == 2 and not row[0].frame.is_event and rng.random() < 0.3
    ending = "지만" if contrasts else "고"
    joined = [tell(fact, clause, partial(connect, ending=ending)) for fact in row[:-1]]
    separator = " " if len(row) == 2 else ", "
    return [sentence(separator.join([*joined, tell(row[-1], clause, finite)]))]


def _portrayed(rng: random.Random, facts: list[Fact]) -> list[str]:
    """One person, fact after fact; clauses of like shape are joined, and a subject just named may be left out."""
    clauses = [(fact, choose_clause(rng, fact)) for fact in facts]
    sentences: list[str] = []
    while clauses:
        fact, clause = clauses.pop(0)
        names_owner = not sentences or rng.random() < 0.9
        if not clauses or not _can_join((fact, clause), clauses[0]) or rng.random() < 0.4:
            sentences.append(sentence(tell(fact, clause, finite, names_owner=names_owner)))
            continue
        second, second_clause = clauses.pop(0)
        ending = "고" if clause.tense == "past" else rng.choice(("고", "(으)며"))
        first = tell(fact, clause, partial(connect, ending=ending), names_owner=names_owner)
        sentences.append(sentence(f"{first}, {tell(second, second_clause, finite, names_owner=False)}"))
    return sentences


def _can_join(first: tuple[Fact, Clause], second: tuple[Fact, Clause]) -> bool:
    """True where one sentence may hold both: 살고, 일한다; not 조끼를 입었고, 태어났다."""
    (fact, clause), (next_fact, next_clause) = first, second
    is_one_time = clause.tense == next_clause.tense and fact.frame.is_event == next_fact.frame.is_event
    return is_one_time and _have_like_subjects(clause, next_clause)


def _have_like_subjects(first: Clause, second: Clause) -> bool:
    """True where the second may follow with its owner left out: 살고, 취미는 …; not 고향은 …이고, 일한다."""
    return first.topic is None or second.topic is not None
