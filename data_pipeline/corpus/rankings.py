"""Ranks and ratings of several answers -> pairs of a better and a worse one. Numbers alone; knows no rows."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.corpus.turns import FaultyRowError

PairsOf = Literal["all", "best_worst", "adjacent"]
Ties = Literal["skip", "reject"]


@dataclass(frozen=True)
class Pairs:
    """`pairs`: numbers of a better and a worse answer, the best first. The others that were looked at are counted."""

    pairs: tuple[tuple[int, int], ...]
    num_tied: int = 0
    num_close: int = 0


def pairs_of(scores: Sequence[float], *, choose: PairsOf, min_margin: float = 0.0) -> Pairs:
    """The pairs of answers of those scores, the higher the better, that differ by `min_margin` at least.

    >>> pairs_of([1, 3, 2], choose="all").pairs
    ((1, 2), (1, 0), (2, 0))
    >>> pairs_of([1, 3, 2], choose="adjacent").pairs
    ((1, 2), (2, 0))
    >>> pairs_of([2, 2, 1], choose="best_worst", min_margin=2)
    Pairs(pairs=(), num_tied=0, num_close=1)
    """
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    looked_at = {
        "all": list(itertools.combinations(order, 2)),
        "best_worst": [(order[0], order[-1])] if len(order) > 1 else [],
        "adjacent": list(itertools.pairwise(order)),
    }[choose]
    margins = {pair: scores[pair[0]] - scores[pair[1]] for pair in looked_at}
    return Pairs(
        pairs=tuple(pair for pair in looked_at if margins[pair] > 0 and margins[pair] >= min_margin),
        num_tied=sum(margin == 0 for margin in margins.values()),
        num_close=sum(0 < margin < min_margin for margin in margins.values()),
    )


def has_tie(scores: Sequence[float]) -> bool:
    """Whether two answers are as good as each other."""
    return len(set(scores)) < len(scores)


def scores_of_ranks(ranks: Any, *, num_answers: int, column: str) -> list[float]:
    """The ranks of `num_answers` answers, counted from 0 or 1 and the lowest best, as scores; raises FaultyRowError.

    Answers may share a rank: `[1, 1, 2]` and `[1, 1, 3]` say the same.
    """
    found = _numbers(ranks, num_answers=num_answers, column=column, what="ranking")
    first = min(found)
    if any(not rank.is_integer() for rank in found) or first not in (0, 1) or max(found) >= first + num_answers:
        raise FaultyRowError(
            "bad_ranking",
            f"{column!r} is {ranks!r}, which ranks no {num_answers} answers: each needs a whole number, from 0 or 1 on",
        )
    return [-rank for rank in found]


def scores_of_ratings(ratings: Any, *, num_answers: int, column: str) -> list[float]:
    """The ratings of `num_answers` answers, finite numbers of which the highest is best; raises FaultyRowError."""
    return _numbers(ratings, num_answers=num_answers, column=column, what="rating")


def as_list(value: Any) -> Any:
    """A list that is one, or that a cell of a table spells as JSON; anything else as it is."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _numbers(values: Any, *, num_answers: int, column: str, what: str) -> list[float]:
    listed = as_list(values)
    if not isinstance(listed, list):
        raise FaultyRowError(f"bad_{what}", f"{column!r} is a {type(values).__name__}, not a list of numbers")
    if len(listed) != num_answers:
        raise FaultyRowError(
            f"{what}_length", f"{column!r} has {len(listed)} numbers, but there are {num_answers} answers"
        )
    return [_number(value, column=column, what=what) for value in listed]


def _number(value: Any, *, column: str, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise FaultyRowError(f"bad_{what}", f"{column!r} holds {value!r}, which is no finite number")
    return number
