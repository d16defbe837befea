"""What a folder of token shards looks like: schema, split names, and the manifest as typed values.

    manifest.json                 written last; tokenizer fingerprint, counts, a hash of each file
    train/part-00000-0000.arrow   part of the corpus, then number of the shard made from it
    heldout/part-00000-0000.arrow
    rows/...                      row tables, made later by data_pipeline/stream/table.py

Every document is its ids and a final EOS. A document of n + 1 ids gives n (input, label) pairs, here called pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data_pipeline.stage import Manifest, StageError, read_manifest

KIND = "shards"
FORMAT_VERSION = 1
RECORDS_PER_BATCH = 65_536
SPLITS: tuple[Split, ...] = ("train", "heldout")

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class ShardFile:
    """One Arrow file: where it lies and what each of its record batches holds."""

    path: Path
    num_bytes: int
    batch_documents: tuple[int, ...]
    batch_tokens: tuple[int, ...]


@dataclass(frozen=True)
class ShardSet:
    """The shards of one split, in corpus order, as the manifest tells them. Nothing is opened."""

    folder: Path
    split: str
    manifest_sha256: str
    tokenizer_fingerprint: str
    dtype: np.dtype[Any]
    vocab_size: int
    eos_id: int
    pad_id: int
    num_documents: int
    num_tokens: int
    num_bytes: int
    files: tuple[ShardFile, ...]

    @property
    def num_pairs(self) -> int:
        """(input, label) pairs: each token but a document's last is an input once."""
        return self.num_tokens - self.num_documents


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds every id of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def document_schema(dtype: np.dtype[Any]) -> pa.Schema:
    """Columns of a shard of documents."""
    ids = pa.large_list(pa.field("item", pa.from_numpy_dtype(dtype), nullable=False))
    return pa.schema(
        [
            pa.field("input_ids", ids, nullable=False),
            pa.field("record_id", pa.string(), nullable=False),
            pa.field("num_bytes", pa.int64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
        ]
    )


def read_shards_manifest(folder: Path) -> Manifest:
    """The manifest of a finished shards folder of this format version."""
    manifest = read_manifest(folder, kind=KIND)
    if manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version")
        raise StageError(
            f"{folder}: format_version is {found!r}, this program reads {FORMAT_VERSION}; run `dure shards build` again"
        )
    return manifest


def read_shards(folder: Path, *, split: str) -> ShardSet:
    """The shards of one split. Raises StageError if the folder is unfinished or holds no document of that split."""
    manifest = read_shards_manifest(folder)
    counts = manifest["splits"].get(split)
    if counts is None:
        raise StageError(f"{folder}: split {split!r} does not exist; the splits are {', '.join(manifest['splits'])}")
    if counts["num_documents"] == 0:
        raise StageError(
            f"{folder}: split {split!r} holds 0 documents; "
            "raise heldout_fraction or add text, and build the shards again"
        )
    tokenizer = manifest["tokenizer"]
    return ShardSet(
        folder=folder,
        split=split,
        manifest_sha256=manifest["manifest_sha256"],
        tokenizer_fingerprint=manifest["tokenizer_fingerprint"],
        dtype=np.dtype(manifest["dtype"]),
        vocab_size=tokenizer["vocab_size"],
        eos_id=tokenizer["eos_id"],
        # Padding is never a target and nothing attends to it, so a foreign tokenizer without one may pad with EOS.
        pad_id=tokenizer["eos_id"] if tokenizer["pad_id"] is None else tokenizer["pad_id"],
        num_documents=counts["num_documents"],
        num_tokens=counts["num_tokens"],
        num_bytes=counts["num_bytes"],
        files=tuple(_shard_file(folder, entry) for entry in manifest["files"] if entry["split"] == split),
    )


def _shard_file(folder: Path, entry: dict[str, Any]) -> ShardFile:
    return ShardFile(
        path=folder / entry["name"],
        num_bytes=entry["num_bytes"],
        batch_documents=tuple(entry["batch_documents"]),
        batch_tokens=tuple(entry["batch_tokens"]),
    )


def check_tokenizer(shards: Path, tokenizer_fingerprint: str) -> None:
    """Raise StageError unless the shards were made with the tokenizer of that fingerprint."""
    found = read_shards_manifest(shards)["tokenizer_fingerprint"]
    if found != tokenizer_fingerprint:
        raise StageError(
            f"{shards}: made with tokenizer {found[:16]}…, but this run uses {tokenizer_fingerprint[:16]}… "
            "(다른 토크나이저의 샤드); give the tokenizer that made them, or build shards with this one"
        )
