"""Proximal policy optimisation with a value head: the objective of `stage: ppo`.

The reward of an id is -kl_weight ln(pi / pi_ref), the answer's own reward comes at its last id (Ziegler et al. 2019,
equation 2); the loss is Schulman et al. 2017, equation 9 without its entropy bonus. The mean is over the ids of all
answers of a step. Shapes: S answers, T the ids of the longest, M ids of all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from data_pipeline.stream.stream import AnyBatch
from trainer.objectives.advantages import (
    adapted_kl_weight,
    advantages_of,
    clipped_policy_losses,
    clipped_value_losses,
    in_order,
    in_rows,
    moments,
    token_rewards,
    whitened,
)
from trainer.objectives.choose import Setting
from trainer.objectives.objective import Outcome
from trainer.objectives.online import Online, Parts, make_parts
from trainer.policy_config import PpoConfig
from trainer.rollout import Rollout


def make_ppo(setting: Setting) -> Ppo:
    """The objective over the prompts of the shards."""
    choices = setting.config.ppo
    assert choices is not None, "the config resolves it"
    return Ppo(choices, make_parts(setting, choices, num_samples=1))


class Ppo(Online):
    """Sum over the ids of the clipped policy loss and `value_weight` times the clipped value loss, in float32."""

    sum_names = ("clip_fraction", "value_loss")

    def __init__(self, choices: PpoConfig, parts: Parts) -> None:
        super().__init__(choices, parts)
        self.ppo = choices

    def collect(
        self,
        module: nn.Module,
        batches: Sequence[AnyBatch],
        *,
        step: int | None,
        on_mark: Callable[[], None] = lambda: None,
    ) -> list[AnyBatch]:
        found = super().collect(module, batches, step=step, on_mark=on_mark)
        if step is not None:
            self._told["kl_weight"] = self.kl_weight
            if self.ppo.target_kl is not None:  # of the next step
                kl, target = self._told["kl"], self.ppo.target_kl
                self.kl_weight = adapted_kl_weight(self.kl_weight, kl=kl, target=target, gain=self.ppo.kl_gain)
        return found

    def learnt_from(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        ranks = self.parts.ranks
        found = [self._with_advantages(rollout) for rollout in rollouts]
        real = [rollout for rollout in found if rollout.num_answers]
        nothing = torch.zeros(0, device=ranks.device)
        joined = torch.cat([_present(rollout.advantages) for rollout in real] or [nothing])
        even = iter(whitened(joined, ranks).split([len(rollout.log_probs) for rollout in real]))
        self._tell_values(real)
        return [
            dataclasses.replace(rollout, advantages=next(even)) if rollout.num_answers else rollout for rollout in found
        ]

    def _with_advantages(self, rollout: Rollout) -> Rollout:
        """Each answer's generalised advantages, and what the values should have been: advantage + value."""
        device, counts = rollout.log_probs.device, rollout.counts()
        values = _present(rollout.state_values)
        log_ratios = torch.zeros_like(values)
        if rollout.reference_log_probs is not None:
            log_ratios = rollout.log_probs - rollout.reference_log_probs
        scores = torch.from_numpy(rollout.values).float().to(device).nan_to_num()  # NaN of padding alone
        rewards = token_rewards(scores, in_rows(log_ratios, counts), counts, kl_weight=self.kl_weight)
        choices = self.ppo
        smoothing = choices.advantage_smoothing
        found = advantages_of(rewards, in_rows(values, counts), counts, discount=choices.discount, smoothing=smoothing)
        advantages = in_order(found, counts)
        return dataclasses.replace(rollout, advantages=advantages, returns=advantages + values)

    def _tell_values(self, rollouts: Sequence[Rollout]) -> None:
        """The share of the returns' variance that the values explained: 1 - Var(R - V) / Var(R), 0 where it is 0."""
        ranks = self.parts.ranks
        nothing = [torch.zeros(0, device=ranks.device)]
        returns = torch.cat([_present(rollout.returns) for rollout in rollouts] or nothing)
        values = torch.cat([_present(rollout.state_values) for rollout in rollouts] or nothing)
        of_returns, of_rest = moments(returns, ranks), moments(returns - values, ranks)
        explained = 1 - of_rest.variance / of_returns.variance if of_returns.variance > 0 else 0.0
        self._told |= {"explained_variance": explained, "value_mean": of_returns.mean - of_rest.mean}

    def update_outcome(self, module: nn.Module, rollout: Rollout) -> Outcome:
        found, values = self.read(module, rollout)
        choices = self.ppo
        counted = float(rollout.num_answers > 0)
        losses, are_clipped = clipped_policy_losses(
            found.tokens - rollout.log_probs,
            _present(rollout.advantages),
            below=choices.clip_range,
            above=choices.clip_range,
        )
        value_losses = clipped_value_losses(
            _present(values),
            _present(rollout.state_values),
            _present(rollout.returns),
            clip_range=choices.value_clip_range,
        )
        loss = counted * (losses.sum() + choices.value_weight * value_losses.sum())
        sums = {
            "clip_fraction": counted * are_clipped.double().sum(),
            "value_loss": counted * value_losses.detach().double().sum(),
        }
        return Outcome(loss, sums)


def _present(values: torch.Tensor | None) -> torch.Tensor:
    assert values is not None, "a rollout of this stage has them"
    return values
