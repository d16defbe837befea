"""What can be said and asked of somebody: a frame is a few slots, clauses that state them, and questions about them.

Clauses are data; one function puts any clause into any form of the grammar. Which people and values exist is said
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_pipeline.synthetic import verbs
from data_pipeline.synthetic.particles import Word
from data_pipeline.synthetic.verbs import Predicate, Tense

Binding = Mapping[str, Word]  # slot -> the words that fill it
Form = Callable[[Predicate], str]

COPULA = "이다"


@dataclass(frozen=True)
class Subject:
    """Somebody or something that facts are about; `is_elder` asks for honorific forms."""

    name: Word
    is_elder: bool = False

    @property
    def dative(self) -> str:
        return f"{self.name}께" if self.is_elder else f"{self.name}에게"

    def honoured(self, base: Predicate) -> Predicate:
        return verbs.honorific(base) if self.is_elder else base

    def does(self, citation: str, form: Form = verbs.finite, *, tense: Tense = "past") -> str:
        """A predicate of which this is the subject, honorific where due: 답했다, 답하셨다."""
        return form(verbs.tensed(self.honoured(verbs.predicate(citation)), tense))


@dataclass(frozen=True)
class Topic:
    """A noun that belongs to an owner: 고향, or with a verb of his 기르는 동물. The noun may name slots."""

    noun: str
    verb: str = ""

    def alone(self, owner: Subject, binding: Binding) -> Word:
        """고향; 기르는 동물, for an elder 기르시는 동물."""
        noun = self.noun.format_map(binding)
        return Word(f"{verbs.adnominal(owner.honoured(verbs.predicate(self.verb)))} {noun}" if self.verb else noun)

    def owned(self, owner: Subject, binding: Binding) -> Word:
        """민지의 고향; 민지가 기르는 동물."""
        possessor = format(owner.name, "이") if self.verb else f"{owner.name}의"
        return Word(f"{possessor} {self.alone(owner, binding)}")


@dataclass(frozen=True)
class Clause:
    """Arguments (`{city}에`, `{item:을}`) and a predicate; 이다 joins the arguments without a space.

    The subject is the owner, or the owner's `topic`: 민지의 고향은.
    """

    arguments: str
    verb: str
    tense: Tense = "present"
    topic: Topic | None = None


@dataclass(frozen=True)
class Question:
    """One slot asked for: the clause with its 어디 or 무엇, the clause that answers, and a name for what is asked.

    `takes_word` is False where the bare words of the slot are no good answer: 짹짹 하고 운다고, not 짹짹이라고.
    """

    slot: str
    ask: Clause
    reply: Clause
    topic: Topic | None = None
    takes_word: bool = True


@dataclass(frozen=True)
class Frame:
    """A kind of fact. `slots` maps each slot to the name of its list of values; `tell[0]` suits yes-or-no questions."""

    key: str
    slots: Mapping[str, str]
    tell: tuple[Clause, ...]
    questions: tuple[Question, ...]
    is_event: bool = False
    suits_elders: bool = True


def put(clause: Clause, binding: Binding, form: Form, *, is_honoured: bool = False) -> str:
    """The clause without its subject, its predicate in `form`: 강릉에 산다, 강릉에 사느냐고."""
    arguments = clause.arguments.format_map(binding)
    base = verbs.copula(arguments) if clause.verb == COPULA else verbs.predicate(clause.verb)
    if is_honoured and clause.topic is None:
        base = verbs.honorific(base)
    predicate = form(verbs.tensed(base, clause.tense))
    return predicate if clause.verb == COPULA else f"{arguments} {predicate}"


def sentence_part(
    clause: Clause, owner: Subject, binding: Binding, form: Form, *, particle: str, names_owner: bool
) -> str:
    """The clause with its subject and that subject's particle; a topic stays where the owner is left out.

    민지가 어디에 사느냐고, 어디에 사느냐고, 민지의 고향이 어디냐고, 고향이 어디냐고.
    """
    said = put(clause, binding, form, is_honoured=owner.is_elder)
    if clause.topic is None:
        return f"{format(owner.name, particle)} {said}" if names_owner else said
    topic = clause.topic.owned(owner, binding) if names_owner else clause.topic.alone(owner, binding)
    return f"{format(topic, particle)} {said}"
