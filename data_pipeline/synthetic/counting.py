"""Numbers as Koreans read them: Sino-Korean, native, with counters, as dates and as times of day."""

from __future__ import annotations

from data_pipeline.synthetic.lexicon import words

_DIGITS = ("영", *"일이삼사오육칠팔구")
_SMALL_UNITS = ("", "십", "백", "천")
_LARGE_UNITS = ("", "만", "억", "조")
_TENS = ("", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔")
_ONES = ("", "하나", "둘", "셋", "넷", "다섯", "여섯", "일곱", "여덟", "아홉")
_BEFORE_COUNTER = {"하나": "한", "둘": "두", "셋": "세", "넷": "네", "스물": "스무"}

NATIVE_COUNTERS = frozenset(
    words("개 마리 살 명 사람 분 권 시 시간 번 잔 병 송이 켤레 대 채 벌 자루 그루 통 그릇 장 군데 가지 달")
)
SINO_COUNTERS = frozenset(words("원 년 월 일 층 호 도 쪽 초 주 인분 킬로미터 미터 퍼센트 학년"))
# 분 counts people (세 분) and minutes (삼 분): minutes are read by `time_of_day`.
_OLD_FORMS = {("세", "달"): "석", ("네", "달"): "넉"}


def sino(number: int) -> str:
    """Sino-Korean reading, written by units of 만 as the orthography asks.

    >>> sino(0), sino(16), sino(300), sino(10_000), sino(12_345)
    ('영', '십육', '삼백', '만', '만 이천삼백사십오')
    """
    if not 0 <= number < 10_000 ** len(_LARGE_UNITS):
        raise ValueError(f"number {number}: no reading; give 0 to {10_000 ** len(_LARGE_UNITS) - 1}")
    if number == 0:
        return _DIGITS[0]
    groups: list[str] = []
    for unit in _LARGE_UNITS:
        number, four_digits = divmod(number, 10_000)
        if four_digits:
            is_bare_man = four_digits == 1 and unit == "만" and number == 0
            groups.append(unit if is_bare_man else _four_digits(four_digits) + unit)
    return " ".join(reversed(groups))


def _four_digits(number: int) -> str:
    reading = ""
    for unit in _SMALL_UNITS:
        number, digit = divmod(number, 10)
        if digit:
            reading = ("" if digit == 1 and unit else _DIGITS[digit]) + unit + reading
    return reading


def native(number: int) -> str:
    """Native reading of 1 to 99.

    >>> native(1), native(20), native(23)
    ('하나', '스물', '스물셋')
    """
    if not 1 <= number <= 99:
        raise ValueError(f"number {number}: no native reading; give 1 to 99, or use sino()")
    tens, ones = divmod(number, 10)
    return _TENS[tens] + _ONES[ones]


def native_determiner(number: int) -> str:
    """Native reading as it stands before a counter; hundreds are Sino-Korean.

    >>> native_determiner(3), native_determiner(20), native_determiner(21), native_determiner(102)
    ('세', '스무', '스물한', '백두')
    """
    hundreds, rest = divmod(number, 100)
    prefix = sino(hundreds * 100) if hundreds else ""
    if not rest:
        return prefix
    tens, ones = divmod(rest, 10)
    if not ones:
        return prefix + _BEFORE_COUNTER.get(_TENS[tens], _TENS[tens])
    return prefix + _TENS[tens] + _BEFORE_COUNTER.get(_ONES[ones], _ONES[ones])


def counted(number: int, counter: str) -> str:
    """Number and counter.

    >>> counted(3, "마리"), counted(20, "살"), counted(300, "원"), counted(3, "달")
    ('세 마리', '스무 살', '삼백 원', '석 달')
    """
    if counter in SINO_COUNTERS:
        return f"{sino(number)} {counter}"
    if counter not in NATIVE_COUNTERS:
        raise ValueError(f"counter {counter!r}: unknown; add it to NATIVE_COUNTERS or SINO_COUNTERS")
    determiner = native_determiner(number)
    return f"{_OLD_FORMS.get((determiner, counter), determiner)} {counter}"


def date(month: int, day: int) -> str:
    """A date in words; June and October drop a letter.

    >>> date(6, 15), date(10, 3), date(3, 1)
    ('유월 십오일', '시월 삼일', '삼월 일일')
    """
    months = {6: "유월", 10: "시월"}
    return f"{months.get(month, sino(month) + '월')} {sino(day)}일"


def time_of_day(hour: int, minute: int = 0) -> str:
    """A clock time in words: native hours, Sino-Korean minutes.

    >>> time_of_day(3), time_of_day(7, 30), time_of_day(11, 20)
    ('세 시', '일곱 시 반', '열한 시 이십 분')
    """
    hours = f"{native_determiner(hour)} 시"
    if minute == 0:
        return hours
    return f"{hours} 반" if minute == 30 else f"{hours} {sino(minute)} 분"
