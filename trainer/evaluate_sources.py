"""Held-out rows source by source: every figure of the stage for each source, and for all of them, in one pass.

The rows of a source share no batch with another's, so a sum over sources is that over everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.shards.format import RecordKind, read_shards
from data_pipeline.stage import NothingToScoreError
from data_pipeline.stream.by_source import documents_by_source
from data_pipeline.stream.stream import AnyBatch
from trainer.config import TrainConfig
from trainer.evaluate import HeldOut
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.ranks import Ranks
from trainer.sources import open_heldout

MAX_SOURCES = 50  # each costs a look through the shards; the smallest beyond these are scored together
OTHERS = "(그 밖 others)"


class SourcedRows:
    """The rows of several sources as one set. `current`: whose batch was given last."""

    def __init__(self, rows: Mapping[str, HeldOut]) -> None:
        self.rows = rows
        self.current = ""
        self.num_documents = sum(one.num_documents for one in rows.values())
        self.num_bytes = sum(one.num_bytes for one in rows.values())
        self.num_documents_too_long = sum(one.num_documents_too_long for one in rows.values())

    @property
    def record(self) -> RecordKind:
        return next(iter(self.rows.values())).record

    def pad_with(self, pad_id: int) -> None:
        for one in self.rows.values():
            one.pad_with(pad_id)

    def batches(self, *, dp_rank: int, dp_world_size: int, micro_batch_sequences: int) -> Iterator[AnyBatch]:
        """This rank's batches, one source after another; every rank gets the same number of them."""
        for name, one in self.rows.items():
            self.current = name
            yield from one.batches(
                dp_rank=dp_rank, dp_world_size=dp_world_size, micro_batch_sequences=micro_batch_sequences
            )


def open_sources(config: TrainConfig) -> SourcedRows:
    """All held-out rows of the run's shards, by their source; sources of which nothing can be scored are left out.

    Raises:
        StageError: nothing at all can be scored.
    """
    found = documents_by_source(read_shards(Path(config.data.shards), split="heldout"))
    if len(found) == 1:
        return SourcedRows({name: open_heldout(config) for name in found})
    names = list(found)
    kept = {name: found[name] for name in names[:MAX_SOURCES]}
    if rest := names[MAX_SOURCES:]:
        kept[OTHERS] = np.sort(np.concatenate([found[name] for name in rest]))
    rows: dict[str, HeldOut] = {}
    last: NothingToScoreError | None = None
    for name, documents in kept.items():
        try:
            rows[name] = open_heldout(config, documents=documents)
        except NothingToScoreError as error:
            last = error
    if last is not None and not rows:
        raise last
    return SourcedRows(rows)


class SourcedScorer(Scorer):
    """Figures over everything, and under `sources` those of each source, with its loss and its counts."""

    def __init__(self, objective: Objective, rows: SourcedRows) -> None:
        self._objective, self._rows = objective, rows
        self._total = objective.scorer(num_bytes=rows.num_bytes)
        self._scorers = {name: objective.scorer(num_bytes=one.num_bytes) for name, one in rows.rows.items()}
        self._sums = {name: torch.zeros(3, dtype=torch.float64) for name in rows.rows}  # of losses, weights, targets

    def add(self, batch: AnyBatch, outcome: Outcome) -> None:
        name = self._rows.current
        self._total.add(batch, outcome)
        self._scorers[name].add(batch, outcome)
        told = [float(outcome.loss.double()), self._objective.weight(batch), float(batch.num_targets)]
        self._sums[name] += torch.tensor(told, dtype=torch.float64)

    def figures(self, ranks: Ranks, *, loss_sum: float, num_targets: float) -> dict[str, Any]:
        total = self._total.figures(ranks, loss_sum=loss_sum, num_targets=num_targets)
        return total | {"sources": {name: self._of_source(name, ranks) for name in self._rows.rows}}

    def _of_source(self, name: str, ranks: Ranks) -> dict[str, Any]:
        rows = self._rows.rows[name]
        loss_sum, weight, num_targets = ranks.all_sum(self._sums[name]).tolist()
        figures = self._scorers[name].figures(ranks, loss_sum=loss_sum, num_targets=num_targets)
        loss = float(figures.pop("loss", loss_sum / (weight or 1.0)))
        counts = {"num_documents": rows.num_documents, "num_targets": int(num_targets)}
        return {"loss": loss, **figures, **counts, "num_documents_too_long": rows.num_documents_too_long}
