"""Hangul syllables taken apart and put together. Knows the letters, and nothing of words or grammar."""

from __future__ import annotations

INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
FINALS = ("", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ")

_BASE = ord("가")
_NUM_SYLLABLES = len(INITIALS) * len(VOWELS) * len(FINALS)


def is_syllable(letter: str) -> bool:
    """True for one of the 11,172 composed syllables 가 … 힣.

    >>> is_syllable("한"), is_syllable("ㅎ"), is_syllable("h")
    (True, False, False)
    """
    return len(letter) == 1 and 0 <= ord(letter) - _BASE < _NUM_SYLLABLES


def split(syllable: str) -> tuple[str, str, str]:
    """Initial, vowel and final letter of a composed syllable; the final is "" where there is none.

    >>> split("한"), split("나")
    (('ㅎ', 'ㅏ', 'ㄴ'), ('ㄴ', 'ㅏ', ''))
    """
    place = ord(syllable) - _BASE
    initial, rest = divmod(place, len(VOWELS) * len(FINALS))
    vowel, final = divmod(rest, len(FINALS))
    return INITIALS[initial], VOWELS[vowel], FINALS[final]


def join(initial: str, vowel: str, final: str = "") -> str:
    """The composed syllable; the inverse of `split`."""
    block = INITIALS.index(initial) * len(VOWELS) + VOWELS.index(vowel)
    return chr(_BASE + block * len(FINALS) + FINALS.index(final))


def with_final(word: str, final: str) -> str:
    """`word` whose last syllable ends on `final` ("" for none).

    >>> with_final("가", "ㄴ"), with_final("살", "")
    ('간', '사')
    """
    initial, vowel, _ = split(word[-1])
    return word[:-1] + join(initial, vowel, final)


def with_vowel(word: str, vowel: str) -> str:
    """`word` whose last syllable has another vowel and no final.

    >>> with_vowel("마시", "ㅕ")
    '마셔'
    """
    return word[:-1] + join(split(word[-1])[0], vowel)
