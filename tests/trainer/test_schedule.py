"""The learning rate as a function of the step, and which parameters decay."""

from __future__ import annotations

import math

import pytest
from torch import nn

from trainer.schedule import OptimizerConfig, ScheduleConfig, learning_rate, parameter_groups


def rates(schedule: ScheduleConfig, max_steps: int) -> list[float]:
    return [learning_rate(schedule, step=step, max_steps=max_steps) for step in range(max_steps)]


def test_warmup_climbs_in_equal_parts_to_the_peak() -> None:
    schedule = ScheduleConfig(peak_lr=1.0, warmup_steps=4)

    assert rates(schedule, 20)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_falling_schedule_ends_at_its_minimum_and_never_rises(kind: str) -> None:
    schedule = ScheduleConfig(kind=kind, peak_lr=2.0, warmup_steps=5, min_lr_ratio=0.1)

    after = rates(schedule, 100)[5:]

    assert after[-1] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in zip(after, after[1:], strict=False))


def test_cosine_stands_half_way_between_peak_and_minimum_in_the_middle() -> None:
    schedule = ScheduleConfig(kind="cosine", peak_lr=1.0, warmup_steps=0, min_lr_ratio=0.0)

    assert learning_rate(schedule, step=49, max_steps=100) == pytest.approx(0.5)
    assert learning_rate(schedule, step=24, max_steps=100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_wsd_holds_the_peak_until_its_decay() -> None:
    schedule = ScheduleConfig(kind="wsd", peak_lr=1.0, warmup_steps=2, decay_steps=4, min_lr_ratio=0.0)

    assert rates(schedule, 10) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.0])


def test_only_matrices_and_embeddings_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))

    decayed, free = parameter_groups(model, OptimizerConfig(weight_decay=0.3))

    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(5, 4), (4, 4)]
    assert [tuple(parameter.shape) for parameter in free["params"]] == [(4,), (4,), (4,)]


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = nn.Linear(3, 3)
    model.weight.requires_grad_(False)

    groups = parameter_groups(model, OptimizerConfig())

    assert [len(group["params"]) for group in groups] == [1]
