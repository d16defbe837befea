"""What PPO and GRPO share: prompts become judged rollouts, and what is told of them.

A step samples answers with the policy as it stands, judges them, and makes its updates over them; an evaluation answers
the held-out prompts. Shapes: S answers, M ids of all of them.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.stream import AnyBatch
from trainer.errors import BadRollout, RunError
from trainer.objectives.answer_figures import HeldOutAnswers, all_sums, answer_figures, sums_of
from trainer.objectives.choose import Setting
from trainer.objectives.log_probs import AnswerLogProbs, answer_log_probs
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.policy_config import GrpoConfig, PpoConfig
from trainer.ranks import Ranks
from trainer.reference import without_adapter
from trainer.rewards import Judge, Texts, identity_of, open_judge
from trainer.rollout import Rollout, Sample, Sampler, dealt, padded_batch
from trainer.value_head import ValueHead, noting_values


@dataclass(frozen=True)
class Parts:
    """What the objective of an online stage works with. `head`: the output embedding of the policy.

    `value_head`: None where nothing has values, as in GRPO and at an evaluation of a saved model. `has_reference`: a
    base lies beneath the adapter.
    """

    ranks: Ranks
    sampler: Sampler
    judge: Judge
    judge_identity: str
    texts: Texts
    head: nn.Module
    value_head: ValueHead | None
    has_reference: bool
    micro_batch_sequences: int
    pad_id: Callable[[], int]


def make_parts(setting: Setting, choices: PpoConfig | GrpoConfig, *, num_samples: int) -> Parts:
    """The parts of the run's stage.

    Raises:
        RunError: no room for an answer, or a reward that can't be opened.
    """
    from trainer.heads import positions_of
    from trainer.value_head import value_head_of

    config, ranks, model, rows = setting.config, setting.ranks, setting.model, setting.source
    shards = Path(config.data.shards)
    sampler = Sampler(
        num_samples=num_samples,
        max_new_tokens=choices.max_new_tokens,
        temperature=choices.temperature,
        evaluation_temperature=choices.evaluation_temperature,
        generation_batch_sequences=choices.generation_batch_sequences,
        seed=config.seed,
        eos_id=rows.shards.eos_id,
        max_positions=positions_of(model),
        ranks=ranks,
    )
    sampler.check_room(seq_len=config.data.seq_len, where=config.stage)

    def open_both() -> tuple[Texts, Judge, str]:
        texts = Texts.of_shards(shards)
        where = f"{config.stage}.reward"
        size = choices.generation_batch_sequences
        judge = open_judge(choices.reward, where=where, shards=shards, texts=texts, ranks=ranks, batch_size=size)
        return texts, judge, identity_of(choices.reward)

    texts, judge, identity = ranks.together(open_both)
    return Parts(
        ranks=ranks,
        sampler=sampler,
        judge=judge,
        judge_identity=identity,
        texts=texts,
        head=model.get_output_embeddings(),  # type: ignore[operator]
        value_head=value_head_of(model),
        has_reference=config.adapter is not None,
        micro_batch_sequences=config.train.micro_batch_sequences,
        pad_id=lambda: rows.pad_id,
    )


class Online(Objective):
    """Rollouts, their figures and the held-out ones; a stage adds advantages and the loss."""

    sum_names: tuple[str, ...] = ("clip_fraction",)

    def __init__(self, choices: PpoConfig | GrpoConfig, parts: Parts) -> None:
        self.choices, self.parts = choices, parts
        self.num_passes = choices.num_passes
        self.kl_weight = choices.kl_weight
        self._told: dict[str, float] = {}
        self._shown: list[dict[str, Any]] = []

    @abstractmethod
    def learnt_from(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """This rank's rollouts of a step with their advantages; every rank calls it."""

    @abstractmethod
    def update_outcome(self, module: nn.Module, rollout: Rollout) -> Outcome:
        """The loss of one rollout with advantages."""

    def collect(
        self,
        module: nn.Module,
        batches: Sequence[AnyBatch],
        *,
        step: int | None,
        on_mark: Callable[[], None] = lambda: None,
    ) -> list[AnyBatch]:
        rollouts = self.rollouts(module, batches, step=step, on_mark=on_mark)
        if step is None:
            return list(rollouts)
        self._told = self.told_of(rollouts)
        return list(self.learnt_from(rollouts))

    def rollouts(
        self, module: nn.Module, batches: Sequence[AnyBatch], *, step: int | None, on_mark: Callable[[], None]
    ) -> list[Rollout]:
        """Answers to the prompts of `batches`, judged, in as many micro-batches on every rank.

        Raises:
            BadRollout: a reward that can't be used, on all ranks.
        """
        ranks, sampler, pad_id = self.parts.ranks, self.parts.sampler, self.parts.pad_id()
        prompts = [batch for batch in batches if isinstance(batch, ExampleBatch)]
        samples = sampler.sample(module, prompts, pad_id=pad_id, step=step, on_mark=on_mark)
        rewards = self._judged(samples)
        size = self.parts.micro_batch_sequences
        was_training = module.training
        module.eval()
        found = []
        try:
            for places in dealt(samples, size=size, ranks=ranks):
                chosen = [samples[place] for place in places]
                batch = padded_batch(chosen, eos_id=sampler.eos_id, pad_id=pad_id)
                values = np.array([rewards[place] for place in places] or [np.nan])
                found.append(self._scored(module, dataclasses.replace(batch, values=values), chosen))
                on_mark()
        finally:
            module.train(was_training)
        return found

    def _judged(self, samples: Sequence[Sample]) -> list[float]:
        """The reward of each; where it can't be had on some rank, every rank raises the same."""
        rewards: list[float] = []
        fault = None
        try:
            rewards = self.parts.judge(samples)
        except BadRollout as error:
            fault = str(error)
        faults = [found for found in self.parts.ranks.gather_objects(fault) if found]
        if faults:
            raise BadRollout(faults[0], told_by_main=not self.parts.ranks.is_main)
        penalty = self.choices.reward.missing_eos_penalty
        return [reward - penalty * (not sample.answer.ended) for reward, sample in zip(rewards, samples, strict=True)]

    @torch.no_grad()
    def _scored(self, module: nn.Module, batch: ExampleBatch, samples: Sequence[Sample]) -> Rollout:
        """What the policy, its value head and the base say of answers before any update."""
        found, values = self.read(module, batch)
        reference = None
        if self.parts.has_reference:
            with without_adapter(module):
                reference = self.read(module, batch)[0].tokens
        return Rollout(
            **vars(batch),
            samples=tuple(samples),
            log_probs=found.tokens,
            entropies=found.entropies,
            reference_log_probs=reference,
            state_values=values,
        )

    def read(self, module: nn.Module, batch: ExampleBatch) -> tuple[AnswerLogProbs, torch.Tensor | None]:
        """One forward pass over a batch's answers; (M,) values where there is a value head."""
        head, value_head = self.parts.head, self.parts.value_head
        none: list[torch.Tensor] = []
        noting: AbstractContextManager[list[torch.Tensor]]
        noting = nullcontext(none) if value_head is None else noting_values(head, value_head)
        temperature = self.choices.temperature
        with noting as noted:
            found = answer_log_probs(module, batch, head=head, device=self.parts.ranks.device, temperature=temperature)
        return found, noted[0] if noted else None

    def weight(self, batch: AnyBatch) -> float:
        if isinstance(batch, Rollout) and batch.advantages is None:
            return float(batch.num_answers)
        return super().weight(batch)

    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        assert isinstance(batch, ExampleBatch), "prompts are not packed"
        rollout = batch if isinstance(batch, Rollout) else self._nothing(batch)
        if rollout.advantages is not None:
            return self.update_outcome(module, rollout)
        sums = sums_of([rollout])
        loss = self.kl_weight * sums["kl"] - sums["reward"]
        nothing = torch.zeros((), dtype=torch.float64)
        return Outcome(torch.tensor(loss), dict.fromkeys(self.sum_names, nothing))

    def _nothing(self, batch: ExampleBatch) -> Rollout:
        """Padding as a rollout that counts for nothing: what DDP lays its buckets out with."""
        assert not batch.num_targets, "prompts are collected before they are learnt from"
        device = self.parts.ranks.device
        zero = torch.zeros(1, device=device)
        empty = padded_batch([], eos_id=self.parts.sampler.eos_id, pad_id=self.parts.pad_id())
        rollout = Rollout(
            **vars(empty), samples=(), log_probs=zero, entropies=zero, reference_log_probs=zero, state_values=zero
        )
        return dataclasses.replace(rollout, advantages=zero, returns=zero)

    # What is told

    def told_of(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Figures of answers over all ranks; every rank calls it."""
        return answer_figures(all_sums(sums_of(rollouts), self.parts.ranks), has_reference=self.parts.has_reference)

    def figures(self, sums: Mapping[str, float], *, num_targets: float) -> dict[str, float]:
        return {**self._told, **super().figures(sums, num_targets=num_targets)}

    def scorer(self, *, num_bytes: int) -> Scorer:
        return HeldOutAnswers(
            self.parts.texts,
            num_shown=self.choices.num_shown,
            has_reference=self.parts.has_reference,
            show=self._show,
        )

    def _show(self, lines: list[dict[str, Any]]) -> None:
        self._shown = lines

    def samples(self) -> list[dict[str, Any]]:
        """The answers to the first held-out prompts at the last evaluation, as text; equal on all ranks."""
        return self._shown

    # State

    def state_dict(self) -> dict[str, Any]:
        return {"kl_weight": self.kl_weight, "reward": self.parts.judge_identity}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        reward = self.choices.reward
        if saved.get("reward", self.parts.judge_identity) != self.parts.judge_identity:
            if reward.model is not None:
                raise RunError(
                    f"reward.model: {reward.model} has other weights than at the save ({saved['reward'][:12]}…, now "
                    f"{self.parts.judge_identity[:12]}…); restore it, or give the new run another run.name"
                )
            if self.parts.ranks.is_main:
                print(f"reward.function: {reward.function} was changed since the save; goes on with it as it is")
        self.kl_weight = float(saved.get("kl_weight", self.kl_weight))
