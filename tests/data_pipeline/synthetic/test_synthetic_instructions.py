"""Laws of the instruction rows: look-ups answered by their passage, and combinations that only held-out rows have."""

from __future__ import annotations

from collections import Counter

from data_pipeline.synthetic import things, world
from data_pipeline.synthetic.config import SyntheticConfig
from data_pipeline.synthetic.documents import Document
from data_pipeline.synthetic.instructions import Instruction, instruction, instruction_rows, is_heldout_fact

PERSONAL_KINDS = ("lookup", "lookup_sentence", "tense", "level", "honorific", "reported")


def combinations_of(rows: list[Instruction], *kinds: str) -> frozenset[tuple[str, str, str]]:
    return frozenset().union(*(row.combinations for row in rows if row.kind in kinds))


def test_a_row_can_be_made_alone(config: SyntheticConfig, train_instructions: list[Instruction]) -> None:
    rows = list(instruction_rows(SyntheticConfig(num_instructions=20), "train"))

    assert instruction(config, split="train", index=2718) == train_instructions[2718]
    assert rows == [made.row for made in train_instructions[:20]]
    assert set(rows[0]) == {"instruction", "input", "output"}


def test_most_rows_are_lookups_and_every_kind_is_there(train_instructions: list[Instruction]) -> None:
    kinds = Counter(made.kind for made in train_instructions)

    assert kinds["lookup"] + kinds["lookup_sentence"] > 0.6 * len(train_instructions)
    assert set(kinds) == {*PERSONAL_KINDS, "particle", "counting", "world"}


def test_a_lookup_is_answered_by_its_passage(train_instructions: list[Instruction]) -> None:
    lookups = [made.row for made in train_instructions if made.kind == "lookup"]

    assert [row for row in lookups if row["output"] not in row["input"]] == []


def test_in_most_lookups_another_person_has_a_value_of_the_same_kind(train_instructions: list[Instruction]) -> None:
    with_rival = 0
    lookups = [made for made in train_instructions if made.kind == "lookup"]
    for made in lookups:
        answered = [found for found in made.combinations if found.value == made.row["output"]]
        with_rival += any(
            other.slot == found.slot and other.value != found.value for found in answered for other in made.combinations
        )
    numbers = sum(made.row["output"] not in {found.value for found in made.combinations} for made in lookups)

    # 30 % of the passages are about one person, who has one value of a kind.
    assert 0.65 * len(lookups) < with_rival + numbers < 0.85 * len(lookups)


def test_heldout_rows_share_no_combination_with_any_training_text(
    train_documents: list[Document],
    train_instructions: list[Instruction],
    heldout_instructions: list[Instruction],
) -> None:
    trained_rows = frozenset().union(*(made.combinations for made in train_instructions))
    trained_texts = frozenset().union(*(one.combinations for one in train_documents))
    held_out = frozenset().union(*(made.combinations for made in heldout_instructions))

    assert len(held_out) > 500
    assert not held_out & trained_rows
    assert not combinations_of(heldout_instructions, *PERSONAL_KINDS) & trained_texts


def test_training_rows_share_no_combination_with_heldout_documents(
    heldout_documents: list[Document], train_instructions: list[Instruction]
) -> None:
    held_out = frozenset().union(*(one.combinations for one in heldout_documents))

    assert not held_out & combinations_of(train_instructions, *PERSONAL_KINDS)


def test_some_facts_of_the_world_are_asked_only_by_heldout_rows(
    train_instructions: list[Instruction], heldout_instructions: list[Instruction]
) -> None:
    held_out = {str(fact.subject.name) + fact.frame.key for fact in things.WORLD_FACTS if is_heldout_fact(fact)}
    asked_in_training = combinations_of(train_instructions, "world")
    asked_later = combinations_of(heldout_instructions, "world")

    assert 10 <= len(held_out) <= 40
    assert {name + slot.removeprefix("world.") for name, slot, _ in asked_later} <= held_out
    assert not {name + slot.removeprefix("world.") for name, slot, _ in asked_in_training} & held_out


def test_particle_rows_choose_by_the_final_consonant(train_instructions: list[Instruction]) -> None:
    checked = 0
    for made in train_instructions:
        if made.kind == "particle":
            word, _, particle = next(iter(made.combinations))
            code = (ord(word[-1]) - ord("가")) % 28
            vowel_forms = {"을": "를", "이": "가", "은": "는", "과": "와", "으로": "로"}
            uses_vowel_form = code == 0 or (code == 8 and particle == "으로")
            assert f"{word}{vowel_forms[particle] if uses_vowel_form else particle} " in made.row["output"]
            checked += 1

    assert checked > 80


