"""Texts whose vectors are near where they belong together: pairs, scored pairs and triplets.

Shapes: B examples of k sequences, S = B * k, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch, ExampleRows
from data_pipeline.stream.stream import AnyBatch
from trainer.objectives.choose import Setting
from trainer.objectives.embedding_rows import check_sequences, check_splits
from trainer.objectives.embedding_scores import EmbeddingScorer
from trainer.objectives.in_batch import Contrast, Units, contrast, text_numbers
from trainer.objectives.objective import Objective, Outcome, Scorer
from trainer.pooling import sequence_vectors
from trainer.ranks import Ranks
from trainer.stage_configs import EmbedConfig


def make_embedding(setting: Setting) -> Embedding:
    """The objective over the pairs or triplets of the shards; both splits are looked at first.

    Raises:
        RunError: rows that `embed.loss` can't learn from.
    """
    rows, config = setting.source, setting.config.embed
    assert isinstance(rows, ExampleRows), "its stage reads examples"
    assert config is not None, "the config resolves it"
    check_sequences(config, num_sequences=rows.shards.num_sequences, folder=rows.shards.folder)
    setting.ranks.on_main(lambda: check_splits(rows, config))
    return Embedding(config, ranks=setting.ranks, group_size=setting.config.train.global_batch_sequences)


@dataclass(frozen=True)
class _Solved:
    """What a micro-batch's second pass goes by: the generators' states of its first, and its part of the contrast."""

    batch: AnyBatch
    states: list[torch.Tensor]
    contrast: Contrast


class Embedding(Objective):
    """Sum of the examples' losses, in float32. Pooled vectors are compared as they are; cosines need no length.

    in_batch: the candidates of an anchor are the texts of all micro-batches and ranks of the step, so that an update
    does not depend on its split. A rank with several micro-batches sees each of them twice, first without a graph.
    A held-out loss is that of groups of `group_size` examples, chosen by their rows alone.
    """

    def __init__(self, config: EmbedConfig, *, ranks: Ranks, group_size: int) -> None:
        self.config, self._ranks, self._group_size = config, ranks, group_size
        self.sum_names = {
            "in_batch": ("in_batch_accuracy",),
            "cosine": (),
            "triplet": ("triplet_accuracy",),
        }[config.loss]
        self._solved: list[_Solved] = []

    def vectors(self, module: nn.Module, batch: ExampleBatch) -> torch.Tensor:
        """(B, k, H) float32."""
        vectors_SH = sequence_vectors(module, batch, pooling=self.config.pooling, device=self._ranks.device)
        return vectors_SH.view(len(batch.row_ids), batch.num_sequences, -1)

    def begin_step(self, module: nn.Module, batches: Sequence[AnyBatch]) -> None:
        self._solved = []
        if self.config.loss != "in_batch" or len(batches) == 1:
            return  # one micro-batch is compared where it has its graph
        states, found = [], []
        with torch.no_grad():
            for batch in batches:
                assert isinstance(batch, ExampleBatch), "examples are not packed"
                states.append(_generator_states(self._ranks.device))
                found.append(self._units(self.vectors(module, batch), batch))
        whole = contrast(Units.joined(found), self._ranks, temperature=self.config.temperature)
        start = 0
        for batch, its_states, units in zip(batches, states, found, strict=True):
            part = slice(start, start + len(units))
            start += len(units)
            its_part = Contrast(whole.losses[part], whole.gradients[part], whole.are_first[part])
            self._solved.append(_Solved(batch, its_states, its_part))

    def outcome(self, module: nn.Module, batch: AnyBatch) -> Outcome:
        assert isinstance(batch, ExampleBatch), "examples are not packed"
        if self.config.loss == "in_batch":
            return self._contrasted(module, batch)
        vectors_BkH = self.vectors(module, batch)
        texts_BkH = vectors_BkH[self._are_real(batch)]
        if self.config.loss == "cosine":
            scores_B = torch.from_numpy(batch.values).to(vectors_BkH)[self._are_real(batch)] / self.config.max_score
            cosines_B = functional.cosine_similarity(texts_BkH[:, 0], texts_BkH[:, 1], dim=1)
            # Shards to be evaluated may lack some scores, shards of training none.
            errors_B = (cosines_B - scores_B.nan_to_num()) * ~scores_B.isnan()
            return Outcome((errors_B**2).sum(), {}, vectors_BkH.detach())
        near_B, far_B = (torch.linalg.vector_norm(texts_BkH[:, 0] - texts_BkH[:, place], dim=1) for place in (1, 2))
        loss = functional.relu(near_B - far_B + self.config.margin).sum()
        return Outcome(loss, {"triplet_accuracy": (near_B < far_B).sum().double()}, vectors_BkH.detach())

    def weight(self, batch: AnyBatch) -> float:
        assert isinstance(batch, ExampleBatch), "examples are not packed"
        if self.config.loss != "cosine":
            return float(batch.num_targets)
        return float((~np.isnan(batch.values[batch.row_ids != NO_ROW])).sum())

    def _contrasted(self, module: nn.Module, batch: ExampleBatch) -> Outcome:
        """The value is the loss of the batch's own anchors, the gradient that of all anchors of the step by its texts:
        added up over batches and ranks both are those of the whole."""
        solved = next((each for each in self._solved if each.batch is batch), None)
        if solved is not None:
            _set_generators(solved.states, self._ranks.device)
        vectors_BkH = self.vectors(module, batch)
        units = self._units(vectors_BkH, batch)
        found = solved.contrast if solved else contrast(units, self._ranks, temperature=self.config.temperature)
        joined = (units.vectors * found.gradients).sum()
        loss = found.losses.sum() + (joined - joined.detach())
        return Outcome(loss, {"in_batch_accuracy": found.are_first.sum().double()}, vectors_BkH.detach())

    def _units(self, vectors: torch.Tensor, batch: ExampleBatch) -> Units:
        """Of the examples that are no padding."""
        texts = text_numbers(batch).to(vectors.device)
        return Units(functional.normalize(vectors, dim=2), texts)[self._are_real(batch)]

    def _are_real(self, batch: ExampleBatch) -> torch.Tensor:
        return torch.from_numpy(batch.row_ids != NO_ROW).to(self._ranks.device)

    def scorer(self, *, num_bytes: int) -> Scorer:
        if self.config.loss == "in_batch":
            group_size, temperature = self._group_size, self.config.temperature
            return EmbeddingScorer(is_scored=False, group_size=group_size, temperature=temperature)
        return EmbeddingScorer(is_scored=self.config.loss == "cosine")


def _generator_states(device: torch.device) -> list[torch.Tensor]:
    """Of what dropout on `device` draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_generators(states: Sequence[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
