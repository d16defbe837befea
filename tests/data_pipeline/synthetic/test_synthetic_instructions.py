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


def test_a_lookup_has_a_rival_of_the_same_kind_in_its_passage(train_instructions: list[Instruction]) -> None:
    with_rival = 0
    lookups = [made for made in train_instructions if made.kind == "lookup"]
    for made in lookups:
        answered = [found for found in made.combinations if found.value == made.row["output"]]
        with_rival += any(
            other.slot == found.slot and other.value != found.value for found in answered for other in made.combinations
        )
    numbers = sum(made.row["output"] not in {found.value for found in made.combinations} for made in lookups)

    assert with_rival + numbers > 0.97 * len(lookups)


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


def test_rewriting_rows_match_forms_checked_by_hand(train_instructions: list[Instruction]) -> None:
    """Pairs (kind, last word before, last word after) as a Korean writes them."""
    by_hand = {
        ("tense", "산다.", "살았다."), ("tense", "기른다.", "길렀다."), ("tense", "탄다.", "탔다."),
        ("tense", "있다.", "있었다."), ("tense", "일한다.", "일했다."), ("tense", "일어난다.", "일어났다."),
        ("tense", "좋아한다.", "좋아했다."), ("tense", "연주한다.", "연주했다."),
        ("level", "산다.", "살아요."), ("level", "산다.", "삽니다."), ("level", "기른다.", "길러요."),
        ("level", "기른다.", "기릅니다."), ("level", "탄다.", "타요."), ("level", "탄다.", "탑니다."),
        ("level", "있다.", "있어요."), ("level", "있다.", "있습니다."), ("level", "일한다.", "일해요."),
        ("level", "일한다.", "일합니다."), ("level", "일어난다.", "일어나요."), ("level", "일어난다.", "일어납니다."),
        ("level", "좋아한다.", "좋아해요."), ("level", "좋아한다.", "좋아합니다."),
        ("level", "연주한다.", "연주해요."), ("level", "연주한다.", "연주합니다."),
        ("honorific", "산다.", "사신다."), ("honorific", "기른다.", "기르신다."), ("honorific", "탄다.", "타신다."),
        ("honorific", "있다.", "계신다."), ("honorific", "일한다.", "일하신다."),
        ("honorific", "일어난다.", "일어나신다."), ("honorific", "좋아한다.", "좋아하신다."),
        ("honorific", "연주한다.", "연주하신다."),
    }  # fmt: skip

    found = {
        (made.kind, made.row["input"].split()[-1], made.row["output"].split()[-1])
        for made in train_instructions
        if made.kind in ("tense", "level", "honorific")
    }

    assert found == by_hand


def test_people_of_rows_are_people_of_the_world(train_instructions: list[Instruction]) -> None:
    owners = {owner for owner, _, _ in combinations_of(train_instructions, *PERSONAL_KINDS)}

    assert owners == {str(person.name) for person in (*world.PEOPLE, *world.ELDERS)}
