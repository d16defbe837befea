"""Our own loop as a contender: the steps of a run, each logged as a run logs it."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from trainer.config import TrainConfig
from trainer.journal import Journal
from trainer.loop import train_steps
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder
from trainer.setup import set_up


def our_seconds(config: TrainConfig, steps: int) -> float:
    """Seconds of `steps` steps of the loop on one GPU, or a CPU where there is none, after a warm-up of one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = set_up(config, Ranks(rank=0, world_size=1, local_rank=0, device=device))
    folder = RunFolder(Path(config.run.folder) / config.run.name, rank=0)
    with folder.hold(config, ranks=1):
        journal = Journal(run, folder)
        train_steps(run, journal, count=1)
        _synchronize(device)
        started = time.perf_counter()
        train_steps(run, journal, count=steps)
        _synchronize(device)
        seconds = time.perf_counter() - started
        journal.close()
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
