"""A real tokenizer, shards of Korean and runs over them: what the tests of generation, chat and export work with."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from data_pipeline.corpus.build import CorpusBuild, CorpusConfig
from data_pipeline.shards.build import ShardsBuild, ShardsConfig
from data_pipeline.stage import Stage
from data_pipeline.tokenizer.train import TokenizerConfig, TokenizerTrain
from launch.tasks import run_stage
from tests.trainer.tiny_run import tiny_config
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group

ANIMALS = ["고양이", "강아지", "토끼", "호랑이", "거북이", "다람쥐", "까치", "두루미", "여우", "사슴"]
PLACES = ["산", "강", "바다", "마을", "숲", "들", "논", "우물가"]
SIZES = ["작은", "큰"]
VOCAB_SIZE = 420
SOURCE = "aihub_653"
NO_ANSWERS = {"answers": {"num_rows": 0}, "every_steps": 100, "max_documents": 20}


def question(size: str, animal: str, place: str) -> str:
    return f"{place}의 {size} {animal}는 어디에 사니?"


@dataclass(frozen=True)
class SmallWorld:
    """Made under `root` as far as it is asked for."""

    root: Path

    @cached_property
    def corpus(self) -> Path:
        texts = [f"{animal}는 {place}에 산다. {place}에는 {animal}가 있다." for animal in ANIMALS for place in PLACES]
        return self._corpus("documents", [{"text": text} for text in texts])

    @cached_property
    def instructions(self) -> Path:
        """Questions that hold their answers: a tiny model learns to say them in seconds."""
        rows = [
            {"instruction": question(size, animal, place), "output": f"{place}에 산다."}
            for size, animal, place in itertools.product(SIZES, ANIMALS, PLACES)
        ]
        return self._corpus("instructions", rows, record="instruction")

    @cached_property
    def tokenizer(self) -> Path:
        """A byte-level BPE, so small that a Korean character is often several tokens."""
        paths = {"corpus": self.corpus, "output": self.root / "tokenizer"}
        return _run(TokenizerTrain(TokenizerConfig.model_validate({**paths, "vocab_size": VOCAB_SIZE})))

    @cached_property
    def shards(self) -> Path:
        return self._shards("shards", self.corpus)

    @cached_property
    def instruction_shards(self) -> Path:
        """More than 64 rows are held out: what a merge is measured on."""
        return self._shards("instruction-shards", self.instructions, template="koalpaca", heldout_fraction=0.5)

    @cached_property
    def base(self) -> Path:
        """A pretrained Llama; of all weights."""
        return self.pretrained("base", hidden_size=64)

    def pretrained(self, name: str, **model: Any) -> Path:
        """A new model, trained for a few steps on documents."""
        return self.train(name, self.shards, model={"max_positions": 128, **model}, evaluation=NO_ANSWERS)

    @cached_property
    def talker(self) -> Path:
        """A model of all weights that answers most questions and ends each answer."""
        model = {"hidden_size": 64, "dropout": 0.0, "max_positions": 128}
        steps = {"max_steps": 150, "schedule": {"warmup_steps": 10, "peak_lr": 1e-2}}
        saves = {"every_steps": 150}
        shards = self.instruction_shards
        return self.train(
            "talker", shards, stage="sft", model=model, train=steps, checkpoint=saves, evaluation=NO_ANSWERS
        )

    def tuned(self, name: str, *, base: Path, adapter: dict[str, Any], **model: Any) -> Path:
        """A run that tuned an adapter beside `base`."""
        steps = {"max_steps": 8, "schedule": {"warmup_steps": 2, "peak_lr": 3e-2}}
        return self.train(
            name,
            self.instruction_shards,
            stage="sft",
            model={"from": str(base), **model},
            adapter=adapter,
            train=steps,
            evaluation=NO_ANSWERS,
        )

    def train(self, name: str, shards: Path, **sections: Any) -> Path:
        """Train a tiny model in this process, or go on with it; returns the run folder."""
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        config = tiny_config(self.root, shards, **{"run": {"name": name}, "data": {"seq_len": 64}} | sections)
        lone = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
        assert run_in_group(config, lone, stop=StopFlag()) == 0
        return self.root / name

    def _corpus(self, name: str, rows: list[dict[str, str]], **keys: Any) -> Path:
        file = self.root / f"{name}.jsonl"
        file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        inputs = [{"path": str(file), "source": SOURCE}]
        output = self.root / f"{name}-corpus"
        return _run(CorpusBuild(CorpusConfig.model_validate({"inputs": inputs, "output": output, **keys})))

    def _shards(self, name: str, corpus: Path, **keys: Any) -> Path:
        paths = {"corpus": corpus, "tokenizer": self.tokenizer, "output": self.root / name}
        return _run(ShardsBuild(ShardsConfig.model_validate({**paths, "heldout_fraction": 0.2, **keys})))


@functools.cache
def small_world() -> SmallWorld:
    """One for the whole test process, removed at its end."""
    root = Path(tempfile.mkdtemp(prefix="dure-small-world-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return SmallWorld(root)


def _run(stage: Stage) -> Path:
    run_stage(stage, 1, label="test")
    return stage.output
