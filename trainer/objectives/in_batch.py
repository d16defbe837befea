"""Each anchor's positive among all texts of a step: the loss, and its gradient by the vectors, over all ranks.

The vectors come without a graph: who has them multiplies their graph by the gradient that is given here, so that a step
of any size holds the activations of one micro-batch (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup", section 3.2).
Shapes: B examples of k texts (anchor, positive and perhaps a hard negative), N of all ranks, H hidden, D candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.stream.examples import ExampleBatch
from trainer.ranks import Ranks

MAX_LOGITS = 2**24  # held at once: 64 MiB


@dataclass(frozen=True)
class Units:
    """`vectors` (B, k, H) float32 of length 1. `texts` (B, k) int64: equal for equal texts."""

    vectors: torch.Tensor
    texts: torch.Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, examples: slice | torch.Tensor) -> Units:
        return Units(self.vectors[examples], self.texts[examples])

    @classmethod
    def joined(cls, parts: Sequence[Units]) -> Units:
        return cls(torch.cat([part.vectors for part in parts]), torch.cat([part.texts for part in parts]))


@dataclass(frozen=True)
class Contrast:
    """`losses` (B,) nats an anchor. `gradients` (B, k, H) of the sum of all ranks' losses by this rank's vectors.
    `are_first` (B,): 1 where the positive is nearer than all else, else 0."""

    losses: torch.Tensor
    gradients: torch.Tensor
    are_first: torch.Tensor


def text_numbers(batch: ExampleBatch) -> torch.Tensor:
    """(B, k) int64: a hash of each text's ids; two texts share it by chance once in 2^64."""
    digests = [
        hashlib.blake2b(ids[:length].tobytes(), digest_size=8).digest()
        for ids, length in zip(np.ascontiguousarray(batch.input_ids), batch.lengths, strict=True)
    ]
    numbers = np.array([int.from_bytes(digest, "little", signed=True) for digest in digests], np.int64)
    return torch.from_numpy(numbers.reshape(-1, batch.num_sequences))


@torch.no_grad()
def gather_units(ours: Units, ranks: Ranks) -> tuple[Units, int]:
    """The examples of all ranks in rank order, on every rank, and where this rank's begin; they may bring other numbers
    of them."""
    sizes = torch.zeros(ranks.world_size, dtype=torch.int64)
    sizes[ranks.rank] = len(ours)
    counts = ranks.all_sum(sizes).tolist()
    first = sum(counts[: ranks.rank])
    return Units(
        *(_gathered(values, ranks, first=first, total=sum(counts)) for values in (ours.vectors, ours.texts))
    ), first


def _gathered(values: torch.Tensor, ranks: Ranks, *, first: int, total: int) -> torch.Tensor:
    """All ranks' rows: a sum in which every rank adds zeros to the others', so that they may be ragged."""
    everything = values.new_zeros((total, *values.shape[1:]))
    everything[first : first + len(values)] = values
    return ranks.all_sum(everything)


@torch.no_grad()
def contrast(ours: Units, ranks: Ranks, *, temperature: float) -> Contrast:
    """The losses of this rank's examples against the texts of all, and the gradient of all ranks' by this rank's.

    -ln softmax(cos(anchor, candidates) / temperature) at the positive; the candidates are the positives and the hard
    negatives of all examples (van den Oord et al. 2018, "CPC", equation 4). Every rank calls it.
    """
    everything, first = gather_units(ours, ranks)
    result, by_candidates_NkH = _own_losses(everything, slice(first, first + len(ours)), temperature=temperature)
    result.gradients[:, 1:] = ranks.all_sum(by_candidates_NkH)[first : first + len(ours)]
    return result


def mean_loss_terms(units: Units, *, temperature: float) -> torch.Tensor:
    """(N,) the losses of examples among themselves."""
    return _own_losses(units, slice(0, len(units)), temperature=temperature)[0].losses


