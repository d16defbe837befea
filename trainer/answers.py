"""What a model answers to held-out instructions while it is tuned: exact match, endings, and samples to read.

The questions are the rows of the held-out shards, as the model sees them in training: the ids before the last answer.
They are the same ones at each evaluation and on any number of ranks.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from data_pipeline.config import Config

if TYPE_CHECKING:
    from data_pipeline.templates import Template
    from data_pipeline.tokenizer.encode import Encoder
    from trainer.generate import Answer
    from trainer.setup import Run

ANSWERS_NAME = "answers"
Ids = tuple[int, ...]


class AnswersConfig(Config):
    """Greedy answers at each evaluation of `stage: sft`. `num_rows: 0` asks for none."""

    num_rows: int = Field(default=64, ge=0)
    num_shown: int = Field(default=8, ge=0)
    """Of these rows, so many go to `answers/step-N.jsonl`."""
    max_new_tokens: int = Field(default=128, ge=1)
    micro_batch_sequences: int = Field(default=8, ge=1)


@dataclass(frozen=True)
class Question:
    """The ids before a held-out row's last answer, and that answer's without its EOS."""

    prompt: Ids
    expected: Ids


@dataclass(frozen=True)
class AnswerFigures:
    """Shares of `num_answers` greedy answers: equal to the expected text, and ended by EOS within the limit."""

    num_answers: int
    exact_match: float
    ended_share: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def heldout_questions(shards: Path, *, num_rows: int, seq_len: int) -> list[Question]:
    """Up to `num_rows` rows of the held-out split, evenly chosen among those that fit a row of training."""
    from data_pipeline.shards.format import read_shards
    from data_pipeline.shards.reader import iterate_lengths, open_shard
    from data_pipeline.stream.order import RowOrder

    found = read_shards(shards, split="heldout")
    fitting = np.flatnonzero(np.concatenate(list(iterate_lengths(found))) - 1 <= seq_len)
    order = RowOrder(found.content_sha256, seed=0, epoch=0, num_rows=len(fitting))
    chosen = fitting[order.rows_at(np.arange(min(num_rows, len(fitting))))]
    questions: dict[int, Question] = {}
    first = 0
    for file in found.files:
        if not np.any((chosen >= first) & (chosen < first + sum(file.batch_documents))):
            first += sum(file.batch_documents)
            continue
        for batch in open_shard(file):
            for number in chosen[(chosen >= first) & (chosen < first + batch.num_rows)].tolist():
                ids = batch.column("input_ids")[number - first].as_py()
                last = batch.column("loss_spans")[number - first].as_py()[-1]
                questions[number] = _question(ids, last["start"], last["end"], eos_id=found.eos_id)
            first += batch.num_rows
    return [questions[number] for number in chosen.tolist()]


def _question(ids: Sequence[int], start: int, end: int, *, eos_id: int) -> Question:
    answer = ids[start:end]
    return Question(prompt=tuple(ids[:start]), expected=tuple(answer[:-1] if answer[-1] == eos_id else answer))


def answer_heldout(run: Run, *, folder: Path, stop_requested: Callable[[], bool]) -> AnswerFigures | None:
    """The figures of the model's answers, for the evaluation's line; None if a rank was asked to stop (law 12).

    Every rank answers its share. Rank 0 writes samples to `folder`/answers/step-N.jsonl. Weights, mode and randomness
    are as before.
    """
    from data_pipeline.shards.format import template_of, tokenizer_folder
    from data_pipeline.tokenizer.encode import Encoder

    config, ranks, shards = run.config.evaluation.answers, run.ranks, Path(run.config.data.shards)

    def read() -> list[Question]:
        return heldout_questions(shards, num_rows=config.num_rows, seq_len=run.config.data.seq_len)

    questions = ranks.together(read)
    ours = _ask(run, questions[ranks.rank :: ranks.world_size], stop_requested=stop_requested)
    if ranks.any(stop_requested()):
        return None
    by_rank = ranks.gather_objects(ours)
    answers = [by_rank[place % ranks.world_size][place // ranks.world_size] for place in range(len(questions))]

    def compare() -> AnswerFigures:
        encoder, template = Encoder(tokenizer_folder(shards)), template_of(shards)
        assert template is not None, "instruction shards have one"
        lines = told(questions, answers, encoder=encoder, template=template, step=run.progress.step)
        write_samples(folder, lines[: config.num_shown], step=run.progress.step)
        return summarize(lines)

    figures: AnswerFigures = ranks.on_main(compare)
    return figures


def _ask(run: Run, questions: Sequence[Question], *, stop_requested: Callable[[], bool]) -> list[Answer]:
    """Greedy answers of the model as it stands; [] where a stop was requested."""
    from trainer.generate import Sampling, generate_answers

    config, rows = run.config.evaluation.answers, run.stream.rows.shards
    return generate_answers(
        run.engine.module,
        [question.prompt for question in questions],
        eos_ids=[rows.eos_id],
        pad_id=run.vocabulary.pad_id,
        sampling=Sampling(max_new_tokens=config.max_new_tokens),
        batch_size=config.micro_batch_sequences,
        device=run.ranks.device,
        max_positions=getattr(run.engine.model.config, "max_position_embeddings", None),
        synced=run.ranks.world_size > 1,  # ZeRO-3 needs equal forward passes; all engines stop together by it
        stop_requested=stop_requested,
    )


def told(
    questions: Sequence[Question], answers: Sequence[Answer], *, encoder: Encoder, template: Template, step: int
) -> list[dict[str, Any]]:
    """A line for each answer, as text. Exact: equal in NFC, without white space around."""

    def text(ids: Ids) -> str:
        decoded: str = encoder.tokenizer.decode(list(ids), skip_special_tokens=False)
        return decoded

    lines = []
    for question, answer in zip(questions, answers, strict=True):
        expected, said = template.answer_text(text(question.expected)), template.answer_text(text(answer.ids))
        is_exact = answer.ended and _normal(said) == _normal(expected)
        lines.append(
            {
                "step": step,
                "prompt": text(question.prompt),
                "expected": expected,
                "answer": said,
                "ended": answer.ended,
                "is_exact": is_exact,
            }
        )
    return lines


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def summarize(lines: Sequence[dict[str, Any]]) -> AnswerFigures:
    """The figures of lines that `told` made."""
    count = max(1, len(lines))
    return AnswerFigures(
        num_answers=len(lines),
        exact_match=sum(line["is_exact"] for line in lines) / count,
        ended_share=sum(line["ended"] for line in lines) / count,
    )


def write_samples(folder: Path, lines: Sequence[dict[str, Any]], *, step: int) -> None:
    """`folder`/answers/step-N.jsonl, whole or not at all; an evaluation that is made again writes it again."""
    from data_pipeline import disk

    if not lines:
        return
    (folder / ANSWERS_NAME).mkdir(exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    disk.write_bytes(folder / ANSWERS_NAME / f"step-{step:08d}.jsonl", text.encode())
