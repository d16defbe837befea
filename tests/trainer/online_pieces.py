"""A tiny policy with an adapter, prompts of made-up ids, and an online objective over them without shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.stream.examples import ExampleBatch
from trainer.adapter import AdapterConfig, add_adapter
from trainer.model import Vocabulary, make_model
from trainer.model_config import ModelConfig
from trainer.objectives.group_policy import Grpo
from trainer.objectives.online import Parts
from trainer.objectives.policy import Ppo
from trainer.policy_config import GrpoConfig, PpoConfig
from trainer.ranks import Ranks
from trainer.rewards import Texts
from trainer.rollout import Sample, Sampler
from trainer.value_head import add_value_head, silence_dropout, value_head_of

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=CPU)
VOCABULARY = Vocabulary(size=97, eos_id=0, pad_id=1)


class Numbers(Texts):
    """Ids as words of digits, so that no tokenizer is needed."""

    def __init__(self) -> None:
        pass

    def prompt(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def answer(self, ids: Sequence[int]) -> str:
        return self.prompt(ids)


class Evenness:
    """Rewards an answer by its share of even ids: other for almost every answer."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [sum(number % 2 == 0 for number in each.answer.ids) / max(1, len(each.answer.ids)) for each in samples]


def policy(*, has_values: bool = False, seed: int = 3, is_moved: bool = True) -> nn.Module:
    """A llama whose adapter, where it `is_moved`, has left its base, and whose values differ from place to place."""
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_positions": 64, "initializer_range": 0.2}
    config = ModelConfig.model_validate({"pad_vocab_to_multiple": 1, **sizes})
    made = make_model(config, vocabulary=VOCABULARY, kernel="sdpa", dtype=torch.float32, seed=seed)
    add_adapter(made, AdapterConfig(rank=4), seed=seed, dtype=torch.float32)
    silence_dropout(made)
    if has_values:
        add_value_head(made, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        if is_moved and parameter.requires_grad and ("lora_B" in name or "value_head" in name):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made.train()


def prompts(num: int, *, seed: int = 0, first: int = 0) -> ExampleBatch:
    """Prompts of 2 to 9 ids; row `first` + n is the same whatever stands beside it."""
    found = [
        np.random.default_rng([seed, row]).integers(5, 97, np.random.default_rng([seed, row]).integers(2, 10))
        for row in range(first, first + num)
    ]
    lengths = np.array([len(ids) for ids in found], np.int64)
    ids = np.full((num, int(lengths.max())), VOCABULARY.pad_id, np.int64)
    for row, sequence in enumerate(found):
        ids[row, : len(sequence)] = sequence
    return ExampleBatch(ids, lengths, np.full(num, np.nan), np.arange(first, first + num), num)


def parts(model: Any, choices: PpoConfig | GrpoConfig, **changes: Any) -> Parts:
    num_samples = choices.num_samples if isinstance(choices, GrpoConfig) else 1
    sampler = Sampler(
        num_samples=num_samples,
        max_new_tokens=choices.max_new_tokens,
        temperature=choices.temperature,
        evaluation_temperature=choices.evaluation_temperature,
        generation_batch_sequences=choices.generation_batch_sequences,
        seed=7,
        eos_id=VOCABULARY.eos_id,
        max_positions=64,
        ranks=ALONE,
    )
    made = {
        "ranks": ALONE,
        "sampler": sampler,
        "judge": Evenness(),
        "judge_identity": "evenness",
        "texts": Numbers(),
        "head": model.get_output_embeddings(),
        "value_head": value_head_of(model),
        "has_reference": True,
        "micro_batch_sequences": 4,
        "pad_id": lambda: VOCABULARY.pad_id,
    }
    return Parts(**made | changes)


def ppo(model: nn.Module, *, of_parts: dict[str, Any] | None = None, **keys: Any) -> Ppo:
    choices = PpoConfig.model_validate({"max_new_tokens": 6, **keys})
    return Ppo(choices, parts(model, choices, **(of_parts or {})))


def grpo(model: nn.Module, *, of_parts: dict[str, Any] | None = None, **keys: Any) -> Grpo:
    choices = GrpoConfig.model_validate({"max_new_tokens": 6, "num_samples": 3, **keys})
    return Grpo(choices, parts(model, choices, **(of_parts or {})))
