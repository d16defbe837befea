"""The objective of a run, by its stage."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from data_pipeline.stream.stream import RowSource
from trainer.config import TrainConfig
from trainer.model import Kernel
from trainer.objectives.objective import Objective
from trainer.ranks import Ranks


@dataclass(frozen=True)
class Setting:
    """What an objective may need to know of its run."""

    config: TrainConfig
    ranks: Ranks
    source: RowSource
    model: nn.Module
    kernel: Kernel


def make_objective(
    config: TrainConfig, ranks: Ranks, *, source: RowSource, model: nn.Module, kernel: Kernel
) -> Objective:
    """The objective of `config.stage` over the rows of `source`; every rank makes it."""
    setting = Setting(config, ranks, source, model, kernel)
    match config.stage:
        case "pretrain" | "sft":
            from trainer.objectives.causal_lm import CausalLM

            return CausalLM(kernel=kernel, device=ranks.device)
        case "classify":
            from trainer.objectives.classification import make_classification

            return make_classification(setting)
        case "mlm":
            from trainer.objectives.masked_lm import make_masked_lm

            return make_masked_lm(setting)
        case "embed":
            from trainer.objectives.embedding import make_embedding

            return make_embedding(setting)
        case "dpo" | "orpo" | "cpo":
            from trainer.objectives.preference import make_preference

            return make_preference(setting)
        case "kto":
            from trainer.objectives.kto import make_kto

            return make_kto(setting)
        case "reward":
            from trainer.objectives.reward import make_reward

            return make_reward(setting)
        case "ppo":
            from trainer.objectives.policy import make_ppo

            return make_ppo(setting)
        case "grpo":
            from trainer.objectives.group_policy import make_grpo

            return make_grpo(setting)
