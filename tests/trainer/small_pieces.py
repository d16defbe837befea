"""Pieces of small made-up parameters, each element of which has a value of its own."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from data_pipeline.disk import FileRecord
from trainer.pieces import WEIGHTS, Flat, write_flats
from trainer.reshape import dealt

MOMENTS = ("exp_avg", "exp_avg_sq")
Shapes = dict[str, tuple[int, ...]]


def values_of(name: str, kind: str, shapes: Shapes) -> torch.Tensor:
    """The made-up elements of a parameter's weights or moment: no two are equal."""
    first = 1e4 * list(shapes).index(name) + 1e3 * (WEIGHTS, *MOMENTS).index(kind)
    return first + torch.arange(math.prod(shapes[name]), dtype=torch.float32)


def save(folder: Path, groups: list[list[str]], shapes: Shapes, *, ranks: int, stage: int) -> list[FileRecord]:
    """Write what so many ranks would save."""
    records = []
    for rank in range(ranks):
        flats = []
        for layout in dealt(groups, shapes, rank=rank, num_ranks=ranks, zero_stage=stage):
            tensors = {kind: torch.zeros(layout.num_elements) for kind in (WEIGHTS, *MOMENTS)}
            for piece in layout.pieces:
                for kind, tensor in tensors.items():
                    mine = values_of(piece.name, kind, shapes)[piece.start : piece.start + piece.length]
                    tensor[piece.offset : piece.offset + piece.length] = mine
            weights = tensors.pop(WEIGHTS)
            flats.append(Flat(layout, weights, tensors, step=12))
        records.append(write_flats(folder, flats, rank=rank, num_ranks=ranks))
    return records


def two_groups(first: list[tuple[int, ...]], second: list[tuple[int, ...]]) -> tuple[list[list[str]], Shapes]:
    groups = [[f"a{number}" for number in range(len(first))], [f"b{number}" for number in range(len(second))]]
    return groups, dict(zip([*groups[0], *groups[1]], [*first, *second], strict=True))
