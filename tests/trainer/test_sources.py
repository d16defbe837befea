"""How long a run is where its length is told in epochs, and when it is evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data_pipeline.shards.example_folders import build, stage_of, write_examples, write_plain
from tests.trainer.tiny_run import make_shards, tiny_config
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.loop import evaluation_due
from trainer.ranks import Ranks
from trainer.sources import open_heldout, open_stream, sampled, with_steps

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
NUM_ROWS, NUM_HELDOUT = 100, 5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 labels to learn from, and 5 that are held out."""
    folder = tmp_path_factory.mktemp("labels")
    rows = [{"text_a": "가나"[: 1 + row % 2] + "a" * (row % 13), "label": "ab"[row % 2]} for row in range(105)]
    corpus = write_examples(folder / "c", "label", [rows], heldout=range(NUM_ROWS, NUM_ROWS + NUM_HELDOUT))
    build(stage_of(corpus, write_plain(folder / "t"), folder / "s"))
    return folder / "s"


def config_of(shards: Path, **sections: Any) -> TrainConfig:
    """A classifier's config without a cadence of evaluations."""
    plain = tiny_config(shards.parent, shards, stage="classify", model={"architecture": "bert"})
    tree = plain.model_dump(by_alias=True)
    tree |= {"evaluation": {}, "train": tree["train"] | {"schedule": {"warmup_steps": 0}}}
    for section, keys in sections.items():
        tree[section] = tree[section] | keys
    return TrainConfig.model_validate(tree)


def epochs_of(shards: Path, count: float, *, step: int, **sections: Any) -> TrainConfig:
    steps = {"max_steps": None, "num_epochs": count, "global_batch_sequences": step, **sections.pop("train", {})}
    return with_steps(config_of(shards, train=steps, **sections))


def evaluated(config: TrainConfig) -> list[int]:
    """The steps after which the run of `config` is evaluated."""
    stream, found = open_stream(config, ALONE), []
    for step in range(config.train.last_step + 1):
        if evaluation_due(config.evaluation, stream, step=step):
            found.append(step)
        stream.advance()
    return found


@pytest.mark.parametrize("step", [7, 33, 50, 64, 100])
def test_ten_epochs_are_evaluated_ten_times_each_after_the_step_that_ends_it(shards: Path, step: int) -> None:
    config = epochs_of(shards, 10, step=step)

    assert config.evaluation.every_epoch, "what a stage of examples does of itself"
    # Rounded up: the step in which the last row of the epoch stands.
    assert evaluated(config) == [-(-epoch * NUM_ROWS // step) for epoch in range(1, 11)]
    assert evaluated(config)[-1] == config.train.last_step


def test_steps_are_a_cadence_beside_epochs_and_either_can_be_had_alone(shards: Path) -> None:
    both = epochs_of(shards, 2, step=20, evaluation={"every_epoch": True, "every_steps": 4})
    steps = epochs_of(shards, 2, step=20, evaluation={"every_steps": 4})
    epochs = epochs_of(shards, 2, step=20, evaluation={"every_epoch": True, "at_start": True})

    assert [evaluated(config) for config in (both, steps, epochs)] == [[4, 5, 8, 10], [4, 8], [0, 5, 10]]


def test_what_is_no_example_is_evaluated_by_steps_and_on_a_part_where_nothing_is_said(tmp_path: Path) -> None:
    tree = tiny_config(tmp_path, make_shards(tmp_path / "s")).model_dump(by_alias=True)
    evaluation = TrainConfig.model_validate(tree | {"evaluation": {}}).evaluation

    assert (evaluation.every_steps, evaluation.every_epoch, evaluation.max_documents) == (500, False, 2000)


def test_examples_are_all_scored_where_nothing_else_is_said(shards: Path) -> None:
    few = config_of(shards, evaluation={"max_documents": 3})

    assert config_of(shards).evaluation.max_documents is None
    assert open_heldout(config_of(shards)).num_documents == NUM_HELDOUT
    assert open_heldout(few).num_documents == 3
    assert sampled(config_of(shards)) == []
    assert sampled(few) == ["evaluations score 3 of 5 held-out rows (evaluation.max_documents; null: 전부, all)"]


def test_a_resolved_cadence_resolves_to_itself(shards: Path) -> None:
    config = config_of(shards)

    assert TrainConfig.model_validate(config.model_dump(by_alias=True)) == config


@pytest.mark.parametrize(
    ("count", "step", "expected"), [(1, 50, 2), (1, 64, 2), (3, 64, 5), (0.5, 10, 5), (0.01, 64, 1)]
)
def test_epochs_are_rounded_up_to_whole_steps(shards: Path, count: float, step: int, expected: int) -> None:
    config = epochs_of(shards, count, step=step)

    assert (config.train.max_steps, config.train.num_epochs) == (expected, None)
    assert with_steps(config) is config


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            {"kind": "wsd", "warmup_steps": 3, "decay_steps": 8},
            r"warmup_steps 3 \+ decay_steps 8 leave nothing of the 10 steps that train.num_epochs 1 makes of 100 rows "
            r"in steps of 10; shorten them, such as train.schedule.warmup_steps=1",
        ),
        ({"warmup_steps": 1400}, r"warmup_steps 1,400 leave nothing of the 10 steps"),
        ({"warmup_steps": 10}, r"warmup_steps 10 leave nothing of the 10 steps"),
    ],
)
def test_a_schedule_that_the_epochs_have_no_room_for_is_refused(
    shards: Path, schedule: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=f"^train.schedule: {message}"):
        epochs_of(shards, 1, step=10, train={"schedule": schedule})


def test_a_schedule_that_fits_the_epochs_exactly_is_taken(shards: Path) -> None:
    schedule = {"kind": "wsd", "warmup_steps": 2, "decay_steps": 8}

    assert epochs_of(shards, 1, step=10, train={"schedule": schedule}).train.max_steps == 10
