"""Predicates and their endings: tense, level, honorific, connectives and reported speech.

A predicate is a stem, a kind and how it changes before vowels. An ending is written as grammars write it:
`고` goes to the bare stem, `(으)면` to the stem that may take 으, `아/어서` to the stem with its harmonic vowel.
Formation follows 한글 맞춤법 chapter 4, section 2 (articles 15-18) and section 5 (articles 34-38).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from data_pipeline.synthetic import hangul, lexicon
from data_pipeline.synthetic.particles import final_of

Kind = Literal["verb", "adjective", "existential", "copula", "tensed"]
Level = Literal["plain", "polite", "formal"]
Tense = Literal["present", "past", "future"]
Mood = Literal["statement", "question", "proposal", "command"]

# 살다: ㄹ falls before these, whether they start a syllable or close the stem's.
_DROPS_RIEUL = "ㄴㅂㅅ"
_CONTRACTIONS = {"ㅗ": "ㅘ", "ㅜ": "ㅝ", "ㅣ": "ㅕ", "ㅚ": "ㅙ"}
_SILENT_VOWELS = "ㅏㅑㅓㅕㅐㅔ"


@dataclass(frozen=True)
class Predicate:
    """What conjugates.

    `change` says how the stem changes before vowels: "" (regular; ㄹ and 으 fall by rule), ㅂ ㄷ ㅅ ㅎ 르 러 우 하,
    시 (honorific), 이 (the copula after a noun) or 아니.
    """

    stem: str
    kind: Kind
    change: str = ""


@lru_cache(maxsize=4096)
def predicate(citation: str) -> Predicate:
    """The predicate that a dictionary form names; several words are allowed (`알려 주다`).

    >>> predicate("돕다").change, predicate("크다").kind
    ('ㅂ', 'adjective')
    """
    if not citation.endswith("다") or len(citation) < 2:
        raise ValueError(f"{citation!r}: not a dictionary form; it must end on 다")
    stem, word = citation[:-1], citation.rsplit(" ", 1)[-1]
    if word == "아니다":
        return Predicate(stem=stem, kind="copula", change="아니")
    kind: Kind = "verb"
    if word in lexicon.EXISTENTIALS:
        kind = "existential"
    elif word in lexicon.ADJECTIVES or word.endswith(lexicon.ADJECTIVE_ENDINGS):
        kind = "adjective"
    return Predicate(stem=stem, kind=kind, change=_change_of(word))


def _change_of(word: str) -> str:
    stem = word[:-1]
    for change, words in lexicon.IRREGULAR.items():
        if word in words:
            return change
    if stem.endswith("하"):
        return "하"
    if stem.endswith("르") and word not in lexicon.PLAIN_REU:
        return "르"
    return ""


def copula(noun: str) -> Predicate:
    """`noun` + 이다."""
    return Predicate(stem=f"{noun}이", kind="copula", change="이")


@lru_cache(maxsize=4096)
def honorific(base: Predicate) -> Predicate:
    """The predicate that honours its subject: 살다 -> 사시다, 먹다 -> 드시다.

    >>> finite(honorific(predicate("먹다"))), finite(honorific(predicate("살다")), level="polite")
    ('드신다', '사세요')
    """
    head, _, last = base.stem.rpartition(" ")
    own_word = lexicon.HONORIFIC_WORDS.get(f"{last}다")
    if own_word is not None and base.kind != "copula":
        stem = f"{head} {own_word[:-1]}".strip()
        # 계시다 is a verb (계신다) although 있다 is not; 편찮으시다 stays an adjective.
        return Predicate(stem=stem, kind="adjective" if base.kind == "adjective" else "verb", change="시")
    return replace(
        base, stem=connect(base, "(으)시"), kind="verb" if base.kind == "existential" else base.kind, change="시"
    )


@lru_cache(maxsize=1 << 14)
def past(base: Predicate) -> Predicate:
    """The predicate in the past: 먹다 -> 먹었-, 의사이다 -> 의사였-."""
    if base.change == "이":
        noun = base.stem[:-1]
        stem = f"{noun}이었" if final_of(noun) else f"{noun}였"
    elif base.stem.endswith(lexicon.OPEN_IN_THE_PAST) and not base.change:
        stem = base.stem + ("았" if _is_bright(base.stem) else "었")
    else:
        stem = hangul.with_final(connect(base, "아/어"), "ㅆ")
    return Predicate(stem=stem, kind="tensed")


def future(base: Predicate) -> Predicate:
    """The predicate with 겠."""
    return Predicate(stem=connect(base, "겠"), kind="tensed")


def tensed(base: Predicate, tense: Tense) -> Predicate:
    """`base` in a tense; the present is `base` itself."""
    if tense == "present":
        return base
    return past(base) if tense == "past" else future(base)


def finite(base: Predicate, *, level: Level = "plain") -> str:
    """The sentence-final form: 산다, 살아요, 삽니다.

    >>> finite(predicate("살다")), finite(past(predicate("돕다"))), finite(copula("의사"), level="polite")
    ('산다', '도왔다', '의사예요')
    """
    if level == "formal":
        return connect(base, "(으)ㅂ니다") if _is_open(base) else connect(base, "습니다")
    return _plain(base) if level == "plain" else _polite(base)


def _plain(base: Predicate) -> str:
    if base.change == "이":
        noun = base.stem[:-1]
        return f"{noun}이다" if final_of(noun) else f"{noun}다"
    if base.kind != "verb":
        return f"{base.stem}다"
    return connect(base, "(으)ㄴ다") if _is_open(base) else connect(base, "는다")


def _polite(base: Predicate) -> str:
    if base.change == "이":
        noun = base.stem[:-1]
        return f"{noun}이에요" if final_of(noun) else f"{noun}예요"
    if base.change == "아니":
        return f"{base.stem}에요"
    if base.change == "시":
        return f"{base.stem[:-1]}세요"
    return connect(base, "아/어요")


def quoted(base: Predicate, mood: Mood = "statement") -> str:
    """The form before a verb of saying, 고 included: 산다고, 사느냐고, 살자고, 살라고.

    >>> [quoted(predicate("살다"), mood) for mood in ("statement", "question", "proposal", "command")]
    ['산다고', '사느냐고', '살자고', '살라고']
    """
    if mood == "statement":
        return _quoted_statement(base)
    if mood == "question":
        if base.change == "이" and not final_of(base.stem[:-1]):
            return f"{base.stem[:-1]}냐고"
        return connect(base, "(으)냐고" if base.kind in ("adjective", "copula") else "느냐고")
    if base.kind != "verb":
        raise ValueError(f"{base.stem}다: a {mood} needs a verb, this is of kind {base.kind!r}")
    return connect(base, "자고" if mood == "proposal" else "(으)라고")


def _quoted_statement(base: Predicate) -> str:
    if base.kind != "copula":
        return f"{_plain(base)}고"
    if base.change == "이" and not final_of(base.stem[:-1]):
        return f"{base.stem[:-1]}라고"
    return f"{base.stem}라고"


def whether(base: Predicate) -> str:
    """The indirect question: 사는지, 큰지, 의사인지.

    >>> whether(predicate("살다")), whether(predicate("길다")), whether(copula("의사"))
    ('사는지', '긴지', '의사인지')
    """
    return connect(base, "(으)ㄴ지" if base.kind in ("adjective", "copula") else "는지")


def asked(base: Predicate) -> str:
    """The direct polite question: 사나요, 큰가요, 의사인가요."""
    return connect(base, "(으)ㄴ가요" if base.kind in ("adjective", "copula") else "나요")


def adnominal(base: Predicate) -> str:
    """The form before a noun: 사는, 큰, 의사인."""
    return connect(base, "(으)ㄴ" if base.kind in ("adjective", "copula") else "는")


@lru_cache(maxsize=1 << 16)
def connect(base: Predicate, ending: str) -> str:
    """`base` with an ending in grammar notation: `고`, `(으)면`, `(으)ㄴ`, `아/어서`, `아/어요`.

    >>> [connect(predicate("살다"), e) for e in ("고", "는", "(으)면", "(으)니", "(으)ㄴ", "아/어서")]
    ['살고', '사는', '살면', '사니', '산', '살아서']
    """
    if ending.startswith("(으)"):
        return _joined(_stem_with_eu(base, ending[3:]), ending[3:])
    if ending.startswith("아/어"):
        return _infinitive(base) + ending[3:]
    drops = hangul.split(base.stem[-1])[2] == "ㄹ" and _initial(ending) in _DROPS_RIEUL
    return (hangul.with_final(base.stem, "") if drops else base.stem) + ending


def _initial(ending: str) -> str:
    return hangul.split(ending[0])[0] if hangul.is_syllable(ending[0]) else ending[0]


def _joined(stem: str, rest: str) -> str:
    if hangul.is_syllable(rest[0]):
        return stem + rest
    return hangul.with_final(stem, rest[0]) + rest[1:]


def _is_open(base: Predicate) -> bool:
    """True where ㄴ다 and ㅂ니다 close the stem's own syllable: a vowel or a ㄹ that falls."""
    return hangul.split(base.stem[-1])[2] in ("", "ㄹ")


