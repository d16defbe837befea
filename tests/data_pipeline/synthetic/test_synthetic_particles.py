"""Particles, numbers and counters as a Korean writes them. The forms were checked by hand."""

from __future__ import annotations

import doctest

import pytest

from data_pipeline.synthetic import counting, hangul, lexicon, particles, passages, verbs
from data_pipeline.synthetic.particles import Word, attach


@pytest.mark.parametrize(
    "expected",
    lexicon.words(
        """
        강릉+으로=강릉으로 서울+으로=서울로 부산+으로=부산으로 제주+으로=제주로 연필+으로=연필로 기차+으로=기차로
        1+으로=1로 7+으로=7로 6+으로=6으로 학생+이라고=학생이라고 의사+이라고=의사라고 서울+이라고=서울이라고
        민지+은=민지는 서준+은=서준은 민지+이=민지가 서준+이=서준이 사과+을=사과를 수박+을=수박을 물+을=물을
        사과+과=사과와 수박+과=수박과 서준+아=서준아 민지+아=민지야 빵+이야=빵이야 우유+이야=우유야
        책+이나=책이나 나무+이나=나무나 딸+이랑=딸이랑 엄마+이랑=엄마랑 서울+으로부터=서울로부터 2024+은=2024는
        10+은=10은 100+이=100이 1000+을=1000을 10000+을=10000을 0+은=0은 3.14+은=3.14는 3.10+은=3.10은 3+이=3이
        4+이=4가 5+을=5를 8+과=8과 9+과=9와 TV+을=TV를 KBS+은=KBS는 PDF+을=PDF를 XML+을=XML을 CD-ROM+은=CD-ROM은
        USB+으로=USB로 URL+으로=URL로 “서울”+으로=“서울”로 『토지』+을=『토지』를 물고기(붕어)+이=물고기(붕어)가
        """
    ),
)
def test_particle_follows_the_last_sound(expected: str) -> None:
    word_and_particle, _, form = expected.partition("=")
    word, _, particle = word_and_particle.partition("+")

    assert attach(word, particle) == form


def test_word_formats_with_its_particle() -> None:
    assert f"{Word('민지'):은} {Word('서울'):으로} 간다. {Word('민지')}에게" == "민지는 서울로 간다. 민지에게"


@pytest.mark.parametrize("word", ["hello", "…", ""])
def test_word_of_unknown_sound_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="its last sound is not known"):
        attach(word, "은")


def test_unknown_particle_is_refused() -> None:
    with pytest.raises(ValueError, match="particle '는': unknown; give one of 은"):
        attach("민지", "는")


@pytest.mark.parametrize(
    ("number", "counter", "expected"),
    [
        (1, "개", "한 개"), (2, "명", "두 명"), (3, "마리", "세 마리"), (4, "권", "네 권"),
        (5, "켤레", "다섯 켤레"), (11, "마리", "열한 마리"), (20, "살", "스무 살"), (21, "살", "스물한 살"),
        (34, "살", "서른네 살"), (50, "살", "쉰 살"), (99, "살", "아흔아홉 살"), (100, "마리", "백 마리"),
        (120, "명", "백스무 명"), (3, "달", "석 달"), (4, "달", "넉 달"), (2, "달", "두 달"), (3, "층", "삼 층"),
        (300, "원", "삼백 원"), (10_000, "원", "만 원"), (15_500, "원", "만 오천오백 원"),
        (21_000, "원", "이만 천 원"), (110_010_000, "원", "일억 천일만 원"), (2024, "년", "이천이십사 년"),
        (12, "시", "열두 시"),
    ],
)  # fmt: skip
def test_counter_chooses_native_or_sino_numbers(number: int, counter: str, expected: str) -> None:
    assert counting.counted(number, counter) == expected


@pytest.mark.parametrize(
    ("month", "day", "expected"), [(6, 6, "유월 육일"), (10, 9, "시월 구일"), (12, 25, "십이월 이십오일")]
)
def test_june_and_october_lose_a_letter(month: int, day: int, expected: str) -> None:
    assert counting.date(month, day) == expected


@pytest.mark.parametrize(("time", "expected"), [((3, 0), "세 시"), ((12, 30), "열두 시 반"), ((8, 5), "여덟 시 오 분")])
def test_hours_are_native_and_minutes_sino(time: tuple[int, int], expected: str) -> None:
    assert counting.time_of_day(*time) == expected


def test_numbers_without_a_reading_are_refused() -> None:
    with pytest.raises(ValueError, match="no native reading"):
        counting.native(100)
    with pytest.raises(ValueError, match="no reading; give 0 to"):
        counting.sino(-1)
    with pytest.raises(ValueError, match="counter '척': unknown"):
        counting.counted(3, "척")


def test_every_syllable_splits_and_joins_to_itself() -> None:
    syllables = [chr(place) for place in range(ord("가"), ord("힣") + 1)]

    assert [hangul.join(*hangul.split(syllable)) for syllable in syllables] == syllables


@pytest.mark.parametrize("module", [hangul, counting, particles, verbs, passages])
def test_examples_in_docstrings_hold(module: object) -> None:
    results = doctest.testmod(module)  # type: ignore[arg-type]

    assert results.attempted >= 1
    assert results.failed == 0
