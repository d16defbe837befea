"""One optimizer update, exact under any split of its rows into micro-batches and ranks (law 6)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from data_pipeline.stream.stream import AnyBatch
from trainer.engine import Engine
from trainer.errors import BadRollout
from trainer.objectives.objective import Objective
from trainer.ranks import Ranks
from trainer.resilience import StepPolicy


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured, equal on all ranks. `stop_requested`: some rank has a signal.

    `reason`: why it was `skipped`, or of several updates the last ones were.

    `num_inputs`: places that were computed, over all ranks. `figures`: what the objective tells beside the loss.
    """

    loss: float
    grad_norm: float
    num_targets: int
    skipped: bool
    reason: str
    stop_requested: bool
    num_inputs: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Totals:
    """Of one step, over all ranks. `weight`: what the sum of losses is divided by."""

    num_targets: int
    weight: float
    num_inputs: int


@dataclass
class Updater:
    """What an update needs beside its rows."""

    engine: Engine
    objective: Objective
    policy: StepPolicy
    ranks: Ranks
    seed: int
    stop_requested: Callable[[], bool]
    on_mark: Callable[[], None] = lambda: None
    """Called between the forward and the backward pass, and after both."""

    def step(self, micro_batches: Sequence[AnyBatch], *, number: int, lr: float) -> StepMetrics:
        """Apply the update `number`, or refuse it with every weight, moment and schedule as it was.

        A stage that makes several over its rows ends at the first that is refused. Those before it stand, and so does
        the step where there is one: it is told why it ended early.

        `micro_batches`: this rank's share; every rank brings the same number of them, some perhaps without targets.
        """
        seed_step(self.seed, step=number, rank=self.ranks.rank)
        objective = self.objective
        prepared = objective.prepare(micro_batches, is_training=True)
        try:
            collected = objective.collect(self.engine.module, prepared, step=number, on_mark=self.on_mark)
        except BadRollout as error:
            self.policy.refuse(str(error))
            stop = self.ranks.any(self.stop_requested())
            return StepMetrics(math.nan, math.nan, 0, skipped=True, reason=str(error), stop_requested=stop)
        totals = self._totals(collected)
        updates: list[StepMetrics] = []
        while len(updates) < objective.num_passes and not (updates and updates[-1].skipped):
            updates.append(self._update(collected, totals, lr=lr))
        if len(updates) > 1 and updates[-1].skipped:
            self.policy.excuse()
        return _joined(updates, num_passes=objective.num_passes)

    def _update(self, prepared: Sequence[AnyBatch], totals: _Totals, *, lr: float) -> StepMetrics:
        """One pass over the rows of a step, and its update or refusal."""
        objective = self.objective
        objective.begin_step(self.engine.module, prepared)
        sums = torch.zeros(1 + len(objective.sum_names), dtype=torch.float64, device=self.ranks.device)
        for batch in prepared:
            self.engine.begin_micro_batch(last=batch is prepared[-1])
            outcome = objective.outcome(self.engine.module, batch)
            sums += torch.stack([outcome.loss.detach().double(), *(outcome.sums[name] for name in objective.sum_names)])
            self.on_mark()
            # Ranks are averaged by the engine, so the mean over targets needs the world size back.
            self.engine.backward(outcome.loss * (self.ranks.world_size / totals.weight))
            self.on_mark()
        mean_loss, figures, stop = self._reduce(sums, totals)
        grad_norm = float(self.engine.grad_norm())
        verdict = self.policy.accepts(mean_loss, grad_norm)
        if verdict.accepted:
            self.engine.apply(lr=lr)
        else:
            self.engine.discard()
        is_refused = not verdict.accepted
        targets, inputs = totals.num_targets, totals.num_inputs
        return StepMetrics(mean_loss, grad_norm, targets, is_refused, verdict.reason, stop, inputs, figures)

    def _totals(self, micro_batches: Sequence[AnyBatch]) -> _Totals:
        ours = [
            sum(batch.num_targets for batch in micro_batches),
            sum(self.objective.weight(batch) for batch in micro_batches),
            sum(batch.num_inputs for batch in micro_batches),
        ]
        targets, weight, inputs = self.ranks.all_sum(torch.tensor(ours, dtype=torch.float64)).tolist()
        return _Totals(num_targets=max(1, int(targets)), weight=weight or 1.0, num_inputs=int(inputs))

    def _reduce(self, sums: torch.Tensor, totals: _Totals) -> tuple[float, dict[str, float], bool]:
        """The mean loss over all ranks' targets, the figures, whether any rank was asked to stop: one collective."""
        requested = torch.tensor([float(self.stop_requested())], dtype=torch.float64, device=sums.device)
        loss_sum, *others, stop = self.ranks.all_sum(torch.cat([sums, requested])).tolist()
        told = dict(zip(self.objective.sum_names, others, strict=True))
        figures = self.objective.figures(told, num_targets=totals.num_targets)
        return loss_sum / totals.weight, figures, stop > 0


def _joined(updates: Sequence[StepMetrics], *, num_passes: int) -> StepMetrics:
    """The updates of one step as one: means over those that were applied, and their largest norm."""
    last, applied = updates[-1], [update for update in updates if not update.skipped]
    if num_passes == 1:
        return last
    reason = f"update {len(updates)} of {num_passes} of the step: {last.reason}" if last.skipped else ""
    if not applied:
        return replace(last, reason=reason)
    return replace(
        applied[-1],
        loss=statistics.fmean(update.loss for update in applied),
        grad_norm=max(update.grad_norm for update in applied),
        reason=reason,
        stop_requested=any(update.stop_requested for update in updates),
        figures={name: statistics.fmean(update.figures[name] for update in applied) for name in last.figures},
    )


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Make all randomness of a step (dropout) a pure function of (seed, step, rank), so that no state need be saved."""
    torch.manual_seed(hash_to_seed(seed, step, rank))


def hash_to_seed(*numbers: int) -> int:
    """63 bits from a tuple of integers; unlike their sum, (0, 1) and (1, 0) differ."""
    import hashlib

    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
