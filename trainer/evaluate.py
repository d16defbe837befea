"""Loss and bits per byte of a model over whole held-out documents.

bits per byte = sum of -ln p over all targets, EOS included / (ln 2 * bytes of the documents' NFC text): the measure
of Gao et al. 2020, "The Pile", section 3.1, comparable between tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from data_pipeline.stream.evaluation import EvaluationSet
from trainer.ranks import Ranks
from trainer.step import Objective


@dataclass(frozen=True)
class Evaluation:
    """Figures over `num_documents` whole documents; `loss` is nats a target."""

    loss: float
    bits_per_byte: float
    num_documents: int
    num_targets: int
    num_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def evaluate(
    module: nn.Module,
    documents: EvaluationSet,
    *,
    objective: Objective,
    ranks: Ranks,
    micro_batch_sequences: int,
    stop_requested: Callable[[], bool] = lambda: False,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation | None:
    """Score every document once, spread over the ranks; None if a rank was asked to stop meanwhile (law 12)."""
    was_training = module.training
    module.eval()
    nll_sum = torch.zeros((), dtype=torch.float64, device=ranks.device)
    targets = 0
    batches = documents.batches(
        dp_rank=ranks.rank, dp_world_size=ranks.world_size, micro_batch_sequences=micro_batch_sequences
    )
    try:
        for batch in batches:
            nll_sum += objective(module, batch).double()
            targets += batch.num_targets
            on_batch()
            if ranks.any(stop_requested()):
                return None
    finally:
        module.train(was_training)
    total = ranks.all_sum(torch.tensor([float(nll_sum), float(targets)], dtype=torch.float64)).tolist()
    return summarize(total[0], num_targets=int(total[1]), documents=documents)


def summarize(nll: float, *, num_targets: int, documents: EvaluationSet) -> Evaluation:
    """The figures of `nll` nats over the documents of a set."""
    return Evaluation(
        loss=nll / max(1, num_targets),
        bits_per_byte=nll / (math.log(2) * max(1, documents.num_bytes)),
        num_documents=documents.num_documents,
        num_targets=num_targets,
        num_bytes=documents.num_bytes,
    )
