"""New weights are a pure function of the seed and the module's name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel

from trainer.errors import RunError
from trainer.initial_weights import initialize, new_model

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def llama(*, num_layers: int = 2, tied: bool = False) -> LlamaConfig:
    sizes = SIZES | {"num_hidden_layers": num_layers}
    return LlamaConfig(**sizes, vocab_size=64, pad_token_id=1, tie_word_embeddings=tied, initializer_range=0.05)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_a_module_has_the_same_weights_whatever_stands_beside_it() -> None:
    shallow = weights(new_model(llama(num_layers=1), kernel="sdpa", seed=3))
    deep = weights(new_model(llama(num_layers=3), kernel="sdpa", seed=3))

    assert shallow.keys() < deep.keys()
    assert all(torch.equal(shallow[name], deep[name]) for name in shallow)


def test_every_module_draws_its_own_weights() -> None:
    made = weights(new_model(llama(num_layers=3), kernel="sdpa", seed=3))

    drawn = [made[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(3)]

    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("described", [llama(), llama(tied=True), GPTNeoXConfig(**SIZES, vocab_size=64)])
def test_weights_follow_the_architectures_own_rules(described: Any) -> None:
    model: Any = new_model(described, kernel="sdpa", seed=3)

    for name, weight in weights(model).items():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight) if name.endswith("weight") else torch.zeros_like(weight))
        elif name.endswith("bias"):
            assert torch.equal(weight, torch.zeros_like(weight))
        else:
            assert weight.std().item() == pytest.approx(described.initializer_range, rel=0.1)
    embedding = model.get_input_embeddings()
    assert embedding.padding_idx is None or not embedding.weight[embedding.padding_idx].any()
    assert (model.get_output_embeddings().weight is embedding.weight) == described.tie_word_embeddings


def test_torchs_generators_stay_as_they_were() -> None:
    before = torch.get_rng_state()

    new_model(llama(), kernel="sdpa", seed=3)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_with_rules_of_its_own_and_tied_biases_is_filled() -> None:
    model: Any = BertForMaskedLM(BertConfig(**SIZES, vocab_size=64))
    model.cls.predictions.bias.data.fill_(torch.nan)

    initialize(model, seed=3)

    assert not model.cls.predictions.decoder.bias.any()
    assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight


class Unruly(PreTrainedModel):  # type: ignore[misc]
    """Brings a weight for which transformers has no rule."""

    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.gate = nn.Module()
        self.gate.scale = nn.Parameter(torch.empty(4))
        self.post_init()


def test_a_weight_without_a_rule_is_refused() -> None:
    with pytest.raises(RunError, match=r"Unruly has no rule for new weights of gate \(Module\); begin from a model"):
        initialize(Unruly(llama()), seed=3)
