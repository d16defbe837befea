"""Masked language modelling over framed rows: the objective of `stage: mlm`.

The loss is over the chosen places only (masks.py says which), and so are the logits: the head, which is most of a small
model's work, gets no other place.
Shapes: N = B*T places, M of them chosen, H the width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from data_pipeline.shards.format import tokenizer_folder
from data_pipeline.stream.batch import NO_TARGET, Batch
from data_pipeline.stream.framed import FramedRows
from data_pipeline.stream.stream import AnyBatch
from data_pipeline.tokenizer.encode import special_tokens
from data_pipeline.tokenizer.fingerprint import TOKENIZER_FILE
from data_pipeline.tokenizer.word_borders import word_borders
from trainer.model import Kernel, Reading, packed_inputs, reading_of
from trainer.objectives.choose import Setting
from trainer.objectives.masks import Masks
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.objectives.places import only_at
from trainer.ranks import Ranks

# Where transformers keeps what makes logits of one place's hidden state: BertOnlyMLMHead, RobertaLMHead.
_HEADS = ("cls", "lm_head")


def make_masked_lm(setting: Setting) -> MaskedLM:
    """The objective over the framed rows of the shards."""
    rows = setting.source
    assert isinstance(rows, FramedRows), "its stage reads framed rows"
    return MaskedLM(
        kernel=setting.kernel,
        device=setting.ranks.device,
        reading=reading_of(setting.model),
        head=lm_head(setting.model),
        masks=make_masks(setting, rows),
    )


def make_masks(setting: Setting, rows: FramedRows) -> Masks:
    """What is chosen of the vocabulary of `rows`: no special token, whether a role or a marker."""
    config, size = setting.config.mlm, rows.shards.vocab_size
    assert config is not None, "the config resolves it"
    folder = tokenizer_folder(rows.shards.folder)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    is_ordinary = np.zeros(size, bool)
    is_ordinary[list(vocabulary.values())] = True
    is_ordinary[[number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special]] = False
    is_ordinary[[vocabulary[token] for token in special_tokens(folder).values() if token in vocabulary]] = False
    return Masks(
        config=config,
        seed=setting.config.seed,
        mask_id=rows.tokens.mask_id,
        ordinary_ids=np.flatnonzero(is_ordinary),
        is_ordinary=is_ordinary,
        borders=word_borders(folder, num_rows=size) if config.whole_words else None,
    )


def lm_head(model: nn.Module) -> nn.Module | None:
    """The module that makes logits of hidden states, place by place; None where it is none that is known."""
    found = (getattr(model, name, None) for name in _HEADS)
    return next((head for head in found if isinstance(head, nn.Module)), None)


@dataclass(frozen=True)
class MaskedLM(Objective):
    """Sum of -ln p(token | what is left of its piece), in float32, over the chosen tokens."""

    kernel: Kernel
    device: torch.device
    reading: Reading
    head: nn.Module | None
    masks: Masks

    sum_names = ("masked_accuracy",)

    def prepare(self, batches: Sequence[AnyBatch], *, is_training: bool) -> list[AnyBatch]:
        found: list[AnyBatch] = []
        for batch in batches:
            assert isinstance(batch, Batch), "framed rows are packed"
            found.append(self.masks.masked(batch, is_training=is_training))
        return found

    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        assert isinstance(batch, Batch), "framed rows are packed"
        labels_N = batch.labels.reshape(-1)
        places = np.flatnonzero(labels_N != NO_TARGET)
        if not len(places):
            places = np.zeros(1, np.int64)  # a kernel need not bear a matrix without rows
        logits_MV = self.logits(module, batch, places=places)
        labels_M = torch.from_numpy(labels_N[places]).to(self.device)
        loss = functional.cross_entropy(logits_MV.float(), labels_M, ignore_index=NO_TARGET, reduction="sum")
        num_right = (logits_MV.detach().argmax(dim=1) == labels_M).sum().double()
        return Outcome(loss, {"masked_accuracy": num_right})

    def logits(self, model: nn.Module, batch: Batch, *, places: np.ndarray) -> torch.Tensor:
        """(M, V) logits at `places` (M,) of the flattened rows, in the model's dtype."""
        inputs = packed_inputs(batch, kernel=self.kernel, device=self.device, reading=self.reading)
        places_M = torch.from_numpy(places).to(self.device)
        if self.head is None:
            logits = model(**inputs).logits
            return logits.reshape(-1, logits.shape[-1])[places_M]
        with only_at(places_M, self.head):
            logits = model(**inputs).logits
        return logits

    def scorer(self, *, num_bytes: int) -> Scorer:
        return _Masked(self.device)


class _Masked(Scorer):
    def __init__(self, device: torch.device) -> None:
        self._num_right = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, batch: AnyBatch, outcome: Outcome) -> None:
        self._num_right += outcome.sums["masked_accuracy"]

    def figures(self, ranks: Ranks, *, loss_sum: float, num_targets: float) -> dict[str, Any]:
        num_right = float(ranks.all_sum(self._num_right))
        count = max(1.0, num_targets)
        return {"masked_accuracy": num_right / count, "masked_perplexity": _perplexity(loss_sum / count)}


def _perplexity(loss: float) -> float:
    """exp(loss), and infinite where a float can't hold it."""
    return math.exp(loss) if loss < math.log(np.finfo(np.float64).max) else math.inf
