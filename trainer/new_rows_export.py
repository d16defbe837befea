"""New rows beside an adapter as peft keeps them: `trainable_token_indices` in its config, the rows in its weights.

peft writes the rows of the new tokens alone; whoever loads the adapter gives the base as many rows first
(`resize_token_embeddings(len(tokenizer))`, which AutoPeftModel does by itself).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.errors import RunError
from trainer.new_rows import RowsPlan, Values, base_rows, held_rows, install, is_tied, plan_of

_KEY = "{module}.token_adapter.trainable_tokens_delta"

Tensors = dict[str, torch.Tensor]


def row_places(model: Any) -> dict[str, str]:
    """ "input" and, where the head has rows of its own, "output" -> the name of the module."""
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    places = {"input": names[id(embedding)]}
    if head is not None and getattr(head, "rows", None) is not getattr(embedding, "rows", head):
        places["output"] = names[id(head)]
    return places


def peft_rows(model: nn.Module) -> tuple[dict[str, list[int]], Tensors]:
    """`trainable_token_indices` and the tensors of the new tokens in `model`, by peft's names; ({}, {}) without any.

    Raises:
        RunError: the head has a bias, for which peft has no place.
    """
    plan = plan_of(model)
    if plan is None:
        return {}, {}
    rows, output, bias = held_rows(model)
    if bias is not None:
        raise RunError(
            "export: the model's head has a bias, and peft keeps none for new tokens; export it merged (--merge)"
        )
    ids = list(range(plan.first, plan.first + plan.num_tokens))
    held = {"input": rows, "output": output}
    places = row_places(model)
    tensors = {
        _KEY.format(module=name): held[place][: plan.num_tokens].detach()  # type: ignore[index]
        for place, name in places.items()
    }
    return dict.fromkeys(places.values(), ids), tensors


def install_peft_rows(model: nn.Module, plan: dict[str, int], tensors: Tensors, *, dtype: torch.dtype) -> Tensors:
    """Give `model` the new rows of an adapter folder; returns the tensors that are not about them.

    `plan`: what the folder's manifest tells. The rows that only padded the trained model are left out, as in peft.
    """
    first, count = plan["first"], plan["num_tokens"]
    short = RowsPlan(first, count, count, max(base_rows(model), first + count))
    names = dict(model.named_modules())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    found: dict[str, torch.Tensor] = {}
    for place, module in (("input", embedding), ("output", head)):
        name = next((name for name, each in names.items() if each is module), "")
        if (tensor := tensors.get(_KEY.format(module=name))) is not None:
            found[place] = tensor
    if "input" not in found or ("output" not in found and head is not None and not is_tied(model)):
        raise RunError("adapter_model.safetensors: lacks the rows of new tokens that manifest.json names; restore it")
    install(model, short, Values(found["input"], found.get("output"), None), dtype=dtype)
    return {name: tensor for name, tensor in tensors.items() if "token_adapter" not in name}
