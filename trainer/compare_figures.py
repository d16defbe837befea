"""Wins, ties and losses of one model's answers against another's, by the answers' lengths; pure arithmetic.

Judges like long answers (Dubois et al. 2024, "Length-controlled AlpacaEval", arXiv:2404.04475, section 3): a win rate
is read beside that of pairs of like length, and beside how often the longer answer won.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LIKE = 1.25  # pairs of like length: the longer answer has at most so many times the characters of the other
NUM_BUCKETS = 4
CONFIDENCE = 0.95

Result = Literal["win", "tie", "loss"]


@dataclass(frozen=True)
class Judged:
    """Two answers to a prompt: their scores and their characters. `is_equal`: they are the same text."""

    score_a: float
    score_b: float
    length_a: int
    length_b: int
    is_equal: bool = False

    @property
    def result(self) -> Result:
        """Of A."""
        if self.is_equal or self.score_a == self.score_b:
            return "tie"
        return "win" if self.score_a > self.score_b else "loss"

    @property
    def mean_length(self) -> float:
        return (self.length_a + self.length_b) / 2

    @property
    def is_like(self) -> bool:
        longer, shorter = max(self.length_a, self.length_b), min(self.length_a, self.length_b)
        return longer <= LIKE * shorter


def figures_of(pairs: Sequence[Judged]) -> dict[str, Any]:
    """All that is told of a comparison, as plain values: the totals, the tables by length, and length's own part."""
    decided = [pair for pair in pairs if pair.result != "tie" and pair.length_a != pair.length_b]
    longer_won = sum((pair.result == "win") == (pair.length_a > pair.length_b) for pair in decided)
    return {
        "all": tally(pairs),
        "like_length": tally([pair for pair in pairs if pair.is_like]),
        "by_length": [
            {"from_chars": low, "to_chars": high, **tally(inside)} for low, high, inside in length_buckets(pairs)
        ],
        "by_difference": {
            "a_shorter": tally([pair for pair in pairs if not pair.is_like and pair.length_a < pair.length_b]),
            "like_length": tally([pair for pair in pairs if pair.is_like]),
            "a_longer": tally([pair for pair in pairs if not pair.is_like and pair.length_a > pair.length_b]),
        },
        "longer_won": longer_won / len(decided) if decided else None,
        "mean_chars_a": _mean([pair.length_a for pair in pairs]),
        "mean_chars_b": _mean([pair.length_b for pair in pairs]),
        "mean_score_a": _mean([pair.score_a for pair in pairs]),
        "mean_score_b": _mean([pair.score_b for pair in pairs]),
    }


def tally(pairs: Sequence[Judged]) -> dict[str, Any]:
    """Counts, and A's share of the pairs that were decided with its exact interval; None where none was."""
    results = [pair.result for pair in pairs]
    wins, losses = results.count("win"), results.count("loss")
    decided = wins + losses
    return {
        "num_pairs": len(pairs),
        "wins": wins,
        "ties": len(pairs) - decided,
        "losses": losses,
        "win_rate": wins / decided if decided else None,
        "interval": list(exact_interval(wins, decided)) if decided else None,
    }


def length_buckets(pairs: Sequence[Judged]) -> list[tuple[float, float, list[Judged]]]:
    """Pairs in up to four buckets of about as many, by the mean length of their answers; (least, most, pairs) each."""
    if not pairs:
        return []
    lengths = np.array([pair.mean_length for pair in pairs])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, NUM_BUCKETS + 1)[1:-1]))
    places = np.searchsorted(edges, lengths, side="left")
    found = []
    for number in range(len(edges) + 1):
        inside = [pair for pair, place in zip(pairs, places.tolist(), strict=True) if place == number]
        if inside:
            found.append((min(p.mean_length for p in inside), max(p.mean_length for p in inside), inside))
    return found


def exact_interval(num_right: int, total: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934, Biometrika 26): each end leaves half of what is left."""
    tail = (1 - confidence) / 2
    low = 0.0 if num_right == 0 else _root(lambda p: 1 - _at_most(num_right - 1, total, p) - tail)
    high = 1.0 if num_right == total else _root(lambda p: tail - _at_most(num_right, total, p))
    return low, high


def _at_most(count: int, total: int, share: float) -> float:
    """P(X <= count) of a binomial X."""
    if share <= 0 or share >= 1:
        return 1.0 if share <= 0 or count >= total else 0.0
    numbers = np.arange(count + 1)
    ways = math.lgamma(total + 1) - np.array(
        [math.lgamma(n + 1) + math.lgamma(total - n + 1) for n in numbers.tolist()]
    )
    return float(np.exp(ways + numbers * math.log(share) + (total - numbers) * math.log1p(-share)).sum())


def _root(rising: Any) -> float:
    """Where a function that rises over (0, 1) is 0."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
