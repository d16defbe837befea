"""Answers of a model to prompts of token ids: left-padded batches with a key/value cache, greedy or sampled.

Templates and text are not known here. Greedy answers of a batch equal those of its rows one by one (fp32), and a
sampled answer is a function of (seed, row number, prompt) alone, whatever shares its batch.
Shapes: B rows, T places, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from trainer.errors import RunError

Ids = Sequence[int]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0 (1 is off)"),
        }
        for name, (is_right, wanted) in limits.items():
            if not is_right:
                raise RunError(f"sampling.{name}: {getattr(self, name)} was given; it must be {wanted}")


@dataclass(frozen=True)
class Answer:
    """What a model said: `ids` without EOS; `ended`: EOS came, else the answer was cut at its limit."""

    ids: tuple[int, ...]
    ended: bool


def generate_answers(
    model: nn.Module,
    prompts: Sequence[Ids],
    *,
    eos_ids: Collection[int],
    pad_id: int,
    sampling: Sampling,
    batch_size: int,
    device: torch.device,
    rows: Sequence[int] | None = None,
    max_positions: int | None = None,
    synced: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
    on_batch: Callable[[int], None] = lambda num_rows: None,
) -> list[Answer]:
    """An answer to each prompt, in their order; [] if a stop was requested meanwhile (law 12).

    The model's train/eval mode and torch's generators are as before. Rows of like length share a batch.

    Args:
        rows: numbers of the prompts for the sampling seed; their places by default.
        max_positions: an answer is cut where prompt and answer fill them.
        synced: every rank of the process group calls this, each with its own prompts (none is fine), and all make the
            same number of forward passes, as ZeRO-3 needs. A stop of one rank then stops all.
        on_batch: told the number of rows after each batch.

    Raises:
        RunError: an empty prompt, or one that leaves no position for an answer.
    """
    numbers = range(len(prompts)) if rows is None else rows
    limits = [_limit(prompt, row, sampling, max_positions) for prompt, row in zip(prompts, numbers, strict=True)]
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    answers: dict[int, Answer] = {}
    was_training = model.training
    model.eval()
    try:
        for batch in _as_many_on_each_rank(batches) if synced else batches:
            # A rank that is through takes part with a row that nobody asked for.
            decoding = _Decoding(
                prompts=[prompts[place] for place in batch] or [[pad_id]],
                limits=[limits[place] for place in batch] or [1],
                rows=[numbers[place] for place in batch] or [0],
                eos_ids=frozenset(eos_ids),
                pad_id=pad_id,
                sampling=sampling,
                device=device,
            )
            is_going = True
            while is_going:
                decoding.advance(model)
                if _on_any_rank(stop_requested(), synced):
                    return []
                is_going = _on_any_rank(not decoding.is_done, synced)
            answers |= zip(batch, decoding.answers(), strict=False)
            on_batch(len(batch))
    finally:
        model.train(was_training)
    return [answers[place] for place in range(len(prompts))]


def stream_ids(
    model: nn.Module,
    prompt: Ids,
    *,
    eos_ids: Collection[int],
    pad_id: int,
    sampling: Sampling,
    device: torch.device,
    row: int = 0,
    max_positions: int | None = None,
) -> Iterator[int]:
    """The ids of one answer as they come, EOS included if it comes; the model is in evaluation mode."""
    decoding = _Decoding(
        prompts=[prompt],
        limits=[_limit(prompt, row, sampling, max_positions)],
        rows=[row],
        eos_ids=frozenset(eos_ids),
        pad_id=pad_id,
        sampling=sampling,
        device=device,
    )
    while not decoding.is_done:
        yield decoding.advance(model)[0]


def _limit(prompt: Ids, row: int, sampling: Sampling, max_positions: int | None) -> int:
    if not len(prompt):
        raise RunError(f"row {row}: the prompt has no token; give it a text")
    if max_positions is None:
        return sampling.max_new_tokens
    if len(prompt) >= max_positions:
        raise RunError(
            f"row {row}: the prompt has {len(prompt):,} tokens, but the model has {max_positions:,} positions; "
            "shorten the prompt or its history"
        )
    return min(sampling.max_new_tokens, max_positions - len(prompt))


class _Decoding:
    """A batch on its way: what was said so far, and the cache that spares saying it again."""

    def __init__(
        self,
        *,
        prompts: Sequence[Ids],
        limits: Sequence[int],
        rows: Sequence[int],
        eos_ids: frozenset[int],
        pad_id: int,
        sampling: Sampling,
        device: torch.device,
    ) -> None:
        self._limits, self._eos_ids, self._pad_id = limits, eos_ids, pad_id
        self._sampling, self._device = sampling, device
        self._said: list[list[int]] = [[] for _ in prompts]
        self._ended = [False for _ in prompts]
        self._input_ids, self._mask = left_padded(prompts, pad_id=pad_id, device=device)
        # Padding stands at position 0, where no one attends to it.
        self._position_ids = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._prompts = self._input_ids
        self._seen: torch.Tensor | None = None
        self._cache: Any = None
        self._draws = [_draws(sampling.seed, row) for row in rows] if sampling.temperature > 0 else []

    @property
    def is_done(self) -> bool:
        return not any(self._is_open(row) for row in range(len(self._said)))

    def _is_open(self, row: int) -> bool:
        return not self._ended[row] and len(self._said[row]) < self._limits[row]

    def answers(self) -> list[Answer]:
        return [
            Answer(ids=tuple(said[:-1] if ended else said), ended=ended)
            for said, ended in zip(self._said, self._ended, strict=True)
        ]

    @torch.no_grad()
    def advance(self, model: nn.Module) -> list[int]:
        """One forward pass, and the id that each row says next (padding where it is through)."""
        output = model(
            input_ids=self._input_ids,
            attention_mask=self._mask,
            position_ids=self._position_ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        chosen = self._choose(output.logits[:, -1].float())
        for row, token in enumerate(chosen):
            if self._is_open(row):
                self._said[row].append(token)
                self._ended[row] = token in self._eos_ids
            else:
                chosen[row] = self._pad_id
        self._input_ids = torch.tensor(chosen, device=self._device)[:, None]
        self._position_ids = self._position_ids[:, -1:] + 1
        self._mask = nn.functional.pad(self._mask, (0, 1), value=1)
        return chosen

    def _choose(self, logits: torch.Tensor) -> list[int]:
        if self._sampling.repetition_penalty != 1:
            logits = penalized(logits, self._seen_before(logits), self._sampling.repetition_penalty)
        draws = torch.tensor([next(draw) for draw in self._draws], dtype=torch.float64, device=logits.device)
        chosen: list[int] = choose(logits, draws, self._sampling).tolist()
        return chosen

    def _seen_before(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, V) bool: the ids of prompt and answer so far, padding not among them."""
        if self._seen is None:
            counts = torch.zeros(logits.shape, dtype=torch.int64, device=logits.device)
            self._seen = counts.scatter_add(1, self._prompts, self._mask[:, : self._prompts.shape[1]]) > 0
        else:
            self._seen = self._seen.scatter(1, self._input_ids, True)
        return self._seen


