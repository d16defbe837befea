"""Law 6, on whole trainings: an update does not depend on its split, nor on the engine that carries it.

20 steps, AdamW, accumulation 3, targets of micro-batches differing by more than five times, clipping active in at
least half of the steps: one process, DDP and ZeRO 1, 2, 3 on two ranks, and Hugging Face's Trainer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.trainer.training_worker import VOCABULARY, tiny_config
from trainer.model import make_model
from trainer.model_config import ModelConfig

pytestmark = pytest.mark.stages

REPO = Path(__file__).parents[2]
STEPS, ROWS, SEQ_LEN = 20, 12, 32
SINGLE = [
    {"name": "one-process", "kind": "none"},
    {"name": "one-process-neox", "kind": "none", "architecture": "gpt_neox"},
]
NEOX = [{"name": "zero-3-neox", "kind": "deepspeed", "zero_stage": 3, "architecture": "gpt_neox"}]
RANKS_2 = [
    {"name": "ddp", "kind": "none"},
    *({"name": f"zero-{stage}", "kind": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)),
    {"name": "zero-2-offload", "kind": "deepspeed", "zero_stage": 2, "offload": True},
    {"name": "zero-3-checkpointing", "kind": "deepspeed", "zero_stage": 3, "gradient_checkpointing": True},
    {"name": "ddp-checkpointing", "kind": "none", "gradient_checkpointing": True},
]

# Tunings of a base that stays frozen; {base} is filled in once it stands on disk.
LORA = {"model": {"from": "{base}"}, "adapter": {"rank": 4, "dropout": 0.0}}
QLORA = LORA | {"model": {"from": "{base}", "quantization": {"compute_dtype": "fp32"}}}
SINGLE_TUNINGS = [{"name": "lora", "kind": "none", **LORA}, {"name": "qlora", "kind": "none", **QLORA}]
TUNINGS = [
    {"name": "lora-ddp", "kind": "none", **LORA},
    {"name": "lora-zero-3", "kind": "deepspeed", "zero_stage": 3, **LORA},
    {"name": "qlora-ddp", "kind": "none", **QLORA},
    {"name": "qlora-ddp-checkpointing", "kind": "none", "gradient_checkpointing": True, **QLORA},
    *({"name": f"qlora-zero-{stage}", "kind": "deepspeed", "zero_stage": stage, **QLORA} for stage in (1, 2, 3)),
    {
        "name": "qlora-zero-3-checkpointing",
        "kind": "deepspeed",
        "zero_stage": 3,
        "gradient_checkpointing": True,
        **QLORA,
    },
]

BF16_TUNINGS = [
    {"name": "lora-zero-1-bf16", "kind": "deepspeed", "zero_stage": 1, "precision": "bf16", **LORA},
    {"name": "qlora-zero-3-bf16", "kind": "deepspeed", "zero_stage": 3, "precision": "bf16", **QLORA},
    {"name": "qlora-ddp-bf16", "kind": "none", "precision": "bf16", **QLORA},
]

BF16 = [
    {"name": f"zero-{stage}-bf16", "kind": "deepspeed", "zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)
]
REFUSING = RANKS_2 + BF16 + TUNINGS
POISONED = [engine | {"name": f"{engine['name']}-poisoned", "poisoned_before": [0, 3, 4]} for engine in REFUSING]


def write_rows(path: Path) -> dict[str, np.ndarray]:
    """Rows of two documents each; in every step some micro-batches keep few targets and some nearly all."""
    generator = np.random.default_rng(5)
    ids = generator.integers(6, VOCABULARY.size, (STEPS, ROWS, SEQ_LEN + 1))
    # Something to learn, so that losses fall: each id is often the one before it plus one.
    follow = generator.random(ids.shape) < 0.7
    for column in range(1, SEQ_LEN + 1):
        successor = (ids[..., column - 1] - 5) % (VOCABULARY.size - 6) + 6
        ids[..., column] = np.where(follow[..., column], successor, ids[..., column])
    labels = ids[..., 1:].copy()
    kept = np.where(np.arange(ROWS) % 4 < 2, 3, generator.integers(28, SEQ_LEN + 1, (STEPS, ROWS)))
    labels[np.arange(SEQ_LEN) >= kept[..., None]] = -100
    positions = np.broadcast_to(np.arange(SEQ_LEN) % 20, ids[..., 1:].shape)
    arrays = {"input_ids": ids[..., :-1].copy(), "labels": labels, "position_ids": positions.copy()}
    np.savez(path, **arrays)
    return arrays


def train(folder: Path, rows: Path, engines: list[dict[str, Any]], *, ranks: int, micro: int, weighting: str) -> None:
    folder.mkdir()
    spec = {"rows": str(rows), "output": str(folder), "engines": engines, "steps": STEPS}
    spec |= {"micro_batch_sequences": micro, "weighting": weighting}
    (folder / "spec.json").write_text(json.dumps(spec))
    worker = [str(REPO / "tests/trainer/training_worker.py"), str(folder / "spec.json")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *worker]
    done = subprocess.run(launcher, cwd=REPO, capture_output=True, text=True, timeout=600, env=_environment())
    assert done.returncode == 0, done.stderr[-3000:]


def _environment() -> dict[str, str]:
    import os

    paths = f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("equal")
    write_rows(folder / "rows.npz")
    rows = folder / "rows.npz"
    base = save_base(folder / "base")
    train(folder / "single", rows, over(base, SINGLE + SINGLE_TUNINGS), ranks=1, micro=4, weighting="targets")
    engines = over(base, RANKS_2 + NEOX + BF16 + TUNINGS + BF16_TUNINGS + POISONED)
    train(folder / "ranks", rows, engines, ranks=2, micro=2, weighting="targets")
    train(folder / "control", rows, [RANKS_2[0]], ranks=2, micro=2, weighting="rank_means")
    return folder


def save_base(folder: Path) -> Path:
    """A model to tune, wide enough that 4-bit blocks fill."""
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "max_positions": 64, "pad_vocab_to_multiple": 1}
    config = ModelConfig.model_validate(sizes)
    model: Any = make_model(config, vocabulary=VOCABULARY, kernel="sdpa", dtype=torch.float32, seed=1)
    model.save_pretrained(folder)
    return folder


def over(base: Path, engines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`engines` with the base's path filled in."""
    filled: list[dict[str, Any]] = json.loads(json.dumps(engines).replace("{base}", str(base)))
    return filled


