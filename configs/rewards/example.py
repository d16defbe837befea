"""Rewards for configs/ppo and configs/grpo: copy one, and write what a good answer is for you.

A function gets three lists of the same length, and returns a number for each answer, the higher the better. It is
called on every rank with that rank's answers, so each number must follow from its own row alone. `prompts` are as the
model reads them, template included; `answers` without what the template adds; `references` None where rows have none.
"""

from __future__ import annotations


def short_and_whole(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
    """1 for a sentence of at most 40 characters that ends; less for what is longer or empty."""
    return [
        (0.5 if answer.rstrip().endswith((".", "다", "요", "!", "?")) else 0.0)
        + (0.5 if 0 < len(answer.strip()) <= 40 else 0.0)
        for answer in answers
    ]


def like_the_reference(prompts: list[str], answers: list[str], references: list[str | None]) -> list[float]:
    """The share of the reference's words that the answer has: for prompts whose records bring an answer."""
    rewards = []
    for answer, reference in zip(answers, references, strict=True):
        words = set((reference or "").split())
        rewards.append(len(words & set(answer.split())) / len(words) if words else 0.0)
    return rewards
