"""Next-token prediction over packed rows: the objective of pretraining and of instruction tuning.

Shapes: N = B*T inputs, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from data_pipeline.stream.batch import Batch
from trainer.model import Kernel, packed_inputs

IGNORED_LABEL = -100


@dataclass(frozen=True)
class CausalLM:
    """Sum of -ln p(label | the inputs before it in its document), in float32, over the labels that are targets."""

    kernel: Kernel
    device: torch.device

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """A scalar with gradient; 0 for a batch without targets, still joined to every parameter."""
        logits_NV = self.logits(model, batch)
        labels_N = torch.from_numpy(batch.labels).reshape(-1).to(self.device)
        return functional.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED_LABEL, reduction="sum")

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """(N, V) logits of the rows, in the model's dtype."""
        inputs = packed_inputs(batch, kernel=self.kernel, device=self.device)
        logits = model(**inputs).logits
        return logits.reshape(-1, logits.shape[-1])
