"""Tokens a second of one process: our loop beside transformers' Trainer, the same model, rows and updates, in turns.

python bench/train.py [--shards DIR] [--steps N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DEFAULT_SHARDS = Path("runs/demo/data/shards")
OUT = Path("bench/out/train.json")


def run_config(folder: str, shards: Path, steps: int) -> Any:
    from data_pipeline.config import load
    from trainer.config import TrainConfig

    overrides = [
        f"run.folder={folder}",
        "run.name=bench",
        f"data.shards={shards}",
        "engine.kind=none",
        f"train.max_steps={steps + 1}",
        "train.schedule.warmup_steps=1",
        "train.schedule.decay_steps=0",
        "evaluation.every_steps=1000000",
        "checkpoint.every_steps=1000000",
        "logging.tensorboard=false",
        "logging.progress_bar=false",
    ]
    return load("configs/demo.yaml", overrides, TrainConfig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, default=DEFAULT_SHARDS)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not (arguments.shards / "manifest.json").is_file():
        print(f"{arguments.shards}: no shards; run `make demo` first, or give --shards (skipped)")
        return
    import torch

    from bench.peers.hf_trainer import trainer_seconds
    from bench.peers.ours import our_seconds

    torch.set_num_threads(1)
    config = run_config("unused", arguments.shards, arguments.steps)
    tokens = arguments.steps * config.train.global_batch_sequences * config.data.seq_len
    rates: dict[str, list[float]] = {"dure": [], "Trainer": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = run_config(folder, arguments.shards, arguments.steps)
            rates["dure"].append(tokens / our_seconds(config, arguments.steps))
            rates["Trainer"].append(tokens / trainer_seconds(config, arguments.steps, folder))
    print(f"{'tokens/s, one process, one thread':<36}{'median':>10}{'least':>10}{'most':>10}")
    for name, values in rates.items():
        print(f"{name:<36}{statistics.median(values):>10,.0f}{min(values):>10,.0f}{max(values):>10,.0f}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"steps": arguments.steps, "tokens_per_second": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
