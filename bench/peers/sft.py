"""QLoRA by our loop, and by trl's SFTTrainer or transformers' Trainer: the contenders of bench/gpu/qlora.py.

All train on the documents of the same packed rows, step by step, with the settings of one TrainConfig.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from data_pipeline.stream.batch import NO_TARGET, Batch
from data_pipeline.stream.rows import open_rows
from data_pipeline.stream.stream import Stream
from trainer.adapter import peft_config
from trainer.config import TrainConfig
from trainer.metrics import memory_gib
from trainer.model import Kernel, packed_inputs
from trainer.quantize import loading_options
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group
from trainer.run_folder import METRICS_NAME, read_lines
from trainer.schedule import learning_rate
from trainer.setup import loaded_dtype

OPTIMIZERS = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit"}


@dataclass
class Clock:
    """When steps began, and the most memory that loading and training held."""

    device: torch.device
    marks: list[float] = field(default_factory=list)
    loading_gib: float = 0.0
    training_gib: float = 0.0
    reserved_gib: float = 0.0
    """What torch kept of the card for itself while it trained: nearer to what nvidia-smi shows."""

    def begin_step(self) -> None:
        if not self.marks:
            self.loading_gib = memory_gib(self.device)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
        self._mark()

    def end(self) -> None:
        """After the last step, before anything else is done."""
        self._mark()
        self.training_gib = memory_gib(self.device)
        if self.device.type == "cuda":
            self.reserved_gib = torch.cuda.max_memory_reserved(self.device) / 2**30

    def _mark(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.marks.append(time.time())

    @property
    def seconds(self) -> list[float]:
        """Of each step, with the fetching of its rows."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def train_ours(config: TrainConfig, clock: Clock) -> list[float]:
    """What `dure train` does in its one rank, gate and all; the loss of each step."""
    begun = {"warm-up": clock.begin_step, "step": clock.begin_step, "evaluate": clock.end}
    alone = Ranks(rank=0, world_size=1, local_rank=0, device=clock.device)
    code = run_in_group(config, alone, stop=StopFlag(), on_phase=lambda phase: begun.get(phase, _nothing)())
    if code != 0:
        raise RuntimeError(f"the run ended with exit code {code}")
    return [line["loss"] for line in read_lines(Path(config.run.folder) / config.run.name / METRICS_NAME)]


def _nothing() -> None:
    """A phase that is no step."""


def steps_of(config: TrainConfig) -> Iterator[list[Batch]]:
    """The micro-batches of each step, as our loop takes them."""
    data, steps = config.data, config.train
    rows = open_rows(
        Path(data.shards), split="train", seq_len=data.seq_len, packing=data.packing, too_long=data.too_long
    )
    stream = Stream(rows, seed=config.seed, global_batch_sequences=steps.global_batch_sequences)
    for _ in range(steps.max_steps):
        yield stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=steps.micro_batch_sequences)
        stream.advance()


@dataclass(frozen=True)
class Document:
    """An instruction as a packed row holds it: `inputs` without EOS, `labels` one to the left, EOS the last."""

    inputs: list[int]
    labels: list[int]

    @property
    def num_targets(self) -> int:
        return sum(label != NO_TARGET for label in self.labels)


def documents_of(batch: Batch) -> list[list[Document]]:
    """The documents of each row; padding has no target and is left out."""
    rows = []
    for inputs, labels, positions in zip(batch.input_ids, batch.labels, batch.position_ids, strict=True):
        borders = [*np.flatnonzero(positions == 0).tolist(), len(positions)]
        found = [
            Document(inputs[start:end].tolist(), labels[start:end].tolist())
            for start, end in zip(borders, borders[1:], strict=False)
        ]
        rows.append([document for document in found if document.num_targets])
    return rows


@dataclass(frozen=True)
class Tokens:
    """Of one step: inputs without padding, and targets."""

    num_inputs: int
    num_targets: int


def tokens_of(step: list[Batch]) -> Tokens:
    documents = [document for batch in step for row in documents_of(batch) for document in row]
    return Tokens(
        num_inputs=sum(len(document.inputs) for document in documents),
        num_targets=sum(document.num_targets for document in documents),
    )


def has_trl() -> bool:
    return importlib.util.find_spec("trl") is not None


def liger_obstacle(model_type: str) -> str | None:
    """Why liger-kernel can do nothing here; None where it can."""
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    known = model_type in MODEL_TYPE_TO_APPLY_LIGER_FN
    return None if known else f"liger-kernel has nothing for {model_type}"