def _stem_with_eu(base: Predicate, rest: str) -> str:
    stem, final = base.stem, hangul.split(base.stem[-1])[2]
    bare = hangul.with_final(stem, "")
    if base.change == "ㅂ":
        return f"{bare}우"
    if base.change == "ㅎ":
        return bare
    if base.change == "ㄷ":
        return hangul.with_final(stem, "ㄹ") + "으"
    if base.change == "ㅅ":
        return f"{bare}으"
    if final == "ㄹ":
        return bare if _initial(rest) in _DROPS_RIEUL or rest[0] == "ㄹ" else stem
    return f"{stem}으" if final else stem


def _is_bright(stem: str) -> bool:
    """True where vowel harmony asks for 아."""
    return hangul.split(stem[-1])[1] in "ㅏㅑㅗ"


def _infinitive(base: Predicate) -> str:
    """The stem with 아/어: 먹어, 가, 도와, 걸어, 지어, 불러, 써, 빨개."""
    stem, bare = base.stem, hangul.with_final(base.stem, "")
    match base.change:
        case "하":
            return hangul.with_vowel(stem, "ㅐ")
        case "시":
            return hangul.with_vowel(stem, "ㅕ")
        case "ㅂ":
            return bare + ("와" if stem.endswith(lexicon.BRIGHT_BIEUP) else "워")
        case "ㄷ":
            stem = hangul.with_final(stem, "ㄹ")
        case "ㅅ":
            return bare + ("아" if _is_bright(bare) else "어")
        case "ㅎ":
            vowel = "ㅐ" if stem.endswith(lexicon.BRIGHT_HIEUT) else lexicon.HIEUT_VOWELS[hangul.split(stem[-1])[1]]
            return hangul.with_vowel(stem, vowel)
        case "르":
            head = stem[:-1]
            return hangul.with_final(head, "ㄹ") + ("라" if _is_bright(head) else "러")
        case "러":
            return f"{stem}러"
        case "우":
            return hangul.with_vowel(stem, "ㅓ")
    if base.kind == "tensed":
        return f"{stem}어"
    return _regular_infinitive(stem)


def _regular_infinitive(stem: str) -> str:
    _, vowel, final = hangul.split(stem[-1])
    if final:
        return stem + ("아" if _is_bright(stem) else "어")
    if vowel == "ㅡ":
        before = stem[-2:-1].strip()
        return hangul.with_vowel(stem, "ㅏ" if before and _is_bright(before) else "ㅓ")
    if vowel in _SILENT_VOWELS:
        return stem
    if vowel in _CONTRACTIONS and stem.rsplit(" ", 1)[-1] not in lexicon.NEVER_CONTRACTED:
        return hangul.with_vowel(stem, _CONTRACTIONS[vowel])
    return f"{stem}어"
