"""A value of each state beside a language model's next ids: one linear layer on the last hidden state.

It is a part of the model, so that engines, optimizers, checkpoints and ZeRO-3 know it; a model that is opened to talk
or to be exported is made without it.
Shapes: M places that the output embedding sees, H the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

VALUE_HEAD = "value_head"


class ValueHead(nn.Module):
    """(M, H) -> (M,) float32. It begins at 0 everywhere, and so do all values."""

    def __init__(self, width: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), self.weight.float(), self.bias.float())[:, 0]


def add_value_head(model: nn.Module, *, dtype: torch.dtype) -> None:
    """Put a value head into a language model, in place."""
    setattr(model, VALUE_HEAD, ValueHead(int(model.config.hidden_size), dtype=dtype))  # type: ignore[arg-type, union-attr]


def value_head_of(model: nn.Module) -> ValueHead | None:
    """The value head in a transformers model, None where it has none."""
    return getattr(model, VALUE_HEAD, None)


@contextmanager
def noting_values(head: nn.Module, value_head: ValueHead) -> Iterator[list[torch.Tensor]]:
    """Within the block each forward pass adds (M,) values of what the output embedding `head` saw, with their graph."""
    noted: list[torch.Tensor] = []

    def note(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        # Inside the model's own forward pass, where ZeRO-3 gathers what a module needs.
        noted.append(value_head(inputs[0]))

    handle = head.register_forward_hook(note)
    try:
        yield noted
    finally:
        handle.remove()


def silence_dropout(model: nn.Module) -> None:
    """No dropout from here on, in train mode either: probabilities before and after an update are compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
