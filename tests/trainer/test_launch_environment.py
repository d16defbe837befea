"""The config decides the engine, the launcher decides only the ranks."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.config import validate
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.launch_environment import check_launch, wants_gpu


def config_of(**sections: Any) -> TrainConfig:
    train = {"max_steps": 10, "global_batch_sequences": 8, "micro_batch_sequences": 2}
    tree: dict[str, Any] = {"run": {"name": "x"}, "model": {}, "data": {"shards": "x", "seq_len": 32}, "train": train}
    for section, keys in sections.items():
        tree[section] = tree.get(section, {}) | keys
    return validate(tree, TrainConfig, where="test")


def test_world_size_other_than_expected_is_refused_with_both_values() -> None:
    with pytest.raises(RunError, match="run.expected_ranks: the config expects 2 ranks, but WORLD_SIZE is 1"):
        check_launch(config_of(run={"expected_ranks": 2}), {})


def test_more_ranks_than_rows_of_a_step_are_refused() -> None:
    with pytest.raises(RunError, match="train.global_batch_sequences: 8 sequences a step cannot feed 16 ranks"):
        check_launch(config_of(), {"WORLD_SIZE": "16"})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "engine.kind: the config says 'none', the launcher --use_deepspeed"),
        ({"ACCELERATE_USE_FSDP": "true"}, "engine.kind: the config says 'none', the launcher --use_fsdp"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "the launcher --use_megatron_lm"),
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            "train.precision: the config says 'bf16', the launcher --mixed_precis",
        ),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "the launcher says --gradient_accumulation_steps 4"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.3"}, "the config says 1.0, the launcher --gradient_clipping 0.3"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "the launcher --offload_optimizer_device cpu"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "the launcher says --offload_param_device cpu"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "the launcher says --use_parallelism_config"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "the launcher says --dynamo_backend inductor"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "the launcher brings --deepspeed_config_file ds.json"),
    ],
)
def test_a_flag_that_contradicts_the_config_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(RunError) as refusal:
        check_launch(config_of(), environ)

    assert message in str(refusal.value)


def test_another_zero_stage_is_refused_with_both_values() -> None:
    config = config_of(engine={"kind": "deepspeed", "zero_stage": 2})
    environ = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}

    with pytest.raises(RunError, match="engine.zero_stage: the config says 2, the launcher --zero_stage 3"):
        check_launch(config, environ)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--gradient_accumulation_steps 4", "the launcher says --gradient_accumulation_steps 4"),
        ("--gradient-accumulation-steps=4", "the launcher says --gradient_accumulation_steps 4"),
        ("--multi_gpu --gradient_clipping 0.5", "the config says 1.0, the launcher --gradient_clipping 0.5"),
        ("--zero_stage 3", "engine.kind: the config says 'none', the launcher --zero_stage 3"),
    ],
)
def test_a_flag_that_accelerate_keeps_to_itself_is_refused_too(flags: str, message: str) -> None:
    words = ["python", "/venv/bin/accelerate", "launch", *flags.split(), "-m", "trainer", "c.yaml"]

    with pytest.raises(RunError) as refusal:
        check_launch(config_of(), {}, launcher_words=words)

    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "words",
    [
        "python /venv/bin/accelerate launch -m trainer c.yaml --gradient_accumulation_steps 4",
        "python /venv/bin/accelerate launch --num_processes 2 --mixed_precision bf16 -m trainer c.yaml",
        "make --gradient_accumulation_steps 4",
        "",
    ],
)
def test_words_that_are_no_flags_of_the_launcher_or_agree_are_left_alone(words: str) -> None:
    check_launch(config_of(), {}, launcher_words=words.split())


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_a_rank_variable_that_is_no_number_is_named(name: str) -> None:
    with pytest.raises(RunError, match=f"{name}: 'abc' is no number of ranks; let a launcher set it"):
        wants_gpu({name: "abc"}, num_devices=0)
        check_launch(config_of(), {name: "abc"})


def test_every_contradiction_is_told_at_once() -> None:
    environ = {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "fp16"}

    with pytest.raises(RunError) as refusal:
        check_launch(config_of(run={"expected_ranks": 2}), environ)

    assert len(str(refusal.value).splitlines()) == 3


def test_flags_that_agree_are_accepted_and_left_to_the_config() -> None:
    environ = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "bf16", "WORLD_SIZE": "2"}

    check_launch(config_of(engine={"kind": "deepspeed"}, run={"expected_ranks": 2}), environ)

    assert environ == {"WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "num_devices", "expected"),
    [
        ({}, 0, False),
        ({}, 2, True),
        ({"DURE_DEVICE": "cpu"}, 2, False),
        ({"ACCELERATE_USE_CPU": "true"}, 2, False),
        ({"DURE_DEVICE": "gpu", "LOCAL_RANK": "1"}, 2, True),
    ],
)
def test_the_launcher_and_the_machine_decide_the_device(
    environ: dict[str, str], num_devices: int, expected: bool
) -> None:
    assert wants_gpu(environ, num_devices=num_devices) is expected


def test_a_rank_for_a_gpu_that_is_not_found_never_trains_on_the_cpu() -> None:
    with pytest.raises(RunError, match="started this rank for a GPU, but torch finds none here"):
        wants_gpu({"DURE_DEVICE": "gpu"}, num_devices=0)


def test_more_local_ranks_than_devices_are_refused_with_both_values() -> None:
    with pytest.raises(RunError, match="LOCAL_RANK is 4, but torch finds 4 CUDA devices"):
        wants_gpu({"LOCAL_RANK": "4"}, num_devices=4)
