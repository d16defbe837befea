"""Checkpoints on a file system that several nodes share: it shows names late, and gives errors that pass."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fault_harness import lone_rank, run_ranks
from tests.faults.network_view import NetworkPath
from tests.faults.tensor_subject import TensorSubject
from trainer import checkpoint, checkpoint_marker
from trainer.checkpoint import CheckpointError
from trainer.pieces import Entry, write_file
from trainer.ranks import Ranks

SUBJECT = TensorSubject(num_ranks=2)


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    NetworkPath._refused.clear()
    NetworkPath._missing.clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_marker, "_AGAIN_SECONDS", 0.01)


def save_in_a_late_view(checkpoints: Path, *, late_seconds: float, scratch: Path) -> list[int]:
    """Two ranks save step 1000, the second in a view of its own that shows what the first made so late."""

    def work(ranks: Ranks) -> None:
        if ranks.is_main:
            SUBJECT.save(checkpoints, step=1000, ranks=ranks)
            return
        NetworkPath.late_seconds, NetworkPath.remember_seconds = late_seconds, 0.3
        SUBJECT.save(NetworkPath(checkpoints), step=1000, ranks=ranks)

    return run_ranks(work, num_ranks=2, scratch=scratch)


def test_no_rank_asks_for_a_checkpoint_before_rank_0_has_made_it(tmp_path: Path) -> None:
    """Else its node remembers that the name is missing, and writes nothing into the folder that stands there."""
    too_early = tmp_path / "too-early"

    class Watched(NetworkPath):
        def _look_up(self) -> None:
            if not os.path.lexists(self):
                with too_early.open("a") as file:
                    file.write(f"{self}\n")
            super()._look_up()

    def work(ranks: Ranks) -> None:
        checkpoints = tmp_path / "checkpoints"
        SUBJECT.save(checkpoints if ranks.is_main else Watched(checkpoints), step=1000, ranks=ranks)

    assert run_ranks(work, num_ranks=2, scratch=tmp_path) == [0, 0]
    assert not too_early.exists(), too_early.read_text()


def test_a_folder_that_a_node_sees_late_is_waited_for(tmp_path: Path) -> None:
    assert save_in_a_late_view(tmp_path / "checkpoints", late_seconds=0.7, scratch=tmp_path) == [0, 0]
    assert checkpoint.verify(tmp_path / "checkpoints/step-00001000") == []


def test_the_pieces_of_a_rank_are_written_into_a_folder_that_it_did_not_make(tmp_path: Path) -> None:
    folder = NetworkPath(tmp_path / "step-00001000")
    folder.mkdir()
    assert write_file(folder, "pieces/rank-00000-of-00001.safetensors", list[Entry](), []).num_bytes > 0


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["COMPLETE", "model.safetensors"])
def test_an_error_that_passes_is_no_damage(tmp_path: Path, impatient: None, number: int, name: str) -> None:
    checkpoints = NetworkPath(tmp_path / "checkpoints")
    TensorSubject(num_ranks=1).save(checkpoints, step=1000, ranks=lone_rank())
    NetworkPath.refuse(name, number, number)

    chosen = checkpoint.choose(checkpoints, lone_rank())

    assert chosen == checkpoint.Chosen(path=checkpoints / "step-00001000", damaged=[])
    assert NetworkPath._refused[name] == []


@pytest.mark.parametrize("name", ["COMPLETE", "model.safetensors"])
def test_an_error_that_stays_refuses_the_start_and_renames_nothing(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    checkpoints = NetworkPath(tmp_path / "checkpoints")
    for step in (500, 1000):
        TensorSubject(num_ranks=1).save(checkpoints, step=step, ranks=lone_rank())
    monkeypatch.setattr(checkpoint_marker.verify, "__kwdefaults__", {"patience_seconds": 0.1})
    NetworkPath.refuse(name, *[errno.EIO] * 1000)

    with pytest.raises(CheckpointError, match=rf"{name}: cannot be read: {os.strerror(errno.EIO)}.*no proof of damage"):
        checkpoint.choose(checkpoints, lone_rank())

    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000500", "step-00001000"]


def test_every_rank_hears_of_a_file_that_one_node_cannot_read(tmp_path: Path, impatient: None) -> None:
    TensorSubject(num_ranks=1).save(tmp_path / "checkpoints", step=1000, ranks=lone_rank())

    def work(ranks: Ranks) -> None:
        folder = NetworkPath(tmp_path / "checkpoints/step-00001000")
        if not ranks.is_main:
            for path in folder.rglob("*"):
                NetworkPath.refuse(path.name, *[errno.EACCES] * 1000)
        with pytest.raises(CheckpointError, match="no proof of damage"):
            checkpoint.verify(folder, ranks, patience_seconds=0.1)

    assert run_ranks(work, num_ranks=2, scratch=tmp_path) == [0, 0]


def test_a_file_that_its_folder_names_is_not_taken_for_missing(tmp_path: Path, impatient: None) -> None:
    checkpoints = NetworkPath(tmp_path / "checkpoints")
    TensorSubject(num_ranks=1).save(checkpoints, step=1000, ranks=lone_rank())
    folder = checkpoints / "step-00001000"
    for name in ("model.safetensors", "COMPLETE"):
        NetworkPath._missing[str(folder / name)] = float("inf")

    assert checkpoint.verify(folder) == []
    (tmp_path / "checkpoints/step-00001000/model.safetensors").unlink()
    assert "model.safetensors: cannot be read: No such file" in checkpoint.verify(folder)[0]
