"""What a config sets, and nothing reads, is told: nothing is ignored in silence."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.config import validate
from trainer.config import TrainConfig, unread_keys

LEAST: dict[str, Any] = {
    "run": {"name": "r"},
    "model": {},
    "data": {"shards": "s", "seq_len": 64},
    "train": {"max_steps": 10, "global_batch_sequences": 2, "micro_batch_sequences": 2},
}


def config_with(**parts: dict[str, Any]) -> TrainConfig:
    tree = {key: {**LEAST.get(key, {}), **parts.get(key, {})} for key in {**LEAST, **parts}}
    return validate(tree, TrainConfig, where="test")


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"model": {"from": "base", "num_layers": 2}}, ["model.num_layers: 2 is not read: model.from 'base'"]),
        ({"model": {"revision": "v1"}}, ["model.revision: 'v1' is not read: there is no model.from"]),
        ({"engine": {"zero_stage": 3}}, ["engine.zero_stage: 3 is not read: engine.kind is 'none'"]),
        (
            {"train": {"schedule": {"kind": "cosine", "decay_steps": 5}}},
            ["train.schedule.decay_steps: 5 is not read: train.schedule.kind is 'cosine'"],
        ),
        ({"data": {"too_long": "drop"}}, ["data.too_long: 'drop' is not read: stage 'pretrain' has no questions"]),
        ({"policy": {"spike_window": 64}}, ["policy.spike_window: 64 is not read: policy.refuse_spikes is false"]),
    ],
)
def test_a_key_that_nothing_reads_is_told(parts: dict[str, Any], told: list[str]) -> None:
    lines = unread_keys(config_with(**parts))

    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True))


def test_keys_that_are_read_and_defaults_are_not_told() -> None:
    config = config_with(
        model={"hidden_size": 128, "num_heads": 4},
        engine={"kind": "deepspeed", "zero_stage": 3},
        policy={"refuse_spikes": True, "spike_window": 64},
    )

    assert unread_keys(config) == []
    assert unread_keys(config_with(engine={"kind": "none", "zero_stage": 2})) == []
