"""Which tokens a masked language model is asked for, and what it sees in their place.

Devlin et al. 2019, "BERT", section 3.1: of the tokens 15 % are chosen; 80 % of these become the mask, 10 % another
token, 10 % stay. All is a pure function of (seed, epoch, row), whatever rank, micro-batch or place in it: dynamic masks
(Liu et al. 2019, "RoBERTa", section 4.1) that resume without a state. NumPy only, on the host.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.stream.batch import NO_ROW, NO_TARGET, Batch
from data_pipeline.tokenizer.word_borders import WordBorders
from trainer.stage_configs import MlmConfig

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NUM_DRAWS = 3  # a place: whether it is chosen, what becomes of it, which other token


@dataclass(frozen=True)
class Masks:
    """`ordinary_ids`: the tokens that texts are made of, which are asked for and stand in for others.

    `borders`: None to choose tokens, else all tokens of a word are chosen together.
    """

    config: MlmConfig
    seed: int
    mask_id: int
    ordinary_ids: IntArray
    is_ordinary: BoolArray
    borders: WordBorders | None = None

    def masked(self, batch: Batch, *, is_training: bool) -> Batch:
        """`batch`, whose labels are the ids of texts, as it is learnt from: the labels of chosen places alone are left.

        Rows of an evaluation stand in no epoch: theirs are the same each time, and whatever the seed of the run.
        """
        may_be_chosen = (batch.labels != NO_TARGET) & self.is_ordinary[batch.input_ids]
        draws = np.zeros((NUM_DRAWS, *batch.input_ids.shape))
        is_chosen = np.zeros(batch.input_ids.shape, bool)
        is_first = self._first_of_words(batch, may_be_chosen)
        for place, row in enumerate(batch.row_ids.tolist()):
            if row == NO_ROW:
                continue
            epoch = None if batch.epochs is None or not is_training else int(batch.epochs[place])
            draws[:, place] = self._draws(epoch, row, length=batch.input_ids.shape[1])
            places = np.flatnonzero(may_be_chosen[place])
            if len(places):
                is_chosen[place, places] = _chosen(
                    draws[0, place, places], is_first[place, places], share=self.config.chosen_share
                )
        return dataclasses.replace(
            batch,
            input_ids=self._replaced(batch.input_ids, is_chosen, fate=draws[1], other=draws[2]),
            labels=np.where(is_chosen, batch.input_ids, NO_TARGET),
            num_targets=int(is_chosen.sum()),
        )

    def _first_of_words(self, batch: Batch, may_be_chosen: BoolArray) -> BoolArray:
        if self.borders is None:
            return may_be_chosen
        found = self.borders.first_of_words(batch.input_ids)
        found[:, 1:] |= ~may_be_chosen[:, :-1]  # behind CLS, a special token or padding
        return found

    def _draws(self, epoch: int | None, row: int, *, length: int) -> NDArray[np.float64]:
        """(NUM_DRAWS, length) in [0, 1). Raw bits of Philox (Salmon et al. 2011), which NumPy keeps as they are."""
        of = f"evaluation,{row}" if epoch is None else f"{self.seed},{epoch},{row}"
        key = int.from_bytes(hashlib.sha256(of.encode()).digest()[:16], "little")
        bits = np.random.Philox(key=key).random_raw(NUM_DRAWS * length)
        draws = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return draws.reshape(NUM_DRAWS, length)

    def _replaced(
        self, input_ids: IntArray, is_chosen: BoolArray, *, fate: NDArray[np.float64], other: NDArray[np.float64]
    ) -> IntArray:
        masked, random = self.config.masked_share, self.config.random_share
        others = self.ordinary_ids[(other * len(self.ordinary_ids)).astype(np.int64)]
        seen = np.where(is_chosen & (fate < masked), self.mask_id, input_ids)
        return np.where(is_chosen & (fate >= masked) & (fate < masked + random), others, seen)


def _chosen(draws: NDArray[np.float64], is_first: BoolArray, *, share: float) -> BoolArray:
    """Of the tokens of one row: words in random order, as many as come nearest to `share` of the tokens, at least one.

    A word that alone is longer than that is not chosen, but for the shortest where all are.
    """
    word = np.cumsum(is_first) - 1 if is_first[0] else np.cumsum(is_first)
    sizes = np.bincount(word)
    budget = share * len(draws)
    fits = sizes <= max(1.0, budget)
    if not fits.any():
        fits[np.argmin(sizes)] = True
    first_place = np.searchsorted(word, np.arange(len(sizes)))
    candidates = np.flatnonzero(fits)
    order = candidates[np.argsort(draws[first_place[candidates]], kind="stable")]
    before = np.cumsum(sizes[order]) - sizes[order]
    is_taken = before + sizes[order] / 2 < budget
    is_taken[0] = True
    is_chosen = np.zeros(len(sizes), bool)
    is_chosen[order[is_taken]] = True
    chosen: BoolArray = is_chosen[word]
    return chosen
