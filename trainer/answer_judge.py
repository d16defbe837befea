"""Scores of written answers: by a model with a head of one output (`stage: reward`), or by a function of a file.

Texts go in, whatever model wrote them: the judge has a tokenizer and a template of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import nn

from data_pipeline import disk
from data_pipeline.stream.examples import ExampleBatch
from trainer.errors import RunError
from trainer.heads import positions_of
from trainer.model import padded_inputs
from trainer.rewards import RewardFunction, load_function
from trainer.saved import (
    DTYPES,
    Saved,
    find_saved,
    open_model,
    open_template,
    open_tokenizer,
    tokenizer_folder,
    usual_dtype,
    vocabulary_of,
    weights_sha256,
)
from trainer.saved_head import head_of_saved, saved_head

if TYPE_CHECKING:
    from data_pipeline.templates import Message, Template
    from data_pipeline.tokenizer.encode import Encoder

WHERE = "--judge"


@dataclass(frozen=True)
class Written:
    """An answer to judge. `ended`: the model ended it itself. `reference`: an answer that the row came with."""

    row: int
    messages: Sequence[Mapping[str, object]]
    answer: str
    ended: bool = True
    reference: str | None = None


class AnswerJudge(Protocol):
    """`name`: what a person calls it."""

    @property
    def name(self) -> str: ...

    def scores(self, answers: Sequence[Written]) -> list[float | None]:
        """One a answer, finite; None for an answer that is too long to be read.

        Raises:
            RunError: a score that can't be used, with the row.
        """


@dataclass(frozen=True)
class FunctionOfText:
    """`function(prompts, answers, references)`, as `reward.function` of ppo and grpo; prompts are the rows' texts."""

    name: str
    function: RewardFunction

    def scores(self, answers: Sequence[Written]) -> list[float | None]:
        prompts = ["\n".join(_texts(one.messages)) for one in answers]
        try:
            found = self.function(prompts, [one.answer for one in answers], [one.reference for one in answers])
            values = [float(value) for value in found]
        except Exception as error:  # whatever it is: it is the user's code
            rows = f"rows {answers[0].row:,} to {answers[-1].row:,}" if answers else "no rows"
            raise RunError(
                f"{WHERE}: {self.name} raised {type(error).__name__}: {error} for {rows}; mend it"
            ) from error
        if len(values) != len(answers):
            raise RunError(
                f"{WHERE}: {self.name} returned {len(values):,} scores for {len(answers):,} answers; return one an "
                "answer, in their order"
            )
        return _finite(values, answers, self.name)


