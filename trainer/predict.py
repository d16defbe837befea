"""What a trained model says of texts that nobody labelled: of a classifier the classes, of an encoder the vectors.

Texts are framed and cut as shards are. Batches are of about equally long texts; what comes out is in the order of the
rows, and no figure depends on what shared a batch but for the rounding of sums.
Shapes: B rows, C classes, H hidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.shards.format import Frame
from data_pipeline.shards.frames import Texts, cut_lengths, num_frame_ids, put_in_frame
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.tokenizer.encode import Encoder
from trainer.errors import RunError
from trainer.heads import positions_of
from trainer.model import padded_inputs, with_token_types
from trainer.pooling import VectorForm, needed_form
from trainer.saved import (
    DTYPES,
    Dtype,
    OpenModel,
    Quantize,
    Saved,
    open_model,
    open_tokenizer,
    usual_dtype,
    vocabulary_of,
)
from trainer.saved_head import SavedHead, saved_head
from trainer.stages import REWARD_LABELS

BATCHES_A_WINDOW = 64  # rows of like length share a batch among so many; memory holds no more than these
MAX_SEQ_LEN = 512  # ids a sequence, of a model folder that names no length

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Framed:
    """A framed text or pair. `num_cut`: ids that did not fit."""

    ids: Ids
    num_cut: int


@dataclass(frozen=True)
class Predictor:
    """An open model with its frame. `seq_len`: ids of a sequence, its frame included; what is longer is cut."""

    opened: OpenModel
    encoder: Encoder
    told: SavedHead
    pad_id: int
    eos_id: int
    seq_len: int
    form: VectorForm | None = None  # of an encoder

    @property
    def labels(self) -> tuple[str, ...]:
        return self.told.labels

    @property
    def frame(self) -> Frame:
        assert self.told.frame is not None, "open_predictor refuses models without one"
        return self.told.frame

    def sequences(self, rows: Sequence[Sequence[str]]) -> list[Framed]:
        """One or two texts a row -> the framed ids of each, cut where they are more than `seq_len`.

        A text of which the tokenizer leaves nothing is framed all the same.
        """
        columns = [self._encoded([row[place] if place < len(row) else None for row in rows]) for place in range(2)]
        num_texts = sum(column.is_there.astype(np.int64) for column in columns)
        rooms = [self.seq_len - num_frame_ids(self.frame, num_texts=number) for number in (1, 2)]
        lengths = [column.lengths for column in columns]
        kept = cut_lengths(lengths, np.array(rooms)[num_texts - 1])
        framed = put_in_frame([columns], self.frame, kept=[kept], eos_id=self.eos_id)
        cut = np.sum(lengths, axis=0) - np.sum(kept, axis=0)
        ids = np.split(framed.ids.astype(np.int64), np.cumsum(framed.lengths)[:-1])
        return [Framed(each, int(num_cut)) for each, num_cut in zip(ids, cut, strict=True)]

    def _encoded(self, texts: Sequence[str | None]) -> Texts:
        ids, offsets = self.encoder.encode_batch([text or "" for text in texts])
        is_there = np.array([text is not None for text in texts])
        return Texts(np.asarray(ids, np.uint32), np.asarray(offsets, np.int64), is_there)

    @torch.no_grad()
    def scores(self, sequences: Sequence[Ids]) -> NDArray[np.float32]:
        """(B, C) probabilities of a classifier's classes, or (B, H) vectors of an encoder, in the rows' order."""
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        input_ids = np.full((len(sequences), int(lengths.max())), self.pad_id, np.int64)
        for row, ids in enumerate(sequences):
            input_ids[row, : len(ids)] = ids
        nothing = np.full(len(sequences), np.nan)
        batch = ExampleBatch(input_ids, lengths, nothing, np.arange(len(sequences)), num_targets=len(sequences))
        return np.asarray(self._answer(batch).float().cpu().numpy(), np.float32)

    def _answer(self, batch: ExampleBatch) -> torch.Tensor:
        model: Any = self.opened.model
        if self.form is not None:
            return self.form.vectors(model, batch, device=self.opened.device)
        sep_id = self.frame.sep_id
        inputs = with_token_types(padded_inputs(batch, device=self.opened.device), model, sep_id=sep_id)
        logits: torch.Tensor = model(**inputs).logits
        return logits.float().softmax(dim=1)


@dataclass(frozen=True)
class Prediction:
    """Of the row at `place` among those that were given. `scores`: (C,) probabilities or (H,) a vector."""

    place: int
    scores: NDArray[np.float32]
    num_cut: int


def open_predictor(saved: Saved, *, quantize: Quantize | None = None, dtype: Dtype | None = None) -> Predictor:
    """The model of a run, a checkpoint, or a folder, ready to be asked.

    Raises:
        RunError: a model that writes text, or one of documents with blanks.
    """
    told = saved_head(saved)
    if told.head not in ("classifier", "encoder"):
        verb = "dure generate" if told.head == "causal_lm" else "a stage that begins on it (model.from)"
        raise RunError(
            f"{saved.path}: a {told.head.replace('_', ' ')} has no classes and no vectors to tell; use {verb}, or name "
            "a run of stage classify or embed"
        )
    if told.labels == REWARD_LABELS:
        raise RunError(
            f"{saved.path}: a reward model scores an answer to a prompt, not a text by itself; use `dure evaluate "
            "compare A B --prompts FILE --judge` with it, or reward.model of stage ppo or grpo"
        )
    form = needed_form(saved) if told.head == "encoder" else None
    opened = open_model(saved, quantize=quantize, dtype=DTYPES[dtype or usual_dtype(saved)])
    vocabulary = vocabulary_of(saved)
    return Predictor(
        opened=opened,
        encoder=open_tokenizer(saved),
        told=told,
        pad_id=vocabulary.in_model(opened.model).pad_id,
        eos_id=vocabulary.eos_id,
        seq_len=_seq_len(saved, told, opened),
        form=form,
    )


def _seq_len(saved: Saved, told: SavedHead, opened: OpenModel) -> int:
    if told.seq_len:
        return told.seq_len
    return min(MAX_SEQ_LEN, positions_of(opened.model) or MAX_SEQ_LEN)


def predict(predictor: Predictor, rows: Iterable[Sequence[str]], *, batch_sequences: int) -> Iterator[Prediction]:
    """What the model says of each row, in order; holds a window of rows, whatever their number."""
    numbered = enumerate(rows)
    while window := list(itertools.islice(numbered, batch_sequences * BATCHES_A_WINDOW)):
        sequences = predictor.sequences([texts for _, texts in window])
        order = sorted(range(len(window)), key=lambda place: len(sequences[place].ids))
        found: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), batch_sequences):
            places = order[start : start + batch_sequences]
            scores = predictor.scores([sequences[place].ids for place in places])
            found |= dict(zip(places, scores, strict=True))
        for place, (number, _) in enumerate(window):
            yield Prediction(number, found[place], sequences[place].num_cut)
