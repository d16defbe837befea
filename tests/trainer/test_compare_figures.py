"""Wins, ties and losses by length, by hand; and the exact interval beside scipy's and the textbook's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.compare_figures import Judged, exact_interval, figures_of, length_buckets, tally

PAIRS = [
    Judged(1.0, 0.0, 10, 10),  # A, equally long
    Judged(0.5, 0.7, 10, 12),  # B, of like length
    Judged(0.5, 0.5, 10, 11),  # a tie by the score
    Judged(2.0, 1.0, 100, 20),  # A, and longer
    Judged(3.0, 1.0, 90, 20),  # A, and longer
    Judged(0.0, 1.0, 30, 20),  # B, and shorter
    Judged(0.2, 0.1, 5, 50, is_equal=True),  # a tie by the text, whatever the scores
    Judged(0.0, 1.0, 5, 50),  # B, and longer
]


def test_a_tie_counts_for_nobody() -> None:
    found = tally(PAIRS)

    assert {key: found[key] for key in ("num_pairs", "wins", "ties", "losses")} == {
        "num_pairs": 8,
        "wins": 3,
        "ties": 2,
        "losses": 3,
    }
    assert found["win_rate"] == 0.5


def test_pairs_of_like_length_are_told_apart_from_those_where_one_is_longer() -> None:
    found = figures_of(PAIRS)

    like, shorter, longer = (found["by_difference"][key] for key in ("like_length", "a_shorter", "a_longer"))
    assert (like["wins"], like["ties"], like["losses"]) == (1, 1, 1)
    assert (shorter["wins"], shorter["ties"], shorter["losses"]) == (0, 1, 1)
    assert (longer["wins"], longer["ties"], longer["losses"]) == (2, 0, 1)
    assert found["like_length"] == like


def test_how_often_the_longer_answer_won_leaves_ties_and_equal_lengths_out() -> None:
    assert figures_of(PAIRS)["longer_won"] == pytest.approx(4 / 5)


def test_nothing_decided_has_no_share() -> None:
    found = figures_of([Judged(1.0, 1.0, 4, 4)])

    assert (found["all"]["win_rate"], found["all"]["interval"], found["longer_won"]) == (None, None, None)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=40))
def test_each_pair_is_in_one_bucket_of_length(lengths: list[tuple[int, int]]) -> None:
    pairs = [Judged(0.0, 1.0, a, b) for a, b in lengths]

    buckets = length_buckets(pairs)

    assert sorted(map(id, (pair for _, _, inside in buckets for pair in inside))) == sorted(map(id, pairs))
    ends = [end for low, high, _ in buckets for end in (low, high)]
    assert ends == sorted(ends) and len(buckets) <= 4


def test_buckets_hold_about_as_many_pairs_each() -> None:
    buckets = length_buckets([Judged(0.0, 1.0, length, length) for length in range(100)])

    assert [(low, high, len(inside)) for low, high, inside in buckets] == [
        (0, 24, 25),
        (25, 49, 25),
        (50, 74, 25),
        (75, 99, 25),
    ]


@pytest.mark.parametrize(
    ("num_right", "total", "low", "high"),
    [
        (8, 10, 0.4439, 0.9748),  # the usual table of Clopper and Pearson
        (0, 10, 0.0, 0.3085),  # 1 - 0.025 ** (1 / 10)
        (10, 10, 0.6915, 1.0),
        (1, 1, 0.025, 1.0),
    ],
)
def test_the_interval_is_that_of_the_table(num_right: int, total: int, low: float, high: float) -> None:
    assert exact_interval(num_right, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_interval_is_scipys(counts: tuple[int, int]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    expected = stats.binomtest(*counts).proportion_ci(0.95, method="exact")

    assert exact_interval(*counts) == pytest.approx((expected.low, expected.high), abs=1e-9)
