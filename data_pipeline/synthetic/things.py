"""What is true of animals, jobs, towns and words in every text, and how it is told and asked. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.synthetic.frames import COPULA, Clause, Frame, Question, Subject, Topic
from data_pipeline.synthetic.particles import Word


@dataclass(frozen=True)
class WorldFact:
    """Something true of a thing in every text."""

    subject: Subject
    frame: Frame
    value: Word


def _world_frame(key: str, tell: Clause, ask: Clause, *, takes_word: bool = True) -> Frame:
    return Frame(key, {"value": key}, (tell,), (Question("value", ask, tell, takes_word=takes_word),))


_WORLD: tuple[tuple[Frame, str], ...] = (
    (
        _world_frame("eats", Clause("{value:을}", "먹다"), Clause("무엇을", "먹다")),
        "소=풀 토끼=당근 판다=대나무 사자=고기 원숭이=바나나 다람쥐=도토리 누에=뽕잎 나비=꿀 제비=벌레 "
        "곰=연어 수달=물고기 말=건초",
    ),
    (
        _world_frame("workplace", Clause("{value}에서", "일하다"), Clause("어디에서", "일하다")),
        "간호사=병원 교사=학교 요리사=식당 소방관=소방서 경찰관=경찰서 판사=법원 사서=도서관 은행원=은행 약사=약국 "
        "제빵사=빵집 미용사=미용실 농부=논밭 어부=바다 집배원=우체국 정원사=정원",
    ),
    (
        _world_frame("hue", Clause("{value}", COPULA), Clause("무슨 색", COPULA)),
        "사과=빨간색 바나나=노란색 포도=보라색 귤=주황색 오이=초록색 눈=흰색 석탄=검은색 당근=주황색 하늘=파란색 "
        "개나리=노란색 진달래=분홍색 우유=흰색 가지=보라색 시금치=초록색 앵두=빨간색",
    ),
    (
        _world_frame("blooms", Clause("{value}에", "피다"), Clause("어느 계절에", "피다")),
        "개나리=봄 진달래=봄 벚꽃=봄 목련=봄 해바라기=여름 연꽃=여름 봉숭아=여름 코스모스=가을 국화=가을 동백꽃=겨울",
    ),
    (
        _world_frame(
            "legs",
            Clause("{value}", COPULA, topic=Topic("다리")),
            Clause("몇 개", COPULA, topic=Topic("다리")),
        ),
        "거미=여덟_개 개미=여섯_개 나비=여섯_개 고양이=네_개 닭=두_개 오징어=열_개 문어=여덟_개 소=네_개 "
        "벌=여섯_개 참새=두_개",
    ),
    (
        _world_frame("sound", Clause("{value} 하고", "울다"), Clause("어떻게", "울다"), takes_word=False),
        "소=음매 고양이=야옹 닭=꼬끼오 개구리=개굴개굴 참새=짹짹 뻐꾸기=뻐꾹 오리=꽥꽥 병아리=삐악삐악 "
        "매미=맴맴 귀뚜라미=귀뚤귀뚤 돼지=꿀꿀",
    ),
    (
        _world_frame(
            "young", Clause("{value}", COPULA, topic=Topic("새끼")), Clause("무엇", COPULA, topic=Topic("새끼"))
        ),
        "소=송아지 말=망아지 개=강아지 닭=병아리 꿩=꺼병이 명태=노가리 개구리=올챙이",
    ),
    (
        _world_frame(
            "opposite", Clause("{value}", COPULA, topic=Topic("반대말")), Clause("무엇", COPULA, topic=Topic("반대말"))
        ),
        "위=아래 앞=뒤 왼쪽=오른쪽 낮=밤 동쪽=서쪽 남쪽=북쪽 처음=끝 안=밖 하늘=땅 겉=속 남자=여자 입구=출구",
    ),
    (
        _world_frame("famous", Clause("{value:으로}", "유명하다"), Clause("무엇으로", "유명하다")),
        "강릉=커피 전주=비빔밥 춘천=닭갈비 안동=간고등어 제주=귤 통영=굴 여수=갓김치 부산=밀면 경주=찰보리빵 "
        "속초=오징어순대 천안=호두과자 나주=배 공주=밤 영광=굴비 목포=낙지",
    ),
)
WORLD_FACTS = tuple(
    WorldFact(Subject(Word(name)), frame, Word(value.replace("_", " ")))
    for frame, pairs in _WORLD
    for name, _, value in (pair.partition("=") for pair in pairs.split())
)
