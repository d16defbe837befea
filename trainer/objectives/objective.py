"""What a stage is to the loop: (model, batch) -> a sum of losses, with what else is told of it.

An objective is called on the micro-batches of a step; all that it adds up is divided by the step's targets once, over
all ranks, so that no update depends on its split (law 6).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from data_pipeline.stream.stream import AnyBatch
from trainer.ranks import Ranks


@dataclass(frozen=True)
class Outcome:
    """`loss`: a scalar with gradient, summed over the batch's targets; 0 without any, joined to every parameter.

    `sums`: more scalars that add up over batches and ranks, by the names that the objective declares. `outputs`: what
    its scorer reads at an evaluation, one row an example or a target; None where that is nothing.
    """

    loss: torch.Tensor
    sums: Mapping[str, torch.Tensor] = field(default_factory=dict)
    outputs: torch.Tensor | None = None


class Scorer:
    """Adds up what the batches of one evaluation show. This one has no figure beside the loss."""

    def add(self, batch: AnyBatch, outcome: Outcome) -> None:
        """Take one batch of this rank; batches of padding come too."""

    def figures(self, ranks: Ranks, *, loss_sum: float, num_targets: float) -> dict[str, Any]:
        """Figures over all ranks, equal on each; every rank calls it. `loss_sum`, `num_targets`: of all ranks.

        A `loss` among them takes the place of the mean over targets, where that would depend on who shared a batch.
        """
        return {}


class Objective(ABC):
    """One stage's loss. `sum_names`: what `Outcome.sums` holds, in the order in which ranks exchange them."""

    sum_names: tuple[str, ...] = ()

    def prepare(self, batches: Sequence[AnyBatch], *, is_training: bool) -> list[AnyBatch]:
        """The batches as they are learnt from: a pure function of them, such as which tokens are masked."""
        return list(batches)

    def weight(self, batch: AnyBatch) -> float:
        """What the loss of a prepared batch is divided by: its targets, or the sum of their weights."""
        return float(batch.num_targets)

    def begin_step(self, module: nn.Module, batches: Sequence[AnyBatch]) -> None:  # noqa: B027
        """See all prepared micro-batches of this rank's step before the first of them; every rank calls it."""

    @abstractmethod
    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        """The loss of one prepared batch, and what else is told of it."""

    def __call__(self, module: nn.Module, batch: AnyBatch) -> torch.Tensor:
        """The loss alone."""
        return self.outcome(module, batch).loss

    def figures(self, sums: Mapping[str, float], *, num_targets: float) -> dict[str, float]:
        """What a logged step tells beside its loss, from the sums over all ranks."""
        return {name: value / max(1.0, num_targets) for name, value in sums.items()}

    def scorer(self, *, num_bytes: int) -> Scorer:
        """A new one, for one evaluation over rows of so many bytes of text."""
        return Scorer()
