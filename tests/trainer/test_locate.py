"""A name means the same run, checkpoint or model folder to every verb and to `model.from`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launch.report_data import find_run
from tests.trainer.tiny_run import tiny_config
from trainer.base import pin_base
from trainer.checkpoint_marker import marker_text, step_name
from trainer.errors import RunError
from trainer.locate import Place, locate
from trainer.ranks import Ranks
from trainer.saved import find_saved

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def make_run(folder: Path, *, steps: tuple[int, ...] = ()) -> Path:
    """A run folder with empty checkpoints, whole by their markers."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {name: x}\n")
    for step in steps:
        checkpoint = folder / "checkpoints" / step_name(step)
        checkpoint.mkdir()
        (checkpoint / "config.yaml").write_text("run: {name: x}\n")
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
