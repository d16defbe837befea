"""A 4-bit base stays as it was packed: bitsandbytes' own layout for some CPUs has no backward pass."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.small_world import small_world
from trainer.adapter import AdapterConfig, add_adapter
from trainer.export import export_full
from trainer.model import make_model
from trainer.model_config import ModelConfig
from trainer.saved import find_saved, vocabulary_of

pytestmark = pytest.mark.stages


def test_an_evaluation_changes_no_gradient_of_an_adapter_on_a_4_bit_base() -> None:
    world = small_world()
    folder = export_full(world.base, world.root / "packed-base")
    described = ModelConfig.model_validate({"from": str(folder), "quantization": {"compute_dtype": "fp32"}})
    vocabulary = vocabulary_of(find_saved(folder))
    model = make_model(described, vocabulary=vocabulary, kernel="sdpa", dtype=torch.float32, seed=0)
    add_adapter(model, AdapterConfig(rank=4), seed=0, dtype=torch.float32)
    ids = torch.arange(20, 60)[None]

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)  # the base has dropout
        model.train()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    after = gradients()

    assert len(before) == len(after) > 10
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert any(float(gradient.abs().max()) > 0 for gradient in before)
