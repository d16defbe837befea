"""A chosen answer above a rejected one: the objective of `stage: dpo | orpo | cpo`.

Each loss is a mean over pairs. What is told of a step beside it: `margin`, by how much the chosen answer is ahead
(times beta where there is one), and how often it is (`accuracy`); the entropy of a next id in nats; the lengths of both
answers in ids. Where there is a reference: `log_ratio`, the mean of ln pi - ln pi_ref over both answers, and each one's
`reward`, beta times that ratio. Both fall together where a model forgets how to speak while its margin grows.
Shapes: B pairs, S = 2 B sequences, the chosen one of each first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.stream import AnyBatch
from trainer.objectives.choose import Setting
from trainer.objectives.log_probs import AnswerLogProbs, answer_log_probs
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.objectives.preference_losses import hinge_loss, log_odds_ratio, logistic_loss, simpo_loss, squared_loss
from trainer.preference_config import CpoConfig, DpoConfig, OrpoConfig
from trainer.reference import Reference

if TYPE_CHECKING:
    from trainer.ranks import Ranks

SUMS = ("margin", "accuracy", "entropy", "chosen_length", "rejected_length")
OF_REFERENCE = ("log_ratio", "chosen_reward", "rejected_reward")


@dataclass(frozen=True)
class Pairs:
    """What a forward pass says of the B pairs of a batch that are no padding. `reference`: (B,) each, or None."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_average: torch.Tensor
    rejected_average: torch.Tensor
    chosen_length: torch.Tensor
    rejected_length: torch.Tensor
    chosen_reference: torch.Tensor | None = None
    rejected_reference: torch.Tensor | None = None


def make_preference(setting: Setting) -> Preference:
    """The objective of the run's stage over preference rows."""
    config = setting.config
    choices = getattr(config, config.stage)
    assert isinstance(choices, DpoConfig | OrpoConfig | CpoConfig), "the config resolves it"
    reference = Reference.make(setting, kind=choices.reference) if isinstance(choices, DpoConfig) else None
    return Preference(choices, ranks=setting.ranks, head=setting.model.get_output_embeddings(), reference=reference)  # type: ignore[operator]


