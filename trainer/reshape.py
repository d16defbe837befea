"""A ZeRO checkpoint cut anew for another number of ranks: the same step in a folder of its own, whole or invisible.

A start does not need it: each rank then reads its part out of the files of all. Cut beforehand, each reads one file
from its begin to its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipeline.config import load
from data_pipeline.disk import FileRecord
from trainer import checkpoint
from trainer.checkpoint_marker import CheckpointError, read_marker, reshaped_name, step_of
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.pieces import (
    CHUNK,
    PIECES_NAME,
    WEIGHTS,
    Chunks,
    Entry,
    Layout,
    Piece,
    Pieces,
    file_name,
    has_pieces,
    layout_told,
    write_file,
)
from trainer.ranks import Ranks
from trainer.run_folder import CONFIG_NAME


def reshape(folder: Path, *, num_ranks: int) -> Path:
    """The checkpoint of the same step for `num_ranks` ranks, beside `folder`, which stays; made where it is missing.

    Holds a part of one tensor at a time, on one process. The caller holds the run.

    Raises:
        RunError: nothing to cut, or not for so many ranks.
        CheckpointError: `folder` is damaged, or what was cut can't be written; nothing is committed then.
    """
    if faults := checkpoint.verify(folder):
        raise CheckpointError("\n".join(faults) + f"\n{folder}: damaged; name an older one")
    state = checkpoint.read_state(folder)
    _check(folder, state["engine"], num_ranks=num_ranks)
    target = folder.with_name(reshaped_name(step_of(folder), num_ranks=num_ranks))
    zero_stage = state["engine"]["zero_stage"]

    def write_engine(into: Path) -> list[FileRecord]:
        source = Pieces(folder)
        return [
            rewrite(source, into, rank=rank, num_ranks=num_ranks, zero_stage=zero_stage) for rank in range(num_ranks)
        ]

    checkpoint.write(
        target,
        state={**state, "engine": {**state["engine"], "ranks": num_ranks}},
        write_engine=write_engine,
        extra_files=_companions(folder),
        ranks=Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu")),
    )
    return target


def _check(folder: Path, engine: dict[str, Any], *, num_ranks: int) -> None:
    if not has_pieces(folder):
        raise RunError(
            f"{folder}: saved by engine.kind {engine['kind']!r}: any number of ranks goes on from it as it is"
        )
    if engine["ranks"] == num_ranks:
        raise RunError(f"{folder}: cut for {num_ranks} ranks already; any other number goes on from it too")
    sequences = load(folder / CONFIG_NAME, [], TrainConfig).train.global_batch_sequences
    if num_ranks > sequences:
        raise RunError(
            f"--ranks: {num_ranks} ranks, but a step of {folder} has train.global_batch_sequences {sequences}, one "
            "for each rank at least; give fewer ranks"
        )


def _companions(folder: Path) -> dict[str, bytes]:
    """The small files beside the pieces."""
    names = [entry["name"] for entry in read_marker(folder)[0]["files"]]
    small = [name for name in names if name != checkpoint.STATE_NAME and not name.startswith(f"{PIECES_NAME}/")]
    return {name: (folder / name).read_bytes() for name in small}


def dealt(
    groups: Sequence[Sequence[str]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rank: int,
    num_ranks: int,
    zero_stage: int,
) -> list[Layout]:
    """The flats that DeepSpeed gives `rank` of `num_ranks` under `zero_stage`, one a group of parameters.

    Stages 1 and 2 cut the row of all parameters of a group, stage 3 each parameter. Where a version of DeepSpeed does
    it otherwise, the files are as right, only not read straight through.
    """
    deal = _dealt_each if zero_stage == 3 else _dealt_in_a_row
    parameters = [[(name, shapes[name]) for name in group] for group in groups]
    return [deal(group, rank=rank, num_ranks=num_ranks) for group in parameters]


def _dealt_each(parameters: Sequence[tuple[str, tuple[int, ...]]], *, rank: int, num_ranks: int) -> Layout:
    pieces, offset = [], 0
    for name, shape in parameters:
        whole, share = math.prod(shape), -(-math.prod(shape) // num_ranks)
        start = min(rank * share, whole)
        pieces.append(Piece(name, shape, start, min(share, whole - start), offset))
        offset += share
    return Layout(num_elements=offset, pieces=tuple(piece for piece in pieces if piece.length))


def _dealt_in_a_row(parameters: Sequence[tuple[str, tuple[int, ...]]], *, rank: int, num_ranks: int) -> Layout:
    alignment = 2 * num_ranks  # elements: 4 bytes of bf16 for each rank
    share = -(-sum(math.prod(shape) for _, shape in parameters) // alignment) * alignment // num_ranks
    pieces, begin, position = [], rank * share, 0
    for name, shape in parameters:
        start, end = max(position, begin), min(position + math.prod(shape), begin + share)
        if start < end:
            pieces.append(Piece(name, shape, start - position, end - start, start - begin))
        position += math.prod(shape)
    return Layout(num_elements=share, pieces=tuple(pieces))


def rewrite(source: Pieces, folder: Path, *, rank: int, num_ranks: int, zero_stage: int) -> FileRecord:
    """Write the file of one of `num_ranks` ranks into `folder`, from the pieces of any number.

    Moments of 8 bits become those of 32 bits that they stand for: another cut has other blocks.
    """
    moments, step = source.moments, source.step
    layouts = dealt(source.groups(), source.shapes, rank=rank, num_ranks=num_ranks, zero_stage=zero_stage)
    entries = [
        Entry(f"{flat}.{kind}", torch.float32, layout.num_elements, _parts_from(source, layout, kind))
        for flat, layout in enumerate(layouts)
        for kind in (WEIGHTS, *moments)
    ]
    told = [layout_told(layout, step=step, moments=moments) for layout in layouts]
    return write_file(folder, file_name(rank, num_ranks), entries, told)


def _parts_from(source: Pieces, layout: Layout, kind: str) -> Chunks:
    def parts() -> Iterator[torch.Tensor]:
        position = 0
        for piece in layout.pieces:
            yield torch.zeros(piece.offset - position)
            for start in range(piece.start, piece.start + piece.length, CHUNK):
                length = min(CHUNK, piece.start + piece.length - start)
                yield source.read(piece.name, kind, start=start, length=length)
            position = piece.offset + piece.length
        yield torch.zeros(layout.num_elements - position)

    return parts
