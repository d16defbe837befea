"""Which documents a tokenizer is trained and measured on: a share by the hash of their ids, none that is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.corpus.records import HELDOUT, iterate_documents
from data_pipeline.stage import StageError, read_manifest


def sample_texts(corpus: Path, *, max_bytes: int, salt: str) -> Iterator[list[str]]:
    """Batches of texts, about `max_bytes` of UTF-8 in all; equal for equal corpus, size and salt.

    Raises:
        StageError: the corpus holds nothing to take.
    """
    share = min(1.0, max_bytes / max(read_manifest(corpus, kind="corpus")["num_text_bytes"], 1))
    is_empty = True
    for batch in iterate_documents(corpus, columns=["id", "text", "split_hint"]):
        rows = zip(batch["id"].to_pylist(), batch["text"].to_pylist(), batch["split_hint"].to_pylist(), strict=True)
        texts = [text for key, text, hint in rows if hint != HELDOUT and is_chosen(key, share=share, salt=salt)]
        if texts:
            is_empty = False
            yield texts
    if is_empty:
        raise StageError(
            f"{corpus}: no document to train a tokenizer on (held out ones, 검증용, are left out); "
            "give a corpus with training documents, or set validation_is_heldout: false when it is built"
        )


def is_chosen(key: str, *, share: float, salt: str) -> bool:
    """Whether the document of id `key` belongs to the given share of all documents."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
