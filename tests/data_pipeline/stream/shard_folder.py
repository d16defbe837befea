"""Small shard folders of given documents, written by the writer that `shards build` uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.shards.format import FORMAT_VERSION, KIND, SPLITS, RecordKind, token_dtype
from data_pipeline.shards.writer import Documents, LossSpans, ShardWriter
from data_pipeline.stage import write_manifest

EOS, PAD = 0, 1

# An instruction row: its ids, each EOS among them, and the spans [start, end) of them that are targets.
InstructionRow = tuple[Sequence[int], Sequence[tuple[int, int]]]


def write_shards(
    folder: Path,
    parts: Sequence[Sequence[Sequence[int]]],
    *,
    split: str = "train",
    vocab_size: int = 1000,
    max_shard_bytes: int = 256 << 20,
    bytes_per_token: int = 3,
    sources: Sequence[str] = ("test",),
) -> Path:
    """A finished shards folder. `parts`: documents (ids without EOS) of each corpus part, in order; their `sources` in
    turn."""
    (folder / split).mkdir(parents=True)
    dtype = token_dtype(vocab_size)
    files: list[dict[str, Any]] = []
    for number, documents in enumerate(parts):
        name = f"{split}/part-{number:05d}"
        writer = ShardWriter(folder, name, split=split, dtype=dtype, max_shard_bytes=max_shard_bytes)
        if documents:
            writer.add(
                Documents(
                    ids=np.concatenate([np.array([*ids, EOS], dtype) for ids in documents]),
                    lengths=np.array([len(ids) + 1 for ids in documents], np.int64),
                    record_ids=[f"{number}-{place}" for place in range(len(documents))],
                    num_bytes=np.array([bytes_per_token * len(ids) for ids in documents], np.int64),
                    sources=[sources[place % len(sources)] for place in range(len(documents))],
                )
            )
        writer.close()
        files += writer.files
    everything = [ids for documents in parts for ids in documents]
    counts = {
        "num_documents": len(everything),
        "num_tokens": sum(len(ids) + 1 for ids in everything),
        "num_bytes": sum(bytes_per_token * len(ids) for ids in everything),
    }
    return _finish(folder, files, counts, split=split, vocab_size=vocab_size, record="document")


def write_instruction_shards(
    folder: Path,
    parts: Sequence[Sequence[InstructionRow]],
    *,
    split: str = "train",
    vocab_size: int = 1000,
    max_shard_bytes: int = 256 << 20,
    bytes_per_target: int = 3,
) -> Path:
    """A finished folder of instruction rows, without companions. `parts`: the rows of each corpus part, in order."""
    (folder / split).mkdir(parents=True)
    dtype = token_dtype(vocab_size)
    files: list[dict[str, Any]] = []
    for number, rows in enumerate(parts):
        writer = ShardWriter(
            folder,
            f"{split}/part-{number:05d}",
            split=split,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            record="instruction",
        )
        if rows:
            writer.add(_instruction_documents(rows, dtype, number=number, bytes_per_target=bytes_per_target))
        writer.close()
        files += writer.files
    everything = [row for rows in parts for row in rows]
    num_targets = sum(end - start for _, spans in everything for start, end in spans)
    counts = {
        "num_documents": len(everything),
        "num_tokens": sum(len(ids) for ids, _ in everything),
        "num_bytes": bytes_per_target * num_targets,
        "num_targets": num_targets,
    }
    return _finish(folder, files, counts, split=split, vocab_size=vocab_size, record="instruction")


def _instruction_documents(
    rows: Sequence[InstructionRow], dtype: np.dtype[Any], *, number: int, bytes_per_target: int
) -> Documents:
    spans = np.array([span for _, of_row in rows for span in of_row], np.int32).reshape(-1, 2)
    return Documents(
        ids=np.concatenate([np.array(ids, dtype) for ids, _ in rows]),
        lengths=np.array([len(ids) for ids, _ in rows], np.int64),
        record_ids=[f"{number}-{place}" for place in range(len(rows))],
        num_bytes=np.array([bytes_per_target * sum(end - start for start, end in of_row) for _, of_row in rows]),
        sources=["test"] * len(rows),
        loss_spans=LossSpans(np.array([len(of_row) for _, of_row in rows], np.int64), spans[:, 0], spans[:, 1]),
    )


def _finish(
    folder: Path,
    files: list[dict[str, Any]],
    counts: dict[str, int],
    *,
    split: str,
    vocab_size: int,
    record: RecordKind,
) -> Path:
    write_manifest(
        folder,
        {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "record": record,
            "tokenizer_fingerprint": "f" * 64,
            "tokenizer": {"vocab_size": vocab_size, "eos_id": EOS, "pad_id": PAD, "unk_id": None},
            "dtype": token_dtype(vocab_size).name,
            "splits": {name: counts if name == split else dict.fromkeys(counts, 0) for name in SPLITS},
            "files": files,
        },
    )
    return folder
