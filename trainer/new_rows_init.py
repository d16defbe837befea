"""What new rows begin with: pure functions of the model's old rows, each under its name in `new_rows_config.STARTS`.

Shapes: V old rows, H width, R new rows (N tokens, then padding), all values float32 on the host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from data_pipeline.tokenizer.extend_descent import NewToken
from trainer.errors import RunError
from trainer.new_rows import RowsPlan, Values, is_tied
from trainer.new_rows_config import COPY

_CHUNK_ROWS = 8192

TokenId = Callable[[str], int | None]


@torch.no_grad()
def starting_values(
    model: Any,
    plan: RowsPlan,
    tokens: Sequence[NewToken],
    *,
    init: str,
    output_init: str,
    token_id: TokenId,
    seed: int,
) -> Values:
    """The rows that `tokens` begin with, from the rows of `model`, sliced by ZeRO-3 or whole; every rank calls it.

    `token_id`: the id of an old token by its text. What pads the embedding begins as the mean of all.

    Raises:
        RunError: `copy:TOKEN` names no old token; `output_init` differs where head and embedding are one.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is not None and is_tied(model) and init != output_init:
        raise RunError(
            f"new_rows.output_init: {output_init!r}, but the model's head is its embedding, whose rows begin as "
            f"{init!r}; leave it out"
        )
    spread = float(getattr(model.config, "initializer_range", 0.02))

    def values(weight: torch.Tensor, name: str, part: str) -> torch.Tensor:
        start = _Start(name, tokens, plan, token_id=token_id, seed=_seed(seed, part), spread=spread)
        with _whole(weight):
            return start.rows(weight)

    has_bias = head is not None and head.bias is not None
    return Values(
        values(embedding.weight, init, "input"),
        None if head is None or is_tied(model) else values(head.weight, output_init, "output"),
        # One number a row; a random one would make some tokens likelier than others for no reason.
        values(head.bias, "mean_of_all" if output_init == "random" else output_init, "bias") if has_bias else None,
    )


class _Start:
    """One way to begin, over the old rows of one weight, (V, H) or (V,)."""

    def __init__(
        self, name: str, tokens: Sequence[NewToken], plan: RowsPlan, *, token_id: TokenId, seed: int, spread: float
    ) -> None:
        self._name, self._tokens, self._plan, self._seed, self._spread = name, tokens, plan, seed, spread
        self._copied = None
        if name.startswith(COPY):
            self._copied = token_id(name.removeprefix(COPY))
            if self._copied is None:
                raise RunError(
                    f"new_rows: {name!r}, but the model's tokenizer has no token {name.removeprefix(COPY)!r}; name one "
                    "that it has"
                )

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """(R, H) or (R,) for the new rows beside `weight`, which is whole."""
        rows = torch.empty((self._plan.num_rows, *weight.shape[1:]))
        # Rows beyond the tokens were never looked up nor said; they say nothing of what the model knows.
        rows[:] = _mean_of_all(weight[: self._plan.first])
        if self._name == "random":
            generator = torch.Generator().manual_seed(self._seed)
            rows[: len(self._tokens)].normal_(0.0, self._spread, generator=generator)
        elif self._name != "mean_of_all":
            for number, token in enumerate(self._tokens):
                rows[number] = self._of(token, weight)
        return rows

    def _of(self, token: NewToken, weight: torch.Tensor) -> torch.Tensor:
        if self._copied is not None:
            return weight[self._copied].detach().float().cpu()
        pieces = list(token.pieces[:1] if self._name == "first_subtoken" else token.pieces)
        if not pieces:  # the base drops such text without a trace
            return _mean_of_all(weight[: self._plan.first])
        return weight[pieces].detach().float().cpu().mean(0)


def _mean_of_all(weight: torch.Tensor) -> torch.Tensor:
    """The mean row, summed in float64 part by part: the whole matrix in float32 may not fit beside the model."""
    total = torch.zeros(weight.shape[1:], dtype=torch.float64)
    for part in weight.detach().split(_CHUNK_ROWS):
        total += part.cpu().double().sum(0)
    return (total / max(1, len(weight))).float()


def _seed(seed: int, part: str) -> int:
    return int.from_bytes(hashlib.sha256(f"new rows {seed} {part}".encode()).digest()[:8], "little") >> 1


@contextmanager
def _whole(weight: torch.Tensor) -> Iterator[None]:
    """Within the block the weight is whole on every rank."""
    if not hasattr(weight, "ds_id"):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=None):
        yield
