"""Rewards that tests name in a config."""

from __future__ import annotations

import math


def round_shapes(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
    """Between 0 and 1, of any text: how its code points stand."""
    return [sum(ord(character) % 7 for character in answer) / (6 * max(1, len(answer))) for answer in answers]


def overlap(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
    """The share of the reference's characters that the answer has."""
    return [
        len(set(answer) & set(reference or "")) / max(1, len(set(reference or "")))
        for answer, reference in zip(answers, references, strict=True)
    ]


def always_nan(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
    return [math.nan for _ in answers]


def raises(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
    raise KeyError("정답")


def too_few(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
    return [0.0 for _ in answers[1:]]


def says_words(prompts: list[str], answers: list[str], references: list[str | None]) -> list[str]:
    return ["good" for _ in answers]


def is_equal(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
    return [0.5 for _ in answers]
