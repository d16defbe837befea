"""A score for an answer: the objective of `stage: reward`, over a classifier's head of one output.

The head reads the last id of a sequence, which is the answer's EOS.
Shapes: B pairs, S = 2 B sequences, the chosen one of each first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.stream import AnyBatch
from trainer.model import padded_inputs
from trainer.objectives.choose import Setting
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.objectives.preference import SummingScorer, share_ahead
from trainer.objectives.preference_losses import reward_loss
from trainer.preference_config import RewardConfig

SUMS = ("margin", "accuracy", "reward", "reward_squared", "chosen_length", "rejected_length", "longer_ahead")


def make_reward(setting: Setting) -> Reward:
    """The objective over preference rows."""
    assert setting.config.reward is not None, "the config resolves it"
    return Reward(setting.config.reward, device=setting.ranks.device)


class Reward(Objective):
    """Sum of the pairs' losses, in float32.

    What is told beside it: the mean score and its spread (`reward`, `reward_std`), by how much the chosen answer is
    ahead (`margin`) and how often (`accuracy`), the answers' lengths, and how often the longer answer is the one ahead
    (`longer_ahead`): near 1 or 0 the model scores lengths.
    """

    sum_names = SUMS

    def __init__(self, config: RewardConfig, *, device: torch.device) -> None:
        self.config, self._device = config, device

    def scores(self, module: nn.Module, batch: ExampleBatch) -> torch.Tensor:
        """(S,) float32."""
        scores: torch.Tensor = module(**padded_inputs(batch, device=self._device)).logits
        return scores.float().view(-1)

    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        assert isinstance(batch, ExampleBatch) and batch.answers is not None, "preference rows have answers"
        scores_B2 = self.scores(module, batch).view(-1, 2)
        is_real = torch.from_numpy(batch.row_ids != NO_ROW).to(self._device)
        chosen, rejected = scores_B2[is_real].unbind(dim=1)
        loss = reward_loss(chosen, rejected, center_weight=self.config.center_weight).sum()
        if not len(chosen):
            loss = scores_B2.sum() * 0
        lengths_B2 = np.diff(batch.answers, axis=1).reshape(-1, 2)
        longer = torch.from_numpy(np.sign(lengths_B2[:, 0] - lengths_B2[:, 1])).to(self._device)[is_real]
        margins, known = (chosen - rejected).detach().double(), scores_B2.detach()[is_real].double()
        lengths = torch.from_numpy(lengths_B2).to(self._device)[is_real].double().sum(dim=0)
        found = (margins.sum(), share_ahead(margins), known.sum() / 2, (known**2).sum() / 2)
        sums = (*found, *lengths, share_ahead(margins * longer))
        return Outcome(loss, dict(zip(SUMS, sums, strict=True)), scores_B2.detach())

    def figures(self, sums: Mapping[str, float], *, num_targets: float) -> dict[str, float]:
        found = super().figures(sums, num_targets=num_targets)
        spread = max(0.0, found.pop("reward_squared") - found["reward"] ** 2) ** 0.5
        return found | {"reward_std": spread}

    def scorer(self, *, num_bytes: int) -> Scorer:
        return SummingScorer(self)
