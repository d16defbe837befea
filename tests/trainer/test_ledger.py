"""The ledger says which rows were trained on, on any number of ranks, and never twice after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.stream.rows import open_rows
from data_pipeline.stream.stream import Stream
from tests.trainer.tiny_run import make_shards
from trainer.ledger import Ledger, read_ledger, rewind_ledger, rows_by_epoch

GLOBAL_BATCH = 10


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("ledger") / "shards", num_documents=40, num_heldout=2)


def stream_over(shards: Path) -> Stream:
    rows = open_rows(shards, split="train", seq_len=32, packing="best_fit", too_long="refuse", build=True)
    return Stream(rows, seed=3, global_batch_sequences=GLOBAL_BATCH)


def train(run: Path, stream: Stream, *, steps: range, ranks: int, micro_batch_sequences: int = 3) -> None:
    """Note the rows of `steps` as the ranks of a run would; the stream stands at the first."""
    share = {"micro_batch_sequences": micro_batch_sequences}
    ledgers = [Ledger(run, rank=rank, world_size=ranks, **share) for rank in range(ranks)]
    for step in steps:
        for rank, ledger in enumerate(ledgers):
            batches = stream.batches(dp_rank=rank, dp_world_size=ranks, **share)
            ledger.add(batches, stream=stream, step=step)
        stream.advance()


def expected(shards: Path, *, steps: int) -> dict[int, list[int]]:
    stream, found = stream_over(shards), {}
    for step in range(1, steps + 1):
        found[step] = sorted(stream.step_row_ids().tolist())
        stream.advance()
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_ledger_of_any_ranks_is_the_global_order(shards: Path, tmp_path: Path, ranks: int) -> None:
    train(tmp_path, stream_over(shards), steps=range(1, 6), ranks=ranks)

    assert read_ledger(tmp_path) == expected(shards, steps=5)


def test_each_row_stands_once_an_epoch_though_a_step_lies_over_its_end(shards: Path, tmp_path: Path) -> None:
    stream = stream_over(shards)
    num_rows = stream.rows.num_rows
    assert num_rows % GLOBAL_BATCH, "a step must lie over the end of the first epoch"

    train(tmp_path, stream, steps=range(1, 2 * num_rows // GLOBAL_BATCH + 2), ranks=2)

    epochs = rows_by_epoch(tmp_path)
    assert epochs[0] == epochs[1] == np.arange(num_rows).tolist()


def test_a_resume_on_fewer_ranks_forgets_the_later_rows_of_every_file(shards: Path, tmp_path: Path) -> None:
    stream = stream_over(shards)
    train(tmp_path, stream, steps=range(1, 7), ranks=4)
    with (tmp_path / "ledger/rank-00003.jsonl").open("a") as file:
        file.write('{"step": 7, "epo')  # a kill tore it

    for rank in range(2):
        rewind_ledger(tmp_path, step=4, rank=rank, world_size=2)

    assert list(read_ledger(tmp_path)) == [1, 2, 3, 4]
    resumed = stream_over(shards)
    resumed.load_state_dict(resumed.state_dict() | {"next_row": 4 * GLOBAL_BATCH})
    train(tmp_path, resumed, steps=range(5, 9), ranks=2)
    assert read_ledger(tmp_path) == expected(shards, steps=8)


def test_a_line_is_what_one_rank_read_in_one_step(shards: Path, tmp_path: Path) -> None:
    stream = stream_over(shards)
    first = stream.batches(dp_rank=1, dp_world_size=2, micro_batch_sequences=3)

    train(tmp_path, stream, steps=range(1, 2), ranks=2)

    (line,) = (tmp_path / "ledger/rank-00001.jsonl").read_text().splitlines()
    rows = [row for batch in first for row in batch.row_ids.tolist()]
    assert json.loads(line) == {"step": 1, "epoch": 0, "rows": rows}
