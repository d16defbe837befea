"""Documents: stories with reported questions about what they tell, pages of a schoolbook, copied sentences, lessons.

`document(config, split, index)` depends on the seed, the split and the index alone. Training documents also teach
what is true of things; held-out documents use only held-out combinations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from data_pipeline.synthetic import things
from data_pipeline.synthetic.config import SyntheticConfig
from data_pipeline.synthetic.exercises import PAGE_SIZES, copied, draw_facts, page
from data_pipeline.synthetic.facts import Combination, Fact, Split, draw_frames, draw_people, passage_facts
from data_pipeline.synthetic.passages import introduction, retelling, sentence, tell, told
from data_pipeline.synthetic.reports import ROLES, Exchange, report, wrong_guess
from data_pipeline.synthetic.verbs import connect, finite

Paragraphs = tuple[tuple[str, ...], ...]
Made = tuple[Paragraphs, list[Fact]]  # paragraphs, and the facts about people that they state or suppose

_RETOLD_SHARE = 0.2
_COPIED_SIZES = {(1, 2): 0.3, (2, 1): 0.7}
_TEACHERS = tuple(role for role in ROLES if role.name in ("선생님", "이웃", "친구"))
_LEARNERS = tuple(role for role in ROLES if role.name in ("아이", "손님", "기자"))


@dataclass(frozen=True)
class Document:
    """One text: paragraphs of sentences, and the combinations that it states or supposes."""

    id: str
    paragraphs: Paragraphs
    combinations: frozenset[Combination]

    @property
    def text(self) -> str:
        """Sentences joined by spaces, paragraphs by line breaks."""
        return "\n".join(" ".join(paragraph) for paragraph in self.paragraphs)


def documents(config: SyntheticConfig, split: Split) -> Iterator[Document]:
    """All documents of a split, in order."""
    count = config.num_documents if split == "train" else config.num_heldout_documents
    return (document(config, split=split, index=index) for index in range(count))


def document(config: SyntheticConfig, *, split: Split, index: int) -> Document:
    """Document `index` of a split."""
    rng = random.Random(f"{config.seed}/document/{split}/{index}")
    shares = _SHARES if split == "train" else {make: share for make, share in _SHARES.items() if make is not _lessons}
    paragraphs, facts = rng.choices(list(shares), weights=list(shares.values()))[0](rng, split)
    combinations = frozenset[Combination]().union(*(fact.combinations for fact in facts))
    return Document(f"{split}-{index:07d}", paragraphs, combinations)


def _lessons(rng: random.Random, split: Split) -> Made:
    """What is true of things: it belongs to no person, and so to both splits."""
    return tuple(tuple(_lesson(rng)) for _ in range(rng.randint(1, 2))), []


def _page(rng: random.Random, split: Split) -> Made:
    facts = draw_facts(rng, PAGE_SIZES, split=split)
    return tuple(page(rng, facts)), facts


def _copied(rng: random.Random, split: Split) -> Made:
    facts = draw_facts(rng, _COPIED_SIZES, split=split)
    return ((copied(rng, facts),),), facts


def _story(rng: random.Random, split: Split) -> Made:
    people = draw_people(rng, rng.choices((1, 2, 3), weights=(20, 60, 20))[0])
    num_paragraphs = rng.choice((1, 1, 2))
    num_frames = rng.choice({1: (2, 3), 2: (1, 1, 1, 2), 3: (1,)}[len(people)])
    kinds = draw_frames(rng, people, num_paragraphs * num_frames)
    paragraphs: list[tuple[str, ...]] = []
    known: list[Fact] = []
    guesses: list[Fact] = []
    for number in range(num_paragraphs):
        facts = passage_facts(rng, people, kinds[number * num_frames : (number + 1) * num_frames], split=split)
        exchanges = _exchanges(rng, facts, known, split=split)
        opening = introduction(rng, people) if number == 0 else ()
        reports = [report(rng, exchange) for exchange in exchanges]
        retold = [retelling(rng, facts)] if rng.random() < _RETOLD_SHARE else []
        paragraphs.append((*opening, *told(rng, facts), *reports, *retold))
        known += facts
        guesses += [exchange.guess for exchange in exchanges if exchange.guess is not None]
    return tuple(paragraphs), [*known, *guesses]


def _exchanges(rng: random.Random, facts: list[Fact], before: list[Fact], *, split: Split) -> list[Exchange]:
    """A question about each fact of this paragraph, and now and then one about an earlier paragraph's."""
    asked = rng.sample(_askable(facts), len(_askable(facts)))
    if before and rng.random() < 0.5:
        asked.append(rng.choice(_askable(before)))
    return [_exchange(rng, fact, slot, facts, split=split) for fact, slot in asked]


def _askable(facts: list[Fact]) -> list[tuple[Fact, str]]:
    return [(fact, slot) for fact in facts for slot in dict.fromkeys(q.slot for q in fact.frame.questions)]


def _exchange(rng: random.Random, fact: Fact, slot: str, facts: list[Fact], *, split: Split) -> Exchange:
    first, *others_asked = [question for question in fact.frame.questions if question.slot == slot]
    question = rng.choice(others_asked) if others_asked and rng.random() < 0.3 else first
    others = [person for person in dict.fromkeys(known.owner for known in facts) if person != fact.owner]
    asker, bystander = rng.sample(ROLES, 2)
    answerer = fact.owner if rng.random() < 0.6 else rng.choice([*others, bystander])
    chance = rng.random()
    guess = fact if chance < 0.04 else wrong_guess(rng, fact, question, split=split) if chance < 0.08 else None
    return Exchange(fact, question, asker, answerer, guess, is_alone=not others)


def _lesson(rng: random.Random) -> list[str]:
    """A paragraph of what is true of things, and questions about it."""
    known = rng.sample(things.WORLD_FACTS, rng.randint(3, 5))
    facts = [Fact(item.subject, item.frame, (str(item.value),)) for item in known]
    return [*_stated(rng, facts), *(report(rng, _lesson_exchange(rng, fact)) for fact in rng.sample(facts, 3))]


def _stated(rng: random.Random, facts: list[Fact]) -> list[str]:
    sentences: list[str] = []
    rest = list(facts)
    while rest:
        fact = rest.pop(0)
        if not rest or rng.random() < 0.6:
            sentences.append(sentence(tell(fact, fact.frame.tell[0], finite)))
            continue
        first = tell(fact, fact.frame.tell[0], partial(connect, ending="고"))
        second = rest.pop(0)
        sentences.append(sentence(f"{first}, {tell(second, second.frame.tell[0], finite)}"))
    return sentences


def _lesson_exchange(rng: random.Random, fact: Fact) -> Exchange:
    return Exchange(fact, fact.frame.questions[0], asker=rng.choice(_LEARNERS), answerer=rng.choice(_TEACHERS))


# Each kind of document, and its share of them. Pages hold the most look-ups a word; copied sentences teach to copy.
_SHARES: dict[Callable[[random.Random, Split], Made], float] = {_page: 0.54, _story: 0.18, _copied: 0.18, _lessons: 0.1}
