"""Group relative policy optimisation: the objective of `stage: grpo`.

Several answers to each prompt are judged against their mean, so that no value head is needed; the KL to the reference
stands in the loss (Shao et al. 2024, "DeepSeekMath", equation 3). Shapes: S answers, M ids of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from data_pipeline.stream.stream import AnyBatch
from trainer.objectives.advantages import clipped_policy_losses, group_advantages, k3
from trainer.objectives.choose import Setting
from trainer.objectives.objective import Outcome
from trainer.objectives.online import Online, Parts, make_parts
from trainer.policy_config import GrpoConfig
from trainer.rollout import Rollout


def make_grpo(setting: Setting) -> Grpo:
    """The objective over the prompts of the shards."""
    choices = setting.config.grpo
    assert choices is not None, "the config resolves it"
    return Grpo(choices, make_parts(setting, choices, num_samples=choices.num_samples))


class Grpo(Online):
    """Sum over the ids of the clipped policy loss and `kl_weight` times k3, weighted as `loss` says, in float32."""

    sum_names = ("clip_fraction",)

    def __init__(self, choices: GrpoConfig, parts: Parts) -> None:
        super().__init__(choices, parts)
        self.grpo = choices

    def learnt_from(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        ranks, choices = self.parts.ranks, self.grpo
        groups = np.array([sample.group for rollout in rollouts for sample in rollout.samples], np.int64)
        rewards = np.concatenate([rollout.values[: rollout.num_answers] for rollout in rollouts] or [np.empty(0)])
        order = np.argsort(groups, kind="stable")
        grouped = torch.from_numpy(rewards[order]).view(-1, choices.num_samples)
        advantages = torch.empty(len(rewards), dtype=torch.float64)
        num_flat = 0.0
        if len(grouped):  # a rank may have no prompt
            advantages[torch.from_numpy(order)] = group_advantages(grouped, is_scaled=choices.scale_rewards).view(-1)
            num_flat = float((grouped.amax(dim=1) == grouped.amin(dim=1)).sum())
        flat, count = ranks.all_sum(torch.tensor([num_flat, float(len(grouped))])).tolist()
        self._told["flat_groups"] = flat / max(1.0, count)
        parts = iter(advantages.float().to(ranks.device).split([rollout.num_answers for rollout in rollouts]))
        found = []
        for rollout in rollouts:
            ours = next(parts)
            spread = ours.repeat_interleave(rollout.counts()) if rollout.num_answers else rollout.log_probs * 0
            found.append(dataclasses.replace(rollout, advantages=spread))
        return found

    def weight(self, batch: AnyBatch) -> float:
        """What the sum is divided by: answers, ids, or the ids that all answers might have had."""
        if not isinstance(batch, Rollout) or batch.advantages is None:
            return super().weight(batch)
        match self.grpo.loss:
            case "grpo":
                return float(batch.num_answers)
            case "dapo":
                return float(batch.num_targets)
            case "dr_grpo":
                return float(batch.num_answers * self.grpo.max_new_tokens)

    def update_outcome(self, module: nn.Module, rollout: Rollout) -> Outcome:
        found, _ = self.read(module, rollout)
        assert rollout.advantages is not None, "it is learnt from"
        choices = self.grpo
        losses, are_clipped = clipped_policy_losses(
            found.tokens - rollout.log_probs,
            rollout.advantages,
            below=choices.clip_range,
            above=choices.clip_range if choices.clip_range_above is None else choices.clip_range_above,
        )
        if choices.kl_weight and rollout.reference_log_probs is not None:
            losses = losses + choices.kl_weight * k3(found.tokens - rollout.reference_log_probs)
        if choices.loss == "grpo":
            losses = losses / rollout.counts().repeat_interleave(rollout.counts())
        counted = float(rollout.num_answers > 0)
        return Outcome(counted * losses.sum(), {"clip_fraction": counted * are_clipped.double().sum()})
