"""The gate's checks of the stages that read both ways: masked rows, and examples with a label or a score.

What trains here without a word: one class alone, labels out of range, texts of nothing, masks on padding, and a batch
whose padding changes its answers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from data_pipeline.shards.format import ShardSet
from data_pipeline.shards.frames import num_frame_ids
from data_pipeline.stream.batch import NO_ROW, NO_TARGET, Batch
from data_pipeline.stream.examples import ExampleBatch
from data_pipeline.stream.stream import AnyBatch
from trainer.config import TrainConfig
from trainer.gate_checks import NEW_MODEL_FACTOR, Check
from trainer.heads import positions_of

if TYPE_CHECKING:
    from trainer.model import Vocabulary
    from trainer.setup import Run

# Examples that are all of one class by chance, of two that are alike: 1 in 2^31.
MIN_ONE_CLASS = 32
# How far padding may move an output: sums in another order, no more.
PADDING_TOLERANCE = {"fp32": 1e-4, "bf16": 6e-2}
PADDED_MORE = 8


@dataclass(frozen=True)
class Seen:
    """What stands in some rows; counts add up over ranks. Of examples `num_tokens` counts ids that are no padding.

    Of pairs: `num_equal`: their two texts are one; `second_texts`: hashes of the different second ones.
    """

    num_rows: int = 0
    num_tokens: int = 0
    num_padding: int = 0
    num_targets: int = 0
    num_special_targets: int = 0
    num_empty: int = 0
    num_bad_values: int = 0
    num_equal: int = 0
    classes: frozenset[int] = frozenset()
    second_texts: frozenset[bytes] = frozenset()
    scores: frozenset[float] = frozenset()
    highest_id: int = -1

    def __add__(self, other: Seen) -> Seen:
        found: dict[str, Any] = {}
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            found[field.name] = ours | theirs if isinstance(ours, frozenset) else ours + theirs
        return Seen(**found | {"highest_id": max(self.highest_id, other.highest_id)})

    @property
    def told(self) -> str:
        """For the table's title."""
        share = 100 * self.num_padding / max(1, self.num_padding + self.num_tokens)
        return f"{self.num_rows:,} rows with {self.num_tokens:,} tokens, {share:.1f} % padding"


def look_at(batches: Sequence[AnyBatch], shards: ShardSet, vocabulary: Vocabulary) -> Seen:
    """The counts of prepared batches of one rank."""
    seen = Seen()
    for batch in batches:
        if isinstance(batch, ExampleBatch):
            seen += _look_at_examples(batch, shards)
        else:
            seen += _look_at_masked(batch, pad_id=vocabulary.pad_id)
    return seen


def _look_at_examples(batch: ExampleBatch, shards: ShardSet) -> Seen:
    if not batch.num_targets:
        return Seen()
    is_text = np.arange(batch.input_ids.shape[1])[None] < batch.lengths[:, None]
    frame = 1 if shards.frame is None else num_frame_ids(shards.frame, num_texts=1)
    values = batch.values[batch.row_ids != NO_ROW]
    is_bad = np.isinf(values)
    classes: frozenset[int] = frozenset()
    if shards.labels:
        is_bad = ~((values >= 0) & (values < len(shards.labels)) & (values == np.floor(values)))
        classes = frozenset(values[~is_bad].astype(int).tolist())
    texts = [
        hashlib.blake2b(ids[:length].tobytes(), digest_size=8).digest()
        for ids, length in zip(batch.input_ids, batch.lengths.tolist(), strict=True)
    ]
    firsts, seconds = texts[:: batch.num_sequences], texts[1 :: batch.num_sequences]
    is_pair = batch.num_sequences > 1
    return Seen(
        num_equal=sum(first == second for first, second in zip(firsts, seconds, strict=False)) if is_pair else 0,
        second_texts=frozenset(seconds) if is_pair else frozenset(),
        scores=frozenset() if shards.labels else frozenset(values[np.isfinite(values)].tolist()),
        num_rows=len(values),
        num_tokens=int(is_text.sum()),
        num_padding=int((~is_text).sum()),
        num_targets=batch.num_targets,
        num_empty=int((batch.lengths <= frame).sum()),
        num_bad_values=int(is_bad.sum()),
        classes=classes,
        highest_id=int(batch.input_ids[is_text].max(initial=-1)),
    )


