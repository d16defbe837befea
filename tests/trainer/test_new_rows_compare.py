"""Law 11 on an enlarged model: what moved is told from what a wider product rounds, and refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.tokenizer.extend_descent import NewToken
from trainer.errors import RunError
from trainer.new_rows import RowsPlan, base_rows, plan_rows, resize
from trainer.new_rows_compare import Difference, check_difference, compare, old_rows_only, outputs
from trainer.new_rows_init import starting_values
from trainer.new_rows_model import fill

OLD, WIDTH = 20, 8
ROWS = np.arange(60, dtype=np.int64).reshape(6, 10) % OLD


def make(kind: str) -> Any:
    import transformers

    torch.manual_seed(1)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "bert":
        config = transformers.BertConfig(vocab_size=OLD, max_position_embeddings=32, **sizes)
        model: Any = transformers.BertForMaskedLM(config)
        nn.init.normal_(model.cls.predictions.bias)
        return model.eval()
    told = transformers.LlamaConfig(vocab_size=OLD, tie_word_embeddings=kind == "tied", **sizes)
    return transformers.LlamaForCausalLM(told).eval()


@torch.no_grad()
def enlarge(model: Any) -> RowsPlan:
    plan = plan_rows(first=OLD, num_tokens=1, base_rows=base_rows(model), multiple=64, needs_pad=False)
    name, tokens = "mean_of_subtokens", [NewToken(OLD, "가격표", (3, 4))]
    values = starting_values(model, plan, tokens, init=name, output_init=name, token_id={}.get, seed=1)
    resize(model, plan)
    fill(model, plan, values)
    return plan


@pytest.mark.parametrize("kind", ["untied", "tied", "bert"])
def test_through_the_old_rows_old_texts_are_equal_to_the_bit(kind: str) -> None:
    model = make(kind)
    before = outputs(model, ROWS)

    plan = enlarge(model)

    found = compare(before, model, ROWS, plan, num_rows=OLD)
    assert found.old_rows == 0 and found.all_rows < 1e-6
    with old_rows_only(model, OLD):
        assert outputs(model, ROWS)[0]["logits"].shape[-1] == OLD
    assert outputs(model, ROWS)[0]["logits"].shape[-1] == plan.total == 64


@pytest.mark.parametrize("kind", ["untied", "bert"])
def test_an_old_row_that_moved_by_a_bit_is_found(kind: str) -> None:
    model = make(kind)
    before = outputs(model, ROWS)
    plan = enlarge(model)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight[7] = torch.nextafter(weight[7], torch.tensor(10.0))

    found = compare(before, model, ROWS, plan, num_rows=OLD)

    assert 0 < found.old_rows < 1e-5
    with pytest.raises(RunError, match=r"m: .* differ by .* through its old rows, .* give --accept-rounding to write"):
        check_difference(found, source="m", accepts_rounding=False)
    check_difference(found, source="m", accepts_rounding=True)


def test_a_number_that_became_none_is_no_rounding() -> None:
    model = make("untied")
    before = outputs(model, ROWS)
    plan = enlarge(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[7] = float("nan")

    assert compare(before, model, ROWS, plan, num_rows=OLD) == Difference(math.inf, math.inf)


def test_a_wider_product_that_rounds_is_told_and_no_more_than_that() -> None:
    check_difference(Difference(0.0, 2e-7), source="m", accepts_rounding=False)
    assert str(Difference(0.0, 0.0)) == "to the bit"
    assert str(Difference(0.0, 2e-7)).endswith("all rows at once round otherwise here, by up to 2e-07")
    for far in (Difference(1e-3, 0.0), Difference(0.0, 1e-3), Difference(0.0, math.inf)):
        with pytest.raises(RunError, match="differ by .*, more than 1e-05; this is a fault of this model's class"):
            check_difference(far, source="m", accepts_rounding=True)
