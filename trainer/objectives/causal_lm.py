"""Next-token prediction over packed rows: the objective of pretraining and of instruction tuning.

bits per byte = sum of -ln p over all targets, EOS included / (ln 2 * bytes of the documents' NFC text): the measure
of Gao et al. 2020, "The Pile", section 3.1, comparable between tokenizers.
Shapes: N = B*T inputs, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from data_pipeline.stream.batch import Batch
from data_pipeline.stream.stream import AnyBatch
from trainer.model import Kernel, packed_inputs
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.ranks import Ranks

IGNORED_LABEL = -100


@dataclass(frozen=True)
class CausalLM(Objective):
    """Sum of -ln p(label | the inputs before it in its document), in float32, over the labels that are targets."""

    kernel: Kernel
    device: torch.device

    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        assert isinstance(batch, Batch), "documents are packed"
        logits_NV = self.logits(module, batch)
        labels_N = torch.from_numpy(batch.labels).reshape(-1).to(self.device)
        return Outcome(
            functional.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED_LABEL, reduction="sum")
        )

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """(N, V) logits of the rows, in the model's dtype."""
        inputs = packed_inputs(batch, kernel=self.kernel, device=self.device)
        logits = model(**inputs).logits
        return logits.reshape(-1, logits.shape[-1])

    def scorer(self, *, num_bytes: int) -> Scorer:
        return _BitsPerByte(num_bytes)


class _BitsPerByte(Scorer):
    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes

    def figures(self, ranks: Ranks, *, loss_sum: float, num_targets: float) -> dict[str, Any]:
        bits = loss_sum / (math.log(2) * max(1, self._num_bytes))
        return {"bits_per_byte": bits, "num_bytes": self._num_bytes}
