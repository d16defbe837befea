"""Questions and answers reported in prose about facts that stand before them: 어디에 사느냐고 묻자 강릉이라고 답했다.

An answer copies words of the passage, so a small model that learns these learns to look things up.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from data_pipeline.synthetic import verbs
from data_pipeline.synthetic.facts import Fact, Split, allowed_values
from data_pipeline.synthetic.frames import Form, Question, Subject, put, sentence_part
from data_pipeline.synthetic.lexicon import words
from data_pipeline.synthetic.particles import Word
from data_pipeline.synthetic.verbs import Predicate, asked, connect, copula, finite, quoted, whether

ROLES = tuple(Subject(Word(name)) for name in words("선생님 이웃 손님 기자 아이 친구"))
_WORD_SHARE = 0.3
_SAYING = ("답하다", "대답하다", "말하다")

# {q} 어디에 사느냐고, {w} 어디에 사는지; with {full_…} the owner is named. {when} 묻자, for an elder 여쭈자.
OWN_SHAPES = (
    "{to} {q} {when} {answerer:은} {reply} {did}.",
    "{asker:이} {q} {when} {answerer:은} {reply} {said}.",
    "{asker:이} {to} {q} {when} {answerer:은} {reply} {said}.",
    "{q} {asking} 말에 {answerer:은} {reply} {said}.",
    "{q} {asking} {asker}에게 {answerer:은} {reply} {said}.",
    "{asker:은} {to} {q} {asked}. {answerer:은} {reply} {said}.",
    "{w} {when} {answerer:은} {reply} {did}.",
    "{to} {q} {when} {reply} {did}.",
    "{to} {q} {when} {reply} {said}.",
    "“{direct}?” {asker:이} {when} {answerer:은} “{spoken}.”라고 {said}.",
)
# Where the text is about one person, nobody need name him again.
ALONE_SHAPES = ("{q} {when} {reply} {did}.", "{w} {when} {reply} {said}.", "“{direct}?” “{spoken}.”")
OTHER_SHAPES = (
    "“{full_direct}?” “{full_spoken}.”",
    "“{full_direct}?” “{full_spoken}.”",
    "“{full_direct}?” {asker:이} {when} {answerer:은} “{full_spoken}.”라고 {said}.",
    "“{full_direct}?” {asker:이} {when} {answerer:은} “{spoken}.”라고 {said}.",
    "{to} {full_q} {when} {full_reply} {did}.",
    "{full_q} {asking} 말에는 {full_reply} {did}.",
    "{to} {full_q} {when} {reply} {said}.",
    "{full_w} {when} {answerer:은} {reply} {said}.",
    "{asker:은} {full_w} 궁금해했다. {answerer:은} {reply} {told}.",
    "{full_q} 물으니 모두 {full_reply} 대답했다.",
)
OWN_TOPIC_SHAPES = (
    "{to} {topic:을} {when} {answer:이라고} {said}.",
    "{asker:은} {to} {topic:을} {asked}. {answerer:은} {answer:이라고} {said}.",
)
OTHER_TOPIC_SHAPES = (
    "{to} {full_topic:을} {when} {answer:이라고} {said}.",
    "{full_topic:을} {asking} {asker}에게 {answerer:은} {answer:이라고} {told}.",
)
YES_SHAPES = ("{to} {guess} {when} 그렇다고 {said}.", "{guess} {asking} {asker}에게 {answerer:은} 그렇다고 {said}.")
NO_SHAPES = ("{to} {guess} {when} 아니라며 {reply} {said}.", "{to} {guess} {when} 아니라고, {reply} {said}.")


@dataclass(frozen=True)
class Exchange:
    """Who asks which question about which fact, and who answers.

    Askers stand outside the passage, so that a name before 묻자 is always that of the person asked about. `guess` is
    what a yes-or-no question supposes; `is_alone` says that the text is about the owner only.
    """

    fact: Fact
    question: Question
    asker: Subject
    answerer: Subject
    guess: Fact | None = None
    is_alone: bool = False

    @property
    def owner(self) -> Subject:
        return self.fact.owner

    @property
    def is_own(self) -> bool:
        """True where people answer about themselves."""
        return self.answerer == self.owner


def report(rng: random.Random, exchange: Exchange) -> str:
    """One question and its answer, in one of many shapes."""
    return rng.choice(_shapes(rng, exchange)).format_map(_parts(rng, exchange))


def wrong_guess(rng: random.Random, fact: Fact, question: Question, *, split: Split) -> Fact:
    """`fact` with another value of `split` for what is asked, or the fact itself where the split has no other."""
    slots = list(fact.frame.slots)
    place = slots.index(question.slot)
    slot_key = f"{fact.frame.key}.{question.slot}"
    allowed = allowed_values(str(fact.owner.name), slot_key, fact.frame.slots[question.slot], split)
    others = [value for value in allowed if value not in fact.values]
    if not others:
        return fact
    return replace(fact, values=(*fact.values[:place], rng.choice(others), *fact.values[place + 1 :]))


def _shapes(rng: random.Random, exchange: Exchange) -> tuple[str, ...]:
    if exchange.guess is not None:
        return YES_SHAPES if exchange.guess == exchange.fact else NO_SHAPES
    if exchange.question.topic is not None and rng.random() < 0.2:
        return OWN_TOPIC_SHAPES if exchange.is_own else OTHER_TOPIC_SHAPES
    if not exchange.is_own:
        return OTHER_SHAPES
    return (*OWN_SHAPES, *ALONE_SHAPES) if exchange.is_alone else OWN_SHAPES


def _parts(rng: random.Random, it: Exchange) -> dict[str, Word]:
    ask = verbs.predicate("여쭈다" if it.answerer.is_elder else "묻다")
    parts = {
        "asker": it.asker.name,
        "answerer": it.answerer.name,
        "to": it.answerer.dative,
        "when": connect(ask, "자"),
        "asking": verbs.adnominal(ask),
        "asked": finite(verbs.past(ask)),
        "q": _question(it, _quoted_question),
        "w": _question(it, whether),
        "full_q": _question(it, _quoted_question, names_owner=True),
        "full_w": _question(it, whether, names_owner=True),
        "direct": _direct(it),
        "full_direct": _question(it, rng.choice((_polite, asked)), particle="은", names_owner=True),
        "reply": _reply(rng, it),
        "answer": it.fact.answer(it.question),
        "spoken": _spoken(rng, it),
        "full_reply": _full_reply(it, quoted),
        "full_spoken": _full_reply(it, _polite),
        "did": it.answerer.does("하다"),
        "said": it.answerer.does(rng.choice(_SAYING)),
        "told": it.answerer.does("알려 주다"),
        "guess": _guess(it),
        "topic": it.question.topic.alone(it.owner, it.fact.binding) if it.question.topic else "",
        "full_topic": it.question.topic.owned(it.owner, it.fact.binding) if it.question.topic else "",
    }
    return {name: Word(part) for name, part in parts.items()}


def _polite(base: Predicate) -> str:
    return finite(base, level="polite")


def _quoted_question(base: Predicate) -> str:
    return quoted(base, "question")


def _question(it: Exchange, form: Form, *, particle: str = "이", names_owner: bool = False) -> str:
    """The question in `form`: 어디에 사느냐고, or with the owner named 민지가 어디에 사느냐고."""
    return sentence_part(it.question.ask, it.owner, it.fact.binding, form, particle=particle, names_owner=names_owner)


def _direct(it: Exchange) -> str:
    """The question put to the owner himself, whom a stranger honours: 어디에 사세요, 고향이 어디인가요."""
    if it.question.ask.topic is not None:
        return _question(it, asked)
    return put(it.question.ask, it.fact.binding, _polite, is_honoured=True)


def _answers_in_words(rng: random.Random, question: Question) -> bool:
    return question.reply.topic is not None or (question.takes_word and rng.random() < _WORD_SHARE)


def _reply(rng: random.Random, it: Exchange) -> str:
    """The reported answer, as a word (강릉이라고) or as a clause (강릉에 산다고). Nobody honours himself."""
    if _answers_in_words(rng, it.question):
        return f"{it.fact.answer(it.question):이라고}"
    return put(it.question.reply, it.fact.binding, quoted, is_honoured=it.owner.is_elder and not it.is_own)


def _full_reply(it: Exchange, form: Form) -> str:
    """The answer as a sentence with its subject: 민지는 강릉에 산다고."""
    return sentence_part(it.question.reply, it.owner, it.fact.binding, form, particle="은", names_owner=True)


def _spoken(rng: random.Random, it: Exchange) -> str:
    if _answers_in_words(rng, it.question):
        return finite(copula(it.fact.answer(it.question)), level="polite")
    return put(it.question.reply, it.fact.binding, _polite, is_honoured=it.owner.is_elder and not it.is_own)


def _guess(it: Exchange) -> str:
    """What a yes-or-no question supposes: 강릉에 사느냐고; the owner is named where somebody else answers."""
    if it.guess is None:
        return ""
    clause = it.fact.frame.tell[0]
    return sentence_part(clause, it.owner, it.guess.binding, _quoted_question, particle="이", names_owner=not it.is_own)
