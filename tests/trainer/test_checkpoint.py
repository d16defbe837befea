"""Law 9 on one rank: a checkpoint is whole or invisible. Two ranks and the kills of each: tests/faults."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_pipeline import disk
from data_pipeline.disk import FileRecord
from tests.faults.fault_harness import fail_at, flip, flipped_bytes, lone_rank
from tests.faults.tensor_subject import TensorSubject
from trainer import checkpoint
from trainer.checkpoint import CheckpointError
from trainer.checkpoint_marker import marker_text

SUBJECT = TensorSubject(num_ranks=1)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture(autouse=True)
def no_probe() -> Iterator[None]:
    yield
    disk.set_probe(None)


def save(checkpoints: Path, *steps: int) -> Path:
    for step in steps:
        SUBJECT.save(checkpoints, step=step, ranks=lone_rank())
    return checkpoints / checkpoint.step_name(steps[-1])


def names(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.iterdir())


def num_moments(action: Callable[[], object]) -> int:
    moments = []
    disk.set_probe(lambda *moment: moments.append(moment))
    action()
    disk.set_probe(None)
    return len(moments)


def killed_at(number: int, action: Callable[[], object]) -> None:
    """Run `action` in a child that is killed at its `number`-th moment."""
    if (pid := os.fork()) == 0:
        passed = iter(range(number))
        disk.set_probe(lambda *moment: next(passed, None) is None and os.kill(os.getpid(), signal.SIGKILL))
        action()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, f"moment {number} was not reached"


def test_a_saved_checkpoint_loads_as_it_was(checkpoints: Path) -> None:
    folder = save(checkpoints, 1000)

    assert checkpoint.choose(checkpoints, lone_rank()) == checkpoint.Chosen(path=folder, damaged=[])
    SUBJECT.check(folder, step=1000, ranks=lone_rank())
    assert (folder / "config.yaml").read_bytes() == b"seed: 1\n"


def test_no_checkpoints_means_a_fresh_start(checkpoints: Path) -> None:
    assert checkpoint.choose(checkpoints, lone_rank()) == checkpoint.Chosen(path=None, damaged=[])


def test_the_newest_is_first_also_beyond_eight_digits(checkpoints: Path) -> None:
    save(checkpoints, 99_999_999, 100_000_000, 5)

    assert [checkpoint.step_of(folder) for folder in checkpoint.find_complete(checkpoints)] == [
        100_000_000,
        99_999_999,
        5,
    ]


def test_complete_is_written_after_everything_else(checkpoints: Path) -> None:
    written = []
    disk.set_probe(lambda operation, moment, path: moment == "after" and written.append((operation, path.name)))
    save(checkpoints, 1000)

    renames = [name for operation, name in written if operation == "rename"]
    assert renames[-1] == "COMPLETE"
    assert set(renames[:-1]) == {"rank-0.pt", "model.safetensors", "state.json", "config.yaml"}
    # Every folder that holds a new name is synced between the last file and COMPLETE.
    last_file = max(index for index, (_, name) in enumerate(written) if name == "config.yaml")
    synced = [name for operation, name in written[last_file:] if operation == "fsync"]
    assert {"shards", "step-00001000", "checkpoints"} <= set(synced)


@pytest.mark.stages
def test_a_kill_at_any_moment_of_a_save_over_leftovers_leaves_the_last_complete(checkpoints: Path) -> None:
    save(checkpoints, 500)
    killed_at(20, lambda: save(checkpoints, 1000))
    assert names(checkpoints) == ["step-00000500", "step-00001000"]
    assert not (checkpoints / "step-00001000" / "COMPLETE").exists()

    moment = 0
    while len(checkpoint.find_complete(checkpoints)) == 1:  # each kill leaves a leftover for the next save
        killed_at(moment, lambda: save(checkpoints, 1000))
        newest = checkpoint.find_complete(checkpoints)[0]
        SUBJECT.check(newest, step=checkpoint.step_of(newest), ranks=lone_rank())
        moment += 1

    assert moment > 40
    assert checkpoint.choose(checkpoints, lone_rank()).path == checkpoints / "step-00001000"


@pytest.mark.stages
def test_a_kill_at_any_moment_of_pruning_leaves_what_must_stay(checkpoints: Path, tmp_path: Path) -> None:
    def rehearse() -> None:
        checkpoint.prune(checkpoints, keep_last=2, best=100)

    save(checkpoints, 100, 200, 300, 400)
    total = num_moments(rehearse)
    assert names(checkpoints) == ["step-00000100", "step-00000300", "step-00000400"]
    assert total >= 6

    for moment in range(total):
        work = tmp_path / f"work-{moment}"
        save(work, 100, 200, 300, 400)
        killed_at(moment, lambda work=work: checkpoint.prune(work, keep_last=2, best=100))
        for folder in checkpoint.find_complete(work):
            SUBJECT.check(folder, step=checkpoint.step_of(folder), ranks=lone_rank())
        assert checkpoint.choose(work, lone_rank()).path == work / "step-00000400"
        checkpoint.prune(work, keep_last=2, best=100)
        assert names(work) == ["step-00000100", "step-00000300", "step-00000400"]


def test_of_one_step_what_was_cut_for_these_ranks_is_taken_and_pruning_counts_steps(checkpoints: Path) -> None:
    save(checkpoints, 100, 200, 300)
    for name in ("step-00000200-ranks-4", "step-00000300-ranks-1", "step-00000300-ranks-4"):
        folder = checkpoints / name
        checkpoint.write(
            folder, state={}, write_engine=lambda into: [], extra_files={"name": name.encode()}, ranks=lone_rank()
        )
        assert checkpoint.verify(folder) == []

    assert checkpoint.choose(checkpoints, lone_rank()).path == checkpoints / "step-00000300-ranks-1"
    flip(checkpoints / "step-00000300-ranks-1" / "name", 0)
    chosen = checkpoint.choose(checkpoints, lone_rank())
    assert chosen.path == checkpoints / "step-00000300"
    assert "step-00000300-ranks-1" in chosen.damaged[0]
    assert checkpoint.find_complete(checkpoints)[0] == checkpoints / "step-00000300"
    checkpoint.prune(checkpoints, keep_last=1, best=100)
    assert names(checkpoints) == [
        "damaged-step-00000300-ranks-1",
        "step-00000100",
        "step-00000300",
        "step-00000300-ranks-4",
    ]


def test_pruning_that_fails_is_told_and_ends_nothing(checkpoints: Path) -> None:
    save(checkpoints, 100, 200)

    def refuse(operation: disk.Operation, moment: disk.Moment, path: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    disk.set_probe(refuse)
    faults = checkpoint.prune(checkpoints, keep_last=1, best=None)

    assert len(faults) == 1
    assert "step-00000100: could not be removed" in faults[0]
    assert names(checkpoints) == ["step-00000100", "step-00000200"]


def test_a_flipped_byte_anywhere_falls_back_and_sets_the_damaged_aside(checkpoints: Path) -> None:
    save(checkpoints, 500)
    newest = save(checkpoints, 1000)
    flips = list(flipped_bytes(newest))
    assert len(flips) == 5

    for path, position in flips:
        flip(path, position)
        chosen = checkpoint.choose(checkpoints, lone_rank())
        assert chosen.path == checkpoints / "step-00000500", path
        assert len(chosen.damaged) == 1
        assert path.name in chosen.damaged[0]
        aside = checkpoints / "damaged-step-00001000"
        flip(aside / path.relative_to(newest), position)
        aside.rename(newest)
    assert checkpoint.verify(newest) == []


def test_every_byte_of_complete_counts(checkpoints: Path) -> None:
    folder = save(checkpoints, 1000)
    marker = folder / "COMPLETE"

    for position in range(0, marker.stat().st_size, 7):
        flip(marker, position)
        assert checkpoint.find_complete(checkpoints) == [], position
        flip(marker, position)
    assert checkpoint.find_complete(checkpoints) == [folder]
    marker.write_text(marker.read_text().replace(" ", "\t", 1))
    assert checkpoint.find_complete(checkpoints) == []


def test_a_missing_a_short_and_an_unnamed_file_are_faults(checkpoints: Path) -> None:
    folder = save(checkpoints, 1000)
    (folder / "state.json").unlink()
    with (folder / "config.yaml").open("ab") as file:
        file.write(b"seed: 2\n")
    (folder / "planted.pt").write_bytes(b"pickle")
    (folder / "notes.txt").write_text("a person's notes harm nobody")

    faults = "\n".join(checkpoint.verify(folder))

    assert "state.json: cannot be read: No such file" in faults
    assert "config.yaml: 16 bytes, COMPLETE says 8" in faults
    assert "planted.pt: not named in COMPLETE" in faults
    assert len(faults.splitlines()) == 3


def test_a_renamed_checkpoint_or_one_of_another_format_is_a_fault(checkpoints: Path) -> None:
    folder = save(checkpoints, 1000)
    renamed = folder.rename(checkpoints / "step-00002000")
    assert "says step 1000; the folder was renamed" in checkpoint.verify(renamed)[0]

    marker = json.loads((renamed / "COMPLETE").read_text())
    (renamed / "COMPLETE").write_text(marker_text({**marker, "format_version": 2}))
    assert "format_version is 2, this program reads 1; use the version that wrote it" in checkpoint.verify(renamed)[0]


def test_only_damaged_checkpoints_never_mean_a_fresh_start(checkpoints: Path) -> None:
    for folder in (save(checkpoints, 500), save(checkpoints, 1000)):
        flip(folder / "model.safetensors", 100)

    for _ in range(2):  # the second start finds the same
        with pytest.raises(CheckpointError, match=r"(?s)sha256 is .*none of 2 checkpoints is sound; restore"):
            checkpoint.choose(checkpoints, lone_rank())
    assert names(checkpoints) == ["step-00000500", "step-00001000"]


def test_a_damaged_checkpoint_is_never_counted_as_one_to_keep(checkpoints: Path) -> None:
    save(checkpoints, 500)
    flip(save(checkpoints, 1000) / "model.safetensors", 100)
    checkpoint.choose(checkpoints, lone_rank())
    save(checkpoints, 600)

    checkpoint.prune(checkpoints, keep_last=1, best=None)

    assert names(checkpoints) == ["damaged-step-00001000", "step-00000600"]


def test_leftovers_of_killed_saves_and_removals_are_removed(checkpoints: Path) -> None:
    save(checkpoints, 500)
    (checkpoints / "step-00001000").mkdir()
    (checkpoints / "step-00001000" / "model.safetensors.partial").write_bytes(b"half")
    (checkpoints / ".step-00000100.removed").mkdir()

    checkpoint.choose(checkpoints, lone_rank())

    assert names(checkpoints) == ["step-00000500"]


def test_saving_a_sound_step_again_never_removes_it(checkpoints: Path) -> None:
    save(checkpoints, 1000)

    assert num_moments(lambda: save(checkpoints, 1000)) == 0
    flip(checkpoints / "step-00001000" / "model.safetensors", 100)
    save(checkpoints, 1000)

    SUBJECT.check(checkpoints / "step-00001000", step=1000, ranks=lone_rank())


def test_a_full_disk_at_any_write_keeps_the_old_step_and_says_what_to_do(checkpoints: Path, tmp_path: Path) -> None:
    moments: list[str] = []
    disk.set_probe(lambda operation, moment, path: moments.append(operation))
    save(tmp_path / "rehearsal", 1000)
    disk.set_probe(None)
    save(checkpoints, 500)
    assert moments.count("write") > 15

    for number in range(moments.count("write")):
        disk.set_probe(fail_at(number, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(CheckpointError, match=r"free space or a quota there.*step-00000500, stands"):
            save(checkpoints, 1000)
        assert names(checkpoints) == ["step-00000500"]


def test_what_a_killed_save_left_never_enters_the_next(checkpoints: Path) -> None:
    leftover = checkpoints / "step-00001000"
    leftover.mkdir(parents=True)
    (leftover / "rank-7-of-another-world-size.pt").write_bytes(b"old")

    save(checkpoints, 1000)

    assert not list(leftover.glob("rank-7*"))
    assert checkpoint.verify(leftover) == []


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: [FileRecord("model.pt", 3, "0" * 64)], r"rank 0 finds no file, 3 were written; put the run"),
        (lambda folder: 2 * [disk.write_bytes(folder / "model.pt", b"abc")], r"two ranks wrote model.pt"),
        (lambda folder: [(folder / "model.pt").write_bytes(b"abc")][1:], r"written without its hash"),
        (lambda folder: [][0], r"rank 0: IndexError: list index out of range; there is no checkpoint before"),
    ],
)
def test_what_the_engine_reports_must_be_what_lies_there(
    checkpoints: Path, write: Callable[[Path], list[FileRecord]], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint.save(checkpoints, step=1000, state={}, write_engine=write, extra_files={}, ranks=lone_rank())
    assert names(checkpoints) == []


def test_a_folder_of_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint folder; its name must be like step-00001000"):
        checkpoint.step_of(tmp_path / "step-12")
