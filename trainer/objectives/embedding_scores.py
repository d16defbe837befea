"""Figures of sentence embeddings over all held-out examples: recall among them, or correlation with their scores.

All examples are gathered on every rank (2,000 triplets of 1,024 numbers are 24 MB), in the order of their rows, so that
no figure depends on who held which; a rank compares its share of the anchors, `MAX_LOGITS` cosines at a time.
Shapes: N examples of k texts, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.stream import AnyBatch
from trainer.objectives.in_batch import MAX_LOGITS, Units, gather_units, mean_loss_terms, num_as_near, text_numbers
from trainer.objectives.objective import Outcome, Scorer
from trainer.ranks import Ranks

TOP = (1, 10)


class EmbeddingScorer(Scorer):
    """Keeps the vectors of what was evaluated, on the host.

    `group_size`, `temperature`: of the loss among held-out examples; None where the objective's own mean is the loss.
    """

    def __init__(self, *, is_scored: bool, group_size: int | None = None, temperature: float = 1.0) -> None:
        self._is_scored, self._group_size, self._temperature = is_scored, group_size, temperature
        self._kept: list[tuple[Units, torch.Tensor]] = []

    def add(self, batch: AnyBatch, outcome: Outcome) -> None:
        assert isinstance(batch, ExampleBatch) and outcome.outputs is not None
        are_real = torch.from_numpy(batch.row_ids != NO_ROW)
        units = functional.normalize(outcome.outputs.float(), dim=2).cpu()[are_real]
        facts = torch.from_numpy(np.stack([batch.row_ids.astype(np.float64), batch.values], axis=1))
        self._kept.append((Units(units, text_numbers(batch)[are_real]), facts[are_real]))

    def figures(self, ranks: Ranks, *, loss_sum: float, num_targets: float) -> dict[str, Any]:
        everything, values = self._gathered(ranks)
        if self._is_scored:
            return _correlations(everything, values)
        found: dict[str, Any] = _retrieval(everything, ranks)
        if everything.texts.shape[1] == 3:
            cosines = everything.vectors[:, 1:] @ everything.vectors[:, 0, :, None]
            found["triplet_accuracy"] = float((cosines[:, 0] > cosines[:, 1]).double().mean())
        if self._group_size is not None:
            found["loss"] = _grouped_loss(everything, size=self._group_size, temperature=self._temperature)
        return found

    def _gathered(self, ranks: Ranks) -> tuple[Units, NDArray[np.float64]]:
        """All ranks' examples and their values, by row."""
        ours = Units.joined([units for units, _ in self._kept])
        everything, first = gather_units(ours, ranks)
        facts = torch.zeros((len(everything), 2), dtype=torch.float64)
        facts[first : first + len(ours)] = torch.cat([facts for _, facts in self._kept])
        facts = ranks.all_sum(facts)
        order = torch.argsort(facts[:, 0], stable=True)
        return everything[order], facts[order, 1].numpy()


