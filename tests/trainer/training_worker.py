"""Trains a tiny model over rows that the caller wrote down, with each engine that it names; a process of its own.

`python training_worker.py SPEC.json`, under torchrun for several ranks. SPEC: {rows: FILE.npz, output: DIR, engines:
[{name, kind, zero_stage, precision, poisoned_before, model, adapter, optimizer}], steps, micro_batch_sequences,
weighting: "targets" or "rank_means"}.
Before each step of `poisoned_before` the same rows are tried with a loss that is not finite on the last rank alone.
Writes DIR/<name>.json (losses and norms) and DIR/<name>.safetensors (final weights) for each engine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from data_pipeline.config import validate
from data_pipeline.stream.batch import Batch
from data_pipeline.stream.stream import AnyBatch
from trainer.config import TrainConfig
from trainer.engine import Engine, load_weights, make_engine
from trainer.engine_config import EngineConfig
from trainer.model import Vocabulary
from trainer.objectives.causal_lm import CausalLM
from trainer.objectives.objective import Objective, Outcome
from trainer.quantize import held_bytes
from trainer.ranks import Ranks, start_ranks, stop_ranks
from trainer.resilience import StepPolicy
from trainer.schedule import learning_rate
from trainer.setup import make_trainable_model
from trainer.step import Updater

VOCABULARY = Vocabulary(size=97, eos_id=0, pad_id=1)


def tiny_config(engine: dict[str, Any], *, steps: int, rows: int, micro_batch_sequences: int) -> TrainConfig:
    """A two-layer model whose every step is clipped at first; equal for every engine but in its engine."""
    tree = {
        "run": {"name": engine["name"]},
        "model": {
            "architecture": engine.get("architecture", "llama"),
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "max_positions": 64,
            "pad_vocab_to_multiple": 1,
        }
        | engine.get("model", {}),
        "adapter": engine.get("adapter"),
        "seed": 3,
        "data": {"shards": "unused", "seq_len": 32},
        "train": {
            "max_steps": steps,
            "global_batch_sequences": rows,
            "micro_batch_sequences": micro_batch_sequences,
            "max_grad_norm": 0.5,
            "precision": engine.get("precision", "fp32"),
            "gradient_checkpointing": engine.get("gradient_checkpointing", False),
            "optimizer": {"kind": engine.get("optimizer", "adamw")},
            "schedule": {"warmup_steps": 2, "peak_lr": 3e-3, "kind": "cosine"},
        },
        "engine": {
            "kind": engine["kind"],
            "zero_stage": engine.get("zero_stage", 2),
            "offload_optimizer": engine.get("offload", False),
        },
    }
    return validate(tree, TrainConfig, where="test")


def micro_batches(arrays: dict[str, np.ndarray], step: int, config: TrainConfig, ranks: Ranks) -> list[Batch]:
    """This rank's micro-batches of a step: row j goes to rank (j // micro) mod ranks, as the stream deals them."""
    size = config.train.micro_batch_sequences
    batches = []
    for start in range(ranks.rank * size, config.train.global_batch_sequences, ranks.world_size * size):
        rows = slice(start, start + size)
        labels = np.ascontiguousarray(arrays["labels"][step, rows])
        batches.append(
            Batch(
                input_ids=np.ascontiguousarray(arrays["input_ids"][step, rows]),
                labels=labels,
                position_ids=np.ascontiguousarray(arrays["position_ids"][step, rows]),
                row_ids=np.arange(start, start + size),
                num_targets=int((labels != -100).sum()),
            )
        )
    return batches


class MeanWeightedUpdater(Updater):
    """The negative control: every rank's mean counts alike, whatever its targets; what naive trainers do."""

    def _totals(self, micro_batches: Any) -> Any:
        ours = sum(batch.num_targets for batch in micro_batches)
        return dataclasses.replace(super()._totals(micro_batches), weight=float(ours * self.ranks.world_size))


