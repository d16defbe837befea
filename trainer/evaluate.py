"""The loss of a model over held-out rows, each scored once, with what its objective's scorer tells beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from data_pipeline.shards.format import RecordKind
from data_pipeline.stream.stream import AnyBatch
from trainer.objectives.objective import Objective, Scorer
from trainer.ranks import Ranks


class HeldOut(Protocol):
    """Rows of one split for evaluation, the same on every rank.

    `num_documents` and `num_bytes` count what is scored, `num_documents_too_long` what was left out.
    """

    num_documents: int
    num_bytes: int
    num_documents_too_long: int

    @property
    def record(self) -> RecordKind: ...

    def pad_with(self, pad_id: int) -> None:
        """Fill what is no text with `pad_id` from now on."""

    def batches(self, *, dp_rank: int, dp_world_size: int, micro_batch_sequences: int) -> Iterator[AnyBatch]:
        """This rank's batches; every rank gets the same number of them."""


@dataclass(frozen=True)
class Evaluation:
    """Figures over `num_documents` documents, rows or examples; `loss` is nats a target."""

    loss: float
    num_documents: int
    num_targets: int
    figures: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        counts = {"num_documents": self.num_documents, "num_targets": self.num_targets}
        return {"loss": self.loss, **self.figures, **counts}


@torch.no_grad()
def evaluate(
    module: nn.Module,
    heldout: HeldOut,
    *,
    objective: Objective,
    ranks: Ranks,
    micro_batch_sequences: int,
    scorer: Scorer | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    on_batch: Callable[[], None] = lambda: None,
    on_mark: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """Score every row once, spread over the ranks; None if a rank was asked to stop meanwhile (law 12).

    `on_mark`: called within a batch too, where that takes long.

    `scorer`: another than the objective's own.
    """
    was_training = module.training
    module.eval()
    scorer = scorer or objective.scorer(num_bytes=heldout.num_bytes)
    sums = torch.zeros(3, dtype=torch.float64)  # of losses, weights and targets
    batches = heldout.batches(
        dp_rank=ranks.rank, dp_world_size=ranks.world_size, micro_batch_sequences=micro_batch_sequences
    )
    try:
        for batch in batches:
            prepared = objective.prepare([batch], is_training=False)
            for each in objective.collect(module, prepared, step=None, on_mark=on_mark):
                objective.begin_step(module, [each])
                outcome = objective.outcome(module, each)
                scorer.add(each, outcome)
                sums += torch.tensor([float(outcome.loss.double()), objective.weight(each), each.num_targets])
            on_batch()
            if ranks.any(stop_requested()):
                return None
    finally:
        module.train(was_training)
    loss_sum, weight, num_targets = ranks.all_sum(sums).tolist()
    figures = scorer.figures(ranks, loss_sum=loss_sum, num_targets=num_targets)
    loss = float(figures.pop("loss", loss_sum / (weight or 1.0)))
    return Evaluation(loss, heldout.num_documents, int(num_targets), figures)
