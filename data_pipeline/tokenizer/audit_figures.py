"""One tokenizer over the texts of an audit: length, loss, speed and use of its vocabulary, by source and in all."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.measure import Measure, measured
from data_pipeline.tokenizer.spelling import KINDS, PieceKind, Spelling

BATCH_CHARS = 1 << 20
MAX_EXAMPLES = 12  # of each kind of unused piece
MAX_SPECIAL = 4  # they are the same everywhere


@dataclass
class TextFigures:
    """Sums over texts. `lengths`: tokens of each. `num_lost_by_vocabulary`: letters that its normaliser had kept."""

    measure: Measure = field(default_factory=Measure)
    num_words: int = 0
    num_lost_by_vocabulary: int = 0
    lengths: list[int] = field(default_factory=list)

    def add(self, other: TextFigures) -> None:
        self.measure += other.measure
        self.num_words += other.num_words
        self.num_lost_by_vocabulary += other.num_lost_by_vocabulary
        self.lengths += other.lengths

    def to_tree(self) -> dict[str, Any]:
        tokens, words = self.measure.num_tokens, self.num_words
        return self.measure.to_tree() | {
            "num_words": words,
            "words_per_token": words / tokens if tokens else 0.0,
            "tokens_per_word": tokens / words if words else 0.0,
            "num_lost_by_vocabulary": self.num_lost_by_vocabulary,
            "vocabulary_loss_rate": self.num_lost_by_vocabulary / max(self.measure.num_letters, 1),
        }


@dataclass
class Figures:
    """What one tokenizer did to the texts. `uses`: how often each id came; `cpu_seconds`: of encoding alone."""

    sources: dict[str, TextFigures]
    uses: np.ndarray
    cpu_seconds: float

    @property
    def total(self) -> TextFigures:
        total = TextFigures()
        for one in self.sources.values():
            total.add(one)
        return total


def figures_of(encoder: Encoder, texts: Mapping[str, Sequence[str]]) -> Figures:
    """Encode and decode the texts of each source once."""
    uses = np.zeros(encoder.vocab_size, dtype=np.int64)
    sources: dict[str, TextFigures] = {}
    seconds = 0.0
    for source, its in texts.items():
        sources[source] = TextFigures()
        for batch in _batches(its):
            started = time.process_time()
            ids, offsets = encoder.encode_batch(batch)
            seconds += time.process_time() - started
            uses += np.bincount(ids, minlength=encoder.vocab_size)
            sources[source].add(_figures_of_batch(encoder, batch, ids, offsets))
    return Figures(sources, uses, seconds)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch, num_chars = [], 0
    for text in texts:
        batch.append(text)
        num_chars += len(text)
        if num_chars > BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _figures_of_batch(encoder: Encoder, texts: list[str], ids: np.ndarray, offsets: np.ndarray) -> TextFigures:
    # Some normalisers leave decomposed Hangul, which is the same text.
    decoded = [unicodedata.normalize("NFC", text) for text in encoder.decode_batch(ids, offsets)]
    return TextFigures(
        measured(texts, ids, decoded, unk_id=encoder.unk_id),
        sum(len(text.split()) for text in texts),
        sum(_num_lost(_normalised(encoder, text), back) for text, back in zip(texts, decoded, strict=True)),
        np.diff(offsets).tolist(),
    )


def _normalised(encoder: Encoder, text: str) -> str:
    """What the tokenizer's own normaliser makes of a text: lower case, for one that knows no other."""
    normalizer = encoder.tokenizer.normalizer
    return unicodedata.normalize("NFC", text if normalizer is None else normalizer.normalize_str(text))


def _num_lost(text: str, back: str) -> int:
    return 0 if text == back else (_letters(text) - _letters(back)).total()


def _letters(text: str) -> Counter[str]:
    # "▁" is a space that some normalisers write into the text.
    return Counter("".join(text.replace("▁", " ").split()))


def vocabulary_tree(spelling: Spelling, uses: np.ndarray) -> dict[str, Any]:
    """Pieces and unused pieces by kind, and the first unused of each, as a person reads them.

    Special tokens stand in no text: they count as unused nowhere but in their own line.
    """
    kinds: dict[PieceKind, list[int]] = {kind: [] for kind in KINDS}
    for token_id in spelling.token_ids:
        kinds[spelling.kind_of(token_id)].append(token_id)
    lines = {kind: _kind_line(spelling, kind, ids, uses) for kind, ids in kinds.items() if ids}
    ordinary = [line for kind, line in lines.items() if kind != "special"]
    num_pieces, num_unused = (sum(line[key] for line in ordinary) for key in ("num_pieces", "num_unused"))
    return {
        "num_rows": len(uses),
        "num_pieces": num_pieces,
        "num_unused": num_unused,
        "unused_share": num_unused / num_pieces if num_pieces else 0.0,
        "kinds": lines,
    }


def _kind_line(spelling: Spelling, kind: PieceKind, ids: Sequence[int], uses: np.ndarray) -> dict[str, Any]:
    unused = [token_id for token_id in ids if not uses[token_id]]
    examples = [
        spelling.show_in_list(token_id) for token_id in unused[: MAX_SPECIAL if kind == "special" else MAX_EXAMPLES]
    ]
    used = int(sum(uses[token_id] for token_id in ids))
    return {"num_pieces": len(ids), "num_unused": len(unused), "num_tokens": used, "examples": examples}
