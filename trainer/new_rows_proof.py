"""Law 11 on the real model, before the first step: new rows move no logit of an old token by a bit.

The model is run over texts without new tokens with its rows bypassed, which is the model as it was, and with them.
Shapes: B rows, T inputs a row, V old tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_pipeline.tokenizer.encode import Encoder
from data_pipeline.tokenizer.probes import PROBES
from trainer.errors import RunError
from trainer.new_rows import bypassed

ROW_LENGTH = 48
ROWS_AT_ONCE = 4

Logits = Callable[[nn.Module, np.ndarray], torch.Tensor]  # (model, (B, T) ids) -> (B, T, rows of the head)


@dataclass(frozen=True)
class Proof:
    """How many logits of old tokens were compared, over how many texts, and how many differed."""

    num_texts: int
    num_logits: int
    num_moved: int
    largest: float

    def __str__(self) -> str:
        return f"{self.num_moved:,} of {self.num_logits:,} logits of old tokens over {self.num_texts:,} texts moved" + (
            f", by up to {self.largest:.3g}" if self.num_moved else ""
        )


def probe_rows(tokenizer: Path, *, first: int, length: int = ROW_LENGTH) -> np.ndarray:
    """(texts, T) int64: the ids of texts that tokenizers get wrong, of those without a new token, each filled up with
    itself or cut.

    Raises:
        RunError: no such text is left.
    """
    encoder = Encoder(tokenizer, backend="tokenizers", needs_eos=False)
    ids, offsets = encoder.encode_batch(PROBES)
    texts = [ids[start:stop] for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]
    old = [text for text in texts if len(text) and int(text.max()) < first]
    if not old:
        raise RunError(f"{tokenizer}: every probe text holds a new token, so that nothing shows what old ones do")
    return np.stack([np.resize(text, length) for text in old]).astype(np.int64)


@torch.no_grad()
def prove_old_tokens(module: nn.Module, model: nn.Module, rows: np.ndarray, *, first: int, logits: Logits) -> Proof:
    """Compare the logits of ids below `first` with and without new rows; every rank calls it.

    `module` is called, `model` is the bare one inside.
    """
    was_training = module.training
    module.eval()
    num_logits = num_moved = 0
    largest = 0.0
    try:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            with bypassed(model):
                before = logits(module, part)[..., :first].clone()
            after = logits(module, part)[..., :first]
            moved = before.ne(after)
            num_logits += before.numel()
            num_moved += int(moved.sum())
            largest = max(largest, float((before.float() - after.float()).abs().max()))
    finally:
        module.train(was_training)
    return Proof(len(rows), num_logits, num_moved, largest)
