"""The losses of preference tuning, a value for each example, as their papers write them.

Shapes: B examples. `chosen`, `rejected`: log p of the two answers under the model, `margin`: what their difference is
beyond the reference's. y_w is the chosen answer to x, y_l the rejected one, pi the model, sigma the logistic function.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid, relu


def logistic_loss(margin: torch.Tensor, *, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """-(1 - e) ln sigma(beta margin) - e ln sigma(-beta margin); (B,).

    DPO (Rafailov et al. 2023, equation 7) where `margin` is (ln pi - ln pi_ref)(y_w) - (ln pi - ln pi_ref)(y_l), and
    CPO's preference term (Xu et al. 2024, L_prefer) without the reference. `label_smoothing` e: the share of pairs
    that are the wrong way round (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    right, wrong = logsigmoid(beta * margin), logsigmoid(-beta * margin)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def squared_loss(margin: torch.Tensor, *, beta: float) -> torch.Tensor:
    """(margin - 1 / (2 beta))^2: IPO (Azar et al. 2023, equation 17), beta its tau; (B,)."""
    return (margin - 1 / (2 * beta)) ** 2


def hinge_loss(margin: torch.Tensor, *, beta: float) -> torch.Tensor:
    """max(0, 1 - beta margin): SLiC's hinge (Zhao et al. 2023) over DPO's margin; (B,)."""
    return relu(1 - beta * margin)


def simpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, *, beta: float, target_margin: float) -> torch.Tensor:
    """-ln sigma(beta (chosen - rejected) - gamma), over averages of an answer's ids; (B,).

    SimPO (Meng et al. 2024, equation 6); `target_margin` is its gamma.
    """
    return -logsigmoid(beta * (chosen - rejected) - target_margin)


def log_odds_ratio(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """ln (odds(y_w) / odds(y_l)), odds = P / (1 - P), of averages of an answer's ids below 0; (B,).

    ORPO (Hong et al. 2024, equations 3, 4 and 7).
    """
    return (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))


def _log_of_rest(log_p: torch.Tensor) -> torch.Tensor:
    """ln (1 - p), also where p is near 0 or 1 (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").

    A p that rounds to 1 counts as the largest number below it: its odds are large, not infinite.
    """
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    near_one = torch.log(-torch.expm1(log_p))
    far = torch.log1p(-torch.exp(log_p))
    return torch.where(log_p > -0.6931472, near_one, far)


def kto_loss(
    log_ratio: torch.Tensor,
    is_desirable: torch.Tensor,
    *,
    kl: torch.Tensor | float,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> torch.Tensor:
    """lambda_y - v(x, y): 1 - sigma(beta (r - z)) of desirable answers, 1 - sigma(beta (z - r)) of others; (B,).

    KTO (Ethayarajh et al. 2024, equation 7): r is ln pi - ln pi_ref of the answer, z the `kl` of the model to
    the reference, without gradient and not below 0. Each term bears its weight.
    """
    gain = torch.where(is_desirable, log_ratio - kl, kl - log_ratio)
    weight = torch.where(is_desirable, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(beta * gain))


def reward_loss(chosen: torch.Tensor, rejected: torch.Tensor, *, center_weight: float = 0.0) -> torch.Tensor:
    """-ln sigma(r_w - r_l), of the scores of the two answers; (B,).

    Bradley-Terry (Ouyang et al. 2022, equation 1). `center_weight` times (r_w + r_l)^2 keeps the scores' mean at 0
    (Eisenstein et al. 2023, equation 2).
    """
    loss = -logsigmoid(chosen - rejected)
    return loss + center_weight * (chosen + rejected) ** 2 if center_weight else loss
