"""The small made-up world: its people, and every value that a fact about them may have. Data only."""

from __future__ import annotations

from data_pipeline.synthetic.counting import native_determiner, time_of_day
from data_pipeline.synthetic.frames import Subject
from data_pipeline.synthetic.lexicon import words
from data_pipeline.synthetic.particles import Word

# A family name and a given one: so many people that nobody can be known by heart, only read about.
_FAMILY_NAMES = words("김 이 박 최 정 강 조 윤 장 임 한 오 서 신 권 황 안 송 홍 문")
_GIVEN_NAMES = words(
    "민준 서준 도윤 예준 시우 하준 주원 지호 지후 준우 준서 도현 건우 우진 현우 선우 서진 연우 유준 정우 승우 승현 "
    "시윤 준혁 은우 지환 승민 유찬 민재 수현 동현 지훈 재윤 태민 정훈 기태 한결 성호 영수 상민 재석 병훈 서연 서윤 "
    "서현 하은 하윤 민서 지유 윤서 채원 수아 지민 지아 다은 은서 예은 수빈 소율 예린 지원 소윤 유진 채은 윤아 유나 "
    "가은 민지 서영 예나 수민 예지 소연 미라 혜진 은지 보라 나영 선영 경희 영희 정아 미경 은영 현정 수정 진아 효진"
)
NAMES = tuple(f"{family}{given} 씨" for given in _GIVEN_NAMES for family in _FAMILY_NAMES)
_FRIENDS = NAMES[::17]
ELDER_NAMES = (
    *(f"{name} 할머니" for name in words("영순 금자")),
    *(f"{name} 할아버지" for name in words("만수 병철")),
)
PEOPLE = tuple(Subject(Word(name)) for name in NAMES)
CHILDREN = tuple(Subject(Word(name)) for name in _GIVEN_NAMES)
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

_CITIES = words(
    "강릉 부산 서울 대구 인천 광주 전주 여수 목포 춘천 제주 경주 통영 안동 속초 원주 청주 천안 군산 순천 나주 포항 "
    "진주 창원 김해 밀양 거제 수원 용인 파주 김포 이천 여주 평택 공주 논산 보령 서산 남원 김제"
)
VALUES: dict[str, tuple[str, ...]] = {
    "city": _CITIES,
    "person": _FRIENDS,
    "job": words(
        "간호사 의사 교사 요리사 목수 농부 어부 화가 가수 약사 소방관 경찰관 사서 집배원 기자 배우 작가 판사 "
        "통역사 미용사 제빵사 정원사 사진사 운전사 은행원 연구원 건축가 작곡가 번역가 조각가"
    ),
    "pet": words("고양이 강아지 토끼 앵무새 거북이 햄스터 금붕어 고슴도치 닭 염소 오리 다람쥐 비둘기 당나귀 거위 양"),
    "pet_name": words(
        "보리 콩이 초코 두부 호두 단추 모찌 나비 누리 방울이 감자 복실이 구름 까미 하루 별이 솜이 바다 "
        "망고 자두 달이 토리 밤이 꼬미"
    ),
    "food": words(
        "비빔밥 냉면 김밥 떡국 만두 칼국수 삼계탕 불고기 잡채 떡볶이 미역국 파전 갈비 순두부 된장국 북엇국 "
        "닭갈비 보쌈 족발 육개장 갈비탕 콩국수 수제비 볶음밥 김치찌개 해물탕"
    ),
    "hobby": words(
        "낚시 등산 뜨개질 독서 요리 수영 산책 서예 캠핑 축구 야구 농구 탁구 바둑 장기 사진 도예 합창 "
        "자수 원예 달리기 자전거 그림 연극"
    ),
    "age": tuple(f"{native_determiner(age)} 살" for age in range(20, 60)),
    "instrument": words(
        "피아노 기타 바이올린 첼로 하모니카 플루트 가야금 장구 해금 피리 거문고 대금 북 오르간 하프 비올라"
    ),
    "hour": (
        *(f"새벽 {time_of_day(hour)}" for hour in (4, 5)),
        *(f"아침 {time_of_day(hour, minute)}" for hour in (6, 7, 8) for minute in (0, 30)),
    ),
    "afternoon": tuple(f"오후 {time_of_day(hour)}" for hour in range(1, 9)),
    "day": words("월요일 화요일 수요일 목요일 금요일 토요일 일요일"),
    "place": words(
        "시장 도서관 바닷가 공원 박물관 미술관 궁궐 수족관 서점 극장 식물원 동물원 과학관 천문대 민속촌 항구 "
        "성곽 폭포 한옥 수목원 온천 등대 농장 목장"
    ),
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
    "gift": words(
        "목도리 모자 꽃다발 시계 손수건 인형 가방 우산 부채 지갑 거울 필통 앞치마 접시 찻잔 화분 담요 베개 "
        "반지 빗 연필깎이 물병"
    ),
}
