"""Tokens a second of one process: our loop beside transformers' Trainer, the same model, rows and updates, in turns.

python bench/train.py [--shards DIR] [--steps N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DEFAULT_SHARDS = Path("runs/demo/data/shards")
OUT = Path("bench/out/train.json")
SEQ_LEN, ROWS, MICRO = 256, 16, 8


def run_config(folder: str, shards: Path, steps: int) -> Any:
    from data_pipeline.config import load
    from trainer.config import TrainConfig

    overrides = [
        f"run.folder={folder}",
        "run.name=bench",
        f"data.shards={shards}",
        "engine.kind=none",
        f"train.max_steps={steps}",
        "evaluation.every_steps=1000000",
        "checkpoint.every_steps=1000000",
        "logging.tensorboard=false",
        "logging.progress_bar=false",
    ]
    return load("configs/demo.yaml", overrides, TrainConfig)


def ours(config: Any, steps: int) -> float:
    """Seconds of `steps` steps of the loop, logging each as a run does."""
    import torch

    from trainer.journal import Journal
    from trainer.loop import train_steps
    from trainer.ranks import Ranks
    from trainer.run_folder import RunFolder
    from trainer.setup import set_up

    run = set_up(config, Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu")))
    folder = RunFolder(Path(config.run.folder) / config.run.name, rank=0)
    with folder.hold(config, ranks=1):
        journal = Journal(run, folder)
        started = time.perf_counter()
        train_steps(run, journal, count=steps)
        seconds = time.perf_counter() - started
        journal.close()
    return seconds


def trainers(config: Any, steps: int, folder: str) -> float:
    """Seconds of the same under Trainer: rows, labels shifted as ours, accumulation, clipping and schedule alike."""
    import torch
    from torch.nn import functional
    from transformers import Trainer, TrainingArguments

    from data_pipeline.stream.rows import open_rows
    from data_pipeline.stream.stream import Stream
    from trainer.model import make_model, read_vocabulary

    shards = Path(config.data.shards)
    stream = Stream(
        open_rows(shards, split="train", seq_len=SEQ_LEN, packing="best_fit"), seed=1, global_batch_sequences=ROWS
    )
    items: list[dict[str, torch.Tensor]] = []
    for _ in range(steps):
        for batch in stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=ROWS):
            tensors = batch.to_torch()
            for row in range(ROWS):
                labels = functional.pad(tensors.labels[row], (1, 0), value=-100)
                items.append(
                    {"input_ids": tensors.input_ids[row], "position_ids": tensors.position_ids[row], "labels": labels}
                )
        stream.advance()
    vocabulary = read_vocabulary(shards)
    model = make_model(config.model, vocabulary=vocabulary, kernel="sdpa", dtype=torch.float32, seed=1)
    model.config.use_cache = False

    def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        flat = outputs.logits.float().flatten(0, 1)
        return functional.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch

    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=ROWS // MICRO,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=items,
        compute_loss_func=loss_of,
        data_collator=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, default=DEFAULT_SHARDS)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not (arguments.shards / "manifest.json").is_file():
        print(f"{arguments.shards}: no shards; run `make demo` first, or give --shards (skipped)")
        return
    import torch

    torch.set_num_threads(1)
    tokens = arguments.steps * ROWS * SEQ_LEN
    rates: dict[str, list[float]] = {"dure": [], "Trainer": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = run_config(folder, arguments.shards, arguments.steps)
            rates["dure"].append(tokens / ours(config, arguments.steps))
            rates["Trainer"].append(tokens / trainers(config, arguments.steps, folder))
    print(f"{'tokens/s, one process, one thread':<36}{'median':>10}{'least':>10}{'most':>10}")
    for name, values in rates.items():
        print(f"{name:<36}{statistics.median(values):>10,.0f}{min(values):>10,.0f}{max(values):>10,.0f}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"steps": arguments.steps, "tokens_per_second": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
