"""What ZeRO's ranks hold, as pieces that say whose they are: any number of ranks, under any stage, can go on from them.

    pieces/rank-00000-of-00002.safetensors
        0.weights  0.exp_avg  0.exp_avg_sq     flat 0 as this rank's optimizer holds it: (E,) float32
        1.weights  ...                         flat 1
        __metadata__["layout"]                 which part of which parameter lies where in each flat

Weights are the optimizer's float32 masters. Moments of 8 bits stand beside their scales, as they are. Only safetensors
and JSON are read: no pickle. Nothing here holds more than one part of a tensor at a time, and nothing knows an engine.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_pipeline import disk
from data_pipeline.disk import FileRecord
from trainer.checkpoint_marker import CheckpointError

PIECES_NAME = "pieces"
WEIGHTS = "weights"
BLOCK = 256  # elements that share a scale in bitsandbytes' 8-bit optimizers

_FILE_NAME = re.compile(r"rank-(\d{5,})-of-(\d{5,})\.safetensors")
CHUNK = 1 << 24  # elements on the way between a device, the memory and the disk
_TYPES = {torch.float32: "F32", torch.uint8: "U8"}
_DTYPES = {text: dtype for dtype, text in _TYPES.items()}

Tensors = Mapping[str, torch.Tensor]
Kinds = dict[str, tuple[torch.dtype, int]]  # of each tensor of a flat: its type, and how many elements it has
Chunks = Callable[[], Iterable[torch.Tensor]]


class Piece(NamedTuple):
    """Elements [start, start + length) of the flattened parameter `name`, at `offset` of a flat."""

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    offset: int


@dataclass(frozen=True)
class Layout:
    """What lies in a flat of `num_elements`; between and after the pieces is padding."""

    num_elements: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Flat:
    """A flat to save: its masters and its optimizer's state. `step` is None where no update was made yet."""

    layout: Layout
    weights: torch.Tensor
    state: Tensors
    step: int | None


class Entry(NamedTuple):
    """A tensor of a file that is written part by part."""

    name: str
    dtype: torch.dtype
    num_elements: int
    chunks: Chunks


def file_name(rank: int, num_ranks: int) -> str:
    """The file of one rank, inside a checkpoint's folder."""
    return f"{PIECES_NAME}/rank-{rank:05}-of-{num_ranks:05}.safetensors"


def write_flats(folder: Path, flats: Sequence[Flat], *, rank: int, num_ranks: int) -> FileRecord:
    """Write what `rank` holds into the checkpoint `folder`; a device's tensors pass the host's memory in parts."""
    entries, told = [], []
    for number, flat in enumerate(flats):
        tensors = {WEIGHTS: flat.weights, **flat.state}
        moments = [name for name, tensor in flat.state.items() if tensor.numel() == flat.layout.num_elements]
        told.append(layout_told(flat.layout, step=flat.step, moments=moments))
        for name, tensor in tensors.items():
            whole = tensor.detach().reshape(-1)
            entries.append(Entry(f"{number}.{name}", tensor.dtype, tensor.numel(), _parts_of(whole)))
    return write_file(folder, file_name(rank, num_ranks), entries, told)


def _parts_of(tensor: torch.Tensor) -> Chunks:
    return lambda: (part.cpu() for part in tensor.split(CHUNK))


def layout_told(layout: Layout, *, step: int | None, moments: Iterable[str]) -> dict[str, Any]:
    """What a file says of one of its flats."""
    return {"num_elements": layout.num_elements, "step": step, "moments": list(moments), "pieces": layout.pieces}


