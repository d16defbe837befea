"""Real pairs to prefer by: ChatbotData's own answer, and the answer of another question that looks as good by itself.

python bench/long/preference_rows.py [--data ../shared/data] [--output bench/out/preference-rows] [--seed N]

Two questions of one label whose answers are of the same or the nearest length give each other their answers as
rejected ones. So each text is chosen as often as it is rejected: who looks at the length alone, or knows which answers
are common, is right half of the time, and only who reads the question does better. Questions are held out first, and
answers change places among the held-out ones or among the others: no pair of train says the opposite of a held-out one.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# `corpus build` holds a file of this name out.
NAMES = {"train": "pairs-train.jsonl", "heldout": "pairs-test.jsonl"}
MAX_LENGTHS_APART = 3  # of two answers, in characters; what finds no partner so near is left out and counted


@dataclass(frozen=True)
class Row:
    question: str
    answer: str
    label: str


@dataclass(frozen=True)
class Pair:
    prompt: str
    chosen: str
    rejected: str
    label: str


@dataclass(frozen=True)
class Baselines:
    """Accuracy of choosing without the question, 0 to 1: two that can't tell them apart are right half of the time.

    `common`: the answer that train prefers more often. `share_equal_length`: of the pairs.
    """

    longer: float
    shorter: float
    common: float
    share_equal_length: float


@dataclass(frozen=True)
class Written:
    """What `write_pairs` made. `num_left_out`: rows whose answer found no partner. `baselines`: of each split."""

    paths: dict[str, Path]
    num_pairs: dict[str, int]
    num_left_out: int
    baselines: dict[str, Baselines]


def write_pairs(
    source_csv: Path, folder: Path, seed: int, *, heldout_share: float = 0.1, num_rounds: int = 1
) -> Written:
    """Write JSONL of {prompt, chosen, rejected, label} for train and heldout; equal arguments give equal bytes.

    `num_rounds`: how often the questions of train look for a partner, each time another one where there is one.

    `source_csv`: columns Q, A and label. `corpus build --record preference` of the folder keeps the two apart, and
    `shards build heldout_fraction=0` too.
    """
    rows = read_rows(source_csv)
    answers: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        answers[row.question].add(row.answer)
    split_rows: dict[str, list[Row]] = {"train": [], "heldout": []}
    for row in rows:
        is_heldout = _draw(seed, "split", row.question) < heldout_share
        split_rows["heldout" if is_heldout else "train"].append(row)
    pairs = {"heldout": match(split_rows["heldout"], answers, seed=seed)}
    rounds = [match(split_rows["train"], answers, seed=seed + number) for number in range(num_rounds)]
    pairs["train"] = list(dict.fromkeys(pair for of_round in rounds for pair in of_round))
    folder.mkdir(parents=True, exist_ok=True)
    for split, of_split in pairs.items():
        lines = [json.dumps(vars(pair), ensure_ascii=False) + "\n" for pair in of_split]
        (folder / NAMES[split]).write_text("".join(lines), encoding="utf-8")
    margin = preferred(pairs["train"])
    return Written(
        paths={split: folder / name for split, name in NAMES.items()},
        num_pairs={split: len(of_split) for split, of_split in pairs.items()},
        num_left_out=len(rows) - len(rounds[0]) - len(pairs["heldout"]),
        baselines={split: baselines(of_split, margin) for split, of_split in pairs.items() if of_split},
    )


def read_rows(source_csv: Path) -> list[Row]:
    """Questions with an answer, equal rows once, in the file's order."""
    with source_csv.open(encoding="utf-8-sig", newline="") as file:
        rows = [Row(row["Q"].strip(), row["A"].strip(), row["label"].strip()) for row in csv.DictReader(file)]
    return [row for row in dict.fromkeys(rows) if row.question and row.answer]


def match(rows: Sequence[Row], answers: dict[str, set[str]], *, seed: int) -> list[Pair]:
    """Pairs of the rows, two by two in each label: the nearest lengths first, whose answers then change places.

    `answers`: all of each question, none of which may stand as rejected.
    """
    found: list[Pair] = []
    for label in sorted({row.label for row in rows}):
        waiting = sorted(
            (row for row in rows if row.label == label),
            key=lambda row: (len(row.answer), _draw(seed, row.question, row.answer)),
        )
        while waiting:
            first = waiting.pop(0)
            place = next(_partners(first, waiting, answers), None)
            if place is None:
                continue
            second = waiting.pop(place)
            found.append(Pair(first.question, first.answer, second.answer, label))
            found.append(Pair(second.question, second.answer, first.answer, label))
    return sorted(found, key=lambda pair: _draw(seed, "order", pair.prompt, pair.chosen))


def _partners(first: Row, waiting: Sequence[Row], answers: dict[str, set[str]]) -> Iterator[int]:
    for place, other in enumerate(waiting):
        if len(other.answer) - len(first.answer) > MAX_LENGTHS_APART:
            return
        if other.answer not in answers[first.question] and first.answer not in answers[other.question]:
            yield place


def preferred(pairs: Iterable[Pair]) -> Counter[str]:
    """Of each answer, how much more often it is chosen than rejected."""
    margin: Counter[str] = Counter()
    for pair in pairs:
        margin[pair.chosen] += 1
        margin[pair.rejected] -= 1
    return margin


def baselines(pairs: Sequence[Pair], margin: Counter[str]) -> Baselines:
    longer = sum(_right(len(pair.chosen), len(pair.rejected)) for pair in pairs) / len(pairs)
    common = sum(_right(margin[pair.chosen], margin[pair.rejected]) for pair in pairs) / len(pairs)
    num_equal = sum(len(pair.chosen) == len(pair.rejected) for pair in pairs)
    return Baselines(longer, 1 - longer, common, num_equal / len(pairs))


def _right(chosen: int, rejected: int) -> float:
    return 0.5 if chosen == rejected else float(chosen > rejected)


def _draw(seed: int, *words: str) -> float:
    """A number in [0, 1) that the arguments alone decide."""
    digest = hashlib.sha256(json.dumps([seed, *words]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared/data")
    parser.add_argument("--output", type=Path, default=REPO / "bench/out/preference-rows")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    source = arguments.data / "chatbot_ko/ChatbotData.csv"
    if not source.is_file():
        print(f"{arguments.data}: no chatbot_ko/ChatbotData.csv; give --data (skipped)")
        return
    written = write_pairs(source, arguments.output, arguments.seed)
    print(f"{'split':8} {'pairs':>7} {'longer':>8} {'shorter':>8} {'common':>8} {'equal length':>13}")
    for split, found in written.baselines.items():
        shares = (found.longer, found.shorter, found.common)
        print(
            f"{split:8} {written.num_pairs[split]:7,} "
            + " ".join(f"{share:8.2%}" for share in shares)
            + f" {found.share_equal_length:13.2%}"
        )
    print(f"{written.num_left_out:,} rows found no partner; written to {arguments.output}")


if __name__ == "__main__":
    main()
