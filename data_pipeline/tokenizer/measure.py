"""What a tokenizer does to texts, in figures: length, unknowns, and what comes back from its ids."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.tokenizer.encode import Encoder, Ids
from data_pipeline.tokenizer.probes import HOSTILE


@dataclass(frozen=True)
class Measure:
    """Sums over texts as they are given to the tokenizer.

    Characters and bytes (of UTF-8) are those of their NFC form, which a corpus holds and which should come back, so
    that a text that is given in NFD must come to the same figures.
    """

    num_texts: int = 0
    num_chars: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    num_unk: int = 0
    num_exact: int = 0  # texts that come back in NFC
    num_letters: int = 0  # characters that are no white space
    num_lost: int = 0  # of these, how many do not come back

    def __add__(self, other: Measure) -> Measure:
        return Measure(
            *(ours + theirs for ours, theirs in zip(asdict(self).values(), asdict(other).values(), strict=True))
        )

    def rates(self) -> dict[str, float]:
        """Figures a token and shares; 0 where there is nothing to divide by."""
        return {
            "chars_per_token": _ratio(self.num_chars, self.num_tokens),
            "bytes_per_token": _ratio(self.num_bytes, self.num_tokens),
            "unk_rate": _ratio(self.num_unk, self.num_tokens),
            "round_trip_rate": _ratio(self.num_exact, self.num_texts),
            "lost_character_rate": _ratio(self.num_lost, self.num_letters),
        }

    def to_tree(self) -> dict[str, Any]:
        return asdict(self) | self.rates()


def measure(encoder: Encoder, texts: Iterable[str]) -> Measure:
    """Encode and decode `texts`, in batches of a bounded size, and add up."""
    total, batch, num_chars = Measure(), [], 0
    for text in texts:
        batch.append(text)
        num_chars += len(text)
        if num_chars > 1 << 20:
            total += _measure_batch(encoder, batch)
            batch, num_chars = [], 0
    return total + _measure_batch(encoder, batch)


def measure_hostile(encoder: Encoder) -> dict[str, Measure]:
    """A measure for each of the texts that tokenizers get wrong."""
    return {name: measure(encoder, [text]) for name, text in HOSTILE.items()}


def _measure_batch(encoder: Encoder, texts: list[str]) -> Measure:
    ids, offsets = encoder.encode_batch(texts)
    return measured(texts, ids, encoder.decode_batch(ids, offsets), unk_id=encoder.unk_id)


def measured(texts: Sequence[str], ids: Ids, decoded: Sequence[str], *, unk_id: int | None) -> Measure:
    """The sums over `texts`, whose ids (in a row) came back as `decoded`."""
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    return Measure(
        num_texts=len(texts),
        num_chars=sum(map(len, texts)),
        num_bytes=sum(len(text.encode()) for text in texts),
        num_tokens=len(ids),
        num_unk=int((ids == unk_id).sum()) if unk_id is not None else 0,
        num_exact=sum(text == back for text, back in zip(texts, decoded, strict=True)),
        num_letters=sum(_letters(text).total() for text in texts),
        num_lost=sum((_letters(text) - _letters(back)).total() for text, back in zip(texts, decoded, strict=True)),
    )


def _letters(text: str) -> Counter[str]:
    return Counter("".join(text.split()))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
