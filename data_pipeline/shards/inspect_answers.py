"""What `dure shards inspect` shows of rows with answers, and how it marks them: green, without colour in ⟦ ⟧."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from data_pipeline.shards.format import SPLITS, RecordKind, ShardSet
from data_pipeline.shards.reader import loss_spans, open_shard, sequence_ends, values

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TARGET, TARGET_EOS = "\x1b[32m", "\x1b[30;42m"
RESET = "\x1b[0m"
LINE_END = "↵"
_SEQUENCES: dict[RecordKind, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "feedback": ("answer",),
    "prompt": ("prompt", "reference"),
}
_COLUMNS = {
    "targets": "num_targets",
    "desirable": "num_desirable",
    "mixed": "num_mixed",
    "no EOS": "num_no_eos",
    "emptied": "num_emptied",
    "equal": "num_equal",
    "long prompt": "num_prompt_too_long",
    "too long": "num_too_long",
}


def lines_of_answers(manifest: dict[str, Any]) -> Iterator[str]:
    """How the rows were written and split, and what of each split was left out."""
    many = manifest["num_sequences"]
    yield f"template {manifest['template']['name']}, {manifest['template']['sha256'][:16]}…"
    yield f"{many} sequence{'s' * (many > 1)} an example; held out by a hash of the prompt (프롬프트 단위로 나눔)"
    columns = {name: key for name, key in _COLUMNS.items() if key in manifest["splits"]["train"]}
    yield f"{'split':8} {'examples':>13} " + " ".join(f"{name:>13}" for name in columns)
    for split in SPLITS:
        counts = manifest["splits"][split]
        cells = " ".join(f"{counts[key]:13,}" for key in columns.values())
        yield f"{split:8} {counts['num_documents']:13,} {cells}"


def first_answers(shards: ShardSet, decoder: Tokenizer | None, *, num_rows: int, colour: bool) -> Iterator[str]:
    """A block an example: its id, then each of its sequences with its answer marked."""
    shown = 0
    for file in shards.files:
        for batch in open_shard(file):
            for row in range(min(batch.num_rows, num_rows - shown)):
                yield from _example(batch, row, shards, decoder, colour=colour)
                shown += 1
            if shown == num_rows:
                return


def _example(batch: Any, row: int, shards: ShardSet, decoder: Tokenizer | None, *, colour: bool) -> Iterator[str]:
    said = ""
    if shards.record == "feedback":
        said = "  desirable (좋음)" if values(batch)[row] else "  undesirable (나쁨)"
    yield f"{batch.column('record_id')[row].as_py()}{said}"
    ids = batch.column("input_ids")[row].values.to_pylist()
    offsets, ends = sequence_ends(batch)
    stops = ends[offsets[row] : offsets[row + 1]].tolist()
    spans: list[tuple[int, int]] = [(0, 0)] * len(stops)
    if shards.record != "prompt":
        span_offsets, starts, span_ends = loss_spans(batch)
        chosen = slice(span_offsets[row], span_offsets[row + 1])
        spans = list(zip(starts[chosen].tolist(), span_ends[chosen].tolist(), strict=True))
    names = _SEQUENCES[shards.record]
    for name, first, end, (start, stop) in zip(names, [0, *stops[:-1]], stops, spans, strict=False):
        yield f"  [{first:5} – {end - 1:5}] {name}" + (f": {stop - start} targets of {end - first}" if stop else "")
        is_target = [start <= place < stop for place in range(first, end)]
        yield from indented(marked(ids[first:end], is_target, decoder, eos_id=shards.eos_id, colour=colour))


def marked(ids: list[int], is_target: list[bool], decoder: Tokenizer | None, *, eos_id: int, colour: bool) -> str:
    """Runs of targets and others, decoded one by one: a run ends where a piece of the template ends."""
    text = ""
    for targets, pairs in itertools.groupby(zip(ids, is_target, strict=True), key=lambda pair: pair[1]):
        run = [token_id for token_id, _ in pairs]
        has_eos = targets and run[-1] == eos_id
        shown = _decoded(run[:-1] if has_eos else run, decoder)
        eos = _decoded([eos_id], decoder) if has_eos else ""
        if not targets:
            text += shown
        elif colour:
            text += f"{TARGET}{shown}{RESET}" + (f"{TARGET_EOS}{eos}{RESET}" if has_eos else "")
        else:
            text += f"⟦{shown}{eos}⟧"
    return text


def _decoded(ids: list[int], decoder: Tokenizer | None) -> str:
    return f" {ids} " if decoder is None else decoder.decode(ids, skip_special_tokens=False)


def indented(text: str) -> Iterator[str]:
    *lines, last = text.split("\n")
    yield from (f"    {line}{LINE_END}" for line in lines)
    yield f"    {last}"
