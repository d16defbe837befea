"""The stages: for each, the records that it trains on, the head of its model, and the rows that its batches are.

A further stage is a line of `STAGES`, an objective module, and a config of its own where it has choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from data_pipeline.shards.format import RecordKind

Stage = Literal["pretrain", "sft", "mlm", "classify", "embed", "dpo", "orpo", "cpo", "kto", "reward", "ppo", "grpo"]
Head = Literal["causal_lm", "masked_lm", "classifier", "encoder"]
RowForm = Literal["packed", "framed", "examples"]


@dataclass(frozen=True)
class StageKind:
    """`rows`: documents packed into rows, the same with each document framed by CLS and SEP, or padded examples.

    `figures`: what its evaluations may tell, by which the best checkpoint may be chosen; `best`: the one that does so
    where the config names none.
    """

    record: RecordKind
    head: Head
    rows: RowForm
    figures: tuple[str, ...]
    best: str = "loss"


_ONLINE = ("loss", "reward", "reward_std", "kl", "entropy", "answer_length", "ended_share")
STAGES: dict[Stage, StageKind] = {
    "pretrain": StageKind("document", "causal_lm", "packed", ("loss", "bits_per_byte")),
    "sft": StageKind("instruction", "causal_lm", "packed", ("loss", "bits_per_byte")),
    "mlm": StageKind("document", "masked_lm", "framed", ("loss", "masked_accuracy", "masked_perplexity")),
    "classify": StageKind(
        "label", "classifier", "examples", ("loss", "accuracy", "macro_f1", "binary_f1"), best="accuracy"
    ),
    "embed": StageKind(
        "pair",
        "encoder",
        "examples",
        ("loss", "spearman", "pearson", "recall_at_1", "recall_at_10", "mrr", "triplet_accuracy"),
    ),
    "dpo": StageKind("preference", "causal_lm", "examples", ("loss", "margin", "accuracy"), best="accuracy"),
    "orpo": StageKind("preference", "causal_lm", "examples", ("loss", "margin", "accuracy"), best="accuracy"),
    "cpo": StageKind("preference", "causal_lm", "examples", ("loss", "margin", "accuracy"), best="accuracy"),
    "kto": StageKind(
        "feedback", "causal_lm", "examples", ("loss", "margin", "accuracy", "pair_accuracy"), best="accuracy"
    ),
    "reward": StageKind("preference", "classifier", "examples", ("loss", "margin", "accuracy"), best="accuracy"),
    "ppo": StageKind("prompt", "causal_lm", "examples", _ONLINE, best="reward"),
    "grpo": StageKind("prompt", "causal_lm", "examples", _ONLINE, best="reward"),
}

# The one output of a reward model's head.
REWARD_LABELS = ("reward",)

# Figures of which more is better; of all others less is.
HIGHER_IS_BETTER = frozenset(
    {"accuracy", "macro_f1", "binary_f1", "masked_accuracy", "exact_match", "spearman", "pearson"}
    | {"recall_at_1", "recall_at_10", "mrr", "triplet_accuracy", "margin", "pair_accuracy", "reward"}
)
