"""One class of several for a sentence or a pair: cross entropy over the logits of a classifier's head.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch, ExampleRows
from data_pipeline.stream.stream import AnyBatch
from trainer.errors import RunError
from trainer.model import padded_inputs, with_token_types
from trainer.objectives.choose import Setting
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.ranks import Ranks

IGNORED_LABEL = -100


def make_classification(setting: Setting) -> Classification:
    """The objective over the labels of the shards.

    Raises:
        RunError: another number of class weights than classes.
    """
    rows = setting.source
    assert isinstance(rows, ExampleRows), "its stage reads examples"
    assert setting.config.classify is not None, "the config resolves it"
    labels, wanted = rows.shards.labels, setting.config.classify.class_weights
    weights: tuple[float, ...] | None = None
    if wanted == "balanced":
        counts = np.bincount(rows.values().astype(np.int64), minlength=len(labels))
        weights = tuple((counts.sum() / (len(labels) * np.maximum(counts, 1))).tolist())
    elif wanted != "none":
        weights = tuple(float(weight) for weight in wanted)
        if len(weights) != len(labels):
            raise RunError(
                f"classify.class_weights: {len(weights)} weights, but {rows.shards.folder} has {len(labels)} classes "
                f"({', '.join(labels)}); give one a class, in that order"
            )
    sep_id = rows.shards.frame.sep_id if rows.shards.frame is not None else None
    return Classification(device=setting.ranks.device, labels=labels, weights=weights, sep_id=sep_id)


@dataclass(frozen=True)
class Classification(Objective):
    """Sum of -w ln p(label | sequence) over the examples, in float32; `weights` one a class, all 1 if None.

    The mean divides by the sum of the weights, as torch's weighted cross entropy does.
    """

    device: torch.device
    labels: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    sep_id: int | None = None

    sum_names = ("accuracy",)

    def weight(self, batch: AnyBatch) -> float:
        if self.weights is None:
            return float(batch.num_targets)
        assert isinstance(batch, ExampleBatch)
        return float(sum(self.weights[number] for number in _numbers(batch).tolist() if number != IGNORED_LABEL))

    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        assert isinstance(batch, ExampleBatch), "examples are not packed"
        logits_BC = self.logits(module, batch)
        numbers_B = torch.from_numpy(_numbers(batch)).to(self.device)
        weights = None if self.weights is None else torch.tensor(self.weights, device=self.device)
        loss = functional.cross_entropy(
            logits_BC, numbers_B, weight=weights, ignore_index=IGNORED_LABEL, reduction="sum"
        )
        num_right = (logits_BC.detach().argmax(dim=1) == numbers_B).sum().double()
        return Outcome(loss, {"accuracy": num_right}, logits_BC.detach())

    def logits(self, model: nn.Module, batch: ExampleBatch) -> torch.Tensor:
        """(B, C) float32 logits of the examples."""
        inputs = with_token_types(padded_inputs(batch, device=self.device), model, sep_id=self.sep_id)
        logits: torch.Tensor = model(**inputs).logits
        return logits.float()

    def facts(self) -> dict[str, Any]:
        return {"class_weights": None if self.weights is None else list(self.weights)}

    def scorer(self, *, num_bytes: int) -> Scorer:
        return _Confusion(self.labels)


def _numbers(batch: ExampleBatch) -> NDArray[np.int64]:
    """(B,) class numbers; -100 for padding."""
    return np.where(batch.row_ids == NO_ROW, IGNORED_LABEL, np.nan_to_num(batch.values)).astype(np.int64)


class _Confusion(Scorer):
    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._counts = np.zeros((len(labels), len(labels)), np.int64)

    def add(self, batch: AnyBatch, outcome: Outcome) -> None:
        assert isinstance(batch, ExampleBatch) and outcome.outputs is not None
        numbers = _numbers(batch)
        is_real = numbers != IGNORED_LABEL
        predicted = outcome.outputs.argmax(dim=1).cpu().numpy()
        np.add.at(self._counts, (numbers[is_real], predicted[is_real]), 1)

    def figures(self, ranks: Ranks, *, loss_sum: float, num_targets: float) -> dict[str, Any]:
        counts = ranks.all_sum(torch.from_numpy(self._counts)).numpy()
        return classification_figures(counts, labels=self._labels)


def classification_figures(confusion: NDArray[np.int64], *, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro F1, of two classes the F1 of the second, and the confusion matrix (rows: the true class).

    F1 = 2 TP / (2 TP + FP + FN), 0 for a class that is neither there nor predicted; macro: the mean of the classes.
    """
    right = np.diag(confusion)
    around = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = np.divide(2 * right, around, out=np.zeros(len(labels)), where=around > 0)
    figures: dict[str, Any] = {"accuracy": float(right.sum() / max(1, confusion.sum())), "macro_f1": float(f1.mean())}
    if len(labels) == 2:
        figures["binary_f1"] = float(f1[1])
    return figures | {"labels": list(labels), "confusion": confusion.tolist()}
