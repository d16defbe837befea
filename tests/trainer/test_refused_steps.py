"""Law 8 on a whole run: refused updates are logged with their rows, and too many in a row end the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipeline.stream.rows import open_rows
from data_pipeline.stream.stream import Stream
from tests.trainer.tiny_run import lines_of, make_shards, tiny_config
from trainer import checkpoint
from trainer.errors import TrainingStopped
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group


def test_law_8_a_run_that_diverges_stops_with_its_last_sound_weights_saved(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    # A rate beyond float32: the first update makes every later loss infinite or NaN.
    train = {"schedule": {"warmup_steps": 0, "peak_lr": 1e32}, "max_steps": 40}
    config = tiny_config(tmp_path, shards, train=train, policy={"max_consecutive_skips": 3})
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))

    with pytest.raises(TrainingStopped, match="policy.max_consecutive_skips: 4 updates in a row were refused"):
        run_in_group(config, ranks, stop=StopFlag())

    events = [event for event in lines_of(tmp_path / "run/events.jsonl") if event["kind"] == "skipped_step"]
    assert [event["step"] for event in events] == [1, 2, 3, 4]
    assert [event["detail"]["row_ids"] for event in events] == rows_of_steps(shards, config.seed, [1, 2, 3, 4])
    newest = checkpoint.find_complete(tmp_path / "run/checkpoints")[0]
    assert checkpoint.step_of(newest) == 5
    assert checkpoint.read_state(newest)["stream"]["next_row"] == 50


def rows_of_steps(shards: Path, seed: int, steps: list[int]) -> list[list[int]]:
    rows = open_rows(shards, split="train", seq_len=32, packing="best_fit")
    stream = Stream(rows, seed=seed, global_batch_sequences=10)
    found = {}
    for step in range(max(steps) + 1):
        found[step] = stream.step_row_ids().tolist()
        stream.advance()
    return [found[step] for step in steps]
