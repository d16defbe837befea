"""Which pairs and triplets a loss of sentence embeddings can learn from, and what is refused, by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.format import read_shards
from data_pipeline.stream.examples import ExampleRows
from trainer.errors import RunError
from trainer.stage_configs import EmbedConfig

MAX_LENGTH = 1 << 30  # ids of a sequence: any
MAX_NAMED = 3  # faulty rows that are named


def for_shards(config: EmbedConfig, shards: Path) -> EmbedConfig:
    """`config` with the loss that the held-out rows of `shards` are scored by: of another form than those of training,
    scores are told by their correlation and pairs by recall, whatever the model learnt from."""
    rows = ExampleRows(read_shards(shards, split="heldout"), seq_len=MAX_LENGTH, too_long="drop")
    scores = rows.values()
    if np.isnan(scores).all():
        is_fitting = config.loss == "in_batch" or (config.loss == "triplet" and rows.shards.num_sequences == 3)
        return config if is_fitting else config.model_copy(update={"loss": "in_batch"})
    if config.loss == "cosine":
        return config
    largest = float(np.nanmax(np.abs(scores))) or 1.0
    return config.model_copy(update={"loss": "cosine", "max_score": largest})


def check_sequences(config: EmbedConfig, *, num_sequences: int, folder: Path) -> None:
    """Refuse examples of another number of texts than the loss is of."""
    wanted = {"in_batch": (2, 3), "cosine": (2,), "triplet": (3,)}[config.loss]
    if num_sequences not in wanted:
        others = {2: "in_batch or, where they have scores, cosine", 3: "in_batch or triplet"}
        raise RunError(
            f"embed.loss: {config.loss!r} takes examples of {' or '.join(map(str, wanted))} texts, but those of "
            f"{folder} have {num_sequences}; set embed.loss={others[num_sequences]}, or give other shards"
        )


def check_splits(rows: ExampleRows, config: EmbedConfig) -> None:
    """`check_scores` of the training rows and of what is held out beside them."""
    heldout = read_shards(rows.shards.folder, split="heldout")
    for found in (rows, ExampleRows(heldout, seq_len=rows.seq_len, too_long="drop")):
        check_scores(found, config)


def check_scores(rows: ExampleRows, config: EmbedConfig, *, may_lack: bool = False) -> None:
    """Refuse rows without a score or with one out of range where scores are learnt, and with one where they are not.

    `may_lack`: rows without one are left out where they are only scored.
    """
    scores = rows.values()
    where = f"{rows.shards.folder}, {rows.shards.split}"
    has_score = ~np.isnan(scores)
    if config.loss != "cosine":
        if has_score.any():
            raise RunError(
                f"embed.loss: {config.loss!r} takes every pair as two texts that belong together, but {where} has "
                f"scores ({_named(rows, has_score)}); set embed.loss=cosine, or build the corpus without its score "
                "column"
            )
        return
    if not has_score.all() and not may_lack:
        raise RunError(
            f"embed.loss: 'cosine' fits the cosine to a score, but of {where} {int((~has_score).sum()):,} of "
            f"{len(scores):,} rows have none ({_named(rows, ~has_score)}); name the column in the corpus's config "
            "(columns: {score: …}), or set embed.loss=in_batch"
        )
    is_out = np.abs(scores) > config.max_score
    if is_out.any():
        raise RunError(
            f"embed.max_score: scores are divided by {config.max_score:g} and must then be a cosine, from -1 to 1, but "
            f"of {where} {int(is_out.sum()):,} of {len(scores):,} are not ({_named(rows, is_out)}); set it to the "
            f"scale's end, such as embed.max_score={np.ceil(np.nanmax(np.abs(scores))):g} (점수의 최댓값)"
        )


def _named(rows: ExampleRows, are_meant: NDArray[np.bool_]) -> str:
    """The first of those rows: number, id and score."""
    numbers, scores = np.flatnonzero(are_meant), rows.values()
    told = [
        f"row {number} ({rows.record_id(number)})" + ("" if np.isnan(scores[number]) else f": {scores[number]:g}")
        for number in numbers[:MAX_NAMED].tolist()
    ]
    return ", ".join(told) + (", …" if len(numbers) > MAX_NAMED else "")
