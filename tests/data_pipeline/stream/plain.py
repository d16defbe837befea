"""Packing and pairs in plain Python: what the compiled stream is held against. Slow and obvious on purpose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data_pipeline.stream.batch import NO_TARGET, Batch
from tests.data_pipeline.stream.shard_folder import EOS

Segment = tuple[list[int], list[int]]  # inputs, labels


def pairs_of(document: Sequence[int]) -> list[tuple[int, int]]:
    """(input, label) of a document of ids without EOS."""
    return [(id_, label) for id_, label in zip(document, [*document[1:], EOS], strict=False)]


def concatenated_rows(documents: Sequence[Sequence[int]], seq_len: int) -> list[list[list[tuple[int, int]]]]:
    """Rows, each a list of segments, each a list of pairs."""
    rows: list[list[list[tuple[int, int]]]] = [[]]
    room = seq_len
    for document in documents:
        pairs = pairs_of(document)
        while pairs:
            if room == 0:
                rows.append([])
                room = seq_len
            rows[-1].append(pairs[:room])
            taken = len(rows[-1][-1])
            pairs, room = pairs[taken:], room - taken
    return rows


def best_fit_rows(lengths: Sequence[int], seq_len: int) -> list[list[tuple[int, int, int]]]:
    """Rows of (document, first pair, pairs): full pieces first, then the rests, each into the fullest row with room."""
    full = [
        [(number, piece * seq_len, seq_len)]
        for number, length in enumerate(lengths)
        for piece in range(length // seq_len)
    ]
    rests = [
        (number, length // seq_len * seq_len, length % seq_len)
        for number, length in enumerate(lengths)
        if length % seq_len
    ]
    rows: list[list[tuple[int, int, int]]] = []
    rooms: list[int] = []
    changed: list[int] = []  # when a row was last written: of equal rooms the latest is taken
    for time, rest in enumerate(sorted(rests, key=lambda rest: -rest[2])):
        fitting = [row for row, room in enumerate(rooms) if room >= rest[2]]
        if not fitting:
            rows.append([])
            rooms.append(seq_len)
            changed.append(time)
            fitting = [len(rows) - 1]
        row = min(fitting, key=lambda row: (rooms[row], -changed[row]))
        rows[row].append(rest)
        rooms[row] -= rest[2]
        changed[row] = time
    return full + rows


def segments_of(batch: Batch) -> list[list[Segment]]:
    """The segments of each row, cut where positions restart; padding left out."""
    rows = []
    for inputs, labels, positions in zip(
        batch.input_ids.tolist(), batch.labels.tolist(), batch.position_ids.tolist(), strict=True
    ):
        starts = [place for place, position in enumerate(positions) if position == 0]
        bounds = zip(starts, [*starts[1:], len(positions)], strict=True)
        rows.append([(inputs[first:end], labels[first:end]) for first, end in bounds if labels[end - 1] != NO_TARGET])
    return rows


def scored_pairs(batch: Batch) -> Counter[tuple[int, int]]:
    """How often each (input, label) with a target stands in a batch."""
    flat = zip(batch.input_ids.ravel().tolist(), batch.labels.ravel().tolist(), strict=True)
    return Counter(pair for pair in flat if pair[1] != NO_TARGET)
