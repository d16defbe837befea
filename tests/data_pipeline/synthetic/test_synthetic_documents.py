"""Laws of the made documents: pure, grammatical, full of questions, and held out where they must be."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from data_pipeline.synthetic import portraits, things, world
from data_pipeline.synthetic.config import SyntheticConfig
from data_pipeline.synthetic.documents import Document, document, documents
from data_pipeline.synthetic.facts import Fact, allowed_values, draw_fact
from data_pipeline.synthetic.passages import tell
from data_pipeline.synthetic.verbs import finite

_HASH_IN_ANOTHER_PROCESS = """
import hashlib
from data_pipeline.synthetic.config import SyntheticConfig
from data_pipeline.synthetic.documents import document
texts = [document(SyntheticConfig(seed=5), split="train", index=index).text for index in range(40)]
print(hashlib.sha256("\\0".join(texts).encode()).hexdigest())
"""


def ends_on_consonant(word: str) -> bool:
    return (ord(word[-1]) - ord("가")) % 28 > 0


def repeats_itself(text: str) -> bool:
    sentences = [found.strip("“” ") for found in re.findall(r"[^.]+[.]", text)]
    return max(Counter(sentences).values()) > 1


def sentences_of(made: list[Document]) -> set[str]:
    return {text for one in made for paragraph in one.paragraphs for text in paragraph}


def test_a_document_can_be_made_alone(config: SyntheticConfig, train_documents: list[Document]) -> None:
    alone = [document(config, split="train", index=index) for index in (4321, 7, 4321)]

    assert alone == [train_documents[4321], train_documents[7], train_documents[4321]]


def test_text_does_not_depend_on_the_process() -> None:
    texts = [document(SyntheticConfig(seed=5), split="train", index=index).text for index in range(40)]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}

    command = [sys.executable, "-c", _HASH_IN_ANOTHER_PROCESS]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert found == hashlib.sha256("\0".join(texts).encode()).hexdigest()


def test_a_larger_corpus_begins_as_a_smaller_one(train_documents: list[Document]) -> None:
    small = list(documents(SyntheticConfig(num_documents=25), "train"))

    assert small == train_documents[:25]


def test_another_seed_gives_other_texts(train_documents: list[Document]) -> None:
    other = {document(SyntheticConfig(seed=1), split="train", index=index).text for index in range(300)}

    assert not other & {one.text for one in train_documents if one.combinations}


def test_no_training_document_has_a_heldout_combination(
    train_documents: list[Document], heldout_documents: list[Document]
) -> None:
    trained = frozenset().union(*(one.combinations for one in train_documents))
    held_out = frozenset().union(*(one.combinations for one in heldout_documents))

    assert len(trained) > 3_500
    assert len(held_out) > 400
    assert not trained & held_out


def test_values_are_split_whole_for_every_slot_of_an_owner() -> None:
    for person in (*world.PEOPLE[::40], *world.CHILDREN[::10], *world.ELDERS):
        for frame in portraits.FRAMES:
            for slot, values in frame.slots.items():
                owner, key = str(person.name), f"{frame.key}.{slot}"
                train = allowed_values(owner, key, values, "train")
                heldout = allowed_values(owner, key, values, "heldout")
                assert heldout
                assert len(train) >= 5
                assert sorted((*train, *heldout)) == sorted(value for value in world.VALUES[values] if value != owner)


def test_no_training_text_states_a_heldout_fact(train_documents: list[Document]) -> None:
    """Read from the text itself: each sentence that would state a held-out fact of one slot is looked for."""
    written = sentences_of(train_documents)
    found = Counter(
        split
        for split in ("train", "heldout")
        for person in (*world.PEOPLE[::10], *world.CHILDREN, *world.ELDERS)
        for frame in portraits.FRAMES
        if len(frame.slots) == 1
        for slot, values in frame.slots.items()
        for value in allowed_values(str(person.name), f"{frame.key}.{slot}", values, split)
        for clause in frame.tell
        if f"{tell(Fact(person, frame, (value,)), clause, finite)}." in written
    )

    assert found["train"] > 300
    assert found["heldout"] == 0


def test_heldout_documents_state_only_heldout_combinations(heldout_documents: list[Document]) -> None:
    for one in heldout_documents:
        assert one.combinations
        for combination in one.combinations:
            frame_key, slot = combination.slot.split(".")
            frame = next(frame for frame in portraits.FRAMES if frame.key == frame_key)
            assert combination.value in allowed_values(
                combination.owner, combination.slot, frame.slots[slot], "heldout"
            )


def test_every_fact_of_the_world_is_taught(train_documents: list[Document]) -> None:
    text = "\n".join(one.text for one in train_documents)
    facts = [Fact(item.subject, item.frame, (str(item.value),)) for item in things.WORLD_FACTS]

    untold = [fact for fact in facts if f"{tell(fact, fact.frame.tell[0], finite)}." not in text]

    assert untold == []


def test_questions_are_asked_in_every_document_but_copied_ones(train_documents: list[Document]) -> None:
    questions = re.compile(r"묻|물었|물으|여쭈|궁금해|\?” “|(?:물음|질문): ")
    per_document = [len(questions.findall(one.text)) for one in train_documents]

    without = [one for one, count in zip(train_documents, per_document, strict=True) if count == 0]

    assert all(len(one.paragraphs) == 1 and repeats_itself(one.text) for one in without)
    assert len(without) < 0.25 * len(train_documents)
    assert sum(per_document) / len(per_document) > 2.5


def test_answers_are_words_of_the_text_before_them(train_documents: list[Document]) -> None:
    """An answer in one word (강릉이라고) is found before it, in the words that state the fact."""
    words_before = []
    for one in train_documents:
        for match in re.finditer(r"(?<=자 )([가-힣]+?(?: 씨)?)(?:이라고|라고) (?:답|대답|말)", one.text):
            if match[1] not in ("아니", "그렇다"):
                words_before.append((match[1], match[1] in one.text[: match.start()]))

    assert len(words_before) > 300
    assert all(found for _, found in words_before)
    assert sum(word in world.NAMES for word, _ in words_before) < 0.4 * len(words_before)


@pytest.mark.parametrize(
    ("after_consonant", "after_vowel"), [("은", "는"), ("을", "를"), ("과", "와"), ("이라고", "라고"), ("으로", "로")]
)
def test_particles_in_the_text_follow_their_words(
    train_documents: list[Document], after_consonant: str, after_vowel: str
) -> None:
    """Counted over the whole corpus with arithmetic of its own, ㄹ before 로 aside."""
    known = {value for values in world.VALUES.values() for value in values if re.fullmatch("[가-힣]+", value)}
    known |= {str(child.name) for child in world.CHILDREN}
    seen = Counter(token.strip(".,“”?") for one in train_documents for token in one.text.split())
    wrong, right = [], 0
    for word in known:
        is_liquid = after_consonant == "으로" and (ord(word[-1]) - ord("가")) % 28 == 8
        takes_consonant_form = ends_on_consonant(word) and not is_liquid
        good, bad = (after_consonant, after_vowel) if takes_consonant_form else (after_vowel, after_consonant)
        right += seen[word + good]
        wrong += [word + bad] * seen[word + bad]

    names = {name.split()[0] for name in world.NAMES}  # 서예은 is no 서예 with a particle
    assert right > 100
    assert [token for token in wrong if token not in known | names] == []


def test_elders_are_honoured_in_every_kind_of_fact() -> None:
    rng = random.Random(0)
    plain = []
    for frame in (frame for frame in portraits.FRAMES if frame.suits_elders):
        fact = draw_fact(rng, world.ELDERS[0], frame, split="train", others=[])
        for clause in (clause for clause in frame.tell if clause.topic is None):
            said = tell(fact, clause, finite)
            plain += [] if re.search(r"(시|신|셨|계신|계시)다$", said) else [said]

    assert plain == []


def test_text_is_clean(train_documents: list[Document]) -> None:
    for one in train_documents:
        assert unicodedata.is_normalized("NFC", one.text)
        assert not re.search(r"[{}_]|  | [.,?]|\.\.|None", one.text)
        assert all(text.endswith((".", ".”")) for paragraph in one.paragraphs for text in paragraph)
