"""The laws of data and training over every stage: the same test, called with each.

All is trained in two worker processes (one rank, two ranks): an import costs seconds, a tiny run less than one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.stage import StageError
from tests.trainer.small_world import SmallWorld
from tests.trainer.stage_cases import CASES
from tests.trainer.test_resume import DONE, ENGINES, STOPPED, began, signal_at, work
from tests.trainer.tiny_run import lines_of, losses_of, write_config
from trainer import checkpoint
from trainer.config import TrainConfig
from trainer.errors import RunError, TrainingStopped
from trainer.ledger import read_ledger
from trainer.ranks import Ranks
from trainer.resilience import StopFlag
from trainer.run import run_in_group
from trainer.sources import open_stream
from trainer.stages import STAGES

pytestmark = pytest.mark.stages

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
LEDGER = {"logging": {"every_steps": 1, "tensorboard": False, "progress_bar": False, "ledger": True}}
# By name: ranks, engine and rows of a micro-batch. Ten rows of a step are ragged in micro-batches of four.
SPLITS: dict[str, tuple[int, str, int]] = {
    "whole": (1, "none", 10),
    "micro": (1, "none", 4),
    "ddp": (2, "none", 2),
    "zero-2": (2, "zero-2", 3),
    "zero-3": (2, "zero-3", 2),
}


class Runs:
    """A run of each stage under each split, and once more stopped twice on two ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world = SmallWorld(folder)
        for ranks in (1, 2):
            plan: list[dict[str, Any]] = []
            for name in CASES:
                for split, (its_ranks, engine, micro) in SPLITS.items():
                    if its_ranks == ranks:
                        plan.append({"config": self._write(name, split, engine=engine, micro=micro)})
                if ranks == 2:
                    path = self._write(name, "parts", engine="zero-2", micro=3)
                    stops = [signal_at("step", 4, rank=1), signal_at("step", 3, name="SIGUSR1")]
                    plan += [*({"config": path, "signal": stop} for stop in stops), {"config": path}]
            outcomes = work(folder, plan, ranks=ranks)
            assert [outcome["code"] for outcome in outcomes] == [STOPPED if "signal" in step else DONE for step in plan]

    def _write(self, name: str, split: str, *, engine: str, micro: int) -> str:
        sections = {"run": {"name": f"{name}-{split}"}, "engine": ENGINES[engine], **LEDGER}
        train = {"micro_batch_sequences": micro}
        config = CASES[name].config(self.folder, self.world, train=train, **sections)
        return str(write_config(self.folder / f"{name}-{split}.yaml", config))

    def __call__(self, name: str, split: str) -> Path:
        return self.folder / f"{name}-{split}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize("name", CASES)
def test_law_2_every_split_of_a_step_trains_on_the_same_rows(runs: Runs, name: str) -> None:
    reference = read_ledger(runs(name, "whole"))

    assert list(reference) == list(range(1, 13))
    assert all(len(rows) == 10 for rows in reference.values())
    for split in SPLITS:
        assert read_ledger(runs(name, split)) == reference, split


@pytest.mark.parametrize("name", CASES)
def test_law_6_an_update_does_not_depend_on_its_split(runs: Runs, name: str) -> None:
    reference = losses_of(runs(name, "whole"))

    assert len(set(reference.values())) == 12
    for split in SPLITS:
        assert losses_of(runs(name, split)) == pytest.approx(reference, rel=1e-5, abs=1e-6), split
        assert evaluations(runs(name, split)) == pytest.approx(evaluations(runs(name, "whole")), rel=1e-4), split


def evaluations(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines_of(run / "evaluations.jsonl")}


@pytest.mark.parametrize("name", CASES)
def test_law_7_two_stops_and_resumes_are_invisible_to_the_bit(runs: Runs, name: str) -> None:
    whole, parts = runs(name, "zero-2"), runs(name, "parts")

    assert began(parts) == [0, 5, 9]
    assert losses_of(parts) == losses_of(whole)
    assert read_ledger(parts) == read_ledger(whole)
    assert figures(parts) == figures(whole)
    ends = [checkpoint.read_state(run / "checkpoints/step-00000012") for run in (parts, whole)]
    assert ends[0]["progress"] == ends[1]["progress"] and ends[0]["stream"] == ends[1]["stream"]


def figures(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key != "seconds"} for line in lines_of(run / "evaluations.jsonl")
    ]


@pytest.mark.parametrize("name", CASES)
def test_law_8_a_run_that_diverges_stops_with_its_last_sound_weights_saved(runs: Runs, name: str) -> None:
    train = {"schedule": {"warmup_steps": 0, "peak_lr": 1e32}, "max_steps": 40}
    sections = {"run": {"name": f"{name}-diverges"}, "policy": {"max_consecutive_skips": 3}}
    config = CASES[name].config(runs.folder, runs.world, train=train, **sections)

    with pytest.raises(TrainingStopped, match="policy.max_consecutive_skips: 4 updates in a row were refused"):
        run_in_group(config, ALONE, stop=StopFlag())

    folder = runs(name, "diverges")
    events = [event for event in lines_of(folder / "events.jsonl") if event["kind"] == "skipped_step"]
    first = events[0]["step"]
    assert [event["detail"]["row_ids"] for event in events] == rows_of(config, [event["step"] for event in events])
    newest = checkpoint.find_complete(folder / "checkpoints")[0]
    assert checkpoint.step_of(newest) == first + 4
    learnt = {line["tokens"] for line in lines_of(folder / "metrics.jsonl") if line["step"] > first}
    assert len(learnt) == 1


def rows_of(config: TrainConfig, steps: list[int]) -> list[list[int]]:
    stream = open_stream(config, ALONE)
    found = {}
    for step in range(max(steps) + 1):
        found[step] = stream.step_row_ids().tolist()
        stream.advance()
    return [found[step] for step in steps]


@pytest.mark.parametrize("name", CASES)
def test_law_9_a_flipped_byte_sends_a_run_back_to_its_last_complete_step(runs: Runs, name: str) -> None:
    config = CASES[name].config(runs.folder, runs.world, run={"name": f"{name}-flipped"})
    assert run_in_group(config, ALONE, stop=StopFlag()) == DONE
    folder = runs(name, "flipped")
    losses = losses_of(folder)
    newest = checkpoint.find_complete(folder / "checkpoints")[0]
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)

    assert run_in_group(config, ALONE, stop=StopFlag()) == DONE

    assert began(folder) == [0, 8]
    assert losses_of(folder) == losses


@pytest.mark.parametrize("name", CASES)
def test_law_10_rows_of_another_stage_are_refused(runs: Runs, name: str) -> None:
    others = {"document": runs.world.pair_shards, "label": runs.world.shards, "pair": runs.world.review_shards}
    config = CASES[name].config(runs.folder, runs.world, run={"name": f"{name}-refused"})
    found = others[STAGES[config.stage].record]
    other = config.model_copy(update={"data": config.data.model_copy(update={"shards": str(found)})})

    with pytest.raises((RunError, StageError), match="trains on"):
        run_in_group(other, ALONE, stop=StopFlag())

    assert not list((runs.folder / f"{name}-refused" / "checkpoints").glob("step-*"))
