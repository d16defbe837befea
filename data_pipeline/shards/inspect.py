"""`dure shards inspect`: counts, a histogram of lengths, and the first rows as a model will see them.

Of instruction rows and of rows with answers it shows what is learned: targets in green and their EOS on green, without
colour in ⟦ ⟧.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import (
    ANSWERED,
    EXAMPLES,
    SPLITS,
    TOKENIZER_FOLDER,
    RecordKind,
    ShardSet,
    read_shards,
    read_shards_manifest,
    tokenizer_folder,
)
from data_pipeline.shards.inspect_answers import first_answers, indented, lines_of_answers, marked
from data_pipeline.shards.inspect_examples import first_examples, lines_of_manifest
from data_pipeline.shards.reader import iterate_lengths
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import NO_TARGET, Batch, RowBuffers
from data_pipeline.stream.maps import ShardMaps
from data_pipeline.stream.packing import WINDOW_DOCUMENTS, PackedWindow, Packing, pack_best_fit
from data_pipeline.tokenizer.fingerprint import tokenizer_fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IntArray = NDArray[np.int64]

BAR_WIDTH = 40
COLOURS = ("\x1b[36m", "\x1b[33m")  # neighbours differ
RESET = "\x1b[0m"
PACKINGS: dict[RecordKind, Packing] = {"document": "concatenated", "instruction": "best_fit"}


def describe(
    folder: Path,
    *,
    tokenizer: Path | None = None,
    split: str = "train",
    seq_len: int = 2048,
    packing: Packing | None = None,
    num_rows: int = 2,
    colour: bool = False,
) -> str:
    """Text about a finished shards folder. Writes nothing, and reads the lengths and the first documents only.

    Rows are decoded by the tokenizer that the shards carry, or by `tokenizer`; without one they are shown as ids.
    `packing`: concatenated for documents and best_fit for instruction rows if None.

    Raises:
        StageError: an unfinished folder, an empty split, a tokenizer other than the one that made the shards, or
            instruction rows concatenated.
    """
    manifest = read_shards_manifest(folder)
    shards = read_shards(folder, split=split)
    decoder = _decoder(shards, tokenizer)
    if shards.record in EXAMPLES:
        if packing is not None:
            raise StageError(
                f"{folder}: holds {shards.record} records, which are never packed, but packing is {packing!r}"
            )
        return "\n".join(_lines_of_examples(shards, manifest, decoder, num_rows=num_rows, colour=colour)) + "\n"
    packing = packing or PACKINGS[shards.record]
    if shards.record == "instruction" and packing != "best_fit":
        raise StageError(
            f"{folder}: holds instruction rows, which are packed best_fit only, but packing is {packing!r}"
        )
    lines = [
        *_head(shards, manifest),
        *_template_line(manifest),
        *_table_of_splits(manifest),
        *_table_of_targets(manifest),
        f"tokens a document, EOS included, {split}:",
        *_histogram(shards),
        f"first rows of {split}, {packing}, seq_len {seq_len} (before the permutation):",
        *_rows(shards, decoder, seq_len=seq_len, packing=packing, num_rows=num_rows, colour=colour),
    ]
    return "\n".join(lines) + "\n"


def _head(shards: ShardSet, manifest: dict[str, Any]) -> Iterator[str]:
    yield f"{shards.folder}: shards of {manifest['record']} records, {manifest['dtype']} ids"
    padding = "no pad token of its own (a free row of the model pads)" if shards.pad_is_eos else f"pad {shards.pad_id}"
    end = f"EOS {shards.eos_id}" + (" (its SEP)" if manifest.get("eos_is_sep") else "")
    yield f"tokenizer {shards.tokenizer_fingerprint[:16]}…, {shards.vocab_size:,} ids, {end}, {padding}"


def _lines_of_examples(
    shards: ShardSet, manifest: dict[str, Any], decoder: Tokenizer | None, *, num_rows: int, colour: bool
) -> Iterator[str]:
    has_answers = shards.record in ANSWERED
    yield from _head(shards, manifest)
    yield from lines_of_answers(manifest) if has_answers else lines_of_manifest(manifest)
    yield from _table_of_splits(manifest)
    yield f"tokens an example, {'all sequences' if has_answers else 'frame'} included, {shards.split}:"
    yield from _histogram(shards)
    yield f"first examples of {shards.split} (before the permutation):"
    show = first_answers if has_answers else first_examples
    yield from show(shards, decoder, num_rows=num_rows, colour=colour)


def _decoder(shards: ShardSet, tokenizer: Path | None) -> Tokenizer | None:
    if tokenizer is None:
        if not (shards.folder / TOKENIZER_FOLDER).is_dir():
            return None
        tokenizer = tokenizer_folder(shards.folder)
    found = tokenizer_fingerprint(tokenizer)
    if found != shards.tokenizer_fingerprint:
        raise StageError(
            f"{tokenizer}: the tokenizer is {found[:16]}…, but {shards.folder} was made with "
            f"{shards.tokenizer_fingerprint[:16]}…; give the tokenizer that made the shards"
        )
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tokenizer / "tokenizer.json"))


def _template_line(manifest: dict[str, Any]) -> Iterator[str]:
    if template := manifest.get("template"):
        yield f"template {template['name']}, {template['sha256'][:16]}…"


def _table_of_targets(manifest: dict[str, Any]) -> Iterator[str]:
    """Of instruction rows: what is learned of each split, and what was left out."""
    if manifest.get("record") != "instruction":
        return
    left_out = {
        "no target": "num_no_target",
        "no EOS": "num_no_eos",
        "emptied": "num_emptied",
        "too long": "num_too_long",
    }
    yield f"{'split':8} {'targets':>15} {'of tokens':>10} " + " ".join(f"{name:>10}" for name in left_out)
    for split in SPLITS:
        counts = manifest["splits"][split]
        share = counts["num_targets"] / max(counts["num_tokens"], 1)
        faults = " ".join(f"{counts[key]:10,}" for key in left_out.values())
        yield f"{split:8} {counts['num_targets']:15,} {share:10.2%} {faults}"


def _table_of_splits(manifest: dict[str, Any]) -> Iterator[str]:
    """Of rows with targets, bytes are those of the answers, and stand beside the targets."""
    has_targets = "num_targets" in manifest["splits"]["train"]
    bytes_name, rate_name = ("answer bytes", "B/target") if has_targets else ("bytes", "B/token")
    yield (
        f"{'split':8} {'files':>7} {'documents':>13} {'empty':>9} {'tokens':>17} {bytes_name:>17} "
        f"{rate_name:>8} {'unknown':>9}"
    )
    for split in SPLITS:
        counts = manifest["splits"][split]
        num_files = sum(entry["split"] == split for entry in manifest["files"])
        num_ids = max(counts["num_tokens"] - counts["num_documents"], 1)
        num_learned = max(counts["num_targets"], 1) if has_targets else num_ids
        yield (
            f"{split:8} {num_files:7,} {counts['num_documents']:13,} {counts['num_empty']:9,} "
            f"{counts['num_tokens']:17,} {counts['num_bytes']:17,} {counts['num_bytes'] / num_learned:8.2f} "
            f"{counts['num_unk'] / num_ids:9.4%}"
        )


def _histogram(shards: ShardSet) -> Iterator[str]:
    """Documents by length in powers of two."""
    counts = np.zeros(64, np.int64)
    for lengths in iterate_lengths(shards):
        counts += np.bincount(np.log2(lengths).astype(np.int64), minlength=64)
    for power in range(int(np.flatnonzero(counts)[0]), int(np.flatnonzero(counts)[-1]) + 1):
        bar = "█" * round(BAR_WIDTH * counts[power] / counts.max())
        yield f"  {1 << power:>9,} – {(2 << power) - 1:<9,} {counts[power]:>13,} {bar}"


def _rows(
    shards: ShardSet, decoder: Tokenizer | None, *, seq_len: int, packing: Packing, num_rows: int, colour: bool
) -> Iterator[str]:
    starts, lengths = _first_documents(shards)
    if shards.record == "instruction":
        fits = lengths <= seq_len
        if not fits.all():
            yield f"({np.count_nonzero(~fits):,} of the first {len(fits):,} rows are longer than seq_len: not shown)"
        starts, lengths = starts[fits], lengths[fits]
    pack = pack_best_fit if packing == "best_fit" else _pack_concatenated
    window = pack(starts, lengths, seq_len=seq_len)
    numbers = np.arange(min(num_rows, len(window.row_ends)))
    out = RowBuffers.empty(len(numbers), seq_len)
    ShardMaps(shards).write_segments(numbers, window.row_ends, window.starts, window.lengths, out)
    batch = Batch(out.input_ids, out.labels, out.position_ids, row_ids=numbers, num_targets=0)
    show = _segments if shards.record == "document" else functools.partial(_answered, eos_id=shards.eos_id)
    for row in range(len(numbers)):
        yield f"row {row}"
        yield from show(batch, row, decoder, colour=colour)


def _first_documents(shards: ShardSet) -> tuple[IntArray, IntArray]:
    """(first token, pairs) of the documents of the first window."""
    tokens = np.empty(0, np.int64)
    for lengths in iterate_lengths(shards):
        tokens = np.concatenate([tokens, lengths])[:WINDOW_DOCUMENTS]
        if len(tokens) == WINDOW_DOCUMENTS:
            break
    return np.cumsum(tokens) - tokens, tokens - 1


def _pack_concatenated(starts: IntArray, lengths: IntArray, *, seq_len: int) -> PackedWindow:
    """The rows that documents fill one after the other."""
    first_pair = np.cumsum(lengths) - lengths
    row_ends, out_starts, out_lengths, room = [], [], [], seq_len
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        while length:
            piece = min(length, room)
            out_starts.append(start)
            out_lengths.append(piece)
            start, length, room = start + piece, length - piece, room - piece
            if room == 0:
                row_ends.append(len(out_starts))
                room = seq_len
    if room < seq_len:
        row_ends.append(len(out_starts))
    assert len(row_ends) == -(-int(first_pair[-1] + lengths[-1]) // seq_len)
    return PackedWindow(np.array(row_ends, np.int64), np.array(out_starts, np.int64), np.array(out_lengths, np.int32))


def _segments(batch: Batch, row: int, decoder: Tokenizer | None, *, colour: bool) -> Iterator[str]:
    """One line a segment: its places in the row, and its inputs followed by its last label."""
    inputs, labels, positions = batch.input_ids[row], batch.labels[row], batch.position_ids[row]
    firsts = np.flatnonzero(positions == 0).tolist()
    for number, (first, end) in enumerate(zip(firsts, [*firsts[1:], len(inputs)], strict=True)):
        if labels[first] == NO_TARGET:
            yield f"  [{first:5} – {end - 1:5}] padding"
            continue
        ids = [*inputs[first:end].tolist(), int(labels[end - 1])]
        text = str(ids) if decoder is None else repr(decoder.decode(ids, skip_special_tokens=False))
        shown = f"{COLOURS[number % 2]}{text}{RESET}" if colour else text
        yield f"  [{first:5} – {end - 1:5}] positions 0 – {end - 1 - first}: {shown}"


def _answered(batch: Batch, row: int, decoder: Tokenizer | None, *, eos_id: int, colour: bool) -> Iterator[str]:
    """One block a segment: its places, how many of its ids are targets, and its text with the targets marked."""
    inputs, labels, positions = batch.input_ids[row], batch.labels[row], batch.position_ids[row]
    firsts = np.flatnonzero(positions == 0).tolist()
    for first, end in zip(firsts, [*firsts[1:], len(inputs)], strict=True):
        of_segment = labels[first:end]
        if (of_segment == NO_TARGET).all():
            yield f"  [{first:5} – {end - 1:5}] padding"
            continue
        # The last label is a target, so the ids of the row are its inputs and that label.
        ids = [*inputs[first:end].tolist(), int(of_segment[-1])]
        is_target = [False, *(of_segment != NO_TARGET).tolist()]
        yield f"  [{first:5} – {end - 1:5}] {sum(is_target)} targets of {end - first}"
        yield from indented(marked(ids, is_target, decoder, eos_id=eos_id, colour=colour))
