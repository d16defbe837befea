"""What is checked before a run starts: the tokenizer of a model that is continued, and the engine of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from data_pipeline.stage import StageError
from tests.trainer.tiny_run import make_shards, tiny_config
from trainer.errors import RunError
from trainer.ranks import Ranks
from trainer.setup import Progress, check_engine, check_source_tokenizer, reshaping

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def test_shards_of_another_tokenizer_than_the_models_are_refused_with_both_fingerprints(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    (tmp_path / "model").mkdir()
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "model/tokenizer.json"))
    config = tiny_config(tmp_path, shards, model={"from": str(tmp_path / "model")})

    with pytest.raises(StageError, match=r"ffffffff.*[0-9a-f]{8}"):
        check_source_tokenizer(config, ALONE)


def test_a_model_without_a_tokenizer_is_said_to_be_unchecked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    config = tiny_config(tmp_path, make_shards(tmp_path / "shards"), model={"from": str(tmp_path / "model")})

    check_source_tokenizer(config, ALONE)

    assert "brings no tokenizer.json, so that nothing shows whether the shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("saved", "ours", "message"),
    [
        ({"kind": "none"}, {"kind": "deepspeed"}, "engine.kind was 'none' at the save, this start has 'deepspeed'"),
        ({"kind": "deepspeed"}, {"kind": "none"}, "engine.kind was 'deepspeed' at the save, this start has 'none'"),
        (
            {"kind": "deepspeed"},
            {"kind": "deepspeed"},
            "no pieces/ in it, but DeepSpeed's own files, of an older version",
        ),
    ],
)
def test_a_checkpoint_of_another_engine_is_refused_with_both_values(
    saved: dict[str, object], ours: dict[str, object], message: str
) -> None:
    with pytest.raises(RunError) as refusal:
        check_engine(saved, ours, folder=Path("step-00000004"))

    assert message in str(refusal.value)


def test_plain_weights_fit_any_number_of_ranks() -> None:
    check_engine({"kind": "none"}, {"kind": "none", "ranks": 3}, folder=Path("step-00000004"))


@pytest.mark.parametrize(
    ("saved", "ours", "told"),
    [
        ({"kind": "none", "ranks": 2}, {"kind": "none", "ranks": 2}, ""),
        ({"kind": "none"}, {"kind": "none", "ranks": 2}, ""),  # of an older version
        ({"kind": "none", "ranks": 2}, {"kind": "none", "ranks": 1}, "saved by 2 ranks, goes on with 1 rank"),
        (
            {"kind": "deepspeed", "zero_stage": 2, "ranks": 8},
            {"kind": "deepspeed", "zero_stage": 3, "ranks": 4},
            "saved by 8 ranks under ZeRO-2, goes on with 4 ranks under ZeRO-3",
        ),
    ],
)
def test_another_number_of_ranks_or_stage_is_told_with_both(
    saved: dict[str, object], ours: dict[str, object], told: str
) -> None:
    assert reshaping(saved, ours) == told


def test_another_figure_of_the_best_checkpoint_begins_anew_and_the_same_one_goes_on() -> None:
    counters = {"step": 8, "evaluated_step": 8, "best_step": 4, "best_loss": -0.9}  # by accuracy
    saved = {"progress": counters, "best_by": "accuracy"}

    same, other = (Progress.resumed(saved, best_by=name) for name in ("accuracy", "loss"))

    assert (same.best_step, same.best_loss) == (4, -0.9)
    assert not same.note_evaluation(loss=0.3)
    assert (other.step, other.best_step) == (8, -1)
    assert other.note_evaluation(loss=0.3), "0.3 is no less than -0.9, which was no loss"
    assert Progress.resumed({"progress": counters}, best_by="loss").best_step == 4, "of an older version"
