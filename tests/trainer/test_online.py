"""PPO and GRPO without a run: samples, what is compared, the losses beside formulas written down again; refusals."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.config import ConfigError, validate
from tests.trainer.online_pieces import ALONE, CPU, VOCABULARY, Evenness, grpo, policy, ppo, prompts
from tests.trainer.tiny_run import tiny_config
from trainer.config import TrainConfig, unread_keys
from trainer.engine import PlainEngine
from trainer.errors import BadRollout, RunError
from trainer.generate import left_padded
from trainer.objectives.online import Online
from trainer.policy_config import PpoConfig
from trainer.reference import without_adapter
from trainer.resilience import StepPolicy, StepPolicyConfig
from trainer.rollout import Rollout, Sample
from trainer.step import Updater

# Sums in another order, in float32.
NEAR = 1e-5


def rolled(objective: Online, model: nn.Module, *, num: int = 5, step: int | None = 3) -> list[Rollout]:
    found = objective.collect(model, [prompts(num)], step=step)
    assert all(isinstance(each, Rollout) for each in found)
    return found  # type: ignore[return-value]


def said(rollouts: Sequence[Rollout]) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """By prompt the answers, in the order of their numbers."""
    by_prompt = defaultdict(list)
    for rollout in rollouts:
        for sample in rollout.samples:
            by_prompt[tuple(sample.prompt)].append(tuple(sample.answer.ids))
    return {prompt: sorted(answers) for prompt, answers in by_prompt.items()}


# Samples


def test_samples_do_not_depend_on_micro_batches_or_on_who_shares_a_generation() -> None:
    model = policy()
    whole = grpo(model, generation_batch_sequences=15)
    small = grpo(model, generation_batch_sequences=2, of_parts={"micro_batch_sequences": 1})

    one = said(rolled(whole, model))
    two = said(small.collect(model, [prompts(2), prompts(3, first=2)], step=3))  # type: ignore[arg-type]

    assert one == two
    assert all(len(answers) == 3 for answers in one.values())


def test_two_ranks_sample_together_what_one_samples_alone() -> None:
    model = policy()

    alone = said(rolled(grpo(model), model))
    of_ranks = [
        said(grpo(model).collect(model, [share], step=3))  # type: ignore[arg-type]
        for share in (prompts(2), prompts(3, first=2))
    ]

    assert alone == of_ranks[0] | of_ranks[1]


def test_samples_of_a_step_are_the_same_again_and_others_at_the_next() -> None:
    model = policy()

    assert said(rolled(grpo(model), model)) == said(rolled(grpo(model), model))
    assert said(rolled(grpo(model), model)) != said(rolled(grpo(model), model, step=4))


def test_the_samples_of_a_group_differ() -> None:
    model = policy()

    assert all(len(set(answers)) > 1 for answers in said(rolled(grpo(model), model)).values())


def test_an_evaluation_answers_each_prompt_once_and_is_greedy_unless_told() -> None:
    model = policy()
    greedy = said(rolled(grpo(model), model, step=None))
    other_seed = grpo(model)
    sampler = dataclasses.replace(other_seed.parts.sampler, seed=8)
    other_seed.parts = dataclasses.replace(other_seed.parts, sampler=sampler)

    assert all(len(answers) == 1 for answers in greedy.values())
    assert said(rolled(other_seed, model, step=None)) == greedy
    assert said(rolled(grpo(model, evaluation_temperature=1.0), model, step=None)) != greedy


def test_padding_rolls_out_to_nothing_and_counts_for_nothing() -> None:
    model = policy(has_values=True)
    empty = dataclasses.replace(prompts(1), row_ids=np.array([-1]), num_targets=0)
    for objective in (ppo(model), grpo(model)):
        assert objective.collect(model, [empty], step=0) == []

        outcome = objective.outcome(model, empty)  # what DDP lays its buckets out with
        outcome.loss.backward()

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert float(outcome.loss.detach()) == 0.0
        if isinstance(objective.choices, PpoConfig):
            assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)
        model.zero_grad()


# What is compared


def direct_log_probs(model: nn.Module, sample: Sample, *, temperature: float = 1.0) -> torch.Tensor:
    """ln p of each id of an answer, EOS among them, from a plain forward pass over that sequence alone."""
    answer = [*sample.answer.ids, *([VOCABULARY.eos_id] if sample.answer.ended else [])]
    ids = torch.tensor([[*sample.prompt, *answer]])
    logits = model(input_ids=ids, use_cache=False).logits[0].float() / temperature
    places = torch.arange(len(sample.prompt) - 1, ids.shape[1] - 1)
    return torch.log_softmax(logits, dim=-1)[places, torch.tensor(answer)]


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_rollout_holds_the_log_probs_of_the_policy_and_of_its_base(temperature: float) -> None:
    model = policy(has_values=True).eval()
    rollouts = rolled(ppo(model, temperature=temperature), model)
    samples = [sample for rollout in rollouts for sample in rollout.samples]

    ours = torch.cat([rollout.log_probs for rollout in rollouts])
    base = torch.cat([rollout.reference_log_probs for rollout in rollouts])  # type: ignore[misc]

    expected = torch.cat([direct_log_probs(model, sample, temperature=temperature) for sample in samples])
    with without_adapter(model):
        of_base = torch.cat([direct_log_probs(model, sample, temperature=temperature) for sample in samples])
    assert ours.tolist() == pytest.approx(expected.tolist(), abs=NEAR)
    assert base.tolist() == pytest.approx(of_base.tolist(), abs=NEAR)
    assert float((ours - base).abs().max()) > 0.01


@torch.no_grad()
def test_a_value_is_that_of_the_state_before_its_id() -> None:
    model: Any = policy(has_values=True).eval()
    rollout = rolled(ppo(model), model, num=1)[0]
    (sample,) = rollout.samples
    answer = [*sample.answer.ids, *([VOCABULARY.eos_id] if sample.answer.ended else [])]

    hidden = model.model(input_ids=torch.tensor([[*sample.prompt, *answer]])).last_hidden_state[0]
    first = len(sample.prompt) - 1

    assert rollout.state_values is not None
    expected = model.value_head(hidden)[first : first + len(answer)]
    assert rollout.state_values.tolist() == pytest.approx(expected.tolist(), abs=NEAR)


def test_an_answer_that_never_ended_pays_for_it() -> None:
    model = policy()
    plain, fined = grpo(model), grpo(model, reward={"missing_eos_penalty": 2.5})

    without, with_it = rolled(plain, model), rolled(fined, model)

    for one, other in zip(without, with_it, strict=True):
        ended = np.array([sample.answer.ended for sample in one.samples])
        assert other.values == pytest.approx(one.values - 2.5 * ~ended)


# Losses, written down a second time


def hand_ppo(objective: Any, model: nn.Module, samples: Sequence[Sample], rewards: Sequence[float]) -> float:
    """Schulman et al. 2017, equation 9, by loops over answers and ids, before any update."""
    choices: PpoConfig = objective.ppo
    advantages, returns, old_values = [], [], []
    for sample, reward in zip(samples, rewards, strict=True):
        log_probs = direct_log_probs(model, sample).tolist()
        with without_adapter(model):
            base = direct_log_probs(model, sample).tolist()
        hidden = model.model(input_ids=torch.tensor([[*sample.prompt, *answer_of(sample)]])).last_hidden_state[0]  # type: ignore[operator]
        first = len(sample.prompt) - 1
        values = model.value_head(hidden)[first : first + len(log_probs)].tolist()  # type: ignore[operator]
        told = [-objective.kl_weight * (ours - theirs) for ours, theirs in zip(log_probs, base, strict=True)]
        told[-1] += reward
        later, found = 0.0, []
        for place in reversed(range(len(values))):
            after = values[place + 1] if place + 1 < len(values) else 0.0
            delta = told[place] + choices.discount * after - values[place]
            later = delta + choices.discount * choices.advantage_smoothing * later
            found.append(later)
        advantages += found[::-1]
        returns += [one + value for one, value in zip(found[::-1], values, strict=True)]
        old_values += values
    mean, spread = np.mean(advantages), np.std(advantages)
    even = [(one - mean) / math.sqrt(spread**2 + 1e-8) for one in advantages]
    # Before an update each ratio is 1 and each value its old one.
    value_loss = 0.5 * np.mean([(value - wanted) ** 2 for value, wanted in zip(old_values, returns, strict=True)])
    return float(-np.mean(even) + choices.value_weight * value_loss)


def answer_of(sample: Sample) -> list[int]:
    return [*sample.answer.ids, *([VOCABULARY.eos_id] if sample.answer.ended else [])]


def mean_loss(objective: Online, model: nn.Module, rollouts: Sequence[Rollout]) -> torch.Tensor:
    losses = [objective.outcome(model, rollout).loss for rollout in rollouts]
    return torch.stack(losses).sum() / sum(objective.weight(rollout) for rollout in rollouts)


def test_ppos_loss_is_the_papers_by_loops() -> None:
    model = policy(has_values=True).eval()
    objective = ppo(model, kl_weight=0.3, value_weight=0.7, discount=0.9, advantage_smoothing=0.8)
    rollouts = rolled(objective, model)
    samples = [sample for rollout in rollouts for sample in rollout.samples]
    rewards = np.concatenate([rollout.values for rollout in rollouts]).tolist()

    found = float(mean_loss(objective, model, rollouts).detach())

    with torch.no_grad():
        assert found == pytest.approx(hand_ppo(objective, model, samples, rewards), abs=NEAR)


def judged_of(rollouts: Sequence[Rollout]) -> list[tuple[Sample, float]]:
    """Each answer with its reward."""
    return [each for rollout in rollouts for each in zip(rollout.samples, rollout.values.tolist(), strict=True)]


def trl_loss(model: nn.Module, rollouts: Sequence[Rollout], advantages: dict[Any, float], **keys: Any) -> float:
    """What trl's GRPOTrainer makes of the same answers: left-padded prompts, log-probs from a plain forward pass."""
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    samples = [sample for rollout in rollouts for sample in rollout.samples]
    old = [part for rollout in rollouts for part in rollout.log_probs.split(rollout.counts().tolist())]
    base = [
        part
        for rollout in rollouts
        for part in rollout.reference_log_probs.split(rollout.counts().tolist())  # type: ignore[union-attr]
    ]
    prompt_ids, prompt_mask = left_padded([sample.prompt for sample in samples], pad_id=1, device=CPU)
    pad = torch.nn.utils.rnn.pad_sequence
    completion_ids = pad([torch.tensor(answer_of(sample)) for sample in samples], batch_first=True, padding_value=1)
    mask = pad([torch.ones(len(answer_of(sample)), dtype=torch.int64) for sample in samples], batch_first=True)

    def log_probs(of: nn.Module, ids: torch.Tensor, attention: torch.Tensor, keep: int, **_: Any) -> Any:
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        logits = of(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False).logits.float()
        chosen = torch.log_softmax(logits[:, -keep - 1 : -1], dim=-1)
        entropies = -(chosen.exp() * chosen).sum(dim=-1)
        return chosen.gather(2, ids[:, -keep:, None])[..., 0], entropies, None

    told = {
        "beta": 0.0,
        "loss_type": "grpo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "max_completion_length": 6,
        "importance_sampling_level": "token",
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "use_vllm": False,
        "current_gradient_accumulation_steps": 1,
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "model": model,
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        "accelerator": SimpleNamespace(
            num_processes=1, reduce=lambda tensor, **_: tensor, gather=lambda tensor: tensor
        ),
        "_get_per_token_logps_and_entropies": log_probs,
    }
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": mask,
        "advantages": torch.tensor([advantages[id(sample)] for sample in samples]),
        "old_per_token_logps": pad(old, batch_first=True),
        "ref_per_token_logps": pad(base, batch_first=True),
        "num_items_in_batch": mask.sum(),
    }
    with torch.no_grad():
        loss = grpo_trainer.GRPOTrainer._compute_loss(SimpleNamespace(**told | keys), model, inputs)
    return float(loss)