def left_padded(prompts: Sequence[Ids], *, pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids that all end at the same place, and their mask, 1 where a prompt stands; both int64."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids.to(device), mask.to(device)


def penalized(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """(B, V) logits, smaller for ids that were `seen` (B, V): Keskar et al. 2019, "CTRL", section 4.1."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def choose(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """(B,) next ids: the likeliest of (B, V) logits, or where each row's draw in [0, 1) falls among them."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    kept = cut_off(logits / sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    reached_BV = kept.double().softmax(dim=-1).cumsum(dim=-1)
    return (reached_BV <= draws[:, None] * reached_BV[:, -1:]).sum(dim=-1)


def cut_off(logits: torch.Tensor, *, top_k: int, top_p: float) -> torch.Tensor:
    """(B, V) logits, -inf for all but the `top_k` likeliest ids, then for the tail beyond a probability of `top_p`.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1. The likeliest id always stays.
    """
    if 0 < top_k < logits.shape[-1]:
        lowest = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        is_tail = before >= top_p
        is_tail[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(is_tail).scatter(1, order, is_tail), -torch.inf)
    return logits


def _draws(seed: int, row: int) -> Iterator[float]:
    """Numbers in [0, 1): a function of (seed, row), with no state shared between rows."""
    key = int.from_bytes(hashlib.sha256(f"sampling {seed} {row}".encode()).digest()[:16], "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    while True:
        yield float(generator.random())


def _on_any_rank(claim: bool, synced: bool) -> bool:
    if not synced:
        return claim
    flag = torch.tensor(int(claim))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def _as_many_on_each_rank(batches: list[list[int]]) -> list[list[int]]:
    """`batches`, and empty ones up to the number that the busiest rank has."""
    most = torch.tensor(len(batches))
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return batches + [[]] * (int(most.item()) - len(batches))
