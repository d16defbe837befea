"""The head of a language model at chosen places alone: most of a small model's work, and most of any batch's memory.

Shapes: N = B*T places, M of them chosen, H the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def only_at(places: torch.Tensor, head: nn.Module) -> Iterator[None]:
    """Within the block `head` sees the places (M,) alone, in one row: (…, H) becomes (M, H)."""

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = inputs
        return hidden.reshape(-1, hidden.shape[-1])[places], *others

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