class Preference(Objective):
    """Sum of the pairs' losses, in float32."""

    def __init__(
        self,
        choices: DpoConfig | OrpoConfig | CpoConfig,
        *,
        ranks: Ranks,
        head: nn.Module,
        reference: Reference | None = None,
    ) -> None:
        self.choices, self._ranks, self._head, self.reference = choices, ranks, head, reference
        self.sum_names = SUMS if reference is None else (*SUMS, *OF_REFERENCE)

    def prepare(self, batches: Sequence[AnyBatch], *, is_training: bool) -> list[AnyBatch]:
        if self.reference is None:
            return list(batches)
        return [self.reference.noted(batch, is_training=is_training) for batch in batches]

    def before_training(
        self,
        module: nn.Module,
        folder: Path,
        *,
        micro_batch_sequences: int,
        stop_requested: Callable[[], bool],
        on_batch: Callable[[], None],
    ) -> bool:
        if self.reference is None:
            return True
        return self.reference.precompute(
            module,
            folder,
            expand=lambda batch, is_training: batch,
            micro_batch_sequences=micro_batch_sequences,
            stop_requested=stop_requested,
            on_batch=on_batch,
        )

    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        assert isinstance(batch, ExampleBatch), "examples are not packed"
        reference_S = None if self.reference is None else self.reference.sums(module, batch)
        found = answer_log_probs(module, batch, head=self._head, device=self._ranks.device)
        is_real = torch.from_numpy(batch.row_ids != NO_ROW).to(self._ranks.device)
        pairs = _pairs(found, reference_S, is_real)
        losses_B, margins_B = self.losses(pairs)
        if not batch.num_targets:
            # Joined to every parameter, for all ranks take part in each collective.
            return Outcome(
                found.tokens.sum() * 0, {name: losses_B.new_zeros((), dtype=torch.float64) for name in self.sum_names}
            )
        sums = {
            "margin": margins_B.detach().double().sum(),
            "accuracy": share_ahead(margins_B.detach()),
            "entropy": found.entropies.double().sum(),
            "chosen_length": pairs.chosen_length.double().sum(),
            "rejected_length": pairs.rejected_length.double().sum(),
        }
        if reference_S is not None:
            ratios_B2 = (found.sums.detach() - reference_S).view(-1, 2)[is_real].double()
            rewards = self._beta * ratios_B2.sum(dim=0)
            told = (ratios_B2.mean(dim=1).sum(), *rewards)
            sums |= dict(zip(OF_REFERENCE, told, strict=True))
        return Outcome(losses_B.sum(), sums)

    @property
    def _beta(self) -> float:
        return self.choices.beta if isinstance(self.choices, DpoConfig) else 1.0

    def losses(self, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) losses, and by how much each chosen answer is ahead."""
        match self.choices:
            case DpoConfig():
                return _dpo(pairs, self.choices)
            case CpoConfig():
                return _cpo(pairs, self.choices)
            case OrpoConfig():
                ratio = log_odds_ratio(pairs.chosen_average, pairs.rejected_average)
                loss = -pairs.chosen_average + self.choices.odds_weight * logistic_loss(ratio, beta=1.0)
                return loss, ratio

    def figures(self, sums: Mapping[str, float], *, num_targets: float) -> dict[str, float]:
        found = super().figures(sums, num_targets=num_targets)
        found["entropy"] = sums["entropy"] / max(1.0, sums["chosen_length"] + sums["rejected_length"])
        return found

    def scorer(self, *, num_bytes: int) -> Scorer:
        return SummingScorer(self)


def share_ahead(margins: torch.Tensor) -> torch.Tensor:
    """How many are above 0; one that is 0 counts as half, as a guess would."""
    return (0.5 * (margins.double().sign() + 1)).sum()


def _pairs(found: AnswerLogProbs, reference: torch.Tensor | None, is_real: torch.Tensor) -> Pairs:
    def both(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = values.view(-1, 2)[is_real]
        return pairs[:, 0], pairs[:, 1]

    references = (None, None) if reference is None else both(reference)
    return Pairs(*both(found.sums), *both(found.averages), *both(found.counts), *references)


def _dpo(pairs: Pairs, choices: DpoConfig) -> tuple[torch.Tensor, torch.Tensor]:
    assert pairs.chosen_reference is not None and pairs.rejected_reference is not None, "dpo has a reference"
    chosen, rejected = pairs.chosen - pairs.chosen_reference, pairs.rejected - pairs.rejected_reference
    if choices.averages:
        chosen, rejected = chosen / pairs.chosen_length, rejected / pairs.rejected_length
    margin = chosen - rejected
    match choices.loss:
        case "sigmoid":
            loss = logistic_loss(margin, beta=choices.beta, label_smoothing=choices.label_smoothing)
        case "ipo":
            loss = squared_loss(margin, beta=choices.beta)
        case "hinge":
            loss = hinge_loss(margin, beta=choices.beta)
    return loss - choices.sft_weight * pairs.chosen_average, choices.beta * margin


def _cpo(pairs: Pairs, choices: CpoConfig) -> tuple[torch.Tensor, torch.Tensor]:
    margin = pairs.chosen - pairs.rejected
    match choices.loss:
        case "sigmoid":
            loss = logistic_loss(margin, beta=choices.scale, label_smoothing=choices.label_smoothing)
        case "hinge":
            loss = hinge_loss(margin, beta=choices.scale)
        case "simpo":
            chosen, rejected = pairs.chosen_average, pairs.rejected_average
            margin = chosen - rejected
            loss = simpo_loss(chosen, rejected, beta=choices.scale, target_margin=choices.target_margin)
    return loss - choices.weight_of_sft * pairs.chosen_average, choices.scale * margin


class SummingScorer(Scorer):
    """The figures that a step tells, over all batches of an evaluation."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, batch: AnyBatch, outcome: Outcome) -> None:
        for name, value in outcome.sums.items():
            self._sums[name] = (
                self._sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double().cpu()
            )

    def figures(self, ranks: Ranks, *, loss_sum: float, num_targets: float) -> dict[str, Any]:
        nothing = torch.zeros((), dtype=torch.float64)
        ours = torch.stack([self._sums.get(name, nothing) for name in self._objective.sum_names])
        sums = dict(zip(self._objective.sum_names, ranks.all_sum(ours).tolist(), strict=True))
        return self._objective.figures(sums, num_targets=num_targets)
