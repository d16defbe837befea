"""Law 8 on a whole run: refused updates are logged with their rows, and too many in a row end the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipeline.stream.rows import open_rows
from data_pipeline.stream.stream import Stream
from tests.trainer.small_world import SmallWorld
from tests.trainer.tiny_run import lines_of, make_shards, tiny_config
from tests.trainer.tiny_sft import TUNINGS, make_base, sft_config
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.errors import TrainingStopped
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group

# A rate beyond float32: the first update makes every later loss infinite or NaN.
DIVERGES = {"schedule": {"warmup_steps": 0, "peak_lr": 1e32}, "max_steps": 40}


def test_law_8_a_run_that_diverges_stops_with_its_last_sound_weights_saved(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    config = tiny_config(tmp_path, shards, train=DIVERGES, policy={"max_consecutive_skips": 3})
    check_that_it_stops(config)


@pytest.mark.stages
@pytest.mark.parametrize("tuning", TUNINGS)
def test_law_8_a_tuning_that_diverges_stops_with_its_last_sound_weights_saved(tmp_path: Path, tuning: str) -> None:
    world = SmallWorld(tmp_path)
    train = DIVERGES | {"optimizer": {"kind": "paged_adamw_8bit" if tuning == "qlora" else "adamw"}}
    policy = {"max_consecutive_skips": 3}
    config = sft_config(tmp_path, world, make_base(world), tuning, train=train, policy=policy)
    check_that_it_stops(config)


def check_that_it_stops(config: TrainConfig) -> None:
    """The run ends after the four refused updates that follow its first one."""
    folder = Path(config.run.folder) / config.run.name
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))

    with pytest.raises(TrainingStopped, match="policy.max_consecutive_skips: 4 updates in a row were refused"):
        run_in_group(config, ranks, stop=StopFlag())

    events = [event for event in lines_of(folder / "events.jsonl") if event["kind"] == "skipped_step"]
    assert [event["step"] for event in events] == [1, 2, 3, 4]
    assert [event["detail"]["row_ids"] for event in events] == rows_of_steps(config, [1, 2, 3, 4])
    lines = lines_of(folder / "metrics.jsonl")
    # The schedule waits at the update that is refused, and nothing was learnt from its rows.
    assert lines[0]["lr"] > lines[1]["lr"]
    assert len({(line["lr"], line["tokens"]) for line in lines[1:]} | {(lines[1]["lr"], lines[0]["tokens"])}) == 1
    newest = checkpoint.find_complete(folder / "checkpoints")[0]
    assert checkpoint.step_of(newest) == 5
    assert checkpoint.read_state(newest)["stream"]["next_row"] == 50


def rows_of_steps(config: TrainConfig, steps: list[int]) -> list[list[int]]:
    rows = open_rows(Path(config.data.shards), split="train", seq_len=config.data.seq_len, packing="best_fit")
    stream = Stream(rows, seed=config.seed, global_batch_sequences=10)
    found = {}
    for step in range(max(steps) + 1):
        found[step] = stream.step_row_ids().tolist()
        stream.advance()
    return [found[step] for step in steps]
