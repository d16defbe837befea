"""The pairs of `bench/long/preference_rows.py`: nothing but the question tells which answer is better."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.long.preference_rows import NAMES, Row, match, write_pairs

QUESTIONS = [("감기", "0"), ("이별", "1"), ("고백", "2")]


def write_source(path: Path, *, num_rows: int = 240) -> Path:
    rng = random.Random(1)
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["Q", "A", "label"])
        for number in range(num_rows):
            topic, label = QUESTIONS[number % 3]
            lines.writerow([f"{topic} {number}째", f"{'답' * rng.randint(3, 9)} {number % 40}", f"{label}  "])
        lines.writerow(["감기 0째", "또 다른 답", "0"])
        lines.writerow(["혼자", "아주 긴 답 " * 30, "2"])
    return path


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_pair_differs_in_nothing_but_what_was_asked(tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.csv")
    written = write_pairs(source, tmp_path / "rows", 3)

    with source.open(encoding="utf-8") as file:
        said = {(row["Q"], row["A"].strip()): row["label"].strip() for row in csv.DictReader(file)}
    pairs = {split: read(path) for split, path in written.paths.items()}
    for pair in [*pairs["train"], *pairs["heldout"]]:
        assert said[pair["prompt"], pair["chosen"]] == pair["label"]
        assert (pair["prompt"], pair["rejected"]) not in said
        assert pair["label"] in {label for (_, answer), label in said.items() if answer == pair["rejected"]}
        assert abs(len(pair["chosen"]) - len(pair["rejected"])) <= 3
    for of_split in pairs.values():
        assert Counter(pair["chosen"] for pair in of_split) == Counter(pair["rejected"] for pair in of_split)
    assert {pair["prompt"] for pair in pairs["train"]}.isdisjoint(pair["prompt"] for pair in pairs["heldout"])
    assert sum(written.num_pairs.values()) + written.num_left_out == len(said)
    assert written.num_left_out >= 1  # the answer that is far longer than the others
    for found in written.baselines.values():
        assert (found.longer, found.shorter) == (0.5, 0.5)
        assert 0 < found.share_equal_length <= 1
    assert written.baselines["train"].common == 0.5


def test_equal_arguments_write_equal_bytes_and_another_seed_other_pairs(tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.csv")
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        write_pairs(source, tmp_path / name, seed)

    files = {name: [(tmp_path / name / end).read_bytes() for end in NAMES.values()] for name in ("one", "two", "other")}
    assert files["one"] == files["two"] != files["other"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 12), st.sampled_from("01")), max_size=30))
def test_no_row_stands_in_two_pairs_and_no_question_rejects_its_own_answer(rows: list[tuple[int, int, str]]) -> None:
    made = list(dict.fromkeys(Row(f"{asked}?", "답" * length, label) for asked, length, label in rows))
    answers = {row.question: {one.answer for one in made if one.question == row.question} for row in made}

    pairs = match(made, answers, seed=0)

    assert len({(pair.prompt, pair.chosen, pair.label) for pair in pairs}) == len(pairs) <= len(made)
    assert all(pair.rejected not in answers[pair.prompt] for pair in pairs)
    assert len(pairs) % 2 == 0
