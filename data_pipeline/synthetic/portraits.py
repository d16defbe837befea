"""The kinds of facts about people: how each is told, asked and answered. Data only."""

from __future__ import annotations

from data_pipeline.synthetic.frames import COPULA, Clause, Frame, Question, Topic

# Where a value stands before a word of its own (강릉 시내에, 목수 일을), a tokenizer keeps it apart from particles, and
# the same token stands in the answer; in the other clauses the particle follows it.
_LIVES = Clause("{city} 시내에", "살다")
_JOB = Clause("{job} 일을", "하다")
_FOOD = Clause("{food} 요리를", "좋아하다")
_PLAYS = Clause("{instrument} 연주를", "하다")
_VISIT = Clause("{day} 오후에 {place} 구경을", "가다", "past")
_BOUGHT = Clause("{item} {count:을}", "사다", "past")
_GIVE = Clause("{to}에게 {gift} 하나를", "주다", "past")

FRAMES = (
    Frame(
        "lives",
        {"city": "city"},
        (_LIVES, Clause("{city}에", "살다"), Clause("{city} 시내에", "있다", topic=Topic("집"))),
        (
            Question("city", Clause("어디에", "살다"), _LIVES, Topic("곳", "살다")),
            Question(
                "city",
                Clause("어디에", "있다", topic=Topic("집")),
                Clause("{city} 시내에", "있다", topic=Topic("집")),
            ),
        ),
    ),
    Frame(
        "job",
        {"job": "job"},
        (_JOB, Clause("{job:으로}", "일하다"), Clause("{job}", COPULA, topic=Topic("직업"))),
        (
            Question("job", Clause("무슨 일을", "하다"), _JOB, Topic("일", "하다")),
            Question(
                "job",
                Clause("무엇", COPULA, topic=Topic("직업")),
                Clause("{job}", COPULA, topic=Topic("직업")),
                Topic("직업"),
            ),
        ),
    ),
    Frame(
        "pet",
        {"pet": "pet", "pet_name": "pet_name"},
        (
            Clause("{pet_name:이라는} {pet} 한 마리를", "기르다"),
            Clause("이름이 {pet_name}인 {pet} 한 마리를", "키우다"),
        ),
        (
            Question(
                "pet", Clause("어떤 동물을", "기르다"), Clause("{pet} 한 마리를", "기르다"), Topic("동물", "기르다")
            ),
            Question(
                "pet_name",
                Clause("무엇", COPULA, topic=Topic("{pet} 이름")),
                Clause("{pet_name}", COPULA, topic=Topic("{pet} 이름")),
            ),
        ),
    ),
    Frame(
        "food",
        {"food": "food"},
        (
            Clause("{food} 요리를 가장", "좋아하다"),
            Clause("{food:을} 가장", "좋아하다"),
            Clause("{food}", COPULA, topic=Topic("음식", "가장 좋아하다")),
        ),
        (Question("food", Clause("어떤 음식을", "좋아하다"), _FOOD, Topic("음식", "좋아하다")),),
    ),
    Frame(
        "hobby",
        {"hobby": "hobby"},
        (
            Clause("취미로 {hobby} 모임에", "나가다"),
            Clause("{hobby:을}", "즐기다"),
            Clause("{hobby}", COPULA, topic=Topic("취미")),
        ),
        (
            Question(
                "hobby",
                Clause("무엇", COPULA, topic=Topic("취미")),
                Clause("{hobby}", COPULA, topic=Topic("취미")),
                Topic("취미"),
            ),
            Question("hobby", Clause("무엇을", "즐기다"), Clause("{hobby:을}", "즐기다"), Topic("취미")),
        ),
    ),
    Frame(
        "age",
        {"age": "age"},
        (Clause("{age}", COPULA), Clause("올해 {age}", COPULA)),
        (Question("age", Clause("몇 살", COPULA), Clause("{age}", COPULA), Topic("나이")),),
        suits_elders=False,
    ),
    Frame(
        "instrument",
        {"instrument": "instrument"},
        (_PLAYS, Clause("{instrument:을}", "연주하다"), Clause("{instrument:을} 잘", "다루다")),
        (
            Question("instrument", Clause("무슨 연주를", "하다"), _PLAYS, Topic("악기", "연주하다")),
            Question(
                "instrument",
                Clause("어떤 악기를", "다루다"),
                Clause("{instrument:을}", "다루다"),
                Topic("악기", "다루다"),
            ),
        ),
    ),
    Frame(
        "wakes",
        {"hour": "hour"},
        (Clause("{hour}에", "일어나다"), Clause("날마다 {hour}에", "일어나다")),
        (Question("hour", Clause("몇 시에", "일어나다"), Clause("{hour}에", "일어나다"), Topic("시각", "일어나다")),),
    ),
    Frame(
        "visit",
        {"day": "day", "place": "place"},
        (_VISIT, Clause("{day}에 {place:을}", "둘러보다", "past")),
        (
            Question(
                "place", Clause("{day} 오후에 어디 구경을", "가다", "past"), Clause("{place} 구경을", "가다", "past")
            ),
            Question(
                "day", Clause("무슨 요일에 {place} 구경을", "가다", "past"), Clause("{day} 오후에", "가다", "past")
            ),
        ),
        is_event=True,
    ),
    Frame(
        "bought",
        {"item": "item", "number": "number"},
        (_BOUGHT, Clause("시장에서 {item:을} {count}", "사다", "past")),
        (
            Question("item", Clause("무엇을", "사다", "past"), _BOUGHT),
            Question("number", Clause("{item:을} 몇 {counter}", "사다", "past"), Clause("{count}", "사다", "past")),
        ),
        is_event=True,
    ),
    Frame(
        "gift",
        {"to": "person", "gift": "gift"},
        (_GIVE, Clause("{to}에게 {gift:을}", "선물하다", "past")),
        (
            Question("gift", Clause("{to}에게 무엇을", "주다", "past"), Clause("{gift} 하나를", "주다", "past")),
            Question("to", Clause("누구에게 {gift} 하나를", "주다", "past"), Clause("{to}에게", "주다", "past")),
        ),
        is_event=True,
    ),
    Frame(
        "met",
        {"friend": "person", "afternoon": "afternoon"},
        (Clause("{afternoon}에 {friend:을}", "만나다", "past"), Clause("{friend:을} {afternoon}에", "만나다", "past")),
        (
            Question("friend", Clause("누구를", "만나다", "past"), Clause("{friend:을}", "만나다", "past")),
            Question(
                "afternoon", Clause("몇 시에 {friend:을}", "만나다", "past"), Clause("{afternoon}에", "만나다", "past")
            ),
        ),
        is_event=True,
    ),
)
