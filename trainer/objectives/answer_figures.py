"""What is told of answers that were judged: sums over them, the figures, and the held-out ones as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from data_pipeline.stream.stream import AnyBatch
from trainer.objectives.advantages import k1
from trainer.objectives.objective import Outcome, Scorer
from trainer.ranks import Ranks
from trainer.rewards import Texts
from trainer.rollout import Rollout

# Sums over answers, in the order in which ranks exchange them.
_SUMS = ("num_answers", "reward", "squared_reward", "answer_length", "ended_share", "kl", "entropy")

Sums = dict[str, float]


def sums_of(rollouts: Sequence[Rollout]) -> Sums:
    """Over the answers of this rank's rollouts; the entropy over their ids."""
    found = dict.fromkeys(_SUMS, 0.0)
    for rollout in (each for each in rollouts if each.num_answers):
        found["num_answers"] += rollout.num_answers
        found["reward"] += float(rollout.values.sum())
        found["squared_reward"] += float((rollout.values**2).sum())
        found["answer_length"] += float(rollout.num_targets)
        found["ended_share"] += float(sum(sample.answer.ended for sample in rollout.samples))
        found["entropy"] += float(rollout.entropies.double().sum())
        if rollout.reference_log_probs is not None:
            found["kl"] += float(k1(rollout.log_probs - rollout.reference_log_probs).double().sum())
    return found


def all_sums(ours: Sums, ranks: Ranks) -> Sums:
    """The same over all ranks."""
    together = ranks.all_sum(torch.tensor(list(ours.values()), dtype=torch.float64))
    return dict(zip(_SUMS, together.tolist(), strict=True))


def answer_figures(sums: Mapping[str, float], *, has_reference: bool) -> dict[str, float]:
    """Means over answers; of the entropy over their ids. Without a reference there is no KL."""
    count = max(1.0, sums["num_answers"])
    mean = sums["reward"] / count
    found = {
        "reward": mean,
        "reward_std": math.sqrt(max(0.0, sums["squared_reward"] / count - mean**2)),
        "answer_length": sums["answer_length"] / count,
        "ended_share": sums["ended_share"] / count,
        "entropy": sums["entropy"] / max(1.0, sums["answer_length"]),
    }
    return found | ({"kl": sums["kl"] / count} if has_reference else {})


class HeldOutAnswers(Scorer):
    """Figures over all held-out prompts, and the answers to the first of them, which `show` is given on every rank."""

    def __init__(
        self, texts: Texts, *, num_shown: int, has_reference: bool, show: Callable[[list[dict[str, Any]]], None]
    ) -> None:
        self._texts, self._num_shown, self._has_reference, self._show = texts, num_shown, has_reference, show
        self._sums = sums_of([])
        self._lines: list[dict[str, Any]] = []

    def add(self, batch: AnyBatch, outcome: Outcome) -> None:
        assert isinstance(batch, Rollout), "held-out prompts are answered"
        self._sums = {name: self._sums[name] + value for name, value in sums_of([batch]).items()}
        self._lines = self._first([*self._lines, *self._told(batch)])

    def _told(self, rollout: Rollout) -> list[dict[str, Any]]:
        texts = self._texts
        return [
            {
                "row": sample.row,
                "prompt": texts.prompt(sample.prompt),
                "answer": texts.answer(sample.answer.ids),
                **({} if sample.reference is None else {"expected": texts.answer(sample.reference)}),
                "reward": reward,
                "ended": sample.answer.ended,
            }
            for sample, reward in zip(rollout.samples, rollout.values.tolist(), strict=False)  # one NaN pads
        ]

    def _first(self, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(lines, key=lambda line: int(line["row"]))[: self._num_shown]

    def figures(self, ranks: Ranks, *, loss_sum: float, num_targets: float) -> dict[str, Any]:
        self._show(self._first([line for theirs in ranks.gather_objects(self._lines) for line in theirs]))
        return dict(answer_figures(all_sums(self._sums, ranks), has_reference=self._has_reference))
