"""The formulas of policy optimisation, each against numbers worked out by hand from its paper."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.objectives.advantages import (
    adapted_kl_weight,
    advantages_of,
    clipped_policy_losses,
    clipped_value_losses,
    group_advantages,
    in_order,
    in_rows,
    k1,
    k3,
    moments,
    token_rewards,
    whitened,
)
from trainer.ranks import Ranks

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
EXACT = 1e-6


class Together(Ranks):
    """Ranks as threads of this process: all of them must call before any goes on."""

    def __init__(self, rank: int, shared: list[torch.Tensor | None], barrier: threading.Barrier) -> None:
        super().__init__(rank=rank, world_size=len(shared), local_rank=rank, device=torch.device("cpu"))
        self._shared, self._barrier = shared, barrier

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        self._shared[self.rank] = values
        self._barrier.wait()
        total = sum(each for each in self._shared if each is not None)
        self._barrier.wait()
        assert isinstance(total, torch.Tensor)
        return total


def on_ranks(work: Callable[[Ranks, int], Any], *, world_size: int) -> list[Any]:
    """What `work` returns on each rank."""
    shared: list[torch.Tensor | None] = [None] * world_size
    barrier, found = threading.Barrier(world_size, timeout=60), [None] * world_size

    def run(rank: int) -> None:
        found[rank] = work(Together(rank, shared, barrier), rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_rows_and_order_are_each_others_inverse() -> None:
    counts = torch.tensor([2, 1, 3])
    flat = torch.arange(1.0, 7.0)

    rows = in_rows(flat, counts)

    assert rows.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    assert in_order(rows, counts).tolist() == flat.tolist()


def test_a_tokens_reward_is_minus_the_weighted_log_ratio_and_the_score_comes_last() -> None:
    # Ziegler et al. 2019, equation 2: R = r - beta ln(pi / rho), the logarithm a sum over ids.
    log_ratios = torch.tensor([[0.5, -0.25, 1.0], [2.0, 9.0, 9.0]])

    rewards = token_rewards(torch.tensor([1.0, -3.0]), log_ratios, torch.tensor([3, 1]), kl_weight=0.1)

    assert rewards.flatten().tolist() == pytest.approx([-0.05, 0.025, 0.9, -3.2, 0, 0], abs=EXACT)


def test_generalised_advantages_of_three_ids_by_hand() -> None:
    # discount 0.9, smoothing 0.5. delta_2 = 1 - 0.6 = 0.4; delta_1 = 0.2 + 0.9 * 0.6 - 0.4 = 0.34;
    # delta_0 = -0.1 + 0.9 * 0.4 - 0.5 = -0.24. A_2 = 0.4; A_1 = 0.34 + 0.45 * 0.4 = 0.52; A_0 = -0.24 + 0.45 * 0.52.
    rewards, values = torch.tensor([[-0.1, 0.2, 1.0]]), torch.tensor([[0.5, 0.4, 0.6]])

    found = advantages_of(rewards, values, torch.tensor([3]), discount=0.9, smoothing=0.5)

    assert found[0].tolist() == pytest.approx([-0.006, 0.52, 0.4], abs=EXACT)


def test_advantages_without_smoothing_are_returns_less_values_and_with_none_one_step_errors() -> None:
    # Schulman et al. 2016, equations 17 and 18: lambda 0 is the TD error, lambda 1 the return less the value.
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 1.5, 3.0]])
    counts = torch.tensor([3])

    one_step = advantages_of(rewards, values, counts, discount=0.5, smoothing=0.0)
    whole = advantages_of(rewards, values, counts, discount=0.5, smoothing=1.0)

    assert one_step[0].tolist() == pytest.approx([1 + 0.75 - 0.5, 2 + 1.5 - 1.5, 4 - 3], abs=EXACT)
    assert whole[0].tolist() == pytest.approx([1 + 1 + 1 - 0.5, 2 + 2 - 1.5, 4 - 3], abs=EXACT)


def test_what_stands_behind_an_answer_changes_none_of_its_advantages() -> None:
    short = advantages_of(
        torch.tensor([[0.1, 1.0]]), torch.tensor([[0.3, 0.2]]), torch.tensor([2]), discount=1.0, smoothing=0.95
    )

    beside_longer = advantages_of(
        torch.tensor([[0.1, 1.0, 7.0, 7.0], [0.0, 0.0, 0.0, 1.0]]),
        torch.tensor([[0.3, 0.2, 5.0, 5.0], [0.1, 0.1, 0.1, 0.1]]),
        torch.tensor([2, 4]),
        discount=1.0,
        smoothing=0.95,
    )

    assert beside_longer[0].tolist() == pytest.approx([*short[0].tolist(), 0, 0], abs=EXACT)


def test_whitened_numbers_have_mean_0_and_variance_1() -> None:
    # Mean 4, squares 9 + 1 + 1 + 9 = 20 over 4.
    found = whitened(torch.tensor([1.0, 3.0, 5.0, 7.0]), ALONE)

    assert found.tolist() == pytest.approx([each / math.sqrt(5) for each in (-3, -1, 1, 3)], abs=EXACT)


def test_equal_numbers_are_whitened_to_0() -> None:
    assert whitened(torch.full((5,), 0.3), ALONE).tolist() == pytest.approx([0] * 5, abs=1e-3)


@settings(max_examples=20, deadline=None)  # each starts two threads
@given(st.lists(st.integers(-100, 100), min_size=2, max_size=12), st.integers(0, 12))
def test_whitening_does_not_depend_on_how_ranks_share_the_answers(numbers: list[int], cut: int) -> None:
    whole = torch.tensor(numbers, dtype=torch.float32) / 7
    shares = [whole[:cut], whole[cut:]]  # one of them may be empty

    found = on_ranks(lambda ranks, rank: whitened(shares[rank], ranks), world_size=2)

    assert torch.cat(found).tolist() == pytest.approx(whitened(whole, ALONE).tolist(), abs=1e-4)


def test_moments_of_no_number_are_finite() -> None:
    found = moments(torch.zeros(0), ALONE)

    assert (found.count, found.mean, found.variance) == (0, 0, 0)


def test_group_advantages_by_hand() -> None:
    # Mean 0.25; deviations 0.75 and three times -0.25: sum of squares 0.75, over 3, root 0.5.
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])

    scaled, plain = group_advantages(rewards, is_scaled=True), group_advantages(rewards, is_scaled=False)

    assert scaled[0].tolist() == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3], abs=EXACT)
    assert plain[0].tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25], abs=EXACT)
    assert scaled[1].tolist() == [0, 0, 0, 0]  # nothing to learn of a group without a difference


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),  # no more than 1.2 of a gain
        (0.5, 2.0, -1.0, False),  # a loss of what is good counts whole
        (1.5, -1.0, 1.5, False),
        (0.5, -1.0, 0.9, True),  # no less than 0.9 of what is bad, so that nothing pulls farther
    ],
)
def test_the_clipped_policy_loss_in_its_five_cases(
    ratio: float, advantage: float, loss: float, is_clipped: bool
) -> None:
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)

    found, clipped = clipped_policy_losses(log_ratio, torch.tensor([advantage]), below=0.1, above=0.2)
    found.sum().backward()

    assert found.tolist() == pytest.approx([loss], abs=EXACT)
    assert bool(clipped) == is_clipped
    assert log_ratio.grad is not None
    # d(-A r)/d(ln r) = -A r, and 0 where it is clipped.
    assert float(log_ratio.grad) == pytest.approx(0.0 if is_clipped else -advantage * ratio, abs=EXACT)


def test_the_clipped_value_loss_takes_the_larger_error() -> None:
    values, old = torch.tensor([1.0, 0.3, 0.5]), torch.tensor([0.0, 0.0, 0.0])
    returns = torch.tensor([1.0, 1.0, 0.4])

    found = clipped_value_losses(values, old, returns, clip_range=0.2)

    # The first is right, but farther than 0.2 from the old value: its error is that of 0.2.
    assert found.tolist() == pytest.approx([0.5 * 0.64, 0.5 * 0.64, 0.5 * 0.04], abs=EXACT)


def test_both_estimators_of_the_kl_by_hand() -> None:
    log_ratios = torch.tensor([0.0, math.log(2), math.log(0.5)])

    assert k1(log_ratios).tolist() == pytest.approx([0, 0.693147, -0.693147], abs=EXACT)
    # r - 1 - ln r with r = 1/2 and r = 2.
    assert k3(log_ratios).tolist() == pytest.approx([0, 0.5 - 1 + 0.693147, 2 - 1 - 0.693147], abs=EXACT)


def test_both_estimators_have_the_kl_as_their_mean() -> None:
    policy, base = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    log_ratios = (policy / base).log()

    exact = float((policy * log_ratios).sum())

    assert float((policy * k1(log_ratios)).sum()) == pytest.approx(exact, abs=EXACT)
    assert float((policy * k3(log_ratios)).sum()) == pytest.approx(exact, abs=EXACT)
    assert bool((k3(log_ratios) >= 0).all())


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.0, 0.2),  # where it should be
        (6.6, 0.2 * 1.01),  # 10 % above
        (60.0, 0.2 * 1.02),  # the error counts up to 0.2
        (0.0, 0.2 * 0.98),
        (math.nan, 0.2),
    ],
)
def test_the_kls_weight_follows_its_target(kl: float, expected: float) -> None:
    assert adapted_kl_weight(0.2, kl=kl, target=6.0, gain=0.1) == pytest.approx(expected, abs=EXACT)
