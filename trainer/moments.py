"""An optimizer's state of one flat: taken out of it to be saved, and put back from the pieces of any number of ranks.

torch's AdamW keeps two float32 moments; bitsandbytes' keeps the same in blocks of 8 bits where a flat is large enough.
Shapes: E elements of a flat.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from trainer.pieces import BLOCK, WEIGHTS, Layout, Pieces

STEP = "step"

_PART = 1 << 24  # elements on their way at once: whole blocks

State = dict[str, Any]


def saved_state(optimizer: Any, weights: torch.Tensor) -> tuple[dict[str, torch.Tensor], int | None]:
    """The tensors that `optimizer` keeps for `weights`, and its count of updates; ({}, None) before the first."""
    state: State = optimizer.state.get(weights, {})
    tensors = {name: value for name, value in state.items() if name != STEP and isinstance(value, torch.Tensor)}
    return tensors, int(state[STEP]) if state else None


@torch.no_grad()
def restore_flat(
    optimizer: Any, weights: torch.Tensor, *, group: dict[str, Any], layout: Layout, source: Pieces
) -> None:
    """Fill `weights`, (E,) float32, and what `optimizer` keeps for them from `source`; padding becomes zero.

    `group` are the optimizer's options for `weights`. Moments of 8 bits are packed anew.
    """
    _fill(weights, WEIGHTS, layout=layout, source=source)
    optimizer.state.pop(weights, None)
    if source.step is None:
        return
    state = _new_state(optimizer, weights, group=group, step=source.step)
    for name in source.moments:
        if state[name].dtype == torch.uint8:
            _pack(state, name, layout=layout, source=source)
        else:
            _fill(state[name], name, layout=layout, source=source)


@torch.no_grad()
def restore_as_saved(
    optimizer: Any, weights: torch.Tensor, *, group: dict[str, Any], source: Pieces, rank: int, flat: int
) -> bool:
    """Fill `weights` and their state from a flat that was cut in the same way, to the bit; False where it can't be.

    It can't where moments were saved in another number of bits than this optimizer keeps here.
    """
    optimizer.state.pop(weights, None)
    targets = {WEIGHTS: weights}
    if (step := source.step) is not None:
        state = _new_state(optimizer, weights, group=group, step=step)
        targets |= {name: value for name, value in state.items() if name != STEP and isinstance(value, torch.Tensor)}
    if {name: (tensor.dtype, tensor.numel()) for name, tensor in targets.items()} != source.kinds(rank, flat):
        return False
    for name, target in targets.items():
        for start, values in source.parts(rank, flat, name):
            target[start : start + values.numel()].copy_(values)
    return True


def _new_state(optimizer: Any, weights: torch.Tensor, *, group: dict[str, Any], step: int) -> State:
    """What `optimizer` makes of `weights` at its first update, as if after `step` of them, with moments of zero."""
    if isinstance(optimizer, torch.optim.AdamW):
        # As torch's Adam._init_group has it: a fused one counts where it computes.
        device = weights.device if group["fused"] or group["capturable"] else torch.device("cpu")
        moments = {name: torch.zeros_like(weights) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[weights] = {STEP: torch.tensor(float(step), device=device), **moments}
    else:
        # It looks its options up by numbers, and ZeRO-3 keeps the optimizer's groups empty between updates.
        before, group["params"] = group["params"], [weights]
        number = next(number for number, each in enumerate(optimizer.param_groups) if each is group)
        optimizer.init_state(group, weights, number, 0)
        group["params"] = before
        optimizer.state[weights][STEP] = step
    state: State = optimizer.state[weights]
    return state


def _fill(target: torch.Tensor, kind: str, *, layout: Layout, source: Pieces) -> None:
    for start, values in _parts(kind, layout=layout, source=source):
        target[start : start + values.numel()].copy_(values)


def _pack(state: State, name: str, *, layout: Layout, source: Pieces) -> None:
    number = name.removeprefix("state")
    codes, scales, packed = state[f"qmap{number}"].cpu(), state[f"absmax{number}"], state[name]
    for start, values in _parts(name, layout=layout, source=source):
        numbers, ours = packed_blocks(values, codes=codes)
        packed[start : start + values.numel()].copy_(numbers)
        scales[start // BLOCK : start // BLOCK + ours.numel()].copy_(ours)


def packed_blocks(values: torch.Tensor, *, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(E,) float32 as numbers of `codes`, ascending, and a scale for each block; the last block may be shorter.

    Values that were packed in the same blocks before get their old numbers and scales. bitsandbytes' own packing gives
    others where a block's largest value is negative: it takes that for the scale, but has no code of -1.
    """
    blocks = nn.functional.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
    scales = (blocks.amax(1) / codes[-1]).clamp(min=0)
    if codes[0] < 0:
        scales = torch.maximum(scales, blocks.amin(1) / codes[0])
    borders = (codes[1:] + codes[:-1]) / 2
    numbers = torch.bucketize(blocks / torch.where(scales > 0, scales, 1.0)[:, None], borders).to(torch.uint8)
    return numbers.view(-1)[: values.numel()], scales


def _parts(kind: str, *, layout: Layout, source: Pieces) -> Iterator[tuple[int, torch.Tensor]]:
    """(first element, values) of a flat, part by part, with zeros for padding."""
    for start in range(0, layout.num_elements, _PART):
        end = min(start + _PART, layout.num_elements)
        values = torch.zeros(end - start)
        for piece in layout.pieces:
            first, last = max(start, piece.offset), min(end, piece.offset + piece.length)
            if first < last:
                inside = piece.start + first - piece.offset
                values[first - start : last - start] = source.read(piece.name, kind, start=inside, length=last - first)
        yield start, values
