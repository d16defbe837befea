"""What `dure shards inspect` shows of examples: classes or scores, and the first of them, sequence by sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from data_pipeline.shards.format import SPLITS, ShardSet
from data_pipeline.shards.reader import open_shard, sequence_ends, values

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COLOURS = ("\x1b[36m", "\x1b[33m")  # neighbours differ
VALUE = "\x1b[32m"
RESET = "\x1b[0m"
MAX_CLASSES_SHOWN = 20
_LEFT_OUT = {
    "cut": "num_cut",
    "emptied": "num_emptied",
    "mixed": "num_mixed",
    "unknown label": "num_unknown_label",
    "too long": "num_too_long",
}


def lines_of_manifest(manifest: dict[str, Any]) -> Iterator[str]:
    """The frame, what was cut and left out of each split, and rows by class, or how many have a score."""
    frame = manifest["frame"]
    ids = ", ".join(
        f"{name} {frame[key]}" for name, key in (("CLS", "cls_id"), ("SEP", "sep_id")) if frame[key] is not None
    )
    many = manifest["num_sequences"]
    yield f"frame {frame['kind']}" + (f" ({ids})" if ids else "") + f", {many} sequence{'s' * (many > 1)} an example"
    scored = {"scored": "num_scored"} if manifest["record"] == "pair" else {}
    columns = {name: key for name, key in (scored | _LEFT_OUT).items() if key in manifest["splits"]["train"]}
    yield f"{'split':8} {'examples':>13} " + " ".join(f"{name:>13}" for name in columns)
    for split in SPLITS:
        counts = manifest["splits"][split]
        cells = " ".join(f"{counts[key]:13,}" for key in columns.values())
        yield f"{split:8} {counts['num_documents']:13,} {cells}"
    yield from _table_of_classes(manifest)


def _table_of_classes(manifest: dict[str, Any]) -> Iterator[str]:
    labels = manifest.get("labels", [])
    if not labels:
        return
    width = max(len("class"), *(len(label) for label in labels[:MAX_CLASSES_SHOWN]))
    yield f"{'':>4} {'class':{width}} " + " ".join(f"{split:>13}" for split in SPLITS)
    for number, label in enumerate(labels[:MAX_CLASSES_SHOWN]):
        counts = " ".join(f"{manifest['classes'][split][label]:13,}" for split in SPLITS)
        yield f"{number:4} {label:{width}} {counts}"
    if len(labels) > MAX_CLASSES_SHOWN:
        yield f"({len(labels) - MAX_CLASSES_SHOWN:,} more classes)"


def first_examples(shards: ShardSet, decoder: Tokenizer | None, *, num_rows: int, colour: bool) -> Iterator[str]:
    """A block an example: its id with its class or score, then a line a sequence, decoded."""
    shown = 0
    for file in shards.files:
        for batch in open_shard(file):
            for row in range(min(batch.num_rows, num_rows - shown)):
                yield from _example(batch, row, shards, decoder, colour=colour)
                shown += 1
            if shown == num_rows:
                return


def _example(batch: Any, row: int, shards: ShardSet, decoder: Tokenizer | None, *, colour: bool) -> Iterator[str]:
    offsets, ends = sequence_ends(batch)
    ids = batch.column("input_ids")[row].values.to_pylist()
    said = _value_text(float(values(batch)[row]), shards)
    yield f"{batch.column('record_id')[row].as_py()}  {f'{VALUE}{said}{RESET}' if colour else said}"
    start = 0
    for number, end in enumerate(ends[offsets[row] : offsets[row + 1]].tolist()):
        text = (
            str(ids[start:end]) if decoder is None else repr(decoder.decode(ids[start:end], skip_special_tokens=False))
        )
        yield f"  [{start:5} – {end - 1:5}] {f'{COLOURS[number % 2]}{text}{RESET}' if colour else text}"
        start = end


def _value_text(value: float, shards: ShardSet) -> str:
    if shards.record == "label":
        return f"class {int(value)}: {shards.labels[int(value)]}"
    return "no score" if math.isnan(value) else f"score {value:g}"
