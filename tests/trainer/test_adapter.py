"""Adapters and 4-bit bases: what is trained, how it is counted, which config is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.config import ConfigError
from tests.trainer.tiny_run import tiny_config
from trainer.adapter import AdapterConfig, add_adapter
from trainer.errors import RunError
from trainer.model import Vocabulary, count_parameters, flops_per_token, make_model
from trainer.model_config import ModelConfig
from trainer.quantize import Held, check_sharded, held_bytes, is_packed

VOCABULARY = Vocabulary(size=97, eos_id=0, pad_id=1)
IDS = torch.arange(6, 26)[None]


def tiny(architecture: str = "llama", **changes: Any) -> ModelConfig:
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_positions": 64, "pad_vocab_to_multiple": 8}
    return ModelConfig(architecture=architecture, **sizes | changes)


def model_of(config: ModelConfig) -> Any:
    return make_model(config, vocabulary=VOCABULARY, kernel="sdpa", dtype=torch.float32, seed=3)


def adapted(architecture: str = "llama", **keys: Any) -> Any:
    model = model_of(tiny(architecture))
    add_adapter(model, AdapterConfig.model_validate(keys), seed=5, dtype=torch.float32)
    return model


def trained_layers(model: Any) -> set[str]:
    """The last names of the layers that have an adapter."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names}


