"""The gate's checks of the stages that learn from their own answers: the prompts, and what judges the answers.

What trains here without a word: one prompt alone, a reward that is the same for every answer, answers that never end,
and a policy that is not its reference when it begins.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from data_pipeline.shards.format import ShardSet
from data_pipeline.stream.batch import NO_ROW
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.stream import AnyBatch
from trainer.gate_checks import Check, ModelRows
from trainer.gate_encoders import PADDED_MORE, PADDING_TOLERANCE
from trainer.objectives.online import Online
from trainer.rollout import Rollout

if TYPE_CHECKING:
    from trainer.setup import Run

# Nats an id by which a fresh adapter, whose second matrix is 0, may differ from its base: sums in another order.
BEGINNING_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


@dataclass(frozen=True)
class SeenPrompts:
    """`prompts`: hashes of the different ones; `longest`: ids of the longest."""

    num_rows: int
    num_empty: int
    longest: int
    highest_id: int
    prompts: frozenset[bytes]

    @property
    def told(self) -> str:
        return f"{self.num_rows:,} prompts, {len(self.prompts):,} of them different, of up to {self.longest:,} tokens"


def look_at(batches: Sequence[AnyBatch]) -> SeenPrompts:
    """The prompts of one rank's batches."""
    ids = [
        batch.input_ids[place * batch.num_sequences, : batch.lengths[place * batch.num_sequences]]
        for batch in batches
        if isinstance(batch, ExampleBatch)
        for place in range(len(batch.row_ids))
        if batch.row_ids[place] != NO_ROW
    ]
    return SeenPrompts(
        num_rows=len(ids),
        num_empty=sum(not len(each) for each in ids),
        longest=max((len(each) for each in ids), default=0),
        highest_id=max((int(each.max(initial=-1)) for each in ids), default=-1),
        prompts=frozenset(hashlib.blake2b(each.tobytes(), digest_size=8).digest() for each in ids),
    )


def joined(of_ranks: Sequence[SeenPrompts]) -> SeenPrompts:
    return SeenPrompts(
        num_rows=sum(seen.num_rows for seen in of_ranks),
        num_empty=sum(seen.num_empty for seen in of_ranks),
        longest=max(seen.longest for seen in of_ranks),
        highest_id=max(seen.highest_id for seen in of_ranks),
        prompts=frozenset().union(*(seen.prompts for seen in of_ranks)),
    )


def check_prompts(seen: SeenPrompts, shards: ShardSet, *, rows: ModelRows) -> list[Check]:
    """The checks that need no pass through the model."""
    fewest = min(rows.embedding, rows.head)
    return [
        Check(
            name="vocabulary fits the model",
            value=f"{shards.vocab_size:,} tokens (highest id seen {seen.highest_id:,}); {fewest:,} rows",
            limit="rows for all",
            is_ok=max(shards.vocab_size, seen.highest_id + 1) <= fewest,
            advice="build the shards with the model's own tokenizer; ids beyond the embedding crash a GPU in step 1",
        ),
        Check(
            name="no emptied prompts",
            value=f"{seen.num_empty:,} of {seen.num_rows:,} prompts hold no token",
            limit="0",
            is_ok=seen.num_empty == 0 < seen.num_rows,
            advice="mend them in the corpus, or build the shards with drop_faulty_rows=true",
        ),
        Check(
            name="several prompts",
            value=f"{len(seen.prompts):,} different in {seen.num_rows:,}",
            limit="2 or more",
            is_ok=len(seen.prompts) > 1 or seen.num_rows < 2,
            advice="every row asks the same (같은 질문뿐), and the model learns one answer by heart; look at the "
            "prompt column of the corpus",
        ),
    ]


def check_answers(run: Run, batches: Sequence[AnyBatch]) -> list[Check]:
    """What the model answers to the prompts of the first step, and what that is worth; every rank calls it.

    Raises:
        BadRollout: a reward that can't be used.
    """
    objective, config = run.objective, run.config
    assert isinstance(objective, Online), "its stage answers prompts"
    rollouts = objective.rollouts(run.engine.module, batches, step=0, on_mark=run.on_mark)
    told = objective.told_of(rollouts)
    rewards = np.concatenate([rollout.values[: rollout.num_answers] for rollout in rollouts])
    everyone = np.concatenate(run.ranks.gather_objects(rewards))
    return [
        _check_rewards(everyone),
        Check(
            name="answers end",
            value=f"{100 * told['ended_share']:.0f} % of {len(everyone):,} in {told['answer_length']:.0f} tokens on "
            f"average{'' if told['ended_share'] else ': none: raise max_new_tokens, or begin on an instruction model'}",
            limit="told",
            is_ok=True,
            advice="",
        ),
        *_check_beginning(told, precision=config.train.precision),
        _check_padding(run, objective, rollouts[0]),
    ]


def _check_rewards(rewards: np.ndarray) -> Check:
    """Equal rewards are no fault: a rare word is not said at first. They are told, for nothing is learnt of them."""
    low, high = float(rewards.min()), float(rewards.max())
    value = f"{low:g} to {high:g}, mean {rewards.mean():.3f}, of {len(rewards):,} answers"
    if low == high:
        value = f"all {len(rewards):,} are {low:g}: nothing is learnt until some differ (모두 같은 보상)"
    return Check(name="rewards tell apart", value=value, limit="finite", is_ok=True, advice="")


def _check_beginning(told: dict[str, float], *, precision: str) -> list[Check]:
    if "kl" not in told:
        return []
    tolerance = BEGINNING_TOLERANCE[precision]
    an_id = told["kl"] / max(1.0, told["answer_length"])
    return [
        Check(
            name="begins at its reference",
            value=f"KL {an_id:.1e} nats a token",
            limit=f"within {tolerance:.0e}",
            is_ok=abs(an_id) <= tolerance,
            advice="the new adapter changes what the base says before any update; this is a fault of its layers: "
            "report it with the model's name",
        )
    ]


def _check_padding(run: Run, objective: Online, rollout: Rollout) -> Check:
    """More padding behind the answers moves none of their probabilities."""
    room = PADDED_MORE
    wider = np.pad(rollout.input_ids, ((0, 0), (0, room)), constant_values=run.vocabulary.pad_id)
    module = run.engine.module
    was_training = module.training
    module.eval()
    with torch.no_grad():
        found, _ = objective.read(module, dataclasses.replace(rollout, input_ids=wider))
    module.train(was_training)
    moved = max(run.ranks.gather_objects(float((found.tokens - rollout.log_probs).abs().max())))
    tolerance = 10 * PADDING_TOLERANCE[run.config.train.precision]
    return Check(
        name="padding says nothing",
        value=f"no token's log p moves by more than {moved:.1e} with {room} more",
        limit=f"below {tolerance:.0e}",
        is_ok=moved < tolerance,
        advice="the model attends to padding: its pad id is another one than the shards', or its attention reads no "
        "mask",
    )
