"""Particles that a word takes by its final consonant, for Hangul, digits and Latin letters read aloud."""

from __future__ import annotations

from functools import lru_cache

from data_pipeline.synthetic import counting, hangul

# Form after a final consonant -> form after a vowel. (으)로 treats ㄹ as a vowel.
_FORMS = {
    "은": "는",
    "이": "가",
    "을": "를",
    "과": "와",
    "아": "야",
    "이랑": "랑",
    "이나": "나",
    "이라도": "라도",
    "이라고": "라고",
    "이라는": "라는",
    "이라며": "라며",
    "이야": "야",
    "이며": "며",
    "이든": "든",
    "으로": "로",
    "으로서": "로서",
    "으로써": "로써",
    "으로부터": "로부터",
}
_CLOSERS = "”’\"'」』》〉)]}"
_LETTERS_WITH_FINAL = {"L": "ㄹ", "M": "ㅁ", "N": "ㄴ", "R": "ㄹ"}


class Word(str):
    """A text that knows its particles: `f"{Word('강릉'):으로} 간다"` is 강릉으로 간다."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return attach(str(self), spec) if spec else str(self)


def final_of(word: str) -> str:
    """The consonant that `word` ends on when read aloud, "" for a vowel.

    >>> final_of("강릉"), final_of("서울"), final_of("의사"), final_of("10"), final_of("2"), final_of("KBS")
    ('ㅇ', 'ㄹ', '', 'ㅂ', '', '')
    """
    bare = word.rstrip(_CLOSERS)
    last = bare[-1:]
    if hangul.is_syllable(last):
        return hangul.split(last)[2]
    if last.isascii() and last.isdigit():
        digits = bare[len(bare.rstrip("0123456789")) :]
        is_fraction = bare[: -len(digits)].endswith(".")
        return hangul.split(counting.sino(int(last if is_fraction else digits))[-1])[2]
    if last.isascii() and last.isupper():
        return _LETTERS_WITH_FINAL.get(last, "")
    raise ValueError(f"{word!r}: its last sound is not known; end it on Hangul, a digit or a capital letter")


@lru_cache(maxsize=1 << 16)
def attach(word: str, particle: str) -> str:
    """`word` with a particle, which is named by its form after a consonant (은, 이, 을, 과, 으로, 이라고 …).

    >>> attach("사과", "을"), attach("서울", "으로"), attach("3", "이")
    ('사과를', '서울로', '3이')
    """
    if particle not in _FORMS:
        raise ValueError(f"particle {particle!r}: unknown; give one of {', '.join(_FORMS)}")
    final = final_of(word)
    takes_vowel_form = not final or (final == "ㄹ" and particle.startswith("으로"))
    return word + (_FORMS[particle] if takes_vowel_form else particle)


def forms(particle: str) -> tuple[str, str]:
    """Both forms of a particle: after a consonant, after a vowel.

    >>> forms("을")
    ('을', '를')
    """
    return particle, _FORMS[particle]
