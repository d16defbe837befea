"""Small shard folders of prompts with answers, of made-up ids: pairs, feedback, or prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.shards.format import COLUMNS, FORMAT_VERSION, KIND, RecordKind, token_dtype
from data_pipeline.shards.writer import Documents, Ends, LossSpans, ShardWriter
from data_pipeline.stage import write_manifest

EOS, PAD, FIRST = 0, 1, 6
VOCAB_SIZE = 97

# A row: its sequences as (ids of the prompt, ids of the answer with its EOS), and what it is worth.
Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
Row = tuple[Sequences, float]


def preference_rows(count: int, *, seed: int = 0) -> list[Row]:
    """The chosen answer counts on from the prompt, the rejected one counts back; both are equally long by turns."""
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    for _ in range(count):
        first, length = int(generator.integers(20, 70)), int(generator.integers(3, 9))
        lengths = generator.integers(2, 6, 2).tolist()
        prompt = [FIRST + first + place for place in range(length)]
        up = [prompt[-1] + place + 1 for place in range(lengths[0])]
        down = [prompt[-1] - place - 1 for place in range(lengths[1])]
        rows.append((((prompt, [*up, EOS]), (prompt, [*down, EOS])), 0.0))
    return rows


def feedback_rows(count: int, *, seed: int = 0) -> list[Row]:
    """The answers of pairs one by one: 1 for what was chosen."""
    pairs = preference_rows(-(-count // 2), seed=seed)
    return [([answer], value) for pair, _ in pairs for answer, value in zip(pair, (1.0, 0.0), strict=True)][:count]


def prompt_rows(count: int, *, seed: int = 0) -> list[Row]:
    """The prompts of pairs alone."""
    return [([(pair[0][0], ())], 0.0) for pair, _ in preference_rows(count, seed=seed)]


MADE = {"preference": preference_rows, "feedback": feedback_rows, "prompt": prompt_rows}


def make_answer_shards(folder: Path, record: RecordKind, *, num_train: int = 120, num_heldout: int = 30) -> Path:
    """Rows of one kind in both splits."""
    rows = MADE[record]
    return write_answer_shards(folder, record, train=rows(num_train), heldout=rows(num_heldout, seed=1))


def write_answer_shards(folder: Path, record: RecordKind, **splits: Sequence[Row]) -> Path:
    """A finished shards folder without companions."""
    dtype = token_dtype(VOCAB_SIZE)
    files: list[dict[str, Any]] = []
    for split, rows in splits.items():
        (folder / split).mkdir(parents=True)
        for number, part in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
            name = f"{split}/part-{number:05d}"
            writer = ShardWriter(folder, name, split=split, dtype=dtype, max_shard_bytes=256 << 20, record=record)
            writer.add(_documents(part, record, name=name))
            writer.close()
            files += writer.files
    counts = {split: _counts(rows) for split, rows in splits.items()}
    write_manifest(
        folder,
        {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "record": record,
            "tokenizer_fingerprint": "f" * 64,
            "tokenizer": {"vocab_size": VOCAB_SIZE, "eos_id": EOS, "pad_id": PAD, "unk_id": None},
            "dtype": dtype.name,
            "num_sequences": len(next(iter(splits.values()))[0][0]),
            "splits": counts,
            "files": files,
        },
    )
    return folder


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    tokens = sum(len(prompt) + len(answer) for sequences, _ in rows for prompt, answer in sequences)
    return {"num_documents": len(rows), "num_tokens": tokens, "num_bytes": 3 * tokens}


def _documents(rows: Sequence[Row], record: RecordKind, *, name: str) -> Documents:
    has = {field.name for field in COLUMNS[record]}
    ids, lengths, ends, spans = [], [], [], []
    for sequences, _ in rows:
        length = 0
        for prompt, answer in sequences:
            spans.append((length + len(prompt), length + len(prompt) + len(answer)))
            ids += [*prompt, *answer]
            length += len(prompt) + len(answer)
            ends.append(length)
        lengths.append(length)
    counts = np.array([len(sequences) for sequences, _ in rows], np.int64)
    spans_2 = np.array(spans, np.int32).reshape(-1, 2)
    return Documents(
        ids=np.array(ids, token_dtype(VOCAB_SIZE)),
        lengths=np.array(lengths, np.int64),
        record_ids=[f"{name}-{place}" for place in range(len(rows))],
        num_bytes=3 * np.array(lengths, np.int64),
        sources=["test"] * len(rows),
        loss_spans=LossSpans(counts, spans_2[:, 0], spans_2[:, 1]) if "loss_spans" in has else None,
        ends=Ends(counts, np.array(ends, np.int32)),
        values=np.array([value for _, value in rows]) if "value" in has else None,
    )
