"""What a config sets is read, or told to be of no use, or refused with what it contradicts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from data_pipeline.config import ConfigError, validate
from trainer.config import TrainConfig, unread_keys

LEAST: dict[str, Any] = {
    "run": {"name": "r"},
    "model": {},
    "data": {"shards": "s", "seq_len": 64},
    "train": {"max_steps": 10, "global_batch_sequences": 2, "micro_batch_sequences": 2},
}


def config_with(**parts: Any) -> TrainConfig:
    tree = dict(LEAST)
    for key, value in parts.items():
        tree[key] = {**LEAST.get(key, {}), **value} if isinstance(value, dict) else value
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


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"train": {"micro_batch_sequences": 9}}, "train.micro_batch_sequences is 9, but a whole step has .* 2"),
    ({"data": {"seq_len": 4096}}, "data.seq_len is 4096, but model.max_positions only 2048"),
    (
        {"train": {"schedule": {"kind": "wsd", "warmup_steps": 5, "decay_steps": 9}}},
        r"warmup_steps 5 \+ decay_steps 9 exceed train.max_steps 10",
    ),
    ({"adapter": {}}, "adapter: it tunes a model that exists, but model.from is not set"),
    ({"model": {"from": "base", "quantization": {}}}, "model.quantization: nf4 weights can't be trained"),
    ({"stage": "sft", "data": {"packing": "concatenated"}}, "data.packing: 'concatenated' cuts rows"),
    (
        {"train": {"optimizer": {"kind": "paged_adamw_8bit"}}, "engine": {"offload_optimizer": True}},
        "train.optimizer.kind: paged_adamw_8bit keeps its state on the GPU",
    ),
]


@pytest.mark.parametrize(("parts", "told"), CONTRADICTIONS)
def test_keys_that_contradict_each_other_are_refused_with_both_values(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config_with(**parts)


def test_every_contradiction_is_told_at_once() -> None:
    parts: dict[str, Any] = {}
    for contradiction, _ in CONTRADICTIONS[:4]:
        for key, values in contradiction.items():
            parts[key] = {**parts.get(key, {}), **values}

    with pytest.raises(ConfigError) as refused:
        config_with(**parts)

    assert all(re.search(told, str(refused.value)) for _, told in CONTRADICTIONS[:4])
