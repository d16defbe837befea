"""The gate's checks of the stages that learn from answers to prompts: preference pairs and feedback.

What trains here without a word: answers that no EOS ends, a chosen answer that is also the rejected one, feedback of
one kind alone, and a reference that is not the model that the tuning began on.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from data_pipeline.shards.format import ShardSet
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.stream import AnyBatch
from trainer.config import TrainConfig
from trainer.gate_checks import Check
from trainer.objectives.log_probs import answer_log_probs
from trainer.reference import Reference

if TYPE_CHECKING:
    from trainer.setup import Run

# Rows that are all of one kind by chance, of two that are alike: 1 in 2^31.
MIN_ONE_KIND = 32
# How far an untouched model may be from its reference: sums in another order, no more.
REFERENCE_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}


@dataclass(frozen=True)
class SeenAnswers:
    """What stands in some rows; counts add up over ranks. `num_answers` counts sequences."""

    num_rows: int = 0
    num_answers: int = 0
    num_tokens: int = 0
    num_padding: int = 0
    num_targets: int = 0
    num_empty: int = 0
    num_without_eos: int = 0
    num_many_bos: int = 0
    num_equal: int = 0
    num_desirable: int = 0
    highest_id: int = -1

    def __add__(self, other: SeenAnswers) -> SeenAnswers:
        found = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return SeenAnswers(**found | {"highest_id": max(self.highest_id, other.highest_id)})

    @property
    def told(self) -> str:
        """For the table's title."""
        share = 100 * self.num_padding / max(1, self.num_padding + self.num_tokens)
        rows = f"{self.num_rows:,} rows of {self.num_answers:,} answers"
        return f"{rows} with {self.num_tokens:,} tokens, {share:.1f} % padding"


def look_at(batches: Sequence[AnyBatch], *, eos_id: int, bos: Collection[int]) -> SeenAnswers:
    """The counts of one rank's batches, as the stream gives them."""
    seen = SeenAnswers()
    for batch in batches:
        assert isinstance(batch, ExampleBatch) and batch.answers is not None, "its rows have answers"
        if batch.num_targets:
            seen += _look_at(batch, eos_id=eos_id, bos=bos)
    return seen


def _look_at(batch: ExampleBatch, *, eos_id: int, bos: Collection[int]) -> SeenAnswers:
    assert batch.answers is not None
    sequences = [ids[:length] for ids, length in zip(batch.input_ids, batch.lengths.tolist(), strict=True)]
    spans = batch.answers.tolist()
    answers = [ids[start:end] for ids, (start, end) in zip(sequences, spans, strict=True)]
    num_bos = [int(np.isin(ids, list(bos)).sum()) for ids in sequences]
    num_tokens, is_pair = int(batch.lengths.sum()), batch.num_sequences == 2
    values = batch.values[batch.row_ids != NO_ROW]
    return SeenAnswers(
        num_rows=batch.num_targets,
        num_answers=len(answers),
        num_tokens=num_tokens,
        num_padding=batch.input_ids.size - num_tokens,
        num_targets=sum(map(len, answers)),
        num_empty=sum(len(answer) < 2 or start == 0 for answer, (start, _) in zip(answers, spans, strict=True)),
        num_without_eos=sum(not len(answer) or int(answer[-1]) != eos_id for answer in answers),
        num_many_bos=sum(count > 1 for count in num_bos) if eos_id not in bos else 0,
        num_equal=sum(map(np.array_equal, answers[::2], answers[1::2])) if is_pair else 0,
        num_desirable=int((values > 0).sum()),
        highest_id=max(int(ids.max()) for ids in sequences),
    )


