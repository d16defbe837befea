"""The laws of data and training over every stage: the same test, called with each.

All is trained in two worker processes (one rank, two ranks): an import costs seconds, a tiny run less than one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils._pytree import tree_flatten

from data_pipeline.shards.format import FRAMED
from data_pipeline.stage import StageError
from data_pipeline.stream.batch import NO_ROW, NO_TARGET, Batch
from data_pipeline.stream.examples import ExampleRows
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
        for step, expected in evaluations(runs(name, "whole")).items():
            found = evaluations(runs(name, split))[step]
            assert found.keys() == expected.keys() and found["loss"] == pytest.approx(expected["loss"], rel=1e-4), split
            # Of some dozen rows: two neighbours that change places by a rounding move a correlation by less.
            assert found == pytest.approx(expected, rel=1e-2, abs=1e-2), (split, step)


def evaluations(run: Path) -> dict[int, dict[str, float]]:
    """By step, every figure; of a confusion matrix each cell."""
    found = {}
    for line in lines_of(run / "evaluations.jsonl"):
        cells = {
            f"{row}/{place}": count
            for row, of in enumerate(line.get("confusion", []))
            for place, count in enumerate(of)
        }
        kept = {key: value for key, value in line.items() if type(value) in (int, float) and key != "seconds"}
        found[line["step"]] = kept | cells
    return found


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
    saves = {"every_steps": 1, "keep_last": 40}
    sections = {"run": {"name": f"{name}-diverges"}, "policy": {"max_consecutive_skips": 3}, "checkpoint": saves}
    config = CASES[name].config(runs.folder, runs.world, train=train, **sections)

    with pytest.raises(TrainingStopped, match="policy.max_consecutive_skips: 4 updates in a row were refused"):
        run_in_group(config, ALONE, stop=StopFlag())

    folder = runs(name, "diverges")
    events = [event for event in lines_of(folder / "events.jsonl") if event["kind"] == "skipped_step"]
    first = events[0]["step"]
    assert [event["detail"]["row_ids"] for event in events] == rows_of(config, [event["step"] for event in events])
    newest = checkpoint.find_complete(folder / "checkpoints")[0]
    assert checkpoint.step_of(newest) == first + 4
    before = newest.with_name(checkpoint.step_name(first))
    assert_equal_tensors(before, newest)
    steps = [checkpoint.read_state(place)["progress"] for place in (before, newest)]
    assert [step["step"] - step["num_skipped"] for step in steps] == [first, first], "the schedule stands still too"
    learnt = {line["tokens"] for line in lines_of(folder / "metrics.jsonl") if line["step"] > first}
    assert len(learnt) == 1


def assert_equal_tensors(before: Path, after: Path) -> None:
    """The weights, and all else that the engine saved: an optimizer's moments."""
    weights = [safetensors.torch.load_file(place / "model.safetensors") for place in (before, after)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    moments = [torch.load(place / "optimizer.pt", weights_only=True) for place in (before, after)]
    flat = [tree_flatten(tree)[0] for tree in moments]
    tensors = [[leaf for leaf in leaves if isinstance(leaf, torch.Tensor)] for leaves in flat]
    assert len(tensors[0]) == len(tensors[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*tensors, strict=True))


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
    others |= dict.fromkeys(("prompt", "preference", "feedback"), runs.world.pair_shards)
    config = CASES[name].config(runs.folder, runs.world, run={"name": f"{name}-refused"})
    found = others[STAGES[config.stage].record]
    other = config.model_copy(update={"data": config.data.model_copy(update={"shards": str(found)})})

    with pytest.raises((RunError, StageError), match="trains on"):
        run_in_group(other, ALONE, stop=StopFlag())

    assert not list((runs.folder / f"{name}-refused" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if STAGES[case.stage].record in FRAMED])
def test_law_10_examples_that_are_too_long_are_refused_or_counted_and_no_padding_is_a_target(
    runs: Runs, name: str
) -> None:
    whole = CASES[name].config(runs.folder, runs.world, run={"name": f"{name}-long"})
    rows = open_stream(whole, ALONE).rows
    assert isinstance(rows, ExampleRows)
    short = int(np.median(rows.lengths))
    num_long = int((rows.lengths > short).sum())
    assert 0 < num_long < rows.num_rows
    data = {"seq_len": short}
    refused = CASES[name].config(runs.folder, runs.world, run={"name": f"{name}-long"}, data=data)
    with pytest.raises(
        StageError, match=f"{num_long:,} of {rows.num_rows:,} examples of split 'train' are longer than"
    ):
        run_in_group(refused, ALONE, stop=StopFlag())
    assert not list((runs.folder / f"{name}-long" / "checkpoints").glob("step-*"))

    kept = CASES[name].config(runs.folder, runs.world, data=data | {"too_long": "drop"})
    stream = open_stream(kept, ALONE)
    assert stream.rows.counts.num_documents_too_long == num_long
    of_ranks = [
        batch for rank in range(3) for batch in stream.batches(dp_rank=rank, dp_world_size=3, micro_batch_sequences=3)
    ]
    assert sum(batch.num_targets for batch in of_ranks) == kept.train.global_batch_sequences
    assert any((batch.row_ids == NO_ROW).any() for batch in of_ranks), "a rank without a row at some micro-step"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if STAGES[case.stage].rows == "framed"])
def test_law_10_no_padding_of_masked_rows_is_a_target(runs: Runs, name: str) -> None:
    config = CASES[name].config(runs.folder, runs.world)
    stream = open_stream(config, ALONE)
    stream.rows.pad_with(1)

    batches = stream.batches(dp_rank=0, dp_world_size=1, micro_batch_sequences=10)

    assert all(isinstance(batch, Batch) for batch in batches)
    assert any((batch.input_ids == 1).any() for batch in batches)
    assert not any((batch.labels[batch.input_ids == 1] != NO_TARGET).any() for batch in batches)
