"""Tuning a tiny base over instruction rows: what the tests of resume, faults and equal training do for `stage: sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import tiny_config
from trainer.config import TrainConfig

TUNINGS = ("full", "lora", "qlora")

# Heads of 32 and blocks of 64 weights: small, and still what bitsandbytes packs. Adapters of 4,096 elements and more
# have 8-bit moments.
MODEL = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_positions": 128, "dropout": 0.0}


def make_base(world: SmallWorld) -> Path:
    """A run that was pretrained for a few steps."""
    return world.train("base", world.shards, model=MODEL, train={"max_steps": 12})


def sft_sections(base: Path, tuning: str, *, compute_dtype: str = "fp32") -> dict[str, Any]:
    """The sections of a config that tunes `base` fully, by LoRA, or by QLoRA with paged 8-bit AdamW."""
    model: dict[str, Any] = {"from": str(base)}
    sections: dict[str, Any] = {
        "stage": "sft",
        "data": {"seq_len": 96},
        "gate": {"max_first_loss": 20.0},
        "evaluation": {"answers": {"num_rows": 3, "num_shown": 1, "max_new_tokens": 4}},
    }
    if tuning != "full":
        sections["adapter"] = {"rank": 64, "dropout": 0.1}
    if tuning == "qlora":
        # float32 products: a CPU is slow in bf16.
        model["quantization"] = {"compute_dtype": compute_dtype}
        sections["train"] = {"optimizer": {"kind": "paged_adamw_8bit"}, "gradient_checkpointing": True}
    return sections | {"model": model}


def sft_config(folder: Path, world: SmallWorld, base: Path, tuning: str, **sections: Any) -> TrainConfig:
    """12 steps as `tiny_config` has them, over the world's instruction rows; `sections` are merged over it."""
    merged = sft_sections(base, tuning)
    for section, keys in sections.items():
        merged[section] = merged.get(section, {}) | keys if isinstance(keys, dict) else keys
    return tiny_config(folder, world.instruction_shards, **merged)