def run(engine_spec: dict[str, Any], spec: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    arrays = dict(np.load(spec["rows"]))
    config = tiny_config(
        engine_spec,
        steps=spec["steps"],
        rows=arrays["labels"].shape[1],
        micro_batch_sequences=spec["micro_batch_sequences"],
    )
    model = make_trainable_model(config, ranks, vocabulary=VOCABULARY, kernel="sdpa")
    held, elements = held_bytes(model), ranks.gather_objects(elements_held(model))
    engine = make_engine(config, model=model, ranks=ranks)
    updater_class = MeanWeightedUpdater if spec.get("weighting") == "rank_means" else Updater
    updater = updater_class(
        engine=engine,
        objective=CausalLM(kernel="sdpa", device=ranks.device),
        policy=StepPolicy(config.policy),
        ranks=ranks,
        seed=1,
        stop_requested=lambda: False,
    )
    losses, norms = [], []
    for step in range(spec["steps"]):
        lr = learning_rate(config.train.schedule, step=step, max_steps=spec["steps"])
        batches = micro_batches(arrays, step, config, ranks)
        if step in engine_spec.get("poisoned_before", []):
            refuse(updater, batches, step=step, lr=lr)
        metrics = updater.step(batches, number=step, lr=lr)
        losses.append(metrics.loss)
        norms.append(metrics.grad_norm)
    write_weights(engine, config, Path(spec["output"]), ranks=ranks)
    held_by_rank = ranks.gather_objects(held_bytes(engine.model))
    return {"losses": losses, "norms": norms, "loaded": held, "held": held_by_rank, "elements": elements}


def elements_held(model: torch.nn.Module) -> tuple[int, int]:
    """Elements of the weights that stand whole on this rank, and those of its slices (ZeRO-3)."""
    parameters: list[Any] = list(model.parameters())
    slices = [parameter.ds_tensor.numel() for parameter in parameters if hasattr(parameter, "ds_tensor")]
    return sum(parameter.numel() for parameter in parameters), sum(slices)


def refuse(updater: Updater, batches: list[Batch], *, step: int, lr: float) -> None:
    """Try a step whose last micro-batch on the last rank has loss NaN; every rank must refuse it."""
    sound = updater.objective
    is_last_rank = updater.ranks.rank == updater.ranks.world_size - 1

    class Poisoned(Objective):
        def outcome(self, module: torch.nn.Module, batch: AnyBatch) -> Outcome:
            loss = sound(module, batch)
            return Outcome(loss * float("nan") if is_last_rank and batch is batches[-1] else loss)

    updater.objective = Poisoned()
    metrics = updater.step(batches, number=step, lr=lr)
    updater.objective = sound
    assert metrics.skipped and "not finite" in metrics.reason, metrics


def write_weights(engine: Engine, config: TrainConfig, output: Path, *, ranks: Ranks) -> None:
    """The final weights that were trained, through a checkpoint and the loader that evaluation uses."""
    name = config.run.name
    folder = output / f"{name}-checkpoint"
    if ranks.is_main:
        folder.mkdir(parents=True)
    ranks.barrier()
    engine.save(folder)
    ranks.barrier()
    if ranks.is_main:
        unset_hf_deepspeed_config()  # else transformers would load in slices
        alone = Ranks(rank=0, world_size=1, local_rank=0, device=ranks.device)
        plain = config.model_copy(update={"engine": EngineConfig()})
        fresh = make_trainable_model(plain, alone, vocabulary=VOCABULARY, kernel="sdpa")
        load_weights(fresh, folder)
        weights = {key: value.contiguous() for key, value in fresh.named_parameters() if value.requires_grad}
        safetensors.torch.save_file(weights, output / f"{name}.safetensors")


def main(path: str) -> None:
    from accelerate.state import AcceleratorState

    spec = json.loads(Path(path).read_text())
    ranks = start_ranks(use_gpu=False)
    for engine_spec in spec["engines"]:
        AcceleratorState._reset_state(reset_partial_state=True)
        unset_hf_deepspeed_config()
        figures = run(engine_spec, spec, ranks)
        if ranks.is_main:
            (Path(spec["output"]) / f"{engine_spec['name']}.json").write_text(json.dumps(figures))
    stop_ranks()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
    os._exit(0)
