"""The first batch as a person reads it: decoded, each target marked, padding counted.

Targets are green and their EOS stands on green; what is only read is plain; without colour targets stand in ⟦ ⟧.
Shapes: B rows of T inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.shards.format import TOKENIZER_FOLDER, tokenizer_folder
from data_pipeline.shards.inspect_answers import LINE_END, RESET, TARGET, TARGET_EOS
from data_pipeline.stream.batch import NO_TARGET, Batch
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.stream import AnyBatch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DIM = "\x1b[2m"
MAX_DOCUMENTS = 4  # of a row
# Of a document, so many ids from its start and from its end: where a template and an EOS go wrong.
HEAD_IDS, TAIL_IDS = 160, 80


def open_tokenizer(shards: Path) -> Tokenizer | None:
    """The tokenizer that the shards carry; None where they bring none."""
    if not (shards / TOKENIZER_FOLDER).is_dir():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer_folder(shards) / "tokenizer.json"))


def show_batch(
    batch: AnyBatch,
    tokenizer: Tokenizer | None,
    *,
    num_rows: int,
    eos_id: int,
    pad_id: int,
    colour: bool,
    labels: Sequence[str] = (),
    is_masked: bool = False,
) -> str:
    """Up to `num_rows` rows of the batch; as ids without a tokenizer. `labels`: names of the classes of examples.

    `is_masked`: labels stand in the place of their inputs; the text is shown as it was, its hidden places as targets.
    """
    if isinstance(batch, ExampleBatch):
        return _show_examples(batch, tokenizer, num_rows=num_rows, labels=labels, eos_id=eos_id, colour=colour)
    legend = f"{TARGET}targets{RESET}, {TARGET_EOS}their EOS{RESET}" if colour else "targets stand in ⟦ ⟧"
    share = batch.num_targets / max(1, batch.labels.size)
    lines = [
        f"the first batch: {len(batch.labels)} rows of {batch.labels.shape[1]:,}, {batch.num_targets:,} targets "
        f"({share:.1%}); {legend}, the rest is read only"
    ]
    for row in range(min(num_rows, len(batch.labels))):
        lines += _row(batch, row, tokenizer, eos_id=eos_id, pad_id=pad_id, colour=colour, is_masked=is_masked)
    return "\n".join(lines)


def _show_examples(
    batch: ExampleBatch,
    tokenizer: Tokenizer | None,
    *,
    num_rows: int,
    labels: Sequence[str],
    eos_id: int,
    colour: bool,
) -> str:
    """The sequences of the first examples, each with its class or score, and with its answer marked as targets are."""
    num_padding = batch.input_ids.size - int(batch.lengths.sum())
    lines = [
        f"the first batch: {len(batch.row_ids)} examples of {batch.num_sequences} sequence(s), the longest "
        f"{int(batch.lengths.max()):,} ids; {num_padding:,} of {batch.input_ids.size:,} places are padding"
    ]
    for number in range(min(num_rows, len(batch.row_ids))):
        told = _value_of(batch, number, labels)
        shown = f"{TARGET}{told}{RESET}" if colour else f"⟦{told}⟧"
        lines.append(f"example {int(batch.row_ids[number]):,} of all: {shown}")
        for place in range(batch.num_sequences):
            row = number * batch.num_sequences + place
            ids = batch.input_ids[row, : batch.lengths[row]].tolist()
            start, end = (0, 0) if batch.answers is None else batch.answers[row].tolist()
            marks = [start <= inner < end for inner in range(len(ids))]
            left_out = ""
            if (num_cut := len(ids) - HEAD_IDS - TAIL_IDS) > 0:
                ids, marks = ([*each[:HEAD_IDS], *each[-TAIL_IDS:]] for each in (ids, marks))
                left_out = f" ({num_cut:,} ids left out)"
            text = _marked(ids, marks, tokenizer, eos_id=eos_id, colour=colour)
            *inner_lines, final = f"{text}{left_out}".split("\n")
            lines += [*(f"    {line}{LINE_END}" for line in inner_lines), f"    {final}"]
    return "\n".join(lines)


def _value_of(batch: ExampleBatch, number: int, labels: Sequence[str]) -> str:
    """What an example is worth, in a word."""
    value = float(batch.values[number])
    if not np.isnan(value):
        if batch.answers is not None:
            return "desirable" if value > 0 else "undesirable"
        return labels[int(value)] if labels else f"{value:g}"
    if batch.answers is not None:
        return "the chosen answer, then the rejected one"
    return "no score"


def _row(
    batch: Batch,
    row: int,
    tokenizer: Tokenizer | None,
    *,
    eos_id: int,
    pad_id: int,
    colour: bool,
    is_masked: bool,
) -> Iterator[str]:
    inputs, labels, positions = batch.input_ids[row], batch.labels[row], batch.position_ids[row]
    firsts = np.flatnonzero(positions == 0).tolist()
    segments = list(zip(firsts, [*firsts[1:], len(inputs)], strict=True))
    padding = [end - first for first, end in segments if _is_padding(inputs[first:end], labels[first:end], pad_id)]
    num_targets = int((labels != NO_TARGET).sum())
    warning = "" if num_targets else "   <- NOTHING IN THIS ROW IS LEARNT (학습 대상 없음)"
    yield (
        f"row {row} (number {int(batch.row_ids[row]):,} of all): {len(segments) - len(padding)} documents, "
        f"{num_targets:,} targets, {sum(padding):,} padding{warning}"
    )
    shown = 0
    for first, end in segments:
        if _is_padding(inputs[first:end], labels[first:end], pad_id):
            continue
        if shown == MAX_DOCUMENTS:
            yield f"  … and {len(segments) - len(padding) - shown} documents more"
            return
        shown += 1
        yield from _document(inputs, labels, first, end, tokenizer, eos_id=eos_id, colour=colour, is_masked=is_masked)


def _is_padding(inputs: np.ndarray, labels: np.ndarray, pad_id: int) -> bool:
    return bool((inputs == pad_id).all() and (labels == NO_TARGET).all())


def _document(
    inputs: np.ndarray,
    labels: np.ndarray,
    first: int,
    end: int,
    tokenizer: Tokenizer | None,
    *,
    eos_id: int,
    colour: bool,
    is_masked: bool,
) -> Iterator[str]:
    of_segment = labels[first:end]
    is_target = of_segment != NO_TARGET
    if is_masked:
        ids, marks = np.where(is_target, of_segment, inputs[first:end]).tolist(), is_target.tolist()
    else:
        # The last label is no input of its own.
        last = [int(of_segment[-1])] if is_target[-1] else []
        ids = [*inputs[first:end].tolist(), *last]
        marks = [False, *is_target.tolist()][: len(ids)]
    yield f"  [{first:5} – {end - 1:5}] {int(is_target.sum()):,} targets of {end - first:,}"
    pieces = [(ids, marks)]
    if len(ids) > HEAD_IDS + TAIL_IDS + 20:
        pieces = [(ids[:HEAD_IDS], marks[:HEAD_IDS]), (ids[-TAIL_IDS:], marks[-TAIL_IDS:])]
    texts = [_marked(*piece, tokenizer, eos_id=eos_id, colour=colour) for piece in pieces]
    left_out = f" … {len(ids) - HEAD_IDS - TAIL_IDS:,} ids … "
    text = (f"{DIM}{left_out}{RESET}" if colour else left_out).join(texts)
    *lines, final = text.split("\n")
    yield from (f"    {line}{LINE_END}" for line in lines)
    yield f"    {final}"


def _marked(ids: list[int], marks: list[bool], tokenizer: Tokenizer | None, *, eos_id: int, colour: bool) -> str:
    """Runs of targets and others, decoded one by one; an EOS that is a target stands out."""
    text = ""
    kinds = [
        "eos" if mark and token == eos_id else "target" if mark else "" for token, mark in zip(ids, marks, strict=True)
    ]
    for kind, pairs in itertools.groupby(zip(ids, kinds, strict=True), key=lambda pair: pair[1]):
        shown = _decoded([token for token, _ in pairs], tokenizer)
        if not kind:
            text += shown
        elif colour:
            # A colour does not outlive its line: terminals and pagers paint the rest of it.
            start = TARGET_EOS if kind == "eos" else TARGET
            text += f"{RESET}\n{start}".join(f"{start}{shown}{RESET}".split("\n"))
        else:
            text += f"⟦{shown}⟧"
    return text if colour else text.replace("⟧⟦", "")


def _decoded(ids: list[int], tokenizer: Tokenizer | None) -> str:
    return f" {ids} " if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=False)