def figures(file: Path) -> tuple[np.ndarray, np.ndarray]:
    told = json.loads(file.with_suffix(".json").read_text())
    return np.array(told["losses"]), np.array(told["norms"])


def largest_difference(one: Path, other: Path) -> tuple[float, float]:
    """Largest relative difference of the losses, and of the final weights relative to the largest weight."""
    losses, others = figures(one)[0], figures(other)[0]
    weights = safetensors.torch.load_file(one.with_suffix(".safetensors"))
    other_weights = safetensors.torch.load_file(other.with_suffix(".safetensors"))
    assert weights.keys() == other_weights.keys()
    scale = max(float(tensor.abs().max()) for tensor in weights.values())
    moved = max(float((weights[name] - other_weights[name]).abs().max()) for name in weights)
    return float(np.max(np.abs(losses - others) / losses)), moved / scale


def test_the_case_is_hard_enough(trainings: Path) -> None:
    arrays = dict(np.load(trainings / "rows.npz"))
    targets = (arrays["labels"] != -100).sum(-1).reshape(STEPS, ROWS // 2, 2).sum(-1)
    losses, norms = figures(trainings / "single" / "one-process")

    assert (targets.max(1) > 5 * targets.min(1)).all()
    assert (norms > 0.5).sum() >= STEPS // 2
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", [engine["name"] for engine in RANKS_2])
def test_an_update_does_not_depend_on_its_split_or_engine(trainings: Path, name: str) -> None:
    loss_difference, weight_difference = largest_difference(
        trainings / "single" / "one-process", trainings / "ranks" / name
    )

    # float32 sums in another order; Adam divides by the root of the second moment, which lifts them in the weights.
    assert loss_difference < 1e-5
    assert weight_difference < 1e-5


@pytest.mark.parametrize("name", [engine["name"] for engine in TUNINGS])
def test_an_adapters_update_does_not_depend_on_its_split_or_engine(trainings: Path, name: str) -> None:
    single = trainings / "single" / name.split("-")[0]

    loss_difference, weight_difference = largest_difference(single, trainings / "ranks" / name)

    assert loss_difference < 1e-5
    # B begins at zero, where Adam's first updates are the signs of the gradient: rounding shows more in few weights.
    assert weight_difference < 5e-5


@pytest.mark.parametrize(("name", "share"), [("qlora-ddp", 1), ("qlora-zero-2", 1), ("qlora-zero-3", 2)])
def test_each_rank_holds_its_share_of_a_4_bit_base_after_training(trainings: Path, name: str, share: int) -> None:
    told = json.loads((trainings / "ranks" / f"{name}.json").read_text())
    whole, loaded, _ = told["loaded"]

    # Two layers: four matrices of 64 x 64 and three of 64 x 256, two weights in a byte.
    assert whole == loaded == 2 * (4 * 64 * 64 + 3 * 64 * 256) // 2
    assert [here for _, here, _ in told["held"]] == [whole // share] * 2


def test_no_rank_ever_holds_all_of_a_new_model_under_zero_3(trainings: Path) -> None:
    whole, _ = json.loads((trainings / "single" / "one-process.json").read_text())["elements"][0]
    held = json.loads((trainings / "ranks" / "zero-3.json").read_text())["elements"]

    # Each of two ranks has half of each weight, the last slice padded.
    assert [here for here, _ in held] == [0, 0]
    assert all(whole <= 2 * sliced < whole + 64 for _, sliced in held)


def test_gpt_neox_trains_alike_too(trainings: Path) -> None:
    loss_difference, weight_difference = largest_difference(
        trainings / "single" / "one-process-neox", trainings / "ranks" / "zero-3-neox"
    )

    assert loss_difference < 1e-5
    # A key's bias moves all scores of a query alike, so softmax gives it a gradient of rounding noise, which Adam
    # divides by its own size: the weights agree less closely than the losses.
    assert weight_difference < 5e-5


def test_weighting_each_ranks_mean_alike_fails_the_same_test(trainings: Path) -> None:
    loss_difference, weight_difference = largest_difference(
        trainings / "single" / "one-process", trainings / "control" / "ddp"
    )

    assert loss_difference > 1e-5
    assert weight_difference > 1e-5


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_bf16_run_comes_near_the_fp32_one(trainings: Path, stage: int) -> None:
    name = f"zero-{stage}"
    loss_difference, weight_difference = largest_difference(
        trainings / "ranks" / name, trainings / "ranks" / f"{name}-bf16"
    )

    # bf16 keeps 8 bits: 2^-8 in a loss. Weights that were joined in a wrong order would differ by about 1.
    assert loss_difference < 4e-3
    assert weight_difference < 2e-2


@pytest.mark.parametrize("name", [engine["name"] for engine in BF16_TUNINGS])
def test_a_bf16_tuning_comes_near_the_fp32_one(trainings: Path, name: str) -> None:
    single = trainings / "single" / name.split("-")[0]

    loss_difference, _ = largest_difference(single, trainings / "ranks" / name)

    # bf16 keeps 8 bits, and a base that is packed out of bf16 is another one than out of fp32.
    assert loss_difference < 8e-3


@pytest.mark.parametrize("name", [engine["name"] for engine in REFUSING])
def test_law_8_a_step_that_is_not_finite_on_one_rank_touches_nothing(trainings: Path, name: str) -> None:
    sound, poisoned = trainings / "ranks" / name, trainings / "ranks" / f"{name}-poisoned"

    assert sound.with_suffix(".json").read_text() == poisoned.with_suffix(".json").read_text()
    assert largest_difference(sound, poisoned) == (0.0, 0.0)


def test_losses_and_weights_equal_hugging_faces_trainer(trainings: Path, tmp_path: Path) -> None:
    losses, weights = train_with_hugging_face(dict(np.load(trainings / "rows.npz")), tmp_path)

    ours, _ = figures(trainings / "single" / "one-process")
    our_weights = safetensors.torch.load_file(trainings / "single" / "one-process.safetensors")

    assert np.max(np.abs(ours - losses) / losses) < 1e-4
    scale = max(float(tensor.abs().max()) for tensor in weights.values())
    assert max(float((weights[name] - our_weights[name]).abs().max()) for name in our_weights) / scale < 1e-4


def train_with_hugging_face(arrays: dict[str, np.ndarray], folder: Path) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """The same rows, updates and schedule under transformers' Trainer; labels stay shifted as ours are."""
    from torch.nn import functional
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    from trainer.schedule import learning_rate

    config = tiny_config(SINGLE[0], steps=STEPS, rows=ROWS, micro_batch_sequences=4)
    model = make_model(config.model, vocabulary=VOCABULARY, kernel="sdpa", dtype=torch.float32, seed=3)
    model.config.use_cache = False
    optimizer = config.train.optimizer
    # Trainer counts a causal model's targets from the second label on: one column before ours makes its count ours.
    labels = np.pad(arrays["labels"], ((0, 0), (0, 0), (1, 0)), constant_values=-100)
    rows = [
        {name: torch.from_numpy(array[step, row]) for name, array in (arrays | {"labels": labels}).items()}
        for step in range(STEPS)
        for row in range(ROWS)
    ]

    def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        flat = outputs.logits.float().flatten(0, 1)
        return functional.cross_entropy(flat, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
            return SequentialSampler(rows)

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        learning_rate=config.train.schedule.peak_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_epsilon=optimizer.eps,
        max_grad_norm=config.train.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=rows,
        compute_loss_func=loss_of,
        data_collator=lambda items: {name: torch.stack([item[name] for item in items]) for name in items[0]},
    )
    trainer.create_optimizer()
    peak = config.train.schedule.peak_lr
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer,
        lambda step: learning_rate(config.train.schedule, step=min(step, STEPS - 1), max_steps=STEPS) / peak,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return np.array(losses), {name: tensor.detach() for name, tensor in model.named_parameters()}
