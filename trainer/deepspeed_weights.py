"""Whole float32 weights out of a ZeRO checkpoint, on one process and without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer.engine import DEEPSPEED_TAG
from trainer.quiet import quiet_prints

Weights = dict[str, torch.Tensor]

_MODEL_FILE = "mp_rank_00_model_states.pt"
_BF16_FILES = "bf16_zero_pp_rank_*_mp_rank_00_optim_states.pt"


def read_weights(folder: Path) -> Weights:
    """Every parameter in float32 from the optimizer's master weights; the checkpoint was verified before."""
    engine_folder = folder / DEEPSPEED_TAG
    files = sorted(engine_folder.glob(_BF16_FILES), key=_rank_of)
    if files and not _tells_its_stage(files[0]):
        return _join_bf16_stage_1(engine_folder / _MODEL_FILE, files)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with quiet_prints():
        weights: Weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=DEEPSPEED_TAG)
    return weights


def _rank_of(file: Path) -> int:
    return int(file.name.removeprefix("bf16_zero_pp_rank_").split("_", 1)[0])


def _tells_its_stage(file: Path) -> bool:
    """Whether a file of a bf16 run is one of ZeRO 2 or 3; the BF16_Optimizer of stage 1 writes none."""
    # weights_only=False: DeepSpeed pickles its own classes; COMPLETE vouches for the files.
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False, mmap=True)
    return "zero_stage" in state["optimizer_state_dict"]


def _join_bf16_stage_1(model_file: Path, optimizer_files: list[Path]) -> Weights:
    """DeepSpeed's own script knows no file of its BF16_Optimizer: join each group's slices, then cut by shape."""
    model_state: dict[str, Any] = torch.load(model_file, map_location="cpu", weights_only=False)
    slices = [
        torch.load(file, map_location="cpu", weights_only=False)["optimizer_state_dict"][
            "single_partition_of_fp32_groups"
        ]
        for file in optimizer_files
    ]
    weights: Weights = {}
    for group, shapes in enumerate(model_state["param_shapes"]):
        flat = torch.cat([rank_slices[group] for rank_slices in slices])
        start = 0
        for name, shape in shapes.items():
            weights[name] = flat[start : start + shape.numel()].view(shape).clone()
            start += shape.numel()
    return weights