@dataclass(frozen=True)
class ScoringModel:
    """The one output of a sequence classifier over prompt and answer. `seq_len`: ids that it reads at most."""

    name: str
    model: nn.Module
    encoder: Encoder
    template: Template
    pad_id: int
    seq_len: int | None
    batch_size: int
    device: torch.device

    def scores(self, answers: Sequence[Written]) -> list[float | None]:
        """Answers of like length share a batch."""
        sequences = [self._ids(one) for one in answers]
        reads = [place for place, ids in enumerate(sequences) if self.seq_len is None or len(ids) <= self.seq_len]
        reads.sort(key=lambda place: len(sequences[place]))
        found: list[float | None] = [None] * len(answers)
        for start in range(0, len(reads), self.batch_size):
            places = reads[start : start + self.batch_size]
            for place, value in zip(places, self._scored([sequences[place] for place in places]), strict=True):
                found[place] = value
        _finite([value for value in found if value is not None], [answers[place] for place in sorted(reads)], self.name)
        return found

    @torch.no_grad()
    def _scored(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        input_ids = np.full((len(sequences), int(lengths.max())), self.pad_id, np.int64)
        for row, ids in enumerate(sequences):
            input_ids[row, : len(ids)] = ids
        nothing, rows = np.full(len(sequences), np.nan), np.arange(len(sequences))
        batch = ExampleBatch(input_ids, lengths, nothing, rows, num_targets=len(sequences))
        logits: torch.Tensor = self.model(**padded_inputs(batch, device=self.device)).logits
        return [float(value) for value in logits.float().reshape(-1)]

    def _ids(self, one: Written) -> list[int]:
        """As rows of preferences are written: EOS stands where the answer ended."""
        from data_pipeline.templates.encode import encode_prompt, encode_rows

        asked = cast("Sequence[Message]", one.messages)
        before = encode_prompt(asked, self.template, self.encoder)
        if not one.answer.strip():  # a template writes no empty answer
            return [*before, *([cast(int, self.encoder.eos_id)] if one.ended else [])]
        said = [*asked, {"role": "assistant", "content": one.answer, "input": ""}]
        ids = [int(token) for token in encode_rows([self.template.render(said)], self.encoder).ids]
        return ids[:-1] if not one.ended and ids[-1] == self.encoder.eos_id else ids


def _texts(messages: Sequence[Mapping[str, object]]) -> list[str]:
    return [str(text) for message in messages for text in (message["content"], message.get("input", "")) if text]


def _finite(values: Sequence[float], answers: Sequence[Written], name: str) -> list[float | None]:
    for value, one in zip(values, answers, strict=True):
        if not math.isfinite(value):
            raise RunError(
                f"{WHERE}: {name} gives row {one.row:,} {value:g} for {one.answer[:60]!r}; a score is a finite number: "
                "mend it, or name another judge"
            )
    return list(values)


def judge_identity(name: str) -> str:
    """What tells one judge from another: a sha256 of the function's file, or of the weights."""
    if _is_function(name):
        load_function(name, where=WHERE)
        return disk.sha256_of(_file_of(name))
    return weights_sha256(find_judge(name)[0])


def find_judge(name: str) -> tuple[Saved, Template]:
    """A saved model that scores answers, and how they are written for it.

    Raises:
        RunError: nothing under that name, or a model of another kind, of several outputs, or without a template.
    """
    saved = find_saved(name, checkpoint=None)
    if (head := head_of_saved(saved)) != "classifier":
        raise RunError(
            f"{WHERE}: {saved.path} is a {head.replace('_', ' ')}, which scores nothing; name a run of stage 'reward', "
            "or a function as FILE.py:NAME"
        )
    if (num_outputs := len(saved_head(saved).labels)) != 1:
        raise RunError(
            f"{WHERE}: {saved.path} has {num_outputs} outputs, a score is one number; name a run of stage 'reward'"
        )
    template = open_template(saved)
    if template is None and (tokenizer_folder(saved) / "chat_template.jinja").is_file():
        template = open_template(saved, name="tokenizer")
    if template is None:
        raise RunError(
            f"{WHERE}: {saved.path}: nothing there says how an answer is written for it; put its template.yaml, or its "
            "tokenizer's chat_template.jinja, beside it"
        )
    return saved, template


def open_judge(name: str, *, batch_size: int) -> AnswerJudge:
    """The judge of that name: FILE.py:NAME, a run of stage reward, or a model folder with one output.

    Raises:
        RunError: none of these.
    """
    if _is_function(name):
        print(f"{WHERE}: code of {name} runs in this process")
        return FunctionOfText(name, load_function(name, where=WHERE))
    saved, template = find_judge(name)
    opened = open_model(saved, dtype=DTYPES[usual_dtype(saved)])
    return ScoringModel(
        name=str(saved.path),
        model=opened.model,
        encoder=open_tokenizer(saved),
        template=template,
        pad_id=vocabulary_of(saved).in_model(opened.model).pad_id,
        seq_len=positions_of(opened.model),
        batch_size=batch_size,
        device=opened.device,
    )


def _is_function(name: str) -> bool:
    return ".py:" in name


def _file_of(name: str) -> Path:
    return Path(name.rpartition(":")[0]).expanduser()
