"""The learning rate of a step, the optimizer and its two groups: a pure function and two small factories."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from data_pipeline.config import Config

if TYPE_CHECKING:
    import torch
    from torch import nn


class OptimizerConfig(Config):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2). Weight decay on matrices only.

    `adamw_8bit` keeps both moments in blocks of 8-bit numbers (Dettmers et al. 2022, "8-bit Optimizers via Block-wise
    Quantization"); `paged` lets a GPU's driver move them to the host where memory runs out (Dettmers et al. 2023,
    "QLoRA", section 3).
    """

    kind: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)


class ScheduleConfig(Config):
    """Linear warm-up to `peak_lr`, then `cosine` or `linear` down to `min_lr_ratio`, or `wsd`.

    wsd (warm-up, stable, decay; Hu et al. 2024, "MiniCPM", section 4): the peak holds until the last `decay_steps`,
    which fall linearly. `decay_steps` is only read by wsd.
    """

    kind: Literal["cosine", "linear", "wsd"] = "cosine"
    peak_lr: float = Field(default=3e-4, gt=0)
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_steps: int = Field(default=100, ge=0)
    decay_steps: int = Field(default=0, ge=0)

    @property
    def num_fixed_steps(self) -> int:
        """Steps that warm-up and decay take of any run."""
        return self.warmup_steps + (self.decay_steps if self.kind == "wsd" else 0)


def learning_rate(schedule: ScheduleConfig, *, step: int, max_steps: int) -> float:
    """The rate of the update number `step`, counted from 0; the last one is number max_steps - 1."""
    if step < schedule.warmup_steps:
        return schedule.peak_lr * (step + 1) / schedule.warmup_steps
    first = max_steps - schedule.decay_steps if schedule.kind == "wsd" else schedule.warmup_steps
    if step < first:
        return schedule.peak_lr
    # The last step reaches the minimum exactly.
    progress = min(1.0, (step - first + 1) / max(1, max_steps - first))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    floor = schedule.min_lr_ratio
    return schedule.peak_lr * (floor + (1 - floor) * shape)


def parameter_groups(model: nn.Module, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices and embeddings decay, biases and norms (one dimension) do not.

    New rows stand in groups of their own, by their role, so that a phase can move them alone.
    """
    from trainer.new_rows import role_of

    groups: dict[tuple[str, bool], list[Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Under ZeRO-3 a parameter's own shape is (0,); ds_shape keeps the logical one.
            shape = getattr(parameter, "ds_shape", parameter.shape)
            groups.setdefault((role_of(parameter), len(shape) >= 2), []).append(parameter)
    # Decayed ones first, the model's before those of new rows.
    order = sorted(groups, key=lambda key: (key[0] != "model", key[0], not key[1]))
    return [
        {"params": groups[key], "weight_decay": optimizer.weight_decay if key[1] else 0.0, "role": key[0]}
        for key in order
    ]


def make_optimizer(model: nn.Module, optimizer: OptimizerConfig, *, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`: torch's (one fused kernel on a GPU), or bitsandbytes' with 8-bit moments."""
    import torch

    if optimizer.kind != "adamw":
        from trainer.optimizer_8bit import make_adamw_8bit

        return make_adamw_8bit(parameter_groups(model, optimizer), optimizer)
    return torch.optim.AdamW(
        parameter_groups(model, optimizer),
        lr=0.0,  # set before each update by set_learning_rate
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        fused=device.type == "cuda",
    )


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Every group of the optimizer takes `lr` at its next update; one that a phase of new rows holds still takes 0."""
    for group in groups:
        group["lr"] = lr if group.get("is_moved", True) else 0.0
