"""Small shard folders of given documents, written by the writer that `shards build` uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.shards.format import FORMAT_VERSION, KIND, SPLITS, token_dtype
from data_pipeline.shards.writer import Documents, ShardWriter
from data_pipeline.stage import write_manifest

EOS, PAD = 0, 1


def write_shards(
    folder: Path,
    parts: Sequence[Sequence[Sequence[int]]],
    *,
    split: str = "train",
    vocab_size: int = 1000,
    max_shard_bytes: int = 256 << 20,
    bytes_per_token: int = 3,
) -> Path:
    """A finished shards folder. `parts`: documents (ids without EOS) of each corpus part, in order."""
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
                    sources=["test"] * len(documents),
                )
            )
        writer.close()
        files += writer.files
    empty = {"num_documents": 0, "num_tokens": 0, "num_bytes": 0}
    everything = [ids for documents in parts for ids in documents]
    counts = {
        "num_documents": len(everything),
        "num_tokens": sum(len(ids) + 1 for ids in everything),
        "num_bytes": sum(bytes_per_token * len(ids) for ids in everything),
    }
    write_manifest(
        folder,
        {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "tokenizer_fingerprint": "f" * 64,
            "tokenizer": {"vocab_size": vocab_size, "eos_id": EOS, "pad_id": PAD, "unk_id": None},
            "dtype": dtype.name,
            "splits": {name: counts if name == split else empty for name in SPLITS},
            "files": files,
        },
    )
    return folder