def _look_at_masked(batch: Batch, *, pad_id: int) -> Seen:
    is_real = batch.row_ids != NO_ROW
    inputs, labels = batch.input_ids[is_real], batch.labels[is_real]
    is_target = labels != NO_TARGET
    is_padding = (inputs == pad_id) & ~is_target
    return Seen(
        num_rows=len(inputs),
        num_tokens=int((~is_padding).sum()),
        num_padding=int(is_padding.sum()),
        num_targets=int(is_target.sum()),
        num_special_targets=int((labels[is_target] == pad_id).sum()),
        num_empty=int((~is_target.any(axis=1)).sum()) if len(inputs) else 0,
        highest_id=int(max(inputs[~is_padding].max(initial=-1), labels.max(initial=-1))) if len(inputs) else -1,
    )


def check_rows(seen: Seen, config: TrainConfig, shards: ShardSet, *, highest_row: int) -> list[Check]:
    """The checks that need no pass through the model."""
    checks = [
        Check(
            name="vocabulary fits the model",
            value=f"{shards.vocab_size:,} tokens (highest id seen {seen.highest_id:,}); embedding {highest_row:,} rows",
            limit="rows for all",
            is_ok=max(shards.vocab_size, seen.highest_id + 1) <= highest_row,
            advice="build the shards with the model's own tokenizer; ids beyond the embedding crash a GPU in step 1",
        )
    ]
    if config.stage == "mlm":
        return [*checks, *_check_masks(seen, config)]
    checks.append(
        Check(
            name="no emptied texts",
            value=f"{seen.num_empty:,} of {seen.num_rows:,} examples hold a text of no token",
            limit="0",
            is_ok=seen.num_empty == 0 < seen.num_rows,
            advice="mend them in the corpus, or build the shards with drop_faulty_rows=true; see them with "
            "`dure shards inspect`",
        )
    )
    return [*checks, *_check_values(seen, shards)]


def _check_masks(seen: Seen, config: TrainConfig) -> list[Check]:
    assert config.mlm is not None, "the config resolves it"
    share, wanted = seen.num_targets / max(1, seen.num_tokens), config.mlm.chosen_share
    return [
        Check(
            name="share of targets",
            value=f"{100 * share:.1f} % of {seen.num_tokens:,} tokens",
            limit=f"about {100 * wanted:g} %",
            is_ok=0.5 * wanted < share < 2 * wanted,
            advice="documents of a few tokens, or words of many: look at the rows with `dure shards inspect`",
        ),
        Check(
            name="padding is no target",
            value=f"{seen.num_special_targets:,} of {seen.num_targets:,} targets",
            limit="0",
            is_ok=seen.num_special_targets == 0,
            advice="the pad token stands in texts: build the shards with the tokenizer's own files again",
        ),
        Check(
            name="no rows without a mask",
            value=f"{seen.num_empty:,} of {seen.num_rows:,} rows",
            limit="0",
            is_ok=seen.num_empty == 0 < seen.num_rows,
            advice="their documents hold nothing but special tokens; see them with `dure shards inspect`",
        ),
    ]


def _check_values(seen: Seen, shards: ShardSet) -> list[Check]:
    if not shards.labels:
        return _check_pairs(seen)
    named = ", ".join(shards.labels[number] for number in sorted(seen.classes)[:4])
    return [
        Check(
            name="labels are classes",
            value=f"{seen.num_bad_values:,} of {seen.num_rows:,} are none of {len(shards.labels)}",
            limit="0",
            is_ok=seen.num_bad_values == 0,
            advice="the shards contradict their manifest: `dure shards verify` names the file",
        ),
        Check(
            name="several classes",
            value=f"{len(seen.classes)} of {len(shards.labels)} in {seen.num_rows:,} examples ({named}…)",
            limit="2 or more",
            is_ok=len(seen.classes) > 1 or seen.num_rows < MIN_ONE_CLASS,
            advice="every example says the same (한 가지 라벨뿐): the loss falls to 0 and nothing is learnt; look at "
            "the label column of the corpus",
        ),
    ]


