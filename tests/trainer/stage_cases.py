"""Every stage as a tiny run, by a word: what the tests that each stage must pass are called with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.trainer.small_world import TINY_BERT, SmallWorld
from tests.trainer.tiny_run import REPO, tiny_config
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
QUANTIZED = {"model": {"quantization": {"compute_dtype": "fp32"}}}
# Questions are shorter than 64 ids; a new model says eight of anything, and almost never ends.
ONLINE: dict[str, Any] = {"data": {"seq_len": 64}}
ROLLOUT = {
    "reward": {"function": f"{REPO}/tests/trainer/reward_functions.py:round_shapes", "missing_eos_penalty": 0.1},
    "max_new_tokens": 8,
    "evaluation_temperature": 1.0,
    "num_shown": 2,
}
PPO = ROLLOUT | {"num_passes": 2, "target_kl": 0.5}
GRPO = ROLLOUT | {"num_samples": 2, "kl_weight": 0.1}
CASES: dict[str, StageCase] = {
    "mlm": StageCase("mlm", "shards", {"data": {"seq_len": 48}}, starts_new=True),
    "mlm-words": StageCase("mlm", "shards", {"data": {"seq_len": 48}, "mlm": {"whole_words": True}}),
    "classify": StageCase("classify", "review_shards", {"classify": {"class_weights": "balanced"}}),
    "classify-pairs": StageCase("classify", "premise_shards", starts_new=True),
    "classify-lora": StageCase("classify", "review_shards", LORA),
    "classify-qlora": StageCase("classify", "review_shards", LORA | QUANTIZED, base="llama"),
    "embed": StageCase("embed", "pair_shards"),
    "embed-scores": StageCase("embed", "scored_pair_shards", {"embed": {"loss": "cosine"}}),
    "dpo": StageCase("dpo", "preference_shards", base="llama"),
    "dpo-qlora": StageCase("dpo", "preference_shards", LORA | QUANTIZED, base="llama"),
    "orpo": StageCase("orpo", "preference_shards", {"orpo": {"odds_weight": 1.0}}, base="llama"),
    "cpo-simpo": StageCase("cpo", "preference_shards", LORA | {"cpo": {"loss": "simpo", "beta": 2.0}}, base="llama"),
    "kto": StageCase("kto", "feedback_shards", {"kto": {"beta": 0.5}}, base="llama"),
    "kto-lora": StageCase("kto", "feedback_shards", LORA | {"kto": {"beta": 0.5}}, base="llama"),
    "reward": StageCase("reward", "preference_shards", LORA, base="llama"),
    "ppo": StageCase("ppo", "prompt_shards", LORA | ONLINE | {"ppo": PPO}, base="llama"),
    "grpo": StageCase("grpo", "prompt_shards", LORA | ONLINE | {"grpo": GRPO}, base="llama"),
    "embed-triplets": StageCase("embed", "triplet_shards", {"embed": {"loss": "triplet", "margin": 5.0}}),
}
