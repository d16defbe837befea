"""An interpolated Kneser-Ney trigram model over shards: the yardstick that a neural model must beat.

Kneser and Ney 1995, interpolated as in Chen and Goodman 1999, "An empirical study of smoothing techniques for
language modeling", equations 25 and 27, one discount an order, D = n1 / (n1 + 2 n2) (their equation 26). Counted and
scored with NumPy over at most `max_tokens` training tokens; a yardstick for small corpora, not for 10^12 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import read_shards
from data_pipeline.shards.reader import open_shard
from data_pipeline.stage import StageError

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

_MAX_VOCABULARY = (1 << 21) - 2  # three ids fit in 63 bits


@dataclass(frozen=True)
class Baseline:
    """What the trigram model reaches on a split: nats a target, and bits per byte of the documents' text."""

    loss: float
    bits_per_byte: float
    num_counted_tokens: int
    num_targets: int
    num_bytes: int


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order: sorted keys, their counts, and sums by context (key without the last id)."""

    keys: Ids
    counts: Ids
    contexts: Ids
    context_counts: Ids
    context_kinds: Ids
    discount: float


def trigram_baseline(shards: Path, *, max_tokens: int = 50_000_000, max_documents: int | None = None) -> Baseline:
    """Count trigrams on the train split and score the held-out documents' targets (all ids but a document's first).

    Raises:
        StageError: a vocabulary of 2^21 ids or more.
    """
    train, heldout = read_shards(shards, split="train"), read_shards(shards, split="heldout")
    if train.vocab_size > _MAX_VOCABULARY:
        raise StageError(f"{shards}: {train.vocab_size:,} ids, the trigram baseline packs at most {_MAX_VOCABULARY:,}")
    model = Trigrams(vocab_size=train.vocab_size)
    counted = model.count(_documents(train, max_tokens=max_tokens))
    nll, targets, num_bytes = 0.0, 0, 0
    for ids, size in _with_bytes(heldout, max_documents=max_documents):
        nll -= float(np.log(model.probabilities(ids)).sum())
        targets, num_bytes = targets + len(ids) - 1, num_bytes + size
    return Baseline(
        loss=nll / max(1, targets),
        bits_per_byte=nll / (math.log(2) * max(1, num_bytes)),
        num_counted_tokens=counted,
        num_targets=targets,
        num_bytes=num_bytes,
    )


def _documents(shards: Any, *, max_tokens: int) -> Iterator[Ids]:
    seen = 0
    for ids, _ in _with_bytes(shards, max_documents=None):
        yield ids
        seen += len(ids)
        if seen >= max_tokens:
            return


def _with_bytes(shards: Any, *, max_documents: int | None) -> Iterator[tuple[Ids, int]]:
    given = 0
    for file in shards.files:
        for batch in open_shard(file):
            sizes = batch.column("num_bytes").to_numpy()
            for ids, size in zip(batch.column("input_ids"), sizes, strict=True):
                if given == max_documents:
                    return
                yield ids.values.to_numpy().astype(np.int64), int(size)
                given += 1


class Trigrams:
    """Id `vocab_size` stands before a document; two of it, so that every target has two ids of context."""

    def __init__(self, *, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._base = vocab_size + 1

    def count(self, documents: Iterator[Ids]) -> int:
        grams = [self._windows(ids) for ids in documents]
        u, v, w = (np.concatenate(column) for column in zip(*grams, strict=True))
        base = self._base
        self._third = _order((u * base + v) * base + w, base=base)
        # Lower orders count how many different contexts an n-gram continues, not how often it stands there.
        pairs = self._third.keys % (base * base)
        self._second = _order(pairs, base=base)
        self._first = _order(self._second.keys % base, base=base)
        return len(w) + len(grams)

    def _windows(self, ids: Ids) -> tuple[Ids, Ids, Ids]:
        """The contexts and the id of each target: every id of a document but its first."""
        before = np.concatenate([[self._vocab_size], ids])
        return before[:-2], before[1:-1], ids[1:]

    def probabilities(self, ids: Ids) -> Floats:
        """p(id | the two before it) of each target of a document; all positive."""
        u, v, w = self._windows(ids)
        base = self._base
        uniform = np.full(len(w), 1.0 / self._vocab_size)
        unigram = _interpolated(self._first, w, np.zeros_like(w), uniform)
        bigram = _interpolated(self._second, v * base + w, v, unigram)
        return _interpolated(self._third, (u * base + v) * base + w, u * base + v, bigram)


def _order(occurrences: Ids, *, base: int) -> _Order:
    keys, counts = np.unique(occurrences, return_counts=True)
    contexts, index = np.unique(keys // base, return_inverse=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return _Order(
        keys=keys,
        counts=counts,
        contexts=contexts,
        context_counts=np.bincount(index, weights=counts).astype(np.int64),
        context_kinds=np.bincount(index),
        discount=once / (once + 2 * twice) if once else 0.5,
    )


def _interpolated(order: _Order, keys: Ids, contexts: Ids, lower: Floats) -> Floats:
    """Discounted relative frequency plus the lower order's share; the lower order alone where the context is new."""
    counts = _look_up(order.keys, order.counts, keys)
    totals = _look_up(order.contexts, order.context_counts, contexts)
    kinds = _look_up(order.contexts, order.context_kinds, contexts)
    known = totals > 0
    divisor = np.where(known, totals, 1)
    seen = np.maximum(counts - order.discount, 0.0) / divisor
    share = np.where(known, order.discount * kinds / divisor, 1.0)
    return np.asarray(seen + share * lower)


def _look_up(sorted_keys: Ids, values: Ids, wanted: Ids) -> Ids:
    """The value of each wanted key, 0 where it is absent."""
    places = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return np.where(sorted_keys[places] == wanted, values[places], 0)
