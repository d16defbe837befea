"""Where the batches of a run come from: the rows of its stage, their stream, and the held-out ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import read_shards, read_shards_manifest
from data_pipeline.stream.evaluation import EvaluationSet
from data_pipeline.stream.examples import ExampleRows, ExampleSet
from data_pipeline.stream.rows import open_rows
from data_pipeline.stream.stream import RowSource, Stream
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.evaluate import HeldOut
from trainer.ranks import Ranks
from trainer.stages import STAGES, Stage


def check_stage(stage: Stage, shards: Path) -> None:
    """Refuse shards of other records than the stage trains on."""
    found = read_shards_manifest(shards).get("record", "document")
    if found == STAGES[stage].record:
        return
    right = [name for name, kind in STAGES.items() if kind.record == found]
    advice = f"set stage to {' or '.join(map(repr, right))}, or give" if right else "give"
    raise RunError(
        f"stage: {stage!r} trains on {STAGES[stage].record!r} records, but {shards} holds {found!r} records; {advice} "
        f"shards of {STAGES[stage].record!r} records"
    )


def open_source(config: TrainConfig, *, build: bool) -> RowSource:
    """The training rows of the stage; makes their table where it is missing and `build` is true."""
    data = config.data
    shards, form = Path(data.shards), STAGES[config.stage].rows
    if form == "examples":
        return ExampleRows(read_shards(shards, split="train"), seq_len=data.seq_len, too_long=data.too_long)
    if form == "framed":
        from data_pipeline.stream.framed import open_framed_rows

        return open_framed_rows(shards, split="train", seq_len=data.seq_len, build=build)
    return open_rows(
        shards, split="train", seq_len=data.seq_len, packing=data.packing, too_long=data.too_long, build=build
    )


def open_stream(config: TrainConfig, ranks: Ranks) -> Stream:
    """The training rows in their global order; rank 0 builds the row table where it is missing."""
    ranks.on_main(lambda: open_source(config, build=True).num_rows)
    rows = ranks.together(lambda: open_source(config, build=False))
    is_grouped = isinstance(rows, ExampleRows) and config.data.group_by_length
    return Stream(
        rows,
        seed=config.seed,
        global_batch_sequences=config.train.global_batch_sequences,
        lengths=np.asarray(rows.lengths) if is_grouped and isinstance(rows, ExampleRows) else None,
    )


def open_heldout(config: TrainConfig, *, documents: NDArray[np.int64] | None = None) -> HeldOut:
    """The rows that the run is evaluated on, or those of `documents`, ascending numbers in the split.

    Raises:
        NothingToScoreError: none of them has a target that fits.
    """
    shards, form = Path(config.data.shards), STAGES[config.stage].rows
    seq_len, count = config.data.seq_len, config.evaluation.max_documents
    if form == "examples":
        return ExampleSet(shards, split="heldout", seq_len=seq_len, max_documents=count, documents=documents)
    if form == "framed":
        from data_pipeline.stream.framed import FramedSet

        return FramedSet(shards, split="heldout", seq_len=seq_len, max_documents=count, documents=documents)
    return EvaluationSet(shards, split="heldout", seq_len=seq_len, max_documents=count, documents=documents)


def sampled(config: TrainConfig) -> list[str]:
    """A line where evaluations score a part of what is held out."""
    most, of_all = config.evaluation.max_documents, read_shards(Path(config.data.shards), split="heldout").num_documents
    if most is None or most >= of_all:
        return []
    return [f"evaluations score {most:,} of {of_all:,} held-out rows (evaluation.max_documents; null: 전부, all)"]


def with_steps(config: TrainConfig) -> TrainConfig:
    """`config` with the length of its run in steps, where it is told by `train.num_epochs`.

    Raises:
        RunError, StageError: the shards are not those of the stage, hold no row, or make fewer steps than the schedule
            needs.
    """
    train, schedule = config.train, config.train.schedule
    if train.num_epochs is None:
        return config
    check_stage(config.stage, Path(config.data.shards))
    num_rows = open_source(config, build=True).num_rows
    steps = max(1, math.ceil(train.num_epochs * num_rows / train.global_batch_sequences))
    # Of one step the warm-up is all there is.
    if schedule.num_fixed_steps > steps or schedule.warmup_steps >= steps > 1:
        decay = f" + decay_steps {schedule.decay_steps:,}" if schedule.kind == "wsd" else ""
        raise RunError(
            f"train.schedule: warmup_steps {schedule.warmup_steps:,}{decay} leave nothing of the {steps:,} steps that "
            f"train.num_epochs {train.num_epochs:g} makes of {num_rows:,} rows in steps of "
            f"{train.global_batch_sequences:,}; shorten them, such as train.schedule.warmup_steps={steps // 10}"
        )
    return config.model_copy(update={"train": train.model_copy(update={"max_steps": steps, "num_epochs": None})})
