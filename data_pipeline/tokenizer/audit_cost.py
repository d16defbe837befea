"""What a tokenizer's length and size cost a training: tokens, rows of a vocabulary, operations for the same text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Body:
    """The model that costs are told for: what stands between embedding and head has 12 L H² parameters.

    Kaplan et al. 2020, "Scaling Laws for Neural Language Models", table 1: attention 4 H², feed-forward 8 H² a layer.
    """

    hidden_size: int = 2048
    num_layers: int = 24
    seq_len: int = 2048

    @property
    def num_parameters(self) -> int:
        return 12 * self.num_layers * self.hidden_size**2

    def flops_per_token(self, vocab_size: int) -> float:
        """Forward and backward: 6 N + 12 L H T, N with the head and without the embedding, which is a lookup.

        Chowdhery et al. 2022, "PaLM", appendix B; as `dure train` counts its MFU.
        """
        multiplying = self.num_parameters + vocab_size * self.hidden_size
        return float(6 * multiplying + 12 * self.num_layers * self.hidden_size * self.seq_len)

    def to_tree(self) -> dict[str, Any]:
        return asdict(self) | {"num_parameters": self.num_parameters}


def cost_tree(
    body: Body, *, vocab_size: int, num_tokens: int, num_bytes: int, corpus_bytes: int, lengths: Sequence[int]
) -> dict[str, Any]:
    """What the sample's tokens mean for the whole corpus, and for the body.

    `vocabulary_parameters`: of the embedding; a head that is not tied to it has as many again. `flops`: of one pass
    over the corpus. `bytes_in_row`: how much text a row of `seq_len` tokens holds.
    """
    bytes_per_token = num_bytes / num_tokens if num_tokens else 0.0
    corpus_tokens = round(corpus_bytes / bytes_per_token) if bytes_per_token else 0
    flops_per_token = body.flops_per_token(vocab_size)
    counts = np.asarray(lengths)
    return {
        "corpus_tokens": corpus_tokens,
        "vocabulary_parameters": vocab_size * body.hidden_size,
        "vocabulary_share": vocab_size * body.hidden_size / (body.num_parameters + vocab_size * body.hidden_size),
        "flops_per_token": flops_per_token,
        "flops": flops_per_token * corpus_tokens,
        "bytes_in_row": body.seq_len * bytes_per_token,
        "text_tokens": {
            "median": float(np.median(counts)),
            "p95": float(np.percentile(counts, 95)),
            "max": int(counts.max()),
            "share_longer_than_row": float((counts > body.seq_len).mean()),
        },
    }


def relative(cost: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    """A cost beside that of the audited tokenizer, 1.0 where equal.

    `attention`: of the same text in one row, which grows with the square of its tokens.
    """
    tokens = cost["corpus_tokens"] / base["corpus_tokens"] if base["corpus_tokens"] else 0.0
    return {
        "tokens": tokens,
        "flops": cost["flops"] / base["flops"] if base["flops"] else 0.0,
        "attention": tokens**2,
        "vocabulary_parameters": cost["vocabulary_parameters"] / base["vocabulary_parameters"],
    }