def write_file(folder: Path, name: str, entries: Sequence[Entry], layout: list[dict[str, Any]]) -> FileRecord:
    """A safetensors file, written in order and never whole in memory; https://huggingface.co/docs/safetensors."""
    header: dict[str, Any] = {"__metadata__": {"layout": json.dumps(layout, ensure_ascii=False)}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.num_elements * entry.dtype.itemsize
        header[entry.name] = {"dtype": _TYPES[entry.dtype], "shape": [entry.num_elements], "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    (folder / name).parent.mkdir(exist_ok=True)
    with disk.durable_file(folder / name) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            for chunk in entry.chunks():
                if chunk.numel():
                    file.write(chunk.contiguous().view(torch.uint8).numpy())
    return file.record(name)


class _File:
    """One rank's file, opened but not read."""

    def __init__(self, path: Path) -> None:
        import safetensors

        self.path = path
        opened: Callable[..., Any] = safetensors.safe_open
        self._tensors = opened(path, framework="pt")
        told = json.loads(self._tensors.metadata()["layout"])
        self.names = set(self._tensors.keys())
        self.steps: list[int | None] = [flat["step"] for flat in told]
        self.moments: list[list[str]] = [flat["moments"] for flat in told]
        self.layouts = [_layout_of(flat) for flat in told]

    def part(self, name: str, start: int, end: int) -> torch.Tensor:
        found: torch.Tensor = self._tensors.get_slice(name)[start:end]
        return found

    def kinds(self, flat: int) -> Kinds:
        prefix = f"{flat}."
        slices = {name: self._tensors.get_slice(name) for name in self.names if name.startswith(prefix)}
        return {
            name.removeprefix(prefix): (_DTYPES[found.get_dtype()], found.get_shape()[0])
            for name, found in slices.items()
        }

    def values(self, flat: int, kind: str, start: int, end: int) -> torch.Tensor:
        """Elements of a flat's weights or of a moment, in float32."""
        found = self.part(f"{flat}.{kind}", start, end)
        if found.dtype != torch.uint8:
            return found
        number = kind.removeprefix("state")
        codes = self.part(f"{flat}.qmap{number}", 0, 256)
        first = start // BLOCK
        scales = self.part(f"{flat}.absmax{number}", first, -(-end // BLOCK))
        skipped = start - first * BLOCK
        return codes[found.long()] * scales.repeat_interleave(BLOCK)[skipped : skipped + end - start]


def _layout_of(told: Mapping[str, Any]) -> Layout:
    pieces = tuple(Piece(name, tuple(shape), *numbers) for name, shape, *numbers in told["pieces"])
    return Layout(num_elements=told["num_elements"], pieces=pieces)


class _Source(NamedTuple):
    """Where a piece lies."""

    start: int
    piece: Piece
    file: _File
    flat: int


class Pieces:
    """The pieces of a verified checkpoint, read a part at a time.

    Raises:
        CheckpointError: files of several saves, or not those of all ranks of one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = [_File(path) for path in _files_of(folder)]
        sources = [
            _Source(piece.start, piece, file, flat)
            for file in self._files
            for flat, layout in enumerate(file.layouts)
            for piece in layout.pieces
        ]
        sources.sort(key=lambda source: (source.piece.name, source.start))
        self._sources = {name: list(ours) for name, ours in groupby(sources, key=lambda source: source.piece.name)}
        self.shapes = {name: ours[0].piece.shape for name, ours in self._sources.items()}

    @property
    def num_ranks(self) -> int:
        """How many ranks the files were written for."""
        return len(self._files)

    @property
    def step(self) -> int | None:
        """The optimizer's own count of its updates; None before the first."""
        return next((step for file in self._files for step in file.steps if step is not None), None)

    @property
    def moments(self) -> list[str]:
        """What the optimizer keeps for each element of a weight."""
        return next((moments for file in self._files for moments in file.moments if moments), [])

    def groups(self) -> list[list[str]]:
        """The parameters of each flat, in their order."""
        groups: list[dict[str, None]] = [{} for _ in self._files[0].layouts]
        for file in self._files:
            for group, layout in zip(groups, file.layouts, strict=True):
                group.update(dict.fromkeys(piece.name for piece in layout.pieces))
        return [list(group) for group in groups]

    def layouts(self, rank: int) -> list[Layout]:
        """The flats of one rank's file."""
        return self._files[rank].layouts

    def kinds(self, rank: int, flat: int) -> Kinds:
        """What a rank's file holds of a flat: its weights and its state, of 8 bits or 32."""
        return self._files[rank].kinds(flat)

    def parts(self, rank: int, flat: int, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first element, elements) of a tensor of a flat as it was saved, part by part."""
        file = self._files[rank]
        _, num_elements = file.kinds(flat)[name]
        for start in range(0, num_elements, CHUNK):
            yield start, file.part(f"{flat}.{name}", start, min(start + CHUNK, num_elements))

    def read(self, name: str, kind: str = WEIGHTS, *, start: int = 0, length: int | None = None) -> torch.Tensor:
        """Elements of a flattened parameter, (length,) float32: its weights or one of `moments`; to its end by default.

        Raises:
            CheckpointError: no file holds some of them.
        """
        sources = self._sources.get(name, [])
        end = start + length if length is not None else math.prod(self.shapes.get(name, ()))
        parts, reached = [], start
        first = max(0, bisect_right([source.start for source in sources], start) - 1)
        for source in sources[first:]:
            stop = min(end, source.start + source.piece.length)
            if source.start > reached or reached >= end:
                break
            if stop > reached:
                offset = source.piece.offset - source.start
                parts.append(source.file.values(source.flat, kind, offset + reached, offset + stop))
                reached = stop
        if reached < end or not sources:
            raise CheckpointError(
                f"{self._folder / PIECES_NAME}: no file holds element {reached:,} of {end:,} of {name}; the checkpoint "
                "is of another model, or lacks a rank's file: restore it, or name an older checkpoint"
            )
        return torch.cat(parts) if len(parts) != 1 else parts[0]


def _files_of(folder: Path) -> list[Path]:
    found = {path: match for path in sorted((folder / PIECES_NAME).glob("rank-*")) if (match := _match(path))}
    claims = [(int(match.group(1)), int(match.group(2))) for match in found.values()]
    if not claims or claims != [(rank, len(claims)) for rank in range(len(claims))]:
        names = ", ".join(path.name for path in found) or "no file"
        raise CheckpointError(
            f"{folder / PIECES_NAME}: {names}: not one file of each rank of one save; restore what is missing, or name "
            "an older checkpoint"
        )
    return list(found)


def _match(path: Path) -> re.Match[str] | None:
    return _FILE_NAME.fullmatch(path.name)


def has_pieces(folder: Path) -> bool:
    """Whether a checkpoint is in this form."""
    return (folder / PIECES_NAME).is_dir()


def check_shapes(source: Pieces, pieces: Iterable[Piece]) -> None:
    """Refuse a checkpoint of another model before anything of it is taken.

    Raises:
        CheckpointError: a line for each parameter that is missing there or has another shape.
    """
    faults = [
        f"{piece.name}: {saved or 'absent'} in the checkpoint, {piece.shape} in the model"
        for piece in pieces
        if (saved := source.shapes.get(piece.name)) != piece.shape
    ]
    if faults:
        raise CheckpointError("\n".join(faults) + "\nthe checkpoint is of another model; go on with that one's config")
