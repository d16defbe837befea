"""One optimizer update, exact under any split of its rows into micro-batches and ranks (law 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from data_pipeline.stream.batch import Batch
from trainer.engine import Engine
from trainer.ranks import Ranks
from trainer.resilience import StepPolicy

Objective = Callable[[nn.Module, Batch], torch.Tensor]


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured, equal on all ranks. `stop_requested`: some rank has a signal."""

    loss: float
    grad_norm: float
    num_targets: int
    skipped: bool
    reason: str
    stop_requested: bool


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

    def step(self, micro_batches: Sequence[Batch], *, number: int, lr: float) -> StepMetrics:
        """Apply the update `number`, or refuse it with every weight, moment and schedule as it was.

        `micro_batches`: this rank's share; every rank brings the same number of them, some perhaps without targets.
        """
        seed_step(self.seed, step=number, rank=self.ranks.rank)
        num_targets = self._total_targets(micro_batches)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for batch in micro_batches:
            self.engine.begin_micro_batch(last=batch is micro_batches[-1])
            loss = self.objective(self.engine.module, batch)
            loss_sum += loss.detach().double()
            self.on_mark()
            # Ranks are averaged by the engine, so the mean over targets needs the world size back.
            self.engine.backward(loss * (self.ranks.world_size / num_targets))
            self.on_mark()
        mean_loss, stop = self._reduce(loss_sum, num_targets)
        grad_norm = float(self.engine.grad_norm())
        verdict = self.policy.accepts(mean_loss, grad_norm)
        if verdict.accepted:
            self.engine.apply(lr=lr)
        else:
            self.engine.discard()
        return StepMetrics(mean_loss, grad_norm, num_targets, not verdict.accepted, verdict.reason, stop)

    def _total_targets(self, micro_batches: Sequence[Batch]) -> int:
        ours = sum(batch.num_targets for batch in micro_batches)
        total = int(self.ranks.all_sum(torch.tensor(ours, dtype=torch.int64)).item())
        return max(1, total)

    def _reduce(self, loss_sum: torch.Tensor, num_targets: int) -> tuple[float, bool]:
        """The mean loss over all ranks' targets, and whether any rank was asked to stop: one collective."""
        requested = torch.tensor(float(self.stop_requested()), dtype=torch.float64, device=loss_sum.device)
        total = self.ranks.all_sum(torch.stack([loss_sum, requested])).tolist()
        return total[0] / num_targets, total[1] > 0


def seed_step(seed: int, *, step: int, rank: int) -> None:
    """Make all randomness of a step (dropout) a pure function of (seed, step, rank), so that no state need be saved."""
    torch.manual_seed(hash_to_seed(seed, step, rank))


def hash_to_seed(*numbers: int) -> int:
    """63 bits from a tuple of integers; unlike their sum, (0, 1) and (1, 0) differ."""
    import hashlib

    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
