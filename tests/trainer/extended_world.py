"""The small world with a tokenizer that was extended: what the tests of new rows train and export."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.tokenizer.extend import ExtendConfig, make_plan
from data_pipeline.tokenizer.extend_write import write_plan
from launch.tasks import run_stage
from tests.trainer.small_world import NO_ANSWERS, SmallWorld

TERMS = ("호랑이", "거북이", "다람쥐", "우물가", " 마을에는")
STEPS = {"max_steps": 8, "schedule": {"warmup_steps": 1, "peak_lr": 1e-2}}
PHASES = [
    {"train": "input", "steps": 2, "schedule": {"warmup_steps": 0, "peak_lr": 2e-2}},
    {"train": "output", "steps": 2},
    {"train": "both", "steps": 2},
    {"train": "all", "steps": 2},
]
TIED_PHASES = [{"train": "both", "steps": 4}, {"train": "all", "steps": 4}]


@dataclass(frozen=True)
class ExtendedWorld:
    """Beside a small world's base: its tokenizer with five more tokens, and shards made with that."""

    world: SmallWorld

    @cached_property
    def tokenizer(self) -> Path:
        folder = self.world.root / "extended-tokenizer"
        if folder.is_dir():  # another test of this process made it
            return folder
        terms = self.world.root / "terms.txt"
        terms.write_text("\n".join(term.strip() for term in TERMS), encoding="utf-8")
        config = ExtendConfig(tokenizer=self.world.tokenizer, output=folder, tokens=terms)
        write_plan(make_plan(config), folder)
        return folder

    @cached_property
    def shards(self) -> Path:
        output = self.world.root / "extended-shards"
        tree = {
            "corpus": self.world.corpus,
            "tokenizer": self.tokenizer,
            "output": output,
            "heldout_fraction": 0.1,
        }
        run_stage(ShardsBuild(ShardsConfig.model_validate(tree)), 1, label="shards")
        return output

    def train(self, name: str, *, base: Path, **sections: Any) -> Path:
        """A run that continues `base` over the extended shards."""
        tree: dict[str, Any] = {
            "model": {"from": str(base)},
            "new_rows": {"phases": PHASES},
            "train": STEPS,
            "evaluation": NO_ANSWERS,
        }
        for section, keys in sections.items():
            both = isinstance(keys, dict) and isinstance(tree.get(section), dict)
            tree[section] = tree[section] | keys if both else keys
        return self.world.train(name, self.shards, **tree)
