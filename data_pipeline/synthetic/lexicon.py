"""Which predicates are adjectives and which are irregular. Words that are in no table are regular verbs."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text, as a table of words is easiest to read."""
    return tuple(text.split())


EXISTENTIALS = frozenset({"있다", "없다", "재미있다", "맛있다", "재미없다", "맛없다", "멋있다"})

ADJECTIVES = frozenset(
    words("""
    좋다 싫다 많다 적다 높다 낮다 깊다 얕다 넓다 좁다 굵다 가늘다 길다 짧다 멀다 가깝다 크다 작다 빠르다 느리다 밝다
    맑다 흐리다 달다 짜다 시다 맵다 떫다 덥다 춥다 뜨겁다 차갑다 따뜻하다 시원하다 무겁다 가볍다 어렵다 쉽다 두껍다 얇다
    예쁘다 곱다 아름답다 고맙다 반갑다 즐겁다 기쁘다 슬프다 아프다 바쁘다 고프다 나쁘다 다르다 같다 푸르다 이르다 젊다
    부드럽다 귀엽다 새롭다 그립다 외롭다 두렵다 무섭다 빨갛다 파랗다 노랗다 하얗다 까맣다 누렇다 퍼렇다 뻘겋다 허옇다
    그렇다 이렇다 저렇다 어떻다 편찮다
    """)
)
# 하다-adjectives are told from 하다-verbs by these nouns; every other 하다 is a verb.
ADJECTIVE_ENDINGS = ("조용하다", "유명하다", "건강하다", "친절하다", "행복하다", "필요하다", "깨끗하다", "착하다")

IRREGULAR = {
    "ㅂ": frozenset(
        words("""
        돕다 곱다 덥다 춥다 맵다 눕다 굽다 줍다 가깝다 고맙다 어렵다 쉽다 무겁다 가볍다 반갑다 즐겁다 아름답다 새롭다
        뜨겁다 차갑다 두껍다 부드럽다 귀엽다 그립다 외롭다 두렵다 무섭다
        """)
    ),
    "ㄷ": frozenset(words("걷다 듣다 묻다 싣다 깨닫다 긷다 일컫다")),
    "ㅅ": frozenset(words("짓다 낫다 붓다 잇다 긋다 젓다")),
    "ㅎ": frozenset(
        words("빨갛다 파랗다 노랗다 하얗다 까맣다 누렇다 퍼렇다 뻘겋다 허옇다 그렇다 이렇다 저렇다 어떻다")
    ),
    "러": frozenset({"푸르다"}),
    "시": frozenset(words("계시다 드시다 주무시다 돌아가시다")),
    "우": frozenset({"푸다"}),
}
# 따르다 -> 따라: 으 falls, 르 does not double.
PLAIN_REU = frozenset(words("따르다 치르다 들르다 다다르다 우러르다"))
# 돕다, 곱다 -> 도와, 고와; every other ㅂ -> 워 (한글 맞춤법 article 18.6).
BRIGHT_BIEUP = ("돕", "곱")
# 그렇다 -> 그래, though its vowel is dark.
BRIGHT_HIEUT = ("그렇", "이렇", "저렇", "어떻")
# 빨갛다 -> 빨개, 하얗다 -> 하얘, 퍼렇다 -> 퍼레.
HIEUT_VOWELS = {"ㅏ": "ㅐ", "ㅑ": "ㅒ", "ㅓ": "ㅔ", "ㅕ": "ㅖ"}
# 비다 -> 비어, 아니다 -> 아니어.
NEVER_CONTRACTED = frozenset(words("피 비 기 시 띠 이 끼 아니"))
# 주다 -> 주었다 in writing, though 줘요.
OPEN_IN_THE_PAST = ("주", "보", "두", "되", "쑤", "꾸", "추", "여쭈")

HONORIFIC_WORDS = {
    "먹다": "드시다",
    "마시다": "드시다",
    "자다": "주무시다",
    "있다": "계시다",
    "말하다": "말씀하시다",
    "아프다": "편찮으시다",
    "죽다": "돌아가시다",
    "배고프다": "시장하시다",
}
