"""transformers' Trainer over the rows that a run of ours would train on: the peer of bench/train.py and bench/gpu."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from data_pipeline.stream.rows import open_rows
from data_pipeline.stream.stream import Stream
from trainer.config import TrainConfig
from trainer.model import Kernel, make_model, read_vocabulary


def trainer_seconds(config: TrainConfig, steps: int, folder: str, *, kernel: Kernel = "sdpa") -> float:
    """Seconds of `steps` updates of Trainer: the same model, rows, labels, accumulation, clipping and precision.

    On the GPU where there is one. Rows are made before the clock starts: Trainer gets its data for nothing.
    """
    from transformers import Trainer, TrainingArguments

    class Timed(Trainer):
        """Starts the clock once the first update, with its compilations, is over."""

        started = 0.0

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            if self.state.global_step == 1 and not self.started:
                _synchronize()
                self.started = time.perf_counter()
            return super().training_step(*arguments, **named)

    sequences, micro = config.train.global_batch_sequences, config.train.micro_batch_sequences
    vocabulary = read_vocabulary(Path(config.data.shards))
    model = make_model(config.model, vocabulary=vocabulary, kernel=kernel, dtype=torch.float32, seed=config.seed)
    model.config.use_cache = False
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps + 1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=sequences // micro,
        max_grad_norm=config.train.max_grad_norm,
        bf16=config.train.precision == "bf16",
        gradient_checkpointing=config.train.gradient_checkpointing,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Timed(
        model=model,
        args=arguments,
        train_dataset=_items(config, steps + 1),
        compute_loss_func=_loss_of,
        data_collator=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )
    trainer.train()
    _synchronize()
    return time.perf_counter() - trainer.started


def _items(config: TrainConfig, steps: int) -> list[dict[str, torch.Tensor]]:
    """The rows of `steps` steps; labels are moved one to the right, since Trainer's models shift them back."""
    sequences = config.train.global_batch_sequences
    rows = open_rows(Path(config.data.shards), split="train", seq_len=config.data.seq_len, packing=config.data.packing)
    stream = Stream(rows, seed=config.seed, global_batch_sequences=sequences)
    items: list[dict[str, torch.Tensor]] = []
    for _ in range(steps):
        for batch in stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=sequences):
            tensors = batch.to_torch()
            for row in range(sequences):
                labels = functional.pad(tensors.labels[row], (1, 0), value=-100)
                items.append(
                    {"input_ids": tensors.input_ids[row], "position_ids": tensors.position_ids[row], "labels": labels}
                )
        stream.advance()
    return items


def _loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    flat = outputs.logits.float().flatten(0, 1)
    return functional.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
