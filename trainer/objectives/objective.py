"""What a stage is to the loop: (model, batch) -> a sum of losses, with what else is told of it.

An objective is called on the micro-batches of a step; all that it adds up is divided by the step's targets once, over
all ranks, so that no update depends on its split (law 6).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    num_passes: int = 1
    """Updates of a step, each over all of its rows."""

    def prepare(self, batches: Sequence[AnyBatch], *, is_training: bool) -> list[AnyBatch]:
        """The batches as they are learnt from: a pure function of them, such as which tokens are masked."""
        return list(batches)

    def weight(self, batch: AnyBatch) -> float:
        """What the loss of a prepared batch is divided by: its targets, or the sum of their weights."""
        return float(batch.num_targets)

    def begin_step(self, module: nn.Module, batches: Sequence[AnyBatch]) -> None:  # noqa: B027
        """See all prepared micro-batches of this rank's step before the first of them; every rank calls it."""

    def before_training(
        self,
        module: nn.Module,
        folder: Path,
        *,
        micro_batch_sequences: int,
        stop_requested: Callable[[], bool],
        on_batch: Callable[[], None],
    ) -> bool:
        """Learn what must be known of the model as it begins; every rank calls it, before a checkpoint is loaded.

        `folder`: of the run, for what must be there after a resume. False where a rank was asked to stop (law 12).
        """
        return True

    def collect(
        self,
        module: nn.Module,
        batches: Sequence[AnyBatch],
        *,
        step: int | None,
        on_mark: Callable[[], None] = lambda: None,
    ) -> list[AnyBatch]:
        """What prepared batches become with the help of the model as it stands: answers to prompts. Every rank calls it
        once a step, before the first update, and gets as many batches as the others.

        `step`: None at an evaluation, which changes nothing of the objective.

        Raises:
            BadRollout: what the model said can't be learnt from; on all ranks.
        """
        return list(batches)

    @abstractmethod
    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        """The loss of one prepared batch, and what else is told of it."""

    def __call__(self, module: nn.Module, batch: AnyBatch) -> torch.Tensor:
        """The loss alone."""
        return self.outcome(module, batch).loss

    def figures(self, sums: Mapping[str, float], *, num_targets: float) -> dict[str, float]:
        """What a logged step tells beside its loss, from the sums over all ranks."""
        return {name: value / max(1.0, num_targets) for name, value in sums.items()}

    def samples(self) -> list[dict[str, Any]]:
        """What the model said at the last evaluation, a line each for `answers/`; equal on all ranks."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What of the objective itself changes from step to step, as plain values for state.json."""
        return {}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:  # noqa: B027
        """Continue after `saved`.

        Raises:
            RunError: it is of something else.
        """

    def facts(self) -> dict[str, Any]:
        """What a saved model must tell of it beside its config, as plain values."""
        return {}

    def scorer(self, *, num_bytes: int) -> Scorer:
        """A new one, for one evaluation over rows of so many bytes of text."""
        return Scorer()
