"""The formulas of policy optimisation, each with its paper: rewards a token, advantages, clipped losses, the KL.

Pure functions of tensors; only what is averaged over a whole step asks the other ranks.
Shapes: S answers, T the ids of the longest, M the ids of all answers in order, B groups of G answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from trainer.ranks import Ranks

# Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2.
MAX_KL_ERROR = 0.2
# Keeps a division by a spread of 0 finite; the second one is that of trl's GRPO.
WHITENING_EPSILON = 1e-8
GROUP_EPSILON = 1e-4


def in_rows(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(S, T) of (M,) values of answers one after another, 0 behind each answer's `counts` (S,)."""
    return torch.nn.utils.rnn.pad_sequence(list(values.split(counts.tolist())), batch_first=True)


def in_order(rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """(M,) of (S, T): what `in_rows` took."""
    return rows[_are_inside(rows, counts)]


def _are_inside(rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return torch.arange(rows.shape[1], device=rows.device)[None] < counts[:, None]


def token_rewards(
    scores: torch.Tensor, log_ratios: torch.Tensor, counts: torch.Tensor, *, kl_weight: float
) -> torch.Tensor:
    """(S, T): -kl_weight ln(pi / pi_ref) at each id, and the answer's score (S,) at its last one.

    Ziegler et al. 2019, equation 2, a token at a time. `log_ratios` (S, T), `counts` (S,), each at least 1.
    """
    rewards = torch.where(_are_inside(log_ratios, counts), -kl_weight * log_ratios, 0.0)
    last = (counts - 1)[:, None]
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def advantages_of(
    rewards: torch.Tensor, values: torch.Tensor, counts: torch.Tensor, *, discount: float, smoothing: float
) -> torch.Tensor:
    """(S, T) generalised advantages; 0 behind the answers. Nothing is worth anything after an answer's last id.

    Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", equation 16:
    A_t = delta_t + discount * smoothing * A_t+1, with delta_t = r_t + discount * V_t+1 - V_t (equation 9's V).
    """
    inside = _are_inside(rewards, counts)
    values = torch.where(inside, values, 0.0)
    found = torch.zeros_like(rewards)
    after, value_after = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for place in reversed(range(rewards.shape[1])):
        delta = rewards[:, place] + discount * value_after - values[:, place]
        after = torch.where(inside[:, place], delta + discount * smoothing * after, 0.0)
        found[:, place], value_after = after, values[:, place]
    return found


@dataclass(frozen=True)
class Moments:
    """Of numbers that all ranks hold together; the variance is that of the numbers themselves (divided by `count`)."""

    count: float
    mean: float
    variance: float


def moments(values: torch.Tensor, ranks: Ranks) -> Moments:
    """The moments of (M,) values over all ranks; every rank calls it, perhaps with none."""
    values = values.detach().double()
    count, total = ranks.all_sum(torch.stack([values.new_tensor(float(len(values))), values.sum()])).tolist()
    mean = total / max(1.0, count)
    squares = float(ranks.all_sum(((values - mean) ** 2).sum()))
    return Moments(count, mean, squares / max(1.0, count))


def whitened(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """(M,) values with mean 0 and variance 1 over the answers of all ranks.

    Engstrom et al. 2020, "Implementation Matters in Deep Policy Gradients", section 2 (advantage normalisation).
    """
    found = moments(values, ranks)
    return ((values.double() - found.mean) / math.sqrt(found.variance + WHITENING_EPSILON)).to(values.dtype)


def group_advantages(rewards: torch.Tensor, *, is_scaled: bool) -> torch.Tensor:
    """(B, G): each reward less its group's mean, over the group's standard deviation where `is_scaled`.

    Shao et al. 2024, "DeepSeekMath", section 4.1.2. The deviation divides by G - 1, as trl's does; unscaled it is Liu
    et al. 2025, "Understanding R1-Zero-Like Training", section 3.2 (Dr. GRPO).
    """
    found = rewards - rewards.mean(dim=1, keepdim=True)
    return found / (rewards.std(dim=1, keepdim=True) + GROUP_EPSILON) if is_scaled else found


def clipped_policy_losses(
    log_ratios: torch.Tensor, advantages: torch.Tensor, *, below: float, above: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(M,) -min(r A, clip(r, 1 - below, 1 + above) A), and whether the clipped one counts.

    Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7; two ranges are Yu et al. 2025, "DAPO",
    equation 10. `log_ratios` (M,): ln pi - ln pi_old.
    """
    ratios = log_ratios.exp()
    free, clipped = -advantages * ratios, -advantages * ratios.clamp(1 - below, 1 + above)
    return torch.maximum(free, clipped), (clipped > free).detach()


def clipped_value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, *, clip_range: float
) -> torch.Tensor:
    """(M,) half of the larger square error: of the value, and of the value at most `clip_range` from its old one.

    Schulman et al. 2016, equation 28, held as the policy is (Engstrom et al. 2020, section 2, "value function
    clipping").
    """
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def k1(log_ratios: torch.Tensor) -> torch.Tensor:
    """ln(pi / pi_ref) of sampled ids: its mean is KL(pi || pi_ref), one of them may be below 0.

    Schulman 2020, "Approximating KL Divergence", the estimator k1.
    """
    return log_ratios


def k3(log_ratios: torch.Tensor) -> torch.Tensor:
    """The same mean with less spread, and never below 0: r - 1 - ln r with r = pi_ref / pi.

    Schulman 2020, k3; Shao et al. 2024, equation 4. `log_ratios`: ln(pi / pi_ref).
    """
    return torch.expm1(-log_ratios) + log_ratios


def adapted_kl_weight(weight: float, *, kl: float, target: float, gain: float) -> float:
    """The weight of the next step: larger where the KL of an answer was above `target` nats, smaller below it.

    Ziegler et al. 2019, section 2.2: e = clip(kl / target - 1, -0.2, 0.2); weight' = weight (1 + gain e). A KL that is
    not finite changes nothing.
    """
    if not math.isfinite(kl):
        return weight
    error = min(max(kl / target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
    return weight * (1 + gain * error)
