"""log p of the ids of answers, each given what stands before it.

Shapes: S padded sequences of T ids, M answer ids in all of them, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from data_pipeline.stream.examples import ExampleBatch
from trainer.model import padded_inputs
from trainer.objectives.places import only_at

# Rows of logits whose softmax is held at once: 1,024 x 32,000 float32 are 131 MB.
_ENTROPY_ROWS = 1024


@dataclass(frozen=True)
class AnswerLogProbs:
    """`tokens` (M,) float32: log p of each answer id, in order; `sequences` (M,) int64: whose it is; `counts` (S,).

    `entropies` (M,) float32 without gradient: of what the model could have said there, in nats. A sequence without an
    answer, as padding is, has no token, a count of 0 and a sum of 0.
    """

    tokens: torch.Tensor
    sequences: torch.Tensor
    counts: torch.Tensor
    entropies: torch.Tensor

    @property
    def sums(self) -> torch.Tensor:
        """(S,) log p of each whole answer."""
        return self.summed(self.tokens)

    @property
    def averages(self) -> torch.Tensor:
        """(S,) the mean log p of an answer's ids; 0 without any."""
        return self.sums / self.counts.clamp(min=1)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """(S,) sums of (M,) `values` over each sequence's answer."""
        nothing = torch.zeros(len(self.counts), dtype=values.dtype, device=values.device)
        return nothing.index_add(0, self.sequences, values)


def answer_log_probs(
    module: nn.Module,
    batch: ExampleBatch,
    *,
    head: nn.Module,
    device: torch.device,
    temperature: float = 1.0,
    has_entropies: bool = True,
) -> AnswerLogProbs:
    """The answers of `batch` under a causal model; one forward pass, whose head sees the answers' places alone.

    Args:
        module: what is called; `head`: the output embedding within it.
        temperature: what the logits are divided by, as sampling does.
        has_entropies: whether they are asked for; else they are 0.

    The result is joined to every parameter that has a part in it, also where the batch has no answer.
    """
    places, targets, sequences = _places(batch)
    is_empty = not len(places)
    if is_empty:
        places = targets = sequences = np.zeros(1, np.int64)  # a kernel need not bear a matrix without rows
    places_M = torch.from_numpy(places).to(device)
    with only_at(places_M, head):
        logits_MV = module(**padded_inputs(batch, device=device), use_cache=False).logits
    logits_MV = logits_MV.reshape(-1, logits_MV.shape[-1]).float()
    if temperature != 1:
        logits_MV = logits_MV / temperature
    # Without the V-wide copy of log_softmax that would be kept for the backward pass beside the logits.
    targets_M = torch.from_numpy(targets).to(device)[:, None]
    tokens_M = logits_MV.gather(1, targets_M)[:, 0] - torch.logsumexp(logits_MV, dim=1)
    answers = batch.answers
    assert answers is not None, "_places looked"
    counts = torch.from_numpy(answers[:, 1] - answers[:, 0]).to(device)
    return AnswerLogProbs(
        tokens=tokens_M * 0 if is_empty else tokens_M,
        sequences=torch.from_numpy(sequences).to(device),
        counts=counts,
        entropies=_entropies(logits_MV.detach())
        if has_entropies and not is_empty
        else torch.zeros_like(tokens_M.detach()),
    )


def _places(batch: ExampleBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M,) each: the flat place before an answer's id, that id, and the number of its sequence."""
    assert batch.answers is not None, "the stage's records have answers"
    length = batch.input_ids.shape[1]
    starts, ends = batch.answers.T
    counts = ends - starts
    sequences = np.repeat(np.arange(len(starts)), counts)
    firsts = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    inner = np.arange(counts.sum()) + firsts  # the place of each id in its sequence
    return sequences * length + inner - 1, batch.input_ids[sequences, inner], sequences


@torch.no_grad()
def _entropies(logits: torch.Tensor) -> torch.Tensor:
    """(M,) of logits (M, V)."""
    found = []
    for part in logits.split(_ENTROPY_ROWS):
        log_probs = torch.log_softmax(part, dim=1)
        found.append(-(log_probs.exp() * log_probs).sum(dim=1))
    return torch.cat(found)