def trl_advantages(rollouts: Sequence[Rollout], *, num_samples: int, is_scaled: bool) -> dict[Any, float]:
    """By sample; trl 1.16's formula, lines 2767 to 2787 of grpo_trainer.py, with its own nanstd."""
    utils = pytest.importorskip("trl.trainer.utils")
    judged = judged_of(rollouts)
    judged.sort(key=lambda each: each[0].group)
    rewards = torch.tensor([reward for _, reward in judged], dtype=torch.float32).view(-1, num_samples)
    found = rewards - torch.nanmean(rewards, dim=1, keepdim=True)
    if is_scaled:
        found = found / (utils.nanstd(rewards, dim=1)[:, None] + 1e-4)
    return {id(sample): float(one) for (sample, _), one in zip(judged, found.view(-1), strict=True)}


@pytest.mark.stages  # trl alone takes seconds to import
@pytest.mark.parametrize(
    ("keys", "of_trl"),
    [
        ({"kl_weight": 0.2}, {"beta": 0.2}),
        ({"kl_weight": 0.0}, {}),
        (
            {"kl_weight": 0.2, "loss": "dapo", "clip_range_above": 0.28},
            {"beta": 0.2, "loss_type": "dapo", "epsilon_high": 0.28},
        ),
        ({"kl_weight": 0.2, "loss": "dr_grpo", "scale_rewards": False}, {"beta": 0.2, "loss_type": "dr_grpo"}),
    ],
    ids=["grpo", "without-kl", "dapo", "dr-grpo"],
)
def test_grpos_loss_is_that_of_trl(keys: dict[str, Any], of_trl: dict[str, Any]) -> None:
    model = policy()
    objective = grpo(model, num_samples=4, **keys)
    rollouts = rolled(objective, model)
    advantages = trl_advantages(rollouts, num_samples=4, is_scaled=objective.grpo.scale_rewards)
    stir(model)  # as an update would, so that ratios differ and some are clipped

    outcomes = [objective.outcome(model, rollout) for rollout in rollouts]
    found = float(mean_loss(objective, model, rollouts).detach())

    assert float(sum(outcome.sums["clip_fraction"] for outcome in outcomes)) > 0
    assert found == pytest.approx(trl_loss(model, rollouts, advantages, **of_trl), abs=1e-4)