def _retrieval(everything: Units, ranks: Ranks) -> dict[str, Any]:
    """Recall and mean reciprocal rank of each anchor's positive among the texts that are a positive; ties count against
    the model, and a text that stands in many rows is one candidate."""
    total = len(everything)
    share = range(total * ranks.rank // ranks.world_size, total * (ranks.rank + 1) // ranks.world_size)
    answers = _Answers.of(everything)
    sums = torch.zeros(len(TOP) + 1, dtype=torch.float64)
    step = max(1, MAX_LOGITS // max(1, len(answers.vectors)))
    for start in share[::step]:
        rows = slice(start, min(start + step, share.stop))
        cosines = answers.cosines(everything, rows)
        places = num_as_near(cosines, cosines.gather(1, answers.own_places[rows, None])).double()
        sums += torch.stack([*((places <= top).sum() for top in TOP), (1 / places).sum()])
    *recalls, mrr = (ranks.all_sum(sums) / max(1, total)).tolist()
    named = {f"recall_at_{top}": value for top, value in zip(TOP, recalls, strict=True)}
    return named | {"mrr": mrr, "num_candidates": len(answers.vectors)}


@dataclass(frozen=True)
class _Answers:
    """The distinct texts that are the positive of some of N examples, D of them, in the order of their first rows.

    A text that equals an anchor, and the other positives of equal anchors, are no wrong answers to it: they are left
    out.
    """

    vectors: torch.Tensor  # (D, H)
    texts: torch.Tensor  # (D,)
    own_places: torch.Tensor  # (N,) where the positive of each example stands
    groups: torch.Tensor  # (N,) the number of its anchor, equal for equal ones
    firsts: torch.Tensor  # (G + 1,) where the places of each anchor's positives begin in `places`
    places: torch.Tensor  # (N,)

    @classmethod
    def of(cls, examples: Units) -> _Answers:
        positives = examples.texts[:, 1].numpy()
        _, first_rows, numbers = np.unique(positives, return_index=True, return_inverse=True)
        order = np.argsort(first_rows, kind="stable")
        own_places = np.empty(len(order), np.int64)
        own_places[order] = np.arange(len(order))
        own_places = own_places[numbers.reshape(-1)]
        _, groups = np.unique(examples.texts[:, 0].numpy(), return_inverse=True)
        groups = groups.reshape(-1)
        by_group = np.argsort(groups, kind="stable")
        firsts = np.concatenate([[0], np.cumsum(np.bincount(groups))])
        rows = torch.from_numpy(first_rows[order])
        return cls(
            vectors=examples.vectors[rows, 1],
            texts=examples.texts[rows, 1],
            own_places=torch.from_numpy(own_places),
            groups=torch.from_numpy(groups),
            firsts=torch.from_numpy(firsts),
            places=torch.from_numpy(own_places[by_group]),
        )

    def cosines(self, examples: Units, rows: slice) -> torch.Tensor:
        """(B, D) of the anchors of those rows; -inf where a text is left out."""
        groups, own = self.groups[rows], self.own_places[rows]
        are_out = self.texts == examples.texts[rows, :1]
        sizes = self.firsts[groups + 1] - self.firsts[groups]
        of_rows = torch.repeat_interleave(torch.arange(len(groups)), sizes)
        within = torch.arange(len(of_rows)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        are_out[of_rows, self.places[self.firsts[groups][of_rows] + within]] = True
        are_out.scatter_(1, own[:, None], value=False)
        return (examples.vectors[rows, 0] @ self.vectors.T).masked_fill_(are_out, -torch.inf)


def _grouped_loss(everything: Units, *, size: int, temperature: float) -> float:
    """Mean loss of groups of about `size` examples, which are mixed by their rows alone: a group is what a step is."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(everything)))
    num_groups = -(-len(everything) // size)
    losses = [
        mean_loss_terms(everything[group], temperature=temperature) for group in torch.tensor_split(order, num_groups)
    ]
    return float(torch.cat(losses).double().mean())


def _correlations(everything: Units, scores: NDArray[np.float64]) -> dict[str, Any]:
    """Of the cosines with the scores; NaN where either says the same of all. Pairs without a score are counted."""
    cosines = (everything.vectors[:, 0] * everything.vectors[:, 1]).sum(dim=1).double().numpy()
    has_score = ~np.isnan(scores)
    cosines, scores = cosines[has_score], scores[has_score]
    num_unscored = int((~has_score).sum())
    return {
        "spearman": correlation(average_ranks(cosines), average_ranks(scores)),
        "pearson": correlation(cosines, scores),
        **({"num_unscored": num_unscored} if num_unscored else {}),
    }


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value from 1 on; of equal ones the mean of their ranks. All NaN where one is."""
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[places]
    return ranks


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Pearson's; NaN where one of them does not vary."""
    if not len(first):
        return float("nan")
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / size) if size > 0 else float("nan")