@torch.no_grad()
def _own_losses(everything: Units, own: slice, *, temperature: float) -> tuple[Contrast, torch.Tensor]:
    """The examples `own` of `everything`: their losses with the gradient by their anchors, and the gradient of their
    losses by all candidates, (N, k - 1, H)."""
    ours, candidates = everything[own], Candidates.of(everything)
    result = Contrast(
        losses=ours.vectors.new_zeros(len(ours)),
        gradients=torch.zeros_like(ours.vectors),
        are_first=ours.vectors.new_zeros(len(ours)),
    )
    by_candidates_DH = torch.zeros_like(candidates.vectors)
    for rows in candidates.chunks(len(ours)):
        own_places = candidates.own_places(rows, first=own.start)
        logits_BD = candidates.cosines(ours[rows], own_places) / temperature
        positives_B1 = logits_BD.gather(1, own_places[:, None])
        result.losses[rows] = logits_BD.logsumexp(dim=1) - positives_B1[:, 0]
        result.are_first[rows] = (num_as_near(logits_BD, positives_B1) == 1).to(result.are_first.dtype)
        slopes_BD = logits_BD.softmax(dim=1).scatter_add_(1, own_places[:, None], -torch.ones_like(positives_B1))
        slopes_BD /= temperature
        result.gradients[rows, 0] = slopes_BD @ candidates.vectors
        by_candidates_DH += slopes_BD.T @ ours.vectors[rows, 0]
    return result, by_candidates_DH.view(len(everything), candidates.num_each, by_candidates_DH.shape[1])


def num_as_near(cosines: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """(B,) how many of the `cosines` (B, D) are as large as those of the `positives` (B, 1), which are among them.

    That is the rank of the positive, where what ties stands before it.

    So a model that says the same of every text finds nothing, and one that says NaN neither.
    """
    return (~(positives > cosines)).sum(dim=1)


@dataclass(frozen=True)
class Candidates:
    """What anchors choose among: of each of N examples the texts behind its anchor, D in all.

    A text that equals an anchor or its positive, and the positive of an equal anchor, is no wrong answer: such
    candidates are left out.
    """

    vectors: torch.Tensor  # (D, H)
    texts: torch.Tensor  # (D,)
    anchor_texts: torch.Tensor  # (D,) of the example that it is the positive of
    are_positives: torch.Tensor  # (D,)
    num_each: int  # D / N

    @classmethod
    def of(cls, examples: Units) -> Candidates:
        texts_NC = examples.texts[:, 1:]
        are_positives = torch.zeros_like(texts_NC, dtype=torch.bool)
        are_positives[:, 0] = True
        return cls(
            vectors=examples.vectors[:, 1:].reshape(-1, examples.vectors.shape[2]),
            texts=texts_NC.reshape(-1),
            anchor_texts=examples.texts[:, :1].expand(texts_NC.shape).reshape(-1),
            are_positives=are_positives.reshape(-1),
            num_each=texts_NC.shape[1],
        )

    def chunks(self, num_anchors: int) -> Iterator[slice]:
        """Slices of the anchors, of which each takes no more than `MAX_LOGITS`."""
        rows = max(1, MAX_LOGITS // max(1, len(self.vectors)))
        for start in range(0, num_anchors, rows):
            yield slice(start, min(start + rows, num_anchors))

    def own_places(self, rows: slice, *, first: int) -> torch.Tensor:
        """(B,) where the positives of those anchors stand, that are the examples from `first` on."""
        return (torch.arange(rows.start, rows.stop, device=self.vectors.device) + first) * self.num_each

    def cosines(self, anchors: Units, own_places: torch.Tensor) -> torch.Tensor:
        """(B, D) of those examples' anchors; -inf where a candidate is left out."""
        anchor_B1, positive_B1 = anchors.texts[:, :1], anchors.texts[:, 1:2]
        is_same_BD = (self.texts == anchor_B1) | (self.texts == positive_B1)
        is_same_BD |= (self.anchor_texts == anchor_B1) & self.are_positives
        is_same_BD.scatter_(1, own_places[:, None], value=False)
        return (anchors.vectors[:, 0] @ self.vectors.T).masked_fill_(is_same_BD, -torch.inf)