def check_answers(seen: SeenAnswers, config: TrainConfig, shards: ShardSet, *, highest_row: int) -> list[Check]:
    """The checks that need no pass through the model."""
    see = "see them with `dure shards inspect`"
    checks = [
        Check(
            name="vocabulary fits the model",
            value=f"{shards.vocab_size:,} tokens (highest id seen {seen.highest_id:,}); embedding {highest_row:,} rows",
            limit="rows for all",
            is_ok=max(shards.vocab_size, seen.highest_id + 1) <= highest_row,
            advice="build the shards with the model's own tokenizer; ids beyond the embedding crash a GPU in step 1",
        ),
        Check(
            name="no emptied answers",
            value=f"{seen.num_empty:,} of {seen.num_answers:,} answers or their prompts hold no token",
            limit="0",
            is_ok=seen.num_empty == 0 < seen.num_answers,
            advice=f"mend them in the corpus, or build the shards with drop_faulty_rows=true; {see}",
        ),
        Check(
            name="EOS ends each answer",
            value=f"{seen.num_without_eos:,} of {seen.num_answers:,} answers end without it",
            limit="0",
            is_ok=seen.num_without_eos == 0,
            advice=f"the model would never learn to stop (끝내는 법을 못 배움): look at the template's answer; {see}",
        ),
        Check(
            name="BOS at most once",
            value=f"{seen.num_many_bos:,} of {seen.num_answers:,} sequences hold more",
            limit="0",
            is_ok=seen.num_many_bos == 0,
            advice="the template writes a BOS that the tokenizer adds by itself: leave it out of the template",
        ),
    ]
    return [*checks, *_check_kinds(seen, config)]


def _check_kinds(seen: SeenAnswers, config: TrainConfig) -> list[Check]:
    if config.stage == "kto":
        is_both = 0 < seen.num_desirable < seen.num_rows
        return [
            Check(
                name="both kinds of feedback",
                value=f"{seen.num_desirable:,} of {seen.num_rows:,} answers are desirable",
                limit="some, not all",
                is_ok=is_both or seen.num_rows < MIN_ONE_KIND,
                advice="with one kind alone (한 가지 평가뿐) nothing tells good from bad; look at the corpus' column",
            )
        ]
    return [
        Check(
            name="two different answers",
            value=f"{seen.num_equal:,} of {seen.num_rows:,} pairs are one answer twice",
            limit="0",
            is_ok=seen.num_equal == 0,
            advice="the loss of such a pair is that of a guess for ever; build the shards anew, which leaves them out",
        )
    ]


def check_first_loss(loss: float) -> Check:
    """The mean of the first step, before any update."""
    return Check(
        name="first loss is sane",
        value=f"{loss:.4f} a row",
        limit="finite",
        is_ok=math.isfinite(loss),
        advice="the weights of model.from are damaged or not initialised, or the precision is too small for them",
    )


@torch.no_grad()
def check_reference(run: Run, batches: Sequence[AnyBatch]) -> list[Check]:
    """Where there is a reference, the model is still equal to it; every rank looks, one finding is enough."""
    reference = getattr(run.objective, "reference", None)
    if not isinstance(reference, Reference):
        return []
    module, device = run.engine.module, run.ranks.device
    head = run.engine.model.get_output_embeddings()  # type: ignore[operator]
    was_training = module.training
    module.eval()
    apart = 0.0
    for batch in batches:
        assert isinstance(batch, ExampleBatch), "examples are not packed"
        ours = answer_log_probs(module, batch, head=head, device=device, has_entropies=False).sums
        theirs = reference.sums(module, batch)
        apart = max(apart, float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max()))
    module.train(was_training)
    apart = max(run.ranks.gather_objects(apart))
    tolerance = REFERENCE_TOLERANCE[run.config.train.precision]
    return [
        Check(
            name="begins as its reference",
            value=f"ln p of an answer is {apart:.1e} of itself apart",
            limit=f"below {tolerance:.0e}",
            is_ok=apart < tolerance,
            advice="the model is not its own reference at step 0: its adapter adds something, or the table in "
            "reference/ is of other weights: remove that folder",
        )
    ]
