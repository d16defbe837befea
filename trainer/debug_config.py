"""What `--debug` makes of a run's config: one device, no engine, few steps, a small model, its own folder.

Pure; needs no torch. The rows stay those of the real run: `data` is never changed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from data_pipeline import disk
from data_pipeline.config import Config, Tree, to_tree, validate
from trainer.errors import RunError
from trainer.new_rows_config import short_phases

if TYPE_CHECKING:
    from trainer.config import TrainConfig

DEBUG_SUFFIX = "-debug"
RESULT_NAME = "debug.json"
# A base with random weights guesses: ln V is above any limit that real weights must keep.
ANY_LOSS = 1e6
# Of a step in which they are each other's negatives; a micro-batch is half of it.
IN_BATCH_ROWS = 8


class DebugConfig(Config):
    """How small a try is. Sizes are upper limits: a model that is smaller already stays as it is."""

    max_steps: int = Field(default=8, ge=2)
    global_batch_sequences: int = Field(default=2, ge=1)
    micro_batch_sequences: int = Field(default=1, ge=1)
    shrink: bool = True
    """False: the real model, its real weights."""
    hidden_size: int = Field(default=64, ge=8)
    num_layers: int = Field(default=2, ge=1)
    num_heads: int = Field(default=2, ge=1)
    overfit_steps: int = Field(default=150, ge=2)
    """The most updates on one batch. Its loss must fall below `overfit_share` of the first, and of what guessing
    by its own token frequencies gives."""
    overfit_tokens: int = Field(default=256, ge=8)
    """A longer document is cut to so many."""
    overfit_lr: float = Field(default=1e-2, gt=0)
    """The last update's; the first one takes a tenth of it."""
    overfit_share: float = Field(default=0.6, gt=0, lt=1)
    num_shown: int = Field(default=2, ge=0)
    """Rows of the first batch that are printed."""
    max_documents: int = Field(default=4, ge=1)
    """Of the evaluation at the end."""
    profile_steps: int = Field(default=3, ge=1)


def debug_folder(config: TrainConfig) -> Path:
    """Where a debug run of `config` goes; beside the run, never in it."""
    return Path(config.run.folder) / f"{config.run.name}{DEBUG_SUFFIX}"


def as_debug(config: TrainConfig, *, on_cpu: bool = False) -> TrainConfig:
    """`config` as a debug run carries it out: beside the run, with few steps, no engine, and a small new model.

    `on_cpu`: in float32, which a CPU multiplies many times faster than bf16.
    """
    from trainer.config import TrainConfig

    debug = config.debug
    tree = to_tree(config)
    tree["run"] |= {"name": debug_folder(config).name, "expected_ranks": None}
    tree["engine"] = {"kind": "none"}
    tree["train"] |= _steps(config)
    if debug.shrink and config.model.source is None:
        tree["model"] |= _sizes(config)
    if debug.shrink and config.model.source is not None:
        tree["gate"]["max_first_loss"] = ANY_LOSS
    if on_cpu:
        tree["train"]["precision"] = "fp32"
        if config.model.quantization is not None:
            tree["model"]["quantization"]["compute_dtype"] = "fp32"
    steps = tree["train"]["max_steps"]
    if config.new_rows is not None:
        phases = short_phases(config.new_rows.phases, steps=steps, schedule=config.train.schedule)
        tree["new_rows"]["phases"] = [to_tree(phase) for phase in phases]
    tree["checkpoint"] = {"every_steps": steps, "keep_last": 1, "keep_best": False}
    tree["policy"] |= {"refuse_spikes": False}
    tree["logging"] |= {"every_steps": 1, "tensorboard": False, "progress_bar": False}
    _shorten_evaluation(tree, config, steps=steps)
    return validate(tree, TrainConfig, where="--debug")


def _steps(config: TrainConfig) -> Tree:
    """Few and small steps, in which the schedule still reaches its peak."""
    debug, real = config.debug, config.train
    steps = min(debug.max_steps, real.max_steps or debug.max_steps)
    # Where the rows of a step are each other's negatives, one alone has no loss.
    least = IN_BATCH_ROWS if config.embed is not None and config.embed.loss == "in_batch" else 1
    rows = min(max(debug.global_batch_sequences, least), real.global_batch_sequences)
    micro = max(debug.micro_batch_sequences, least // 2)
    schedule = to_tree(real.schedule)
    schedule["warmup_steps"] = min(real.schedule.warmup_steps, steps // 4)
    schedule["decay_steps"] = min(real.schedule.decay_steps, steps // 4)
    return {
        "max_steps": steps,
        "num_epochs": None,
        "global_batch_sequences": rows,
        "micro_batch_sequences": min(micro, real.micro_batch_sequences, rows),
        "schedule": schedule,
    }


def _sizes(config: TrainConfig) -> Tree:
    """A new model of the same architecture, with the same share of key-value heads."""
    debug, model = config.debug, config.model
    heads = math.gcd(min(debug.num_heads, model.num_heads), model.num_heads)
    hidden = min(debug.hidden_size, model.hidden_size) // (2 * heads) * (2 * heads)  # rotary: an even width a head
    sizes: dict[str, Any] = {
        "hidden_size": max(hidden, 2 * heads),
        "num_layers": min(debug.num_layers, model.num_layers),
        "num_heads": heads,
    }
    if model.num_key_value_heads is not None:
        groups = model.num_heads // model.num_key_value_heads
        sizes["num_key_value_heads"] = max(1, heads // groups) if heads % groups == 0 else 1
    if model.intermediate_size is not None:
        sizes["intermediate_size"] = min(model.intermediate_size, 4 * sizes["hidden_size"])
    return sizes


def _shorten_evaluation(tree: Tree, config: TrainConfig, *, steps: int) -> None:
    """One evaluation, at the end, that goes through all of its parts."""
    real, rows = config.evaluation, tree["train"]["micro_batch_sequences"]
    tree["evaluation"] |= {
        "every_steps": steps,
        "every_epoch": False,
        "at_start": False,
        "max_documents": min(real.max_documents or config.debug.max_documents, config.debug.max_documents),
        "micro_batch_sequences": rows,
    }
    tree["evaluation"]["answers"] |= {
        "num_rows": min(real.answers.num_rows, 2),
        "num_shown": min(real.answers.num_shown, 2),
        "max_new_tokens": min(real.answers.max_new_tokens, 16),
        "micro_batch_sequences": min(real.answers.micro_batch_sequences, 2),
    }


def begin_anew(folder: Path) -> None:
    """Make `folder` empty but for the mark of a debug run: each try starts at step 0.

    Raises:
        RunError: it holds something that no debug run made, or another process works there.
    """
    from trainer.run_lock import LOCK_NAME, held

    mark = folder / RESULT_NAME
    if folder.exists() and any(folder.iterdir()) and not mark.is_file():
        raise RunError(
            f"{folder}: holds no {RESULT_NAME}, so it is not what an earlier `--debug` left, and is not overwritten; "
            "move it away, or give another run.name"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        for path in list(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                disk.remove_tree(path)
            elif not path.name.startswith(LOCK_NAME) and path != mark:
                path.unlink()
        disk.write_json(mark, {"status": "begun"})
