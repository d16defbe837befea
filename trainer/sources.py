"""Where the batches of a run come from: the rows of its stage, their stream, and the held-out ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

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


def open_heldout(config: TrainConfig) -> HeldOut:
    """The rows that the run is evaluated on."""
    shards, form = Path(config.data.shards), STAGES[config.stage].rows
    seq_len, count = config.data.seq_len, config.evaluation.max_documents
    if form == "examples":
        return ExampleSet(shards, split="heldout", seq_len=seq_len, max_documents=count)
    if form == "framed":
        from data_pipeline.stream.framed import FramedSet

        return FramedSet(shards, split="heldout", seq_len=seq_len, max_documents=count)
    return EvaluationSet(shards, split="heldout", seq_len=seq_len, max_documents=count)


def with_steps(config: TrainConfig) -> TrainConfig:
    """`config` with its epochs counted in steps: `train.num_epochs`, and `evaluation.every_epoch`.

    Raises:
        RunError, StageError: the shards are not those of the stage, or hold no row.
    """
    train, evaluation = config.train, config.evaluation
    if train.num_epochs is None and not evaluation.every_epoch:
        return config
    check_stage(config.stage, Path(config.data.shards))
    of_epoch = open_source(config, build=True).num_rows / train.global_batch_sequences
    if train.num_epochs is not None:
        steps = max(1, math.ceil(train.num_epochs * of_epoch))
        train = train.model_copy(update={"max_steps": steps, "num_epochs": None})
    if evaluation.every_epoch:
        evaluation = evaluation.model_copy(update={"every_steps": max(1, math.ceil(of_epoch))})
    return config.model_copy(update={"train": train, "evaluation": evaluation})
