"""`dure train`: the ranks of this machine, started, watched and signalled; their exit record becomes the exit code."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launch.local import Device, hold_signals, start_ranks
from trainer.errors import RunError
from trainer.launch_environment import DEVICE_VARIABLE


def train(arguments: argparse.Namespace) -> int:
    """Start `python -m trainer` on as many ranks as asked for: --gpus N, --cpu-ranks N, or one of whatever is here."""
    return run(arguments.config, arguments.overrides, gpus=arguments.gpus, cpu_ranks=arguments.cpu_ranks)


def run(config_path: str, overrides: list[str], *, gpus: int | None = None, cpu_ranks: int | None = None) -> int:
    """Carry a run out on this machine, or go on with it; returns 0, 85 (stopped, all saved) or a failure's code.

    Raises:
        ConfigError: the config is faulty; told before any rank starts.
    """
    hold_signals()
    from data_pipeline.config import load
    from trainer.config import TrainConfig

    config = load(config_path, overrides, TrainConfig)
    if config.data.raw is not None:
        from data_pipeline.raw import prepare_shards
        from launch.tasks import num_cores, run_stage

        prepare_shards(config.data.raw, run=lambda stage, kind: run_stage(stage, num_cores(), label=kind))
    num_ranks, device = _ranks(gpus, cpu_ranks)
    if device == "cpu" and config.engine.kind == "deepspeed":
        from launch.toolchain import prepare_cpu_ranks

        prepare_cpu_ranks()
    command = [sys.executable, "-m", "trainer", config_path, *overrides]
    run_folder = Path(config.run.folder) / config.run.name
    env = {**os.environ, DEVICE_VARIABLE: device}
    return start_ranks(command, num_ranks=num_ranks, device=device, run_folder=run_folder, env=env)


def _ranks(gpus: int | None, cpu_ranks: int | None) -> tuple[int, Device]:
    if cpu_ranks is not None:
        return cpu_ranks, "cpu"
    if gpus is not None:
        if (found := num_gpus()) < gpus:
            raise RunError(
                f"--gpus: {gpus} asked for, but torch finds {found} CUDA devices here; ask for fewer, or fix the driver"
            )
        return gpus, "gpu"
    return 1, "gpu" if num_gpus() else "cpu"


def num_gpus() -> int:
    """How many CUDA devices torch finds, without the seconds that importing it takes where there is none."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/dxg").exists():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
