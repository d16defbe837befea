"""Who has which value, and which combinations only held-out texts may use.

A combination is (owner, slot, value): (민지, lives.city, 강릉). A fixed hash, not the seed, sets some values of each
owner and slot aside, so that no training text of any seed shares a combination with a held-out text of any seed.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from data_pipeline.synthetic import portraits, world
from data_pipeline.synthetic.counting import counted
from data_pipeline.synthetic.frames import Binding, Frame, Question, Subject
from data_pipeline.synthetic.particles import Word

Split = Literal["train", "heldout"]
_CHILDREN_SHARE = 0.1
HELDOUT_SHARE = 0.12  # of the values of each owner and slot, and at least one


class Combination(NamedTuple):
    owner: str
    slot: str
    value: str


@dataclass(frozen=True)
class Fact:
    """A frame filled for one owner. `values` are the drawn values, in the order of the frame's slots."""

    owner: Subject
    frame: Frame
    values: tuple[str, ...]

    @cached_property
    def binding(self) -> Binding:
        """The words for each slot, and for a number of things its counter."""
        words = {slot: Word(value) for slot, value in zip(self.frame.slots, self.values, strict=True)}
        if "number" in words:
            counter = world.COUNTERS[words["item"]]
            words["counter"] = Word(counter)
            words["count"] = Word(counted(int(words["number"]), counter))
        return words

    @property
    def combinations(self) -> frozenset[Combination]:
        return frozenset(
            Combination(str(self.owner.name), f"{self.frame.key}.{slot}", value)
            for slot, value in zip(self.frame.slots, self.values, strict=True)
        )

    def answer(self, question: Question) -> Word:
        """The words that answer a question of this fact's frame."""
        return self.binding["count" if question.slot == "number" else question.slot]


def rank(text: str) -> bytes:
    """A fixed, evenly spread key of a text."""
    return hashlib.sha256(text.encode()).digest()


def is_heldout(*parts: str, share: float = HELDOUT_SHARE) -> bool:
    """True for a fixed `share` of all texts; for combinations that are not drawn from a list of values."""
    return int.from_bytes(rank("/".join(parts))[:8]) < share * 2**64


@lru_cache(maxsize=1 << 14)
def allowed_values(owner: str, slot: str, values: str, split: Split) -> tuple[str, ...]:
    """The values of a list that texts of `split` may give to this owner's slot."""
    ranked = sorted(
        (value for value in world.VALUES[values] if value != owner), key=lambda v: rank(f"{owner}/{slot}/{v}")
    )
    num_heldout = max(1, round(HELDOUT_SHARE * len(ranked)))
    return tuple(ranked[:num_heldout] if split == "heldout" else ranked[num_heldout:])


def draw_fact(rng: random.Random, owner: Subject, frame: Frame, *, split: Split, others: list[Fact]) -> Fact:
    """A fact with values of `split`, unlike those that `others` have in the same frame wherever that is possible."""
    taken = {value for other in others if other.frame is frame for value in other.values}
    values = []
    for slot, name in frame.slots.items():
        allowed = allowed_values(str(owner.name), f"{frame.key}.{slot}", name, split)
        fresh = [value for value in allowed if value not in taken and value not in values]
        values.append(rng.choice(fresh or allowed))
    return Fact(owner, frame, tuple(values))


def draw_people(rng: random.Random, count: int) -> list[Subject]:
    """`count` different people: grown-ups, or children by their given names; now and then one is an elder."""
    people = rng.sample(world.CHILDREN if rng.random() < _CHILDREN_SHARE else world.PEOPLE, count)
    if rng.random() < 0.2:
        people[rng.randrange(count)] = rng.choice(world.ELDERS)
    return people


def draw_frames(rng: random.Random, people: list[Subject], count: int) -> list[Frame]:
    """`count` different frames that suit everybody present."""
    has_elder = any(person.is_elder for person in people)
    return rng.sample([frame for frame in portraits.FRAMES if frame.suits_elders or not has_elder], count)


def passage_facts(rng: random.Random, people: list[Subject], frames: list[Frame], *, split: Split) -> list[Fact]:
    """The same kinds of facts for each person, with different values, so that each answer has a rival in the text."""
    facts: list[Fact] = []
    for frame in frames:
        for person in people:
            facts.append(draw_fact(rng, person, frame, split=split, others=facts))
    return facts
