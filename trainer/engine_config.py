"""Which engine carries the update: one key for the kind, one for ZeRO's stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from data_pipeline.config import Config


class EngineConfig(Config):
    """`none`: one process, or DDP on several. `deepspeed`: ZeRO 1-3.

    Source of the stages: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
    Models", section 5: 1 shards the optimizer's state, 2 the gradients too, 3 the parameters too.
    """

    kind: Literal["none", "deepspeed"] = "none"
    zero_stage: int = Field(default=2)
    offload_optimizer: bool = False
    bucket_mb: int = Field(default=400, ge=1)

    @field_validator("zero_stage")
    @classmethod
    def _stage_is_sound(cls, stage: int) -> int:
        if stage == 0:
            raise ValueError(
                "stage 0 takes one Adam step too many under bf16 (DeepSpeed's unfused optimizer) and has no gradient "
                "norm in fp32; use kind: none for plain data parallelism, or zero_stage: 1"
            )
        if stage not in (1, 2, 3):
            raise ValueError(f"got {stage}; ZeRO has the stages 1, 2 and 3")
        return stage