def train_peer(config: TrainConfig, clock: Clock, *, kernel: Kernel, with_liger: bool) -> list[float]:
    """The same tuning by SFTTrainer, or by Trainer where there is no trl; the loss of each step.

    SFTTrainer gets its rows as its own packing "bfd" would make them (padding-free, `seq_lengths`), but with our
    documents in each, so that losses compare. It trains a 4-bit base's adapter in bf16, whatever the precision.
    """
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin_step()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    arguments = _arguments(config, with_liger=with_liger)
    trainer_class, keys = _trl(config, arguments) if has_trl() else _trainer(config, arguments, kernel=kernel)

    class InOrder(trainer_class):  # type: ignore[valid-type, misc]
        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    trainer = InOrder(model=_adapted(config, kernel=kernel, device=clock.device), callbacks=[Timed()], **keys)
    trainer.create_optimizer()
    schedule, num_steps = config.train.schedule, config.train.max_steps
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer,
        # It asks for a rate after the last update too.
        lambda step: learning_rate(schedule, step=min(step, num_steps - 1), max_steps=num_steps) / schedule.peak_lr,
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def _adapted(config: TrainConfig, *, kernel: Kernel, device: torch.device) -> Any:
    """The 4-bit base as anyone loads it, with an adapter that begins with the values of ours."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    assert config.adapter is not None, "the bench's config has one"
    packing = loading_options(config.model.quantization, device=device, storage=torch.uint8)
    base = AutoModelForCausalLM.from_pretrained(
        config.model.source, dtype=loaded_dtype(config), attn_implementation=kernel, **packing
    )
    torch.manual_seed(config.seed)
    return get_peft_model(base, peft_config(config.adapter, base))


def _arguments(config: TrainConfig, *, with_liger: bool) -> dict[str, Any]:
    """What both kinds of Trainer are told."""
    steps, optimizer = config.train, config.train.optimizer
    return dict(
        output_dir=config.run.folder,
        max_steps=steps.max_steps,
        gradient_accumulation_steps=steps.global_batch_sequences // steps.micro_batch_sequences,
        optim=OPTIMIZERS[optimizer.kind],
        learning_rate=steps.schedule.peak_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        max_grad_norm=steps.max_grad_norm,
        bf16=steps.precision == "bf16",
        gradient_checkpointing=steps.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=with_liger,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _trl(config: TrainConfig, arguments: dict[str, Any]) -> tuple[type, dict[str, Any]]:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

    rows = [row_for_trl(row) for step in steps_of(config) for batch in step for row in documents_of(batch)]
    made = SFTConfig(
        per_device_train_batch_size=config.train.micro_batch_sequences,
        padding_free=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        **arguments,
    )
    tokenizer = AutoTokenizer.from_pretrained(config.model.source)
    return SFTTrainer, {"args": made, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}


def row_for_trl(row: list[Document]) -> dict[str, list[int]]:
    """A packed row in the form of trl's packing: EOS is an input too, labels stand at their own ids."""
    return {
        "input_ids": [token for each in row for token in (*each.inputs, each.labels[-1])],
        "labels": [label for each in row for label in (NO_TARGET, *each.labels)],
        "seq_lengths": [len(each.inputs) + 1 for each in row],
    }


def _trainer(config: TrainConfig, arguments: dict[str, Any], *, kernel: Kernel) -> tuple[type, dict[str, Any]]:
    """An item of the data set is a micro-batch, in the form that keeps documents apart."""
    from transformers import Trainer, TrainingArguments

    items = [_item(batch, kernel=kernel) for step in steps_of(config) for batch in step]
    made = TrainingArguments(per_device_train_batch_size=1, remove_unused_columns=False, **arguments)
    return Trainer, {
        "args": made,
        "train_dataset": items,
        "compute_loss_func": _loss_of,
        "data_collator": lambda chosen: chosen[0],
    }


def _item(batch: Batch, *, kernel: Kernel) -> dict[str, Any]:
    """Trainer counts a causal model's targets from the second label on: one column before ours makes its count ours."""
    inputs = packed_inputs(batch, kernel=kernel, device=torch.device("cpu"))
    labels = torch.from_numpy(batch.labels).reshape(inputs["input_ids"].shape)
    return {**inputs, "labels": functional.pad(labels, (1, 0), value=NO_TARGET)}


def _loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    flat = outputs.logits.float().flatten(0, 1)
    return functional.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch
