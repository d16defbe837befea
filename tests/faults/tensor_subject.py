"""The smallest thing with all kinds of files that a save writes: weights by safetensors, an optimizer by torch.save."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from data_pipeline import disk
from data_pipeline.disk import FileRecord
from trainer import checkpoint
from trainer.ranks import Ranks


class TensorSubject:
    """Rank 0 writes the weights, each rank its shard of the moments, as ZeRO does."""

    def __init__(self, *, num_ranks: int) -> None:
        self.num_ranks = num_ranks

    def save(self, checkpoints: Path, *, step: int, ranks: Ranks) -> None:
        def write_engine(folder: Path) -> list[FileRecord]:
            shards = folder / "shards"
            shards.mkdir(exist_ok=True)
            name = f"rank-{ranks.rank}.pt"
            with disk.durable_file(shards / name) as file:
                torch.save({"moments": moments_at(step, rank=ranks.rank)}, file)
            records = [file.record(f"shards/{name}")]
            if ranks.is_main:
                weights = safetensors.torch.save({"weight": weights_at(step)})
                records.append(disk.write_bytes(folder / "model.safetensors", weights))
            return records

        checkpoint.save(
            checkpoints,
            step=step,
            state={"format_version": 1, "step": step, "loss": 1 / step},
            write_engine=write_engine,
            extra_files={"config.yaml": b"seed: 1\n"},
            ranks=ranks,
        )

    def check(self, folder: Path, *, step: int, ranks: Ranks) -> None:
        assert checkpoint.verify(folder, ranks) == []
        assert checkpoint.read_state(folder) == {"format_version": 1, "step": step, "loss": 1 / step}
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        assert torch.equal(weights["weight"], weights_at(step))
        shard = torch.load(folder / "shards" / f"rank-{ranks.rank}.pt", weights_only=True)
        assert torch.equal(shard["moments"], moments_at(step, rank=ranks.rank))


def weights_at(step: int) -> torch.Tensor:
    return torch.arange(12, dtype=torch.float32) / step


def moments_at(step: int, *, rank: int) -> torch.Tensor:
    return torch.arange(6, dtype=torch.float32) * step + rank
