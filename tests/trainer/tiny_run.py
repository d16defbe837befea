"""A tiny run over shards of made-up ids: what the tests of the loop, of resume and of faults train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.config import to_yaml, validate
from data_pipeline.stage import read_manifest, write_manifest
from tests.data_pipeline.stream.shard_folder import write_shards
from trainer.config import TrainConfig

REPO = Path(__file__).parents[2]
VOCAB_SIZE = 97


def make_shards(folder: Path, *, num_documents: int = 400, num_heldout: int = 40, seed: int = 0) -> Path:
    """Documents that count on by 1, 2 or 3: a pattern that a tiny model learns; both splits, several shards."""
    generator = np.random.default_rng(seed)

    def document() -> list[int]:
        length, first, stride = generator.integers(5, 90), generator.integers(0, 91), generator.integers(1, 4)
        return [6 + int((first + stride * place) % 91) for place in range(length)]

    parts = [[document() for _ in range(num_documents // 2)] for _ in range(2)]
    write_shards(folder, parts, vocab_size=VOCAB_SIZE)
    aside = folder.with_name(folder.name + "-heldout")
    write_shards(aside, [[document() for _ in range(num_heldout)]], split="heldout", vocab_size=VOCAB_SIZE)
    train, heldout = (read_manifest(place, kind="shards") for place in (folder, aside))
    (aside / "heldout").rename(folder / "heldout")
    merged = train | {"files": train["files"] + heldout["files"]}
    merged["splits"] = train["splits"] | {"heldout": heldout["splits"]["heldout"]}
    write_manifest(folder, merged)
    return folder


def tiny_config(folder: Path, shards: Path, **sections: Any) -> TrainConfig:
    """12 steps with a save every 4 and an evaluation every 6; `sections` are merged over it, by section."""
    tree: dict[str, Any] = {
        "run": {"name": "run", "folder": str(folder)},
        "model": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "max_positions": 64,
            "pad_vocab_to_multiple": 1,
            "dropout": 0.1,
        },
        "data": {"shards": str(shards), "seq_len": 32},
        "train": {
            "max_steps": 12,
            "global_batch_sequences": 10,
            "micro_batch_sequences": 2,
            "precision": "fp32",
            "schedule": {"warmup_steps": 2, "peak_lr": 3e-3},
        },
        "checkpoint": {"every_steps": 4, "keep_last": 2, "keep_best": False},
        "evaluation": {"every_steps": 6, "max_documents": 20},
        "logging": {"every_steps": 1, "tensorboard": False, "progress_bar": False},
    }
    for section, keys in sections.items():
        tree[section] = tree.get(section, {}) | keys if isinstance(keys, dict) else keys
    return validate(tree, TrainConfig, where="test")


def write_config(path: Path, config: TrainConfig) -> Path:
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def environment(**extra: str) -> dict[str, str]:
    paths = f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    fixed = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return os.environ | fixed | extra


def start(config: Path, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """Run `dure train` to its end."""
    command = [sys.executable, "-m", "launch.cli", "train", str(config), "--cpu-ranks", str(ranks), *overrides]
    return subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True, timeout=600)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses_of(run: Path) -> dict[int, float]:
    """The exact loss of each logged step."""
    return {line["step"]: line["loss"] for line in lines_of(run / "metrics.jsonl")}