def _check_pairs(seen: Seen) -> list[Check]:
    is_scored = bool(seen.scores)
    checks = [
        Check(
            name="pairs of two texts",
            value=f"{seen.num_equal:,} of {seen.num_rows:,} pairs are one text twice",
            limit="at most half",
            is_ok=seen.num_equal <= seen.num_rows / 2,
            advice="one column was mapped twice (같은 열을 두 번): the loss falls to 0 and nothing is learnt; look at "
            "the columns of the corpus",
        ),
        Check(
            name="several second texts",
            value=f"{len(seen.second_texts):,} different in {seen.num_rows:,} pairs",
            limit="2 or more",
            is_ok=len(seen.second_texts) > 1 or seen.num_rows < 2,
            advice="every pair has the same second text, so that nothing tells one from another; look at its column",
        ),
    ]
    if is_scored or seen.num_bad_values:
        named = f"{min(seen.scores):g} to {max(seen.scores):g}" if is_scored else "none"
        checks.append(
            Check(
                name="scores tell apart",
                value=f"{named}; {seen.num_bad_values:,} of {seen.num_rows:,} are infinite",
                limit="2 or more different, all finite",
                is_ok=seen.num_bad_values == 0 and (len(seen.scores) > 1 or seen.num_rows < MIN_ONE_CLASS),
                advice="mend the score column of the corpus and build the shards again",
            )
        )
    return checks


def check_loss(loss: float, config: TrainConfig, shards: ShardSet, *, has_new_head: bool = False) -> Check:
    """The mean of the first step, before any update. `has_new_head`: it knows nothing, whatever is beneath."""
    limit = math.inf
    # A new head over the large features of a pretrained base may guess with great certainty: any finite loss is sane.
    if config.stage == "classify" and not (has_new_head and config.model.source is not None):
        limit = 2 * NEW_MODEL_FACTOR * math.log(max(2, len(shards.labels)))
    if config.stage == "mlm":
        limit = NEW_MODEL_FACTOR * math.log(shards.vocab_size)
        if config.model.source is not None and not has_new_head:
            limit = min(limit, config.gate.max_first_loss)
    return Check(
        name="first loss is sane",
        value=f"{loss:.3f} a target",
        limit=f"finite, below {limit:.2f}" if math.isfinite(limit) else "finite",
        is_ok=math.isfinite(loss) and 0 <= loss < limit,
        advice="its weights are damaged, of another tokenizer or not initialised, or the precision is too small for "
        "them",
    )


@torch.no_grad()
def check_padding(run: Run, batch: ExampleBatch) -> Check:
    """More padding behind the examples moves none of their outputs; every rank looks, one finding is enough."""
    pad_id, room = run.vocabulary.pad_id, padding_room(run.engine.model, length=batch.input_ids.shape[1])
    wider = np.pad(batch.input_ids, ((0, 0), (0, room)), constant_values=pad_id)
    longer = dataclasses.replace(batch, input_ids=wider)
    was_training = run.engine.module.training
    run.engine.module.eval()
    losses = []
    for each in (batch, longer):
        run.objective.begin_step(run.engine.module, [each])
        losses.append(float(run.objective(run.engine.module, each)) / max(1, batch.num_targets))
    run.engine.module.train(was_training)
    found = run.ranks.gather_objects((abs(losses[0] - losses[1]), room))
    tolerance = PADDING_TOLERANCE[run.config.train.precision] * max(1.0, abs(losses[0]))
    return told_padding(max(moved for moved, _ in found), room=max(room for _, room in found), tolerance=tolerance)


def padding_room(model: nn.Module, *, length: int) -> int:
    """How much padding is tried behind `length` ids: rows are never longer than data.seq_len, but the model's positions
    may be."""
    positions = positions_of(model)
    return PADDED_MORE if positions is None else max(0, min(PADDED_MORE, positions - length))


def told_padding(moved: float, *, room: int, tolerance: float) -> Check:
    """What a loss that moved so far with `room` more padding says; where there was none, nothing."""
    return Check(
        name="padding says nothing",
        value=f"the loss moves by {moved:.1e} with {room} more" if room else "not checked: no position is left to pad",
        limit=f"below {tolerance:.0e}",
        is_ok=not room or moved < tolerance,
        advice="the model attends to padding: its pad id is another one than the shards', or its attention reads no "
        "mask",
    )
