"""`dure train`: the ranks of this machine, started, watched and signalled; their exit record becomes the exit code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def train(arguments: argparse.Namespace) -> int:
    """Start `python -m trainer` on as many ranks as asked for: --gpus N, --cpu-ranks N, or one of whatever is here."""
    from data_pipeline.config import load
    from launch.local import start_ranks
    from launch.toolchain import prepare_cpu_ranks
    from trainer.config import TrainConfig

    config = load(arguments.config, arguments.overrides, TrainConfig)
    num_ranks, device = _ranks_of(arguments)
    if device == "cpu" and num_ranks > 1 and config.engine.kind == "deepspeed":
        prepare_cpu_ranks()
    command = [sys.executable, "-m", "trainer", str(arguments.config), *arguments.overrides]
    run_folder = Path(config.run.folder) / config.run.name
    return start_ranks(command, num_ranks=num_ranks, device=device, run_folder=run_folder)
