"""The small made-up world: its people, and every value that a fact about them may have. Data only."""

from __future__ import annotations

from data_pipeline.synthetic.counting import native_determiner, time_of_day
from data_pipeline.synthetic.frames import Subject
from data_pipeline.synthetic.lexicon import words
from data_pipeline.synthetic.particles import Word

NAMES = words("민지 서준 하은 지호 수아 도윤 예린 유진 태민 소연 현우 은서 재윤 건우 채원 동현 정훈 미라 기태 한결")
ELDER_NAMES = (
    *(f"{name} 할머니" for name in words("영순 금자")),
    *(f"{name} 할아버지" for name in words("만수 병철")),
)
PEOPLE = tuple(Subject(Word(name)) for name in NAMES)
ELDERS = tuple(Subject(Word(name), is_elder=True) for name in ELDER_NAMES)

_COUNTED = {
    "개": "사과 배 감자 달걀",
    "통": "수박",
    "권": "공책 책",
    "자루": "연필",
    "병": "우유",
    "송이": "장미",
    "켤레": "양말",
    "마리": "고등어",
}
# What is bought -> the counter it is counted with.
COUNTERS = {item: counter for counter, items in _COUNTED.items() for item in words(items)}

_CITIES = words("강릉 부산 서울 대구 인천 광주 전주 여수 목포 춘천 제주 경주 통영 안동")
VALUES: dict[str, tuple[str, ...]] = {
    "city": _CITIES,
    "person": NAMES,
    "job": words("간호사 의사 교사 요리사 목수 농부 어부 화가 가수 약사 소방관 경찰관 사서 집배원"),
    "pet": words("고양이 강아지 토끼 앵무새 거북이 햄스터 금붕어 고슴도치 닭 염소 오리 다람쥐"),
    "pet_name": words("보리 콩이 초코 두부 호두 단추 모찌 나비 누리 방울이"),
    "food": words("비빔밥 냉면 김밥 떡국 만두 칼국수 삼계탕 불고기 잡채 떡볶이 미역국 파전"),
    "hobby": words("낚시 등산 뜨개질 독서 요리 수영 산책 서예 캠핑 축구"),
    "age": tuple(f"{native_determiner(age)} 살" for age in range(20, 32)),
    "instrument": words("피아노 기타 바이올린 첼로 하모니카 플루트 가야금 장구 해금 피리"),
    "hour": (
        *(f"새벽 {time_of_day(hour)}" for hour in (4, 5)),
        *(f"아침 {time_of_day(hour, minute)}" for hour in (6, 7, 8) for minute in (0, 30)),
    ),
    "afternoon": tuple(f"오후 {time_of_day(hour)}" for hour in range(1, 9)),
    "day": words("월요일 화요일 수요일 목요일 금요일 토요일 일요일"),
    "place": words("시장 도서관 바닷가 공원 박물관 미술관 병원 우체국 서점 극장 수영장 동물원"),
    "item": tuple(COUNTERS),
    "number": tuple(str(number) for number in range(2, 10)),
    # What people do, for rows of grammar: every kind of irregular verb is among them.
    "activity": (
        *("책을 읽다", "노래를 듣다", "공원을 걷다", "이웃을 돕다", "집을 짓다", "노래를 부르다", "편지를 쓰다"),
        *("손을 씻다", "불을 끄다", "물을 마시다", "문을 닫다", "짐을 싣다", "종이를 줍다", "고기를 굽다", "길을 묻다"),
        *("옷을 입다", "빵을 만들다", "창문을 열다", "밥을 먹다", "춤을 추다", "그림을 그리다", "의자에 앉다"),
        *("친구를 기다리다", "안내원을 따르다", "돈을 모으다", "낮잠을 자다", "소식을 전하다", "꽃을 심다"),
        *("상자를 나르다", "줄을 긋다", "중국어를 배우다", "집에 있다"),
    ),
    "gift": words("목도리 장갑 꽃다발 시계 손수건 인형 가방 엽서 부채 지갑"),
}
