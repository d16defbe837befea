"""Prompts become answers: what the online stages learn from, and are judged by.

An answer is a pure function of (weights, seed, step, row, its number), whatever the ranks and micro-batches; so a run
that is resumed samples the same ones, and no state is kept between steps.
Shapes: S answers of at most T ids with their prompts, M ids of all answers in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch
from trainer.errors import RunError
from trainer.generate import Answer, Ids, Sampling, generate_answers
from trainer.ranks import Ranks
from trainer.step import hash_to_seed


@dataclass(frozen=True)
class Sample:
    """One answer to a prompt. `row`: of the split; `group`: the prompt's place among those that this rank answers.

    `reference`: the ids of an answer to compare with, without EOS; None where the records have none.
    """

    row: int
    group: int
    prompt: Ids
    reference: Ids | None
    answer: Answer


@dataclass(frozen=True, kw_only=True)
class Rollout(ExampleBatch):
    """Judged answers as a padded batch: one sequence an example, of which `answers` are the ids that were sampled, EOS
    among them; `values` are the rewards, and `num_targets` counts the answers' ids.

    All tensors are (M,) float32 on the device, of M >= 1: a batch of padding alone has one zero. `log_probs`: of the
    policy as it sampled; `reference_log_probs`: of the base; `state_values`: before each id. `advantages` and `returns`
    are there once the stage has made them; without advantages a rollout is evaluated.
    """

    samples: tuple[Sample, ...]
    log_probs: torch.Tensor
    entropies: torch.Tensor
    reference_log_probs: torch.Tensor | None = None
    state_values: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    @property
    def num_answers(self) -> int:
        return len(self.samples)

    def counts(self) -> torch.Tensor:
        """(S,) int64 ids of each answer, on the device; of padding alone one, the zero that stands for it."""
        assert self.answers is not None, "rollouts have answers"
        counts = torch.from_numpy(self.answers[:, 1] - self.answers[:, 0]).to(self.log_probs.device)
        return counts if self.num_answers else counts.clamp(min=1)


@dataclass(frozen=True)
class Sampler:
    """How this rank's prompts are answered. `num_samples` to each prompt of a training step, one at an evaluation."""

    num_samples: int
    max_new_tokens: int
    temperature: float
    evaluation_temperature: float
    generation_batch_sequences: int
    seed: int
    eos_id: int
    max_positions: int | None
    ranks: Ranks

    def check_room(self, *, seq_len: int, where: str) -> None:
        """Refuse prompts that may leave too little room for an answer.

        Raises:
            RunError: a prompt of `seq_len` ids and an answer are longer than the model's positions.
        """
        if self.max_positions is not None and seq_len + self.max_new_tokens > self.max_positions:
            raise RunError(
                f"{where}.max_new_tokens: {self.max_new_tokens:,} after prompts of up to data.seq_len {seq_len:,} ids "
                f"are more than the model's {self.max_positions:,} positions; make one of them smaller"
            )

    def sample(
        self,
        module: nn.Module,
        batches: Sequence[ExampleBatch],
        *,
        pad_id: int,
        step: int | None,
        on_mark: Callable[[], None],
    ) -> list[Sample]:
        """The answers to this rank's share of the prompts that all ranks bring; every rank calls it.

        Each gets as many prompts as the next, whatever the micro-batches were. `step` None: an evaluation.
        """
        num = 1 if step is None else self.num_samples
        brought = [prompt for batch in batches for prompt in _prompts(batch, eos_id=self.eos_id)]
        everyone = [prompt for theirs in self.ranks.gather_objects(brought) for prompt in theirs]
        # Like lengths go round the ranks.
        everyone.sort(key=lambda prompt: (-len(prompt.ids), prompt.row))
        prompts = everyone[self.ranks.rank :: self.ranks.world_size]
        asked = [(place, number) for place in range(len(prompts)) for number in range(num)]
        # Evaluations are alike, so that their figures can be compared.
        seed = hash_to_seed(self.seed, 0, 0) if step is None else hash_to_seed(self.seed, step)
        temperature = self.evaluation_temperature if step is None else self.temperature

        def going_on() -> bool:
            on_mark()  # it is asked after each token; a step that has begun is finished
            return False

        answers = generate_answers(
            module,
            [prompts[place].ids for place, _ in asked],
            eos_ids=[self.eos_id],
            pad_id=pad_id,
            sampling=Sampling(max_new_tokens=self.max_new_tokens, temperature=temperature, seed=seed),
            batch_size=self.generation_batch_sequences,
            device=self.ranks.device,
            rows=[prompts[place].row * num + number for place, number in asked],
            max_positions=self.max_positions,
            synced=self.ranks.world_size > 1,
            stop_requested=going_on,
        )
        return [
            Sample(prompts[place].row, place, prompts[place].ids, prompts[place].reference, answer)
            for (place, _), answer in zip(asked, answers, strict=True)
        ]


@dataclass(frozen=True)
class _Prompt:
    row: int
    ids: Ids
    reference: Ids | None


def _prompts(batch: ExampleBatch, *, eos_id: int) -> list[_Prompt]:
    """Those of a batch of prompt records: one sequence an example, or two with the reference's answer."""
    found = []
    for place, row in enumerate(batch.row_ids.tolist()):
        if row == NO_ROW:
            continue
        first = place * batch.num_sequences
        ids = [
            tuple(batch.input_ids[number, : batch.lengths[number]].tolist())
            for number in range(first, first + batch.num_sequences)
        ]
        reference = ids[1] if len(ids) > 1 else None
        if reference and reference[-1] == eos_id:
            reference = reference[:-1]
        found.append(_Prompt(row, ids[0], reference))
    return found


def dealt(samples: Sequence[Sample], *, size: int, ranks: Ranks) -> list[list[int]]:
    """The places of this rank's samples in micro-batches of at most `size`, of like length; as many on every rank."""
    order = sorted(range(len(samples)), key=lambda place: -len(samples[place].prompt) - len(samples[place].answer.ids))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    most = max(ranks.gather_objects(len(batches)))
    return batches + [[] for _ in range(most - len(batches))]


def padded_batch(samples: Sequence[Sample], *, eos_id: int, pad_id: int) -> ExampleBatch:
    """Prompts with their answers, padded on the right; padding alone where there is none."""
    if not samples:
        return ExampleBatch(
            input_ids=np.full((1, 1), pad_id, np.int64),
            lengths=np.ones(1, np.int64),
            values=np.full(1, np.nan),
            row_ids=np.full(1, NO_ROW, np.int64),
            num_targets=0,
            answers=np.zeros((1, 2), np.int64),
        )
    whole = [[*sample.prompt, *sample.answer.ids, *([eos_id] if sample.answer.ended else [])] for sample in samples]
    lengths = np.array([len(ids) for ids in whole], np.int64)
    input_ids = np.full((len(whole), int(lengths.max())), pad_id, np.int64)
    for row, ids in enumerate(whole):
        input_ids[row, : len(ids)] = ids
    starts = np.array([len(sample.prompt) for sample in samples], np.int64)
    return ExampleBatch(
        input_ids=input_ids,
        lengths=lengths,
        values=np.full(len(whole), np.nan),
        row_ids=np.array([sample.row for sample in samples], np.int64),
        num_targets=int((lengths - starts).sum()),
        answers=np.stack([starts, lengths], axis=1),
    )
