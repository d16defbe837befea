"""Which documents a tokenizer is trained and measured on: a share by the hash of their ids, none that is held out.

One is in or out by its id alone, so that the sample of a corpus does not depend on how it is spread over files. Records
of other kinds are documents here, each with all of its texts. With weights each source has a share of its own; one more
pass over the corpus finds how large.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.corpus.record_texts import iterate_texts
from data_pipeline.corpus.records import HELDOUT
from data_pipeline.stage import StageError, read_manifest

NUM_SLOTS = 4_096  # into which a source's documents are counted by their hash: 32 KiB a source
_HASHES = 2**64


@dataclass(frozen=True)
class SampledText:
    text: str
    source: str


class CountedTexts:
    """The texts of a sample, given anew at each call; counts those of the last."""

    def __init__(self, rows: Callable[[], Iterator[list[SampledText]]]) -> None:
        self._rows = rows
        self.num_documents = 0
        self.bytes_by_source: Counter[str] = Counter()

    @property
    def num_bytes(self) -> int:
        return self.bytes_by_source.total()

    def __call__(self) -> Iterator[list[str]]:
        self.num_documents, self.bytes_by_source = 0, Counter()
        for batch in self._rows():
            self.num_documents += len(batch)
            for row in batch:
                self.bytes_by_source[row.source] += len(row.text.encode())
            yield [row.text for row in batch]


def sample_texts(
    corpus: Path, *, max_bytes: int, salt: str, source_weights: Mapping[str, float] | None = None
) -> Iterator[list[str]]:
    """Batches of texts, about `max_bytes` of UTF-8 in all; equal for equal corpus, size, salt and weights.

    Raises:
        StageError: the corpus holds nothing to take, or `source_weights` do not fit its sources.
    """
    for batch in sample_rows(corpus, max_bytes=max_bytes, salt=salt, source_weights=source_weights):
        yield [row.text for row in batch]


def sample_rows(
    corpus: Path, *, max_bytes: int, salt: str, source_weights: Mapping[str, float] | None = None
) -> Iterator[list[SampledText]]:
    """The same with the source of each text.

    `source_weights`: each source's share of the sampled bytes. One with less text than its share is taken whole, never
    twice, and what it leaves is shared out among the others by their weights.
    """
    if source_weights:
        limits = source_limits(corpus, max_bytes=max_bytes, salt=salt, source_weights=source_weights)
    else:
        share = min(1.0, max_bytes / max(read_manifest(corpus, kind="corpus")["num_text_bytes"], 1))
        limits = dict.fromkeys(_sources(corpus), share)
    is_empty = True
    for batch in iterate_texts(corpus):
        chosen = [
            SampledText(row.text, row.source)
            for row in batch
            if row.split_hint != HELDOUT and is_chosen(row.id, share=limits[row.source], salt=salt)
        ]
        if chosen:
            is_empty = False
            yield chosen
    if is_empty:
        raise StageError(
            f"{corpus}: no document to train a tokenizer on (held out ones, 검증용, are left out); "
            "give a corpus with training documents, or set validation_is_heldout: false (or split: train) when it is "
            "built"
        )


def is_chosen(key: str, *, share: float, salt: str) -> bool:
    """Whether the document of id `key` belongs to the given share of all documents."""
    return _hash(key, salt=salt) < share * _HASHES


def source_limits(corpus: Path, *, max_bytes: int, salt: str, source_weights: Mapping[str, float]) -> dict[str, float]:
    """For each source the share of its hashes that is taken; reads the corpus once and holds `NUM_SLOTS` sums a source.

    Raises:
        StageError: a weight for a source that the corpus lacks, a source without a weight, or no text of any weight.
    """
    check_weights(corpus, source_weights)
    slots = {source: np.zeros(NUM_SLOTS, dtype=np.int64) for source in source_weights}
    for batch in iterate_texts(corpus):
        for key, source, hint, text in batch:
            if hint != HELDOUT:
                slots[source][_hash(key, salt=salt) * NUM_SLOTS // _HASHES] += len(text.encode())
    available = {source: int(sums.sum()) for source, sums in slots.items()}
    if not any(available[source] for source, weight in source_weights.items() if weight > 0):
        with_weight = ", ".join(repr(source) for source, weight in source_weights.items() if weight > 0)
        raise StageError(
            f"source_weights: {corpus} has no training text of the sources with a weight above 0 ({with_weight}); "
            "give a weight to a source that has some"
        )
    wanted = allot(available, source_weights, max_bytes=max_bytes)
    return {source: _limit(slots[source], wanted[source]) for source in slots}


def check_weights(corpus: Path, source_weights: Mapping[str, float]) -> None:
    """Raises StageError where weights and the corpus' sources are not the same names."""
    sources = _sources(corpus)
    faults = []
    for name in source_weights:
        if name not in sources:
            close = difflib.get_close_matches(name, sources, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its sources are {', '.join(map(repr, sources))}"
            faults.append(f"source_weights.{name}: {corpus} has no such source; {hint}")
    missing = [source for source in sources if source not in source_weights]
    if missing:
        names = ", ".join(map(repr, missing))
        faults.append(f"source_weights: no weight for {names} of {corpus}; give each one, 0 to leave it out")
    if faults:
        raise StageError("\n".join(faults))


def allot(available: Mapping[str, int], weights: Mapping[str, float], *, max_bytes: int) -> dict[str, float]:
    """Bytes to take of each source: shares of `max_bytes` by weight, never more than there are.

    >>> allot({"a": 1_000, "b": 100, "c": 50}, {"a": 1, "b": 1, "c": 0}, max_bytes=600)
    {'a': 500.0, 'b': 100.0, 'c': 0.0}
    """
    wanted = dict.fromkeys(available, 0.0)
    open_sources = {source for source, weight in weights.items() if weight > 0}
    left = float(max_bytes)
    while open_sources:
        total = sum(weights[source] for source in sorted(open_sources))
        shares = {source: left * weights[source] / total for source in open_sources}
        short = {source for source in open_sources if available[source] <= shares[source]}
        for source in short or open_sources:
            wanted[source] = float(min(available[source], shares[source]))
        if not short:
            break
        left -= sum(available[source] for source in short)
        open_sources -= short
    return wanted


def _limit(sums: np.ndarray, wanted: float) -> float:
    """The share of the hashes whose documents have about `wanted` bytes: whole slots, then a part of the next one."""
    total = np.cumsum(sums)
    num_slots = int(np.searchsorted(total, wanted, side="right"))
    if num_slots == NUM_SLOTS:
        return 1.0
    before = int(total[num_slots - 1]) if num_slots else 0
    return (num_slots + (wanted - before) / int(sums[num_slots])) / NUM_SLOTS


def _hash(key: str, *, salt: str) -> int:
    digest = hashlib.blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _sources(corpus: Path) -> list[str]:
    return list(read_manifest(corpus, kind="corpus")["sources"])
