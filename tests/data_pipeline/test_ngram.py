"""The trigram yardstick is interpolated Kneser-Ney as the papers have it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.ngram import Trigrams, trigram_baseline
from tests.trainer.tiny_run import make_shards

VOCABULARY = 7
BEFORE = VOCABULARY


def documents() -> list[np.ndarray]:
    generator = np.random.default_rng(4)
    return [generator.integers(0, VOCABULARY, length).astype(np.int64) for length in (9, 2, 14, 30, 5, 21)]


def plain_probability(counted: list[np.ndarray], context: tuple[int, int], word: int) -> float:
    """Chen and Goodman 1999, equations 25 to 27, with dictionaries."""
    grams = [
        ((BEFORE, *map(int, ids))[place - 1], int(ids[place - 1]), int(ids[place]))
        for ids in counted
        for place in range(1, len(ids))
    ]
    third = Counter(grams)
    second = Counter(gram[1:] for gram in third)
    first = Counter(pair[1:] for pair in second)

    def discount(counts: Counter) -> float:
        once, twice = (sum(1 for count in counts.values() if count == times) for times in (1, 2))
        return once / (once + 2 * twice) if once else 0.5

    def interpolated(counts: Counter, history: tuple[int, ...], lower: float) -> float:
        total = sum(count for gram, count in counts.items() if gram[:-1] == history)
        kinds = sum(1 for gram in counts if gram[:-1] == history)
        if not total:
            return lower
        weight = discount(counts)
        return max(counts[(*history, word)] - weight, 0) / total + weight * kinds / total * lower

    unigram = interpolated(first, (), 1 / VOCABULARY)
    return interpolated(third, context, interpolated(second, context[1:], unigram))


def test_probabilities_equal_the_plain_formula() -> None:
    model = Trigrams(vocab_size=VOCABULARY)
    model.count(iter(documents()))
    asked = np.array([3, 1, 4, 1, 5, 2, 6, 0])

    found = model.probabilities(asked)

    histories = [(BEFORE, 3), *((int(asked[i - 1]), int(asked[i])) for i in range(1, 7))]
    by_hand = [plain_probability(documents(), histories[i], int(asked[i + 1])) for i in range(7)]
    assert found == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("context", [(3, 1), (BEFORE, 2), (6, 6)])
def test_probabilities_of_a_context_sum_to_one(context: tuple[int, int]) -> None:
    total = sum(plain_probability(documents(), context, word) for word in range(VOCABULARY))
    model = Trigrams(vocab_size=VOCABULARY)
    model.count(iter(documents()))
    ids = [[word for word in (*context, after) if word != BEFORE] for after in range(VOCABULARY)]

    assert sum(float(model.probabilities(np.array(row))[-1]) for row in ids) == pytest.approx(1.0)
    assert total == pytest.approx(1.0)


def test_the_baseline_scores_each_heldout_target_once(tmp_path: Path) -> None:
    from data_pipeline.stream.evaluation import EvaluationSet

    shards = make_shards(tmp_path / "shards")
    heldout = EvaluationSet(shards, split="heldout", seq_len=32)

    baseline = trigram_baseline(shards)

    assert (baseline.num_targets, baseline.num_bytes) == (heldout.num_targets, heldout.num_bytes)
    assert baseline.bits_per_byte == pytest.approx(
        baseline.loss * baseline.num_targets / (math.log(2) * baseline.num_bytes)
    )
    # The documents count on by 1, 2 or 3: two ids of context nearly tell the next.
    assert baseline.loss < 1.0
