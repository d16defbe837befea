"""A name means the same run, checkpoint or model folder to every verb and to `model.from`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.config import to_yaml
from launch.report_data import find_run
from tests.trainer.tiny_run import tiny_config
from trainer.base import pin_base
from trainer.checkpoint_marker import marker_text, step_name
from trainer.errors import RunError
from trainer.locate import Place, choose_checkpoint, locate
from trainer.ranks import Ranks
from trainer.saved import find_saved

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def make_run(folder: Path, *, steps: tuple[int, ...] = (), best: int = -1) -> Path:
    """A run folder with empty checkpoints, whole by their markers. `best`: the step that its evaluations say."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {name: x}\n")
    for step in steps:
        checkpoint = folder / "checkpoints" / step_name(step)
        checkpoint.mkdir()
        (checkpoint / "config.yaml").write_text("run: {name: x}\n")
        (checkpoint / "state.json").write_text(json.dumps({"progress": {"best_step": best}}))
        (checkpoint / "COMPLETE").write_text(marker_text({"format_version": 1, "step": step, "files": []}))
    return folder


def make_model(folder: Path, name: str = "config.json") -> Path:
    folder.mkdir(parents=True)
    (folder / name).write_text("{}")
    return folder


def test_a_run_a_checkpoint_and_a_model_folder_are_told_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=(4, 8))
    checkpoint = run / "checkpoints" / step_name(4)
    model, adapter = make_model(tmp_path / "model"), make_model(tmp_path / "adapter", "adapter_config.json")

    assert locate(run) == Place("run", run, run)
    assert locate(run).checkpoint == run / "checkpoints" / step_name(8)  # type: ignore[union-attr]
    assert locate(checkpoint) == Place("checkpoint", checkpoint, run.resolve())
    assert locate(checkpoint).checkpoint == checkpoint  # type: ignore[union-attr]
    assert [locate(folder).kind for folder in (model, adapter)] == ["model", "model"]  # type: ignore[union-attr]
    assert locate(make_model(tmp_path / ".out.partial")) is None, "an export that was killed"
    assert locate(tmp_path / "nothing") is None


def test_a_checkpoint_is_of_its_run_from_wherever_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", steps=(4,))
    monkeypatch.chdir(run / "checkpoints" / step_name(4))

    assert locate(".").run_folder == run.resolve()  # type: ignore[union-attr]
    (tmp_path / "latest").symlink_to(run / "checkpoints" / step_name(4))
    assert locate(tmp_path / "latest").run_folder == run.resolve()  # type: ignore[union-attr]


def test_a_path_comes_before_the_roots_and_a_root_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    roots = [Path("first"), Path("second")]
    second = make_run(Path("second/a"))
    assert locate("a", roots=roots) == Place("run", second, second)
    first = make_run(Path("first/a"))
    assert locate("a", roots=roots) == Place("run", first, first)
    assert locate("a", roots=roots, besides=tmp_path / "first" / "a") == Place("run", second, second)
    here = make_model(Path("a"))
    assert locate("a", roots=roots) == Place("model", here, None)
    assert locate("a") == Place("model", here, None)


def test_chat_and_report_find_a_run_by_its_name_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/a"))

    assert find_run("a") == Path("runs/a")
    with pytest.raises(RunError, match=r"^runs/a: no complete checkpoint yet; train it first"):
        find_saved("a")


def test_a_base_is_found_by_its_name_in_the_folder_of_the_run_and_is_never_the_run_itself(tmp_path: Path) -> None:
    make_run(tmp_path / "base")
    config = tiny_config(tmp_path, tmp_path, model={"from": "base"})

    with pytest.raises(RunError, match=r"model.from: .*/base is a run without a complete checkpoint yet; train it"):
        pin_base(config, tmp_path / "run", ALONE)
    assert pin_base(config, tmp_path / "base", ALONE).model.source == "base", "as a hub's name"


def chosen(run: Path, wanted: str | None = None, *, prefers_best: bool = True) -> int:
    """The step of the checkpoint that is meant."""
    place = locate(run)
    assert place is not None
    choice = choose_checkpoint(place, wanted, prefers_best=prefers_best)
    assert choice is not None and choice.path == run / "checkpoints" / step_name(choice.step)
    return choice.step


def test_a_checkpoint_is_the_best_the_last_or_one_by_its_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=(10, 20, 30), best=10)

    assert [chosen(run, wanted) for wanted in ("best", "last", "20", None)] == [10, 30, 20, 10]
    assert chosen(run, prefers_best=False) == 30, "what writes text"
    assert chosen(make_run(tmp_path / "pruned", steps=(20, 30), best=10)) == 30, "the best one is not kept"
    assert chosen(make_run(tmp_path / "unevaluated", steps=(20,))) == 20
    assert choose_checkpoint(locate(make_run(tmp_path / "new")) or Place("run", run, run), None) is None


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "pruned": ({"steps": (20, 30), "best": 10}, "best", "step 10, is not kept .*; it has 20, 30, or give last"),
    "unevaluated": ({"steps": (20,)}, "best", "it has no evaluation yet; it has 20"),
    "absent": ({"steps": (20, 30), "best": 30}, "25", r"no complete checkpoint of step 25; it has 20, 30 \(best\)"),
    "no-number": ({"steps": (20,)}, "newest", "'newest' is neither best, last nor the number of a step"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_absent_checkpoint_is_refused_with_those_that_are_there(tmp_path: Path, name: str) -> None:
    made, wanted, message = REFUSED[name]
    run = make_run(tmp_path / "run", **made)

    with pytest.raises(RunError, match=f"^--checkpoint: .*{message}"):
        chosen(run, wanted)


def test_one_checkpoint_and_a_model_folder_leave_nothing_to_choose(tmp_path: Path) -> None:
    run, model = make_run(tmp_path / "run", steps=(4,)), make_model(tmp_path / "model")

    for place, what in ((run / "checkpoints" / step_name(4), "one checkpoint"), (model, "a model folder")):
        with pytest.raises(RunError, match=f"--checkpoint: 'best', but {place} is {what}, with none to choose"):
            find_saved(place, checkpoint="best")


def test_a_person_is_told_which_step_was_taken_its_figure_and_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=(10, 30), best=10)
    config = tiny_config(tmp_path, tmp_path, stage="classify", evaluation={"best_by": "macro_f1"})
    (run / "config.yaml").write_text(to_yaml(config))
    lines = [{"step": step, "macro_f1": figure} for step, figure in ((10, 0.9), (30, 0.8))]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    told = {wanted: find_saved(run, checkpoint=wanted).told for wanted in (None, "last")}

    assert told[None] == (
        f"{run}: step 10, the best by macro_f1 (최고), macro_f1 0.9000; the newest is step 30 (--checkpoint last)"
    )
    assert told["last"] == (
        f"{run}: step 30, the newest (최신), macro_f1 0.8000; the best by macro_f1 is step 10 (--checkpoint best)"
    )
