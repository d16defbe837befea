"""A whole training as the subject of fault tests: its save is the real engine's, ZeRO-2 on two ranks.

What is trained is told by a word: "pretrain" a new model, or a tuning of a tiny base over instruction rows.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import losses_of, make_shards, tiny_config
from tests.trainer.tiny_sft import make_base, sft_config
from trainer.config import TrainConfig
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group


class RunSubject:
    """Saves at every fourth step. `checkpoints` is that of a run folder `<anything>/run/checkpoints`."""

    num_ranks = 2

    def __init__(self, folder: Path, *, trained: str) -> None:
        self.trained = trained
        if trained == "pretrain":
            self._shards = make_shards(folder / "shards")
        else:
            self._world = SmallWorld(folder)
            self._base = make_base(self._world)

    def _config(self, folder: Path, **sections: Any) -> TrainConfig:
        if self.trained == "pretrain":
            return tiny_config(folder, self._shards, **sections)
        return sft_config(folder, self._world, self._base, self.trained, **sections)

    def warm_up(self, folder: Path) -> None:
        """Import and compile in this process all that its forks need: each fork would pay seconds for it."""
        import accelerate.utils.deepspeed
        import deepspeed

        assert accelerate.utils.deepspeed and deepspeed
        config = self._config(folder, train={"max_steps": 1})
        lone = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
        assert run_in_group(config, lone, stop=StopFlag()) == 0

    def train(self, folder: Path, *, max_steps: int, ranks: Ranks, **sections: Any) -> None:
        """Start or go on with the run in `folder`/run until `max_steps`."""
        # A forked rank has no launcher that would say this; DeepSpeed and accelerate read it.
        os.environ |= {"RANK": str(ranks.rank), "LOCAL_RANK": str(ranks.rank), "WORLD_SIZE": str(ranks.world_size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400", "DS_ACCELERATOR": "cpu"}
        train: dict[str, Any] = {
            "max_steps": max_steps,
            "schedule": {"kind": "linear", "warmup_steps": 0, "min_lr_ratio": 1.0},
        }
        if self.trained != "pretrain":  # forward and backward passes are what an attempt costs: one a rank and step
            train["micro_batch_sequences"] = 5
        engine = {"kind": "deepspeed", "zero_stage": 2}
        evaluation = {"every_steps": 100, "max_documents": 4}
        config = self._config(folder, train=train, engine=engine, evaluation=evaluation, **sections)
        code = run_in_group(config, ranks, stop=StopFlag())
        assert code == 0

    def save(self, checkpoints: Path, *, step: int, ranks: Ranks) -> None:
        self.train(checkpoints.parents[1], max_steps=step, ranks=ranks)

    def check(self, folder: Path, *, step: int, ranks: Ranks) -> None:
        """The run goes on for four steps from `folder`; the caller compares its losses."""
        assert folder.name.endswith(f"{step:08d}")
        self.train(folder.parents[2], max_steps=step + 4, ranks=ranks)


def losses_after(run: Path, step: int) -> dict[int, float]:
    """The exact losses of the steps after `step`."""
    return {number: loss for number, loss in losses_of(run).items() if number > step}
