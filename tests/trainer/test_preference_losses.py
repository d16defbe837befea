"""Each loss on numbers that were worked by hand from its paper's formula, and beside trl's where it has one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.objectives.kto import pair_accuracy
from trainer.objectives.preference import Pairs, Preference
from trainer.objectives.preference_losses import (
    hinge_loss,
    kto_loss,
    log_odds_ratio,
    logistic_loss,
    reward_loss,
    simpo_loss,
    squared_loss,
)
from trainer.preference_config import CpoConfig, DpoConfig, OrpoConfig

CLOSE = {"rel": 1e-6, "abs": 1e-9}


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


def pair(**changes: float) -> Pairs:
    """ln pi of 4 and of 2 ids: -6 and -5; the reference's -7 and -3."""
    values = {
        "chosen": -6.0,
        "rejected": -5.0,
        "chosen_average": -1.5,
        "rejected_average": -2.5,
        "chosen_length": 4.0,
        "rejected_length": 2.0,
        "chosen_reference": -7.0,
        "rejected_reference": -3.0,
    }
    return Pairs(**{name: one(value) for name, value in (values | changes).items()})


def loss_of(choices: Any, pairs: Pairs) -> tuple[float, float]:
    objective = Preference(choices, ranks=SimpleNamespace(), head=torch.nn.Identity())  # type: ignore[arg-type]
    loss, margin = objective.losses(pairs)
    return float(loss), float(margin)


# (ln pi - ln pi_ref): chosen 1, rejected -2: the margin is 3. By averages: 0.25 and -1: 1.25.
@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (DpoConfig(beta=0.5), -math.log(sigma(1.5))),
        (DpoConfig(beta=0.5, label_smoothing=0.2), -0.8 * math.log(sigma(1.5)) - 0.2 * math.log(sigma(-1.5))),
        (DpoConfig(beta=0.5, sft_weight=2.0), -math.log(sigma(1.5)) + 2 * 1.5),
        (DpoConfig(beta=0.5, log_probs="average"), -math.log(sigma(0.625))),
        (DpoConfig(beta=0.5, loss="ipo"), (1.25 - 1) ** 2),
        (DpoConfig(beta=0.5, loss="ipo", log_probs="sum"), (3.0 - 1) ** 2),
        (DpoConfig(beta=0.1, loss="hinge"), 0.7),
        (DpoConfig(beta=0.5, loss="hinge"), 0.0),
        (CpoConfig(beta=0.5), -math.log(sigma(-0.5)) + 1.5),
        (
            CpoConfig(beta=0.5, sft_weight=0.0, label_smoothing=0.1),
            -0.9 * math.log(sigma(-0.5)) - 0.1 * math.log(sigma(0.5)),
        ),
        (CpoConfig(beta=2.0, loss="simpo", target_margin=0.5), -math.log(sigma(2 * 1.0 - 0.5))),
        (CpoConfig(beta=0.5, loss="hinge", sft_weight=0.0), 1.5),
    ],
)
def test_a_loss_is_its_papers_formula(choices: Any, expected: float) -> None:
    assert loss_of(choices, pair())[0] == pytest.approx(expected, **CLOSE)


def test_orpo_adds_the_odds_ratio_to_the_mean_nats_of_the_chosen_answer() -> None:
    p, q = math.exp(-1.5), math.exp(-2.5)
    ratio = math.log((p / (1 - p)) / (q / (1 - q)))

    loss, margin = loss_of(OrpoConfig(odds_weight=0.3), pair())

    assert loss == pytest.approx(1.5 - 0.3 * math.log(sigma(ratio)), **CLOSE)
    assert margin == pytest.approx(ratio, **CLOSE)


def test_odds_stay_finite_where_an_answer_is_certain() -> None:
    certain = torch.zeros(1, requires_grad=True)
    ratio = log_odds_ratio(certain, torch.tensor([-1e-30]))
    ratio.backward()

    assert torch.isfinite(ratio).all() and torch.isfinite(certain.grad).all()
    assert float(log_odds_ratio(torch.tensor([-1e-4]), torch.tensor([-30.0]))) == pytest.approx(
        math.log(1 / math.expm1(1e-4)) + 30, rel=1e-4
    )


@pytest.mark.parametrize(
    ("is_desirable", "expected"), [(True, 2 * (1 - sigma(0.1 * 2.5))), (False, 3 * (1 - sigma(0.1 * -2.5)))]
)
def test_kto_is_its_papers_formula(is_desirable: bool, expected: float) -> None:
    found = kto_loss(
        one(3.0), torch.tensor([is_desirable]), kl=0.5, beta=0.1, desirable_weight=2.0, undesirable_weight=3.0
    )
    assert float(found) == pytest.approx(expected, **CLOSE)


def test_the_rewards_loss_is_bradley_terrys_with_scores_held_around_zero() -> None:
    assert float(reward_loss(one(2.0), one(-1.0))) == pytest.approx(-math.log(sigma(3.0)), **CLOSE)
    assert float(reward_loss(one(2.0), one(-1.0), center_weight=0.01)) == pytest.approx(
        -math.log(sigma(3.0)) + 0.01, **CLOSE
    )


def test_pairs_of_a_prompt_are_counted_where_it_has_both_kinds() -> None:
    rows = [
        ("a", True, 1.0),
        ("a", False, 0.0),
        ("a", False, 2.0),
        ("b", True, 1.0),
        ("c", True, 0.5),
        ("c", False, 0.1),
    ]

    assert pair_accuracy(rows) == {"pair_accuracy": 2 / 3, "num_pairs": 3}
    assert pair_accuracy(rows[:1]) == {}


def test_losses_equal_trls_where_it_has_them() -> None:
    cpo_trainer = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    orpo_trainer = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    chosen, rejected = torch.tensor([-1.5, -0.2, -9.0]), torch.tensor([-2.5, -0.1, -3.0])
    accelerator = SimpleNamespace(device="cpu")
    for loss, ours in (
        ("sigmoid", logistic_loss(chosen - rejected, beta=0.5, label_smoothing=0.1)),
        ("hinge", hinge_loss(chosen - rejected, beta=0.5)),
        ("ipo", squared_loss(chosen - rejected, beta=0.5)),
        ("simpo", simpo_loss(chosen, rejected, beta=0.5, target_margin=0.7)),
    ):
        theirs = SimpleNamespace(
            alpha=0.0,
            beta=0.5,
            loss_type=loss,
            simpo_gamma=0.7,
            label_smoothing=0.0 if loss == "simpo" else 0.1,
            accelerator=accelerator,
        )
        found, *_ = cpo_trainer.CPOTrainer.cpo_loss(theirs, chosen, rejected)
        torch.testing.assert_close(ours, found, rtol=1e-5, atol=1e-6)
    orpo = SimpleNamespace(beta=0.3, accelerator=accelerator)
    found, *_ = orpo_trainer.ORPOTrainer.odds_ratio_loss(orpo, chosen, rejected)
    torch.testing.assert_close(
        -0.3 * logistic_loss(log_odds_ratio(chosen, rejected), beta=1.0), found, rtol=1e-5, atol=1e-6
    )
