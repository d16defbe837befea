"""A model that stands on disk: a run, one of its checkpoints, or a transformers folder; opened without an optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from data_pipeline.config import load
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.engine import load_weights
from trainer.errors import RunError
from trainer.model import Kernel, choose_attention, make_model, read_vocabulary
from trainer.model_config import ModelConfig
from trainer.run_folder import CHECKPOINTS_NAME, CONFIG_NAME

DEFAULT_ROOT = Path("runs")


@dataclass(frozen=True)
class Saved:
    """Where a model lies. `config` and `step` are None for a plain model folder."""

    path: Path
    config: TrainConfig | None
    checkpoint: Path | None
    run_folder: Path | None

    @property
    def step(self) -> int | None:
        return None if self.checkpoint is None else checkpoint.step_of(self.checkpoint)


def find_saved(name: str) -> Saved:
    """What `name` means: a run folder, its name under runs/, a checkpoint folder, or a model folder.

    Raises:
        RunError: none of these, or a run without a complete checkpoint.
    """
    for path in (Path(name), DEFAULT_ROOT / name):
        if (path / checkpoint.COMPLETE_NAME).is_file():
            return Saved(path, _config_in(path), path, _run_folder_of(path))
        if (path / CONFIG_NAME).is_file():
            complete = checkpoint.find_complete(path / CHECKPOINTS_NAME)
            if not complete:
                raise RunError(f"{path}: no complete checkpoint yet; train it first, or name a model folder")
            return Saved(path, _config_in(path), complete[0], path)
        if (path / "config.json").is_file():
            return Saved(path, None, None, None)
    raise RunError(
        f"{name}: not a run folder (config.yaml), nor a run under {DEFAULT_ROOT}/, nor a checkpoint (COMPLETE), nor a "
        "model folder (config.json); check the path"
    )


def _config_in(folder: Path) -> TrainConfig:
    return load(folder / CONFIG_NAME, [], TrainConfig)


def _run_folder_of(folder: Path) -> Path | None:
    run_folder = folder.parent.parent
    return run_folder if (run_folder / CONFIG_NAME).is_file() else None


@dataclass(frozen=True)
class OpenModel:
    """A model ready for evaluation, and the kernel that its inputs are made for."""

    model: nn.Module
    kernel: Kernel
    device: torch.device


def open_model(saved: Saved, *, shards: Path) -> OpenModel:
    """Load the weights in float32 on this machine's device; every file is verified before.

    Raises:
        CheckpointError, RunError: a damaged checkpoint, or a model that the shards do not fit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    described = saved.config.model if saved.config else ModelConfig.model_validate({"from": str(saved.path)})
    # The weights know no kernel; this machine and float32 may have another one than the run had.
    described = described.model_copy(update={"attention": "auto"})
    kernel = choose_attention(described, device=device, precision="fp32").kernel
    vocabulary = read_vocabulary(shards)
    if saved.checkpoint is None:
        model = make_model(described, vocabulary=vocabulary, kernel=kernel, dtype=torch.float32, seed=0)
    else:
        if faults := checkpoint.verify(saved.checkpoint):
            raise checkpoint.CheckpointError("\n".join(faults) + f"\n{saved.checkpoint}: damaged; name an older one")
        seed = saved.config.seed if saved.config else 0
        model = make_model(described, vocabulary=vocabulary, kernel=kernel, dtype=torch.float32, seed=seed)
        load_weights(model, saved.checkpoint)
    return OpenModel(model=model.to(device).eval(), kernel=kernel, device=device)
