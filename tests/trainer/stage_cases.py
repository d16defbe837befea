"""Every stage as a tiny run, by a word: what the tests that each stage must pass are called with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.trainer.small_world import TINY_BERT, SmallWorld
from tests.trainer.tiny_run import tiny_config
from trainer.config import TrainConfig


@dataclass(frozen=True)
class StageCase:
    """`shards`, `base`: attributes of a small world. `sections`: of the config. `starts_new`: with new weights."""

    stage: str
    shards: str
    sections: dict[str, Any] = field(default_factory=dict)
    starts_new: bool = False
    base: str = "bert"

    def config(self, folder: Path, world: SmallWorld, **sections: Any) -> TrainConfig:
        """12 steps as `tiny_config` has them; `sections` are merged over it. No dropout, so that ranks train alike."""
        model: dict[str, Any] = {"from": str(getattr(world, self.base))}
        if self.starts_new:
            model = TINY_BERT | {"dropout": 0.0, "pad_vocab_to_multiple": 1}
        merged: dict[str, Any] = {
            "stage": self.stage,
            "model": model,
            "data": {"seq_len": 128},
            "gate": {"max_first_loss": 20.0},
        }
        for section, keys in (self.sections | sections).items():
            merged[section] = merged.get(section, {}) | keys if isinstance(keys, dict) else keys
        return tiny_config(folder, getattr(world, self.shards), **merged)


LORA = {"adapter": {"rank": 4, "dropout": 0.0}}
CASES: dict[str, StageCase] = {
    "mlm": StageCase("mlm", "shards", {"data": {"seq_len": 48}}, starts_new=True),
    "mlm-words": StageCase("mlm", "shards", {"data": {"seq_len": 48}, "mlm": {"whole_words": True}}),
    "classify": StageCase("classify", "review_shards", {"classify": {"class_weights": "balanced"}}),
    "classify-pairs": StageCase("classify", "premise_shards", starts_new=True),
    "classify-lora": StageCase("classify", "review_shards", LORA),
    "classify-qlora": StageCase(
        "classify", "review_shards", LORA | {"model": {"quantization": {"compute_dtype": "fp32"}}}, base="llama"
    ),
    "embed": StageCase("embed", "pair_shards"),
    "embed-scores": StageCase("embed", "scored_pair_shards", {"embed": {"loss": "cosine"}}),
    "embed-triplets": StageCase("embed", "triplet_shards", {"embed": {"loss": "triplet", "margin": 5.0}}),
}