def stir(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def test_grpos_loss_is_the_papers_by_loops() -> None:
    # Shao et al. 2024, equation 3, before an update: the ratio is 1, so that each answer's mean is its advantage.
    model = policy().eval()
    objective = grpo(model, kl_weight=0.5)
    rollouts = rolled(objective, model)
    judged = judged_of(rollouts)
    terms = []
    with torch.no_grad():
        for sample, reward in judged:
            group = [other for of, other in judged if of.group == sample.group]
            advantage = (reward - np.mean(group)) / (np.std(group, ddof=1) + 1e-4)
            ours = direct_log_probs(model, sample)
            with without_adapter(model):
                ratio = direct_log_probs(model, sample) - ours
            terms.append(-advantage + 0.5 * float((ratio.exp() - ratio - 1).mean()))

    found = float(mean_loss(objective, model, rollouts).detach())

    assert found == pytest.approx(np.mean(terms), abs=NEAR)


@pytest.mark.parametrize("make", [ppo, grpo], ids=["ppo", "grpo"])
def test_the_gradient_does_not_depend_on_micro_batches(make: Any) -> None:
    gradients = []
    for size in (15, 2):
        model = policy(has_values=make is ppo)
        objective = make(model, of_parts={"micro_batch_sequences": size})
        mean_loss(objective, model, rolled(objective, model)).backward()
        gradients.append(torch.cat([each.grad.view(-1) for each in model.parameters() if each.grad is not None]))

    assert gradients[1].tolist() == pytest.approx(gradients[0].tolist(), rel=1e-4, abs=1e-6)


# Figures


def test_a_steps_figures_are_those_of_its_answers() -> None:
    model = policy(has_values=True)
    objective = ppo(model)
    rollouts = rolled(objective, model, num=6)
    rewards = np.concatenate([rollout.values for rollout in rollouts])
    log_ratios = torch.cat([rollout.log_probs - rollout.reference_log_probs for rollout in rollouts])  # type: ignore[operator]

    told = objective.figures({"clip_fraction": 3.0, "value_loss": 6.0}, num_targets=30)

    assert told["reward"] == pytest.approx(rewards.mean())
    assert told["reward_std"] == pytest.approx(rewards.std())
    assert told["answer_length"] == pytest.approx(sum(rollout.num_targets for rollout in rollouts) / 6)
    assert told["kl"] == pytest.approx(float(log_ratios.sum()) / 6, rel=1e-5)
    assert 0 < told["entropy"] < math.log(97)
    assert (told["clip_fraction"], told["value_loss"]) == pytest.approx((0.1, 0.2))
    returns = torch.cat([rollout.returns for rollout in rollouts])  # type: ignore[misc]
    values = torch.cat([rollout.state_values for rollout in rollouts])  # type: ignore[misc]
    explained = 1 - float((returns - values).var(unbiased=False) / returns.var(unbiased=False))
    assert told["explained_variance"] == pytest.approx(explained, abs=1e-4)


class Alike:
    """The same reward for all answers."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [0.5 for _ in samples]


def test_groups_of_equal_rewards_are_counted_and_teach_nothing_but_the_kl() -> None:
    model = policy()
    objective = grpo(model, of_parts={"judge": Alike()}, kl_weight=0.0)

    rollouts = rolled(objective, model)

    assert objective.figures({"clip_fraction": 0.0}, num_targets=1)["flat_groups"] == 1.0
    mean_loss(objective, model, rollouts).backward()
    assert all(each.grad is None or not each.grad.any() for each in model.parameters())


def test_the_kls_weight_follows_its_target_and_is_saved() -> None:
    model = policy(has_values=True)
    objective = ppo(model, kl_weight=0.2, target_kl=1e-3, kl_gain=0.5)

    rolled(objective, model)

    assert objective.figures({"clip_fraction": 0.0, "value_loss": 0.0}, num_targets=1)["kl_weight"] == 0.2
    assert objective.kl_weight == pytest.approx(0.2 * 1.1)  # far above the target: the error counts up to 0.2
    again = ppo(model, kl_weight=0.2, target_kl=1e-3)
    again.load_state_dict(objective.state_dict())
    assert again.kl_weight == objective.kl_weight


def test_an_evaluation_changes_nothing_of_the_objective() -> None:
    model = policy(has_values=True)
    objective = ppo(model, kl_weight=0.2, target_kl=1e-3)
    before = objective.state_dict()

    rolled(objective, model, step=None)

    assert objective.state_dict() == before


def test_another_reward_model_at_a_resume_is_refused() -> None:
    model = policy()
    objective = grpo(model, reward={"model": "runs/reward"})

    with pytest.raises(RunError, match="reward.model: runs/reward has other weights than at the save"):
        objective.load_state_dict({"kl_weight": 0.04, "reward": "0" * 64})


def test_held_out_figures_and_the_answers_that_are_shown() -> None:
    model = policy()
    objective = grpo(model, num_shown=2, kl_weight=0.5)
    scorer = objective.scorer(num_bytes=0)
    everyone = []
    for batch in (prompts(3, first=2), prompts(2)):
        for rollout in objective.collect(model, [batch], step=None):
            assert isinstance(rollout, Rollout)
            scorer.add(rollout, objective.outcome(model, rollout))
            everyone.append(rollout)

    told = scorer.figures(ALONE, loss_sum=0.0, num_targets=0.0)

    rewards = np.concatenate([rollout.values for rollout in everyone])
    assert told["reward"] == pytest.approx(rewards.mean())
    assert [line["row"] for line in objective.samples()] == [0, 1]
    first = next(each for each in judged_of(everyone) if each[0].row == 0)
    assert objective.samples()[0]["reward"] == first[1]
    assert objective.samples()[0]["answer"] == " ".join(map(str, first[0].answer.ids))
    assert set(objective.samples()[0]) == {"row", "prompt", "answer", "reward", "ended"}


# Steps


def config_of(stage: str, **sections: Any) -> TrainConfig:
    tree: dict[str, Any] = {"stage": stage, "adapter": {"rank": 4}, "model": {"from": "base"}, **sections}
    tree[stage] = {"reward": {"function": "a.py:f"}} | tree.get(stage, {})
    return tiny_config(Path("runs"), Path("shards"), **tree)


def updater(objective: Online, model: nn.Module) -> Updater:
    engine = PlainEngine(config_of("ppo"), model=model, ranks=ALONE)
    policy = StepPolicy(StepPolicyConfig(max_consecutive_skips=1))
    return Updater(engine, objective, policy, ALONE, seed=1, stop_requested=lambda: False)


def trained_of(model: nn.Module) -> list[list[float]]:
    return [each.detach().clone().view(-1).tolist() for each in model.parameters() if each.requires_grad]


def test_a_step_makes_its_passes_over_one_rollout() -> None:
    model = policy(has_values=True)
    asked = []

    class Counting(Evenness):
        def __call__(self, samples: Sequence[Sample]) -> list[float]:
            asked.append(len(samples))
            return super().__call__(samples)

    objective = ppo(model, num_passes=3, of_parts={"judge": Counting()})
    before = trained_of(model)

    metrics = updater(objective, model).step([prompts(5)], number=0, lr=1e-3)

    assert asked == [5]
    assert not metrics.skipped and trained_of(model) != before
    assert 5 <= metrics.num_targets <= 5 * 6
    assert metrics.figures["clip_fraction"] >= 0


class Breaking(Evenness):
    """Like any judge, but what is asked the second time is NaN at one row."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        raise BadRollout("ppo.reward.function: f returned nan for row 3; return a finite number")


def test_law_8_a_reward_that_cant_be_used_refuses_the_step_and_is_counted() -> None:
    model = policy(has_values=True)
    worker = updater(ppo(model, of_parts={"judge": Breaking()}), model)
    before = trained_of(model)

    metrics = [worker.step([prompts(5)], number=number, lr=1e-3) for number in range(2)]

    assert all(each.skipped and "returned nan for row 3" in each.reason for each in metrics)
    assert trained_of(model) == before
    assert worker.policy.is_exhausted


def test_law_8_a_refused_update_ends_its_step_and_leaves_the_one_before() -> None:
    model = policy(has_values=True)
    twin = copy.deepcopy(model)
    objective = ppo(model, num_passes=3)
    plain = objective.update_outcome
    calls = []

    def breaking(module: nn.Module, rollout: Rollout) -> Any:
        calls.append(rollout)
        outcome = plain(module, rollout)
        return dataclasses.replace(outcome, loss=outcome.loss * (math.nan if len(calls) > 2 else 1.0))

    objective.update_outcome = breaking  # type: ignore[method-assign]
    worker = updater(objective, model)
    metrics = worker.step([prompts(5)], number=0, lr=1e-3)  # two micro-batches a pass

    updater(ppo(twin, num_passes=1), twin).step([prompts(5)], number=0, lr=1e-3)
    assert not metrics.skipped and metrics.reason.startswith("update 2 of 3 of the step: not finite")
    assert math.isfinite(metrics.loss) and not worker.policy.is_exhausted
    assert len(calls) == 4
    assert trained_of(model) == trained_of(twin)


# Configs


def test_a_config_without_a_reward_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.reward: names neither a function nor a model"):
        config_of("ppo", ppo={"reward": {}})


def test_a_kl_without_an_adapter_is_refused_with_both_ways_out() -> None:
    with pytest.raises(ConfigError, match=r"grpo\.kl_weight is 0\.04, but there is no adapter.*kl_weight to 0"):
        config_of("grpo", adapter=None)
    assert config_of("grpo", adapter=None, grpo={"kl_weight": 0}).adapter is None


def test_a_target_of_the_kl_needs_a_weight_to_begin_with() -> None:
    with pytest.raises(ConfigError, match=r"ppo\.target_kl is 6, but kl_weight begins at 0"):
        config_of("ppo", ppo={"kl_weight": 0, "target_kl": 6})


def test_spikes_and_new_rows_are_refused_online() -> None:
    with pytest.raises(ConfigError, match=r"policy\.refuse_spikes: the loss of stage 'grpo' goes up and down"):
        config_of("grpo", policy={"refuse_spikes": True})
    with pytest.raises(ConfigError, match="new_rows: stage 'ppo' holds the policy against the base"):
        config_of("ppo", new_rows={})


def test_what_nothing_reads_is_told() -> None:
    told = "\n".join(unread_keys(config_of("ppo", adapter={"rank": 4, "dropout": 0.1}, ppo={"kl_gain": 0.3})))

    assert "adapter.dropout: 0.1 is not read: stage 'ppo' compares probabilities" in told
    assert "ppo.kl_gain: 0.3 is not read: there is no ppo.target_kl" in told


def test_prompts_and_answers_that_are_longer_than_the_model_are_refused() -> None:
    sampler = grpo(policy()).parts.sampler

    with pytest.raises(RunError, match=r"grpo\.max_new_tokens: 6 after prompts of up to data\.seq_len 60 ids are more"):
        sampler.check_room(seq_len=60, where="grpo")
    sampler.check_room(seq_len=58, where="grpo")


def test_a_config_round_trips() -> None:
    config = config_of("grpo")

    assert config.grpo is not None and config.grpo.num_samples == 8
    assert validate(config.model_dump(by_alias=True), TrainConfig, where="test") == config