def test_polyglot_ko_12_8b_has_its_published_share_of_trainable_parameters() -> None:
    """Hu et al.'s r = 8 on query_key_value; counted by shape, on a device that holds no weight.

    The published config builds 12,893,603,840 parameters (the model card says 12,898,864,128).
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    described = GPTNeoXConfig(
        hidden_size=5120,
        num_hidden_layers=40,
        num_attention_heads=40,
        intermediate_size=20480,
        vocab_size=30080,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        tie_word_embeddings=False,
    )
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(described, dtype=torch.bfloat16)
        add_adapter(model, AdapterConfig(rank=8, targets=("query_key_value",)), seed=1, dtype=torch.float32)

    counts = count_parameters(model)

    assert counts.trainable == 6_553_600 == 40 * 8 * (5120 + 3 * 5120)
    assert counts.total == 12_893_603_840 + 6_553_600
    assert f"{counts.trainable_percent:.4f}" == "0.0508"


@pytest.mark.parametrize(
    ("architecture", "targets", "layers"),
    [
        ("llama", "all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt_neox", "all-linear", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("llama", "by-architecture", {"q_proj", "v_proj"}),
        ("gpt_neox", "by-architecture", {"query_key_value"}),
        ("llama", ("k_proj", "mlp.up_proj"), {"k_proj", "up_proj"}),
    ],
)
def test_an_adapter_tunes_the_layers_that_it_names_and_never_the_head(
    architecture: str, targets: Any, layers: set[str]
) -> None:
    assert trained_layers(adapted(architecture, targets=targets)) == layers


def test_a_target_that_the_model_lacks_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(
        RunError, match=r"adapter.targets: the model has no linear layer query_key_value; choose among .*q_proj.*"
    ):
        adapted(targets=["q_proj", "query_key_value"])


@pytest.mark.parametrize("keys", [{}, {"rank_stabilized": True}, {"weight_decomposed": True}])
def test_an_adapter_changes_nothing_before_its_first_update(keys: dict[str, Any]) -> None:
    plain, model = model_of(tiny()), adapted(**keys)

    with torch.no_grad():
        before, after = plain(IDS).logits, model(IDS).logits

    # DoRA divides by a norm and multiplies by it again.
    assert torch.allclose(before, after, atol=1e-6 if keys.get("weight_decomposed") else 0)


def test_rank_stabilized_scales_by_the_root_of_the_rank() -> None:
    scalings = [
        adapted(rank=16, alpha=32, rank_stabilized=flag).model.layers[0].self_attn.q_proj.scaling["default"]
        for flag in (False, True)
    ]

    assert scalings == [2.0, 8.0]


def test_a_weight_decomposed_adapter_trains_magnitudes_too() -> None:
    names = [name for name, parameter in adapted(weight_decomposed=True).named_parameters() if parameter.requires_grad]

    assert any("lora_magnitude_vector" in name for name in names)


def test_an_adapter_is_a_pure_function_of_its_seed() -> None:
    values = []
    for seed, drawn_before in ((5, 0), (5, 3), (6, 0)):
        model = model_of(tiny())
        torch.rand(drawn_before)
        add_adapter(model, AdapterConfig(), seed=seed, dtype=torch.float32)
        values.append(torch.cat([value.flatten() for value in model.parameters() if value.requires_grad]))

    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_flops_of_a_frozen_matrix_are_two_thirds_of_a_trained_one() -> None:
    plain, model = model_of(tiny()), adapted(rank=4)
    counts = count_parameters(model)
    # The input embedding is a lookup: 104 rows of 64.
    attention = 12 * 2 * 64 * 16

    assert counts.total - counts.trainable == count_parameters(plain).total
    assert (
        flops_per_token(model, seq_len=16)
        == 6 * counts.trainable + 4 * (counts.total - counts.trainable - 104 * 64) + attention
    )


def packed_model(folder: Path, architecture: str, **quantization: Any) -> Any:
    model_of(tiny(architecture)).save_pretrained(folder)
    return model_of(tiny(**{"from": str(folder), "quantization": quantization | {"compute_dtype": "fp32"}}))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_a_4_bit_base_counts_its_weights_and_not_its_bytes(tmp_path: Path, architecture: str) -> None:
    packed = packed_model(tmp_path, architecture)

    assert count_parameters(packed).total == count_parameters(model_of(tiny(architecture))).total
    # The pitfall that this law is about: two weights in a byte halve what numel() sums up.
    assert sum(parameter.numel() for parameter in packed.parameters()) < 0.7 * count_parameters(packed).total


def test_a_4_bit_base_packs_every_linear_layer_but_the_head(tmp_path: Path) -> None:
    packed = packed_model(tmp_path, "llama")
    is_linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

    found = {name.split(".")[-2] for name, parameter in packed.named_parameters() if is_packed(parameter)}

    assert found == is_linear
    held = held_bytes(packed)
    linear = 2 * (4 * 64 * 64 + 3 * 64 * packed.config.intermediate_size)
    assert held.here == held.whole == linear // 2
    assert not is_packed(packed.lm_head.weight)


@pytest.mark.parametrize("double", [True, False])
def test_double_quantisation_packs_the_scales_too(tmp_path: Path, double: bool) -> None:
    packed = packed_model(tmp_path, "llama", double_quantization=double)
    states = [parameter.quant_state for parameter in packed.parameters() if is_packed(parameter)]

    assert {state.nested for state in states} == {double}
    assert {state.absmax.dtype for state in states} == {torch.uint8 if double else torch.float32}
    assert {state.quant_type for state in states} == {"nf4"}


def test_an_evaluation_leaves_a_4_bit_models_gradient_as_it_was(tmp_path: Path) -> None:
    """bitsandbytes would lay packed weights out anew here, without a backward pass (on CPUs with AVX512-BF16)."""
    model = packed_model(tmp_path, "llama")
    add_adapter(model, AdapterConfig(rank=4), seed=5, dtype=torch.float32)

    def gradient() -> torch.Tensor:
        model.train().zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return torch.cat([value.grad.flatten() for value in model.parameters() if value.requires_grad])

    before = gradient()
    with torch.no_grad():
        model.eval()(IDS)

    assert before.norm() > 0
    assert torch.equal(gradient(), before)


def test_a_rank_that_holds_more_than_its_share_of_the_base_is_refused() -> None:
    check_sharded(Held(whole=65_536, here=32_768, scales=99), num_packed=14, rank=1, world_size=2)

    with pytest.raises(RunError, match="rank 1 holds 65,536 of the 4-bit base's 65,536 bytes after sharding over 2"):
        check_sharded(Held(whole=65_536, here=65_536, scales=99), num_packed=14, rank=1, world_size=2)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": {}}, "adapter: it tunes a model that exists, but model.from is not set"),
        ({"model": {"quantization": {}}}, "model: quantization: a new model has no weights worth freezing"),
        (
            {"model": {"from": "base", "quantization": {}}},
            "model.quantization: nf4 weights can't be trained, and there is no adapter beside them",
        ),
        (
            {"stage": "sft", "data": {"packing": "concatenated"}},
            "data.packing: 'concatenated' cuts rows, which stage 'sft' never does; set it to 'best_fit'",
        ),
        (
            {"train": {"optimizer": {"kind": "adamw_8bit"}}, "engine": {"offload_optimizer": True}},
            "train.optimizer.kind: adamw_8bit keeps its state on the GPU",
        ),
        (
            {
                "model": {"from": "base", "quantization": {}},
                "adapter": {"weight_decomposed": True},
                "engine": {"kind": "deepspeed", "zero_stage": 3},
            },
            "adapter.weight_decomposed: over a 4-bit base peft's DoRA replaces the packed weight at each forward pass",
        ),
        ({"adapter": {"targets": []}, "model": {"from": "base"}}, "adapter.targets: the list is empty"),
    ],
)
def test_parts_of_a_config_that_contradict_each_other_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        tiny_config(Path("runs"), Path("shards"), **sections)

    assert message in str(refusal.value)