# 평서형: 과거, 해요체, 합쇼체, 높임말
BY_HAND = """
산다. 살았다. 살아요. 삽니다. 사신다.
기른다. 길렀다. 길러요. 기릅니다. 기르신다.
있다. 있었다. 있어요. 있습니다. 계신다.
한다. 했다. 해요. 합니다. 하신다.
나간다. 나갔다. 나가요. 나갑니다. 나가신다.
일어난다. 일어났다. 일어나요. 일어납니다. 일어나신다.
좋아한다. 좋아했다. 좋아해요. 좋아합니다. 좋아하신다.
배운다. 배웠다. 배워요. 배웁니다. 배우신다.
읽는다. 읽었다. 읽어요. 읽습니다. 읽으신다.
듣는다. 들었다. 들어요. 듣습니다. 들으신다.
걷는다. 걸었다. 걸어요. 걷습니다. 걸으신다.
돕는다. 도왔다. 도와요. 돕습니다. 도우신다.
짓는다. 지었다. 지어요. 짓습니다. 지으신다.
부른다. 불렀다. 불러요. 부릅니다. 부르신다.
쓴다. 썼다. 써요. 씁니다. 쓰신다.
씻는다. 씻었다. 씻어요. 씻습니다. 씻으신다.
끈다. 껐다. 꺼요. 끕니다. 끄신다.
마신다. 마셨다. 마셔요. 마십니다. 드신다.
닫는다. 닫았다. 닫아요. 닫습니다. 닫으신다.
싣는다. 실었다. 실어요. 싣습니다. 실으신다.
줍는다. 주웠다. 주워요. 줍습니다. 주우신다.
굽는다. 구웠다. 구워요. 굽습니다. 구우신다.
묻는다. 물었다. 물어요. 묻습니다. 물으신다.
입는다. 입었다. 입어요. 입습니다. 입으신다.
만든다. 만들었다. 만들어요. 만듭니다. 만드신다.
연다. 열었다. 열어요. 엽니다. 여신다.
먹는다. 먹었다. 먹어요. 먹습니다. 드신다.
춘다. 추었다. 춰요. 춥니다. 추신다.
그린다. 그렸다. 그려요. 그립니다. 그리신다.
앉는다. 앉았다. 앉아요. 앉습니다. 앉으신다.
기다린다. 기다렸다. 기다려요. 기다립니다. 기다리신다.
따른다. 따랐다. 따라요. 따릅니다. 따르신다.
모은다. 모았다. 모아요. 모읍니다. 모으신다.
잔다. 잤다. 자요. 잡니다. 주무신다.
전한다. 전했다. 전해요. 전합니다. 전하신다.
심는다. 심었다. 심어요. 심습니다. 심으신다.
나른다. 날랐다. 날라요. 나릅니다. 나르신다.
긋는다. 그었다. 그어요. 긋습니다. 그으신다.
"""


def test_rewriting_rows_match_forms_checked_by_hand(config: SyntheticConfig) -> None:
    by_hand = {plain: forms for plain, *forms in (line.split() for line in BY_HAND.strip().splitlines())}
    places = {"과거형": 0, "해요체": 1, "합쇼체": 2, "높임말": 3}
    made = [instruction(config, split="train", index=index).row for index in range(6_000)]
    rewritten = [
        (row["input"].split()[-1], places[wish], row["output"].split()[-1])
        for row in made
        for wish in places
        if f"{wish}으로 바꾸" in row["instruction"] or f"{wish}로 바꾸" in row["instruction"]
    ]

    wrong = [(plain, place, form) for plain, place, form in rewritten if by_hand[plain][place] != form]

    assert {plain for plain, _, _ in rewritten} == set(by_hand)
    assert wrong == []


def test_people_of_rows_are_people_of_the_world(train_instructions: list[Instruction]) -> None:
    owners = {owner for owner, _, _ in combinations_of(train_instructions, *PERSONAL_KINDS)}

    assert len(owners) > 1_500
    assert owners <= {str(person.name) for person in (*world.PEOPLE, *world.CHILDREN, *world.ELDERS)}
