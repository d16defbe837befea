"""Law 9 with two ranks: whatever kills a save, the last complete checkpoint loads, and the next start goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline import disk
from tests.faults.fault_harness import (
    KillPoint,
    check_on_ranks,
    count_moments,
    fail_at,
    flip,
    flipped_bytes,
    lone_rank,
    run_ranks,
    save_killed,
)
from tests.faults.tensor_subject import TensorSubject
from trainer import checkpoint
from trainer.checkpoint import CheckpointError
from trainer.ranks import Ranks

OLD, NEW = 500, 1000


def checkpoints_with_old(subject: TensorSubject, tmp_path: Path) -> Path:
    checkpoints = tmp_path / "checkpoints"
    count_moments(subject, checkpoints, step=OLD, scratch=tmp_path)
    return checkpoints


@pytest.mark.stages
def test_a_kill_at_any_operation_of_any_rank_leaves_the_last_complete_step(tmp_path: Path) -> None:
    subject = TensorSubject(num_ranks=2)
    pristine = checkpoints_with_old(subject, tmp_path)
    rehearsal = shutil.copytree(pristine, tmp_path / "rehearsal")
    moments = count_moments(subject, rehearsal, step=NEW, scratch=tmp_path)
    points = [KillPoint(rank, number) for rank in range(2) for number in range(moments[rank])]
    assert len(points) > 60, "the save writes less than it did: does it still go through disk?"

    found = []
    for point in points:
        checkpoints = tmp_path / "work" / "checkpoints"
        shutil.copytree(pristine, checkpoints)
        codes = save_killed(subject, checkpoints, step=NEW, point=point, scratch=tmp_path)
        assert codes[point.rank] == -9, f"{point} was not reached"
        chosen = checkpoint.choose(checkpoints, lone_rank())
        assert chosen.path is not None and chosen.damaged == []
        found.append(checkpoint.step_of(chosen.path))
        check_on_ranks(subject, chosen.path, step=found[-1], scratch=tmp_path)
        # The next start saves the same step again, and nothing of the killed save is in its way.
        count_moments(subject, checkpoints, step=NEW, scratch=tmp_path)
        again = checkpoint.choose(checkpoints, lone_rank())
        assert again.path == checkpoints / checkpoint.step_name(NEW)
        shutil.rmtree(tmp_path / "work")

    assert set(found) == {OLD, NEW}, "some kills come after the commit, most before"
    assert found.count(NEW) <= 4, "only what follows COMPLETE's rename may leave the new step"
    print(f"{len(points)} kill points, {found.count(OLD)} left step {OLD}, {found.count(NEW)} step {NEW}")


@pytest.mark.stages
def test_a_full_disk_on_one_rank_fails_the_save_on_all_and_keeps_the_old_step(tmp_path: Path) -> None:
    subject = TensorSubject(num_ranks=2)
    checkpoints = checkpoints_with_old(subject, tmp_path)

    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            disk.set_probe(fail_at(1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(CheckpointError, match=r"rank 1: .*rank-1.*No space left.*step-00000500, stands") as caught:
            subject.save(checkpoints, step=NEW, ranks=ranks)
        assert caught.value.told_by_main == (ranks.rank == 1)

    assert run_ranks(work, num_ranks=2, scratch=tmp_path) == [0, 0]
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000500"]
    check_on_ranks(subject, checkpoints / "step-00000500", step=OLD, scratch=tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small tmpfs cannot be mounted here (needs root with CAP_SYS_ADMIN)")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_really_full_disk_keeps_the_old_step_and_says_how_much_is_free(small_disk: Path) -> None:
    subject, ranks = TensorSubject(num_ranks=1), lone_rank()
    checkpoints = small_disk / "checkpoints"
    subject.save(checkpoints, step=OLD, ranks=ranks)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))

    with pytest.raises(CheckpointError, match=r"No space left on device, [\d,]+ bytes free; free space or a quota"):
        subject.save(checkpoints, step=NEW, ranks=ranks)

    chosen = checkpoint.choose(checkpoints, ranks)
    assert chosen.path == checkpoints / "step-00000500"
    subject.check(chosen.path, step=OLD, ranks=ranks)
    filler.unlink()
    subject.save(checkpoints, step=NEW, ranks=ranks)
    subject.check(checkpoints / "step-00001000", step=NEW, ranks=ranks)


@pytest.mark.stages
def test_nodes_with_folders_of_one_name_that_are_not_one_folder_are_refused_by_host(tmp_path: Path) -> None:
    subject = TensorSubject(num_ranks=2)
    for node in range(2):  # what each would take for its own
        count_moments(subject, tmp_path / f"node-{node}", step=OLD, scratch=tmp_path)

    def work(ranks: Ranks) -> None:
        message = r"rank 1 on .* cannot see what rank 0 on .* wrote there 1 s ago; put run.folder on a file system"
        with pytest.raises(CheckpointError, match=message) as caught:
            checkpoint.check_shared(tmp_path / f"node-{ranks.rank}", ranks, patience_seconds=1)
        assert caught.value.told_by_main == (ranks.rank == 1)
        checkpoint.check_shared(tmp_path / "node-0", ranks)
        ranks.barrier()
        assert not list((tmp_path / "node-0").glob(".shared-*"))

    assert run_ranks(work, num_ranks=2, scratch=tmp_path) == [0, 0]


@pytest.mark.stages
def test_a_flipped_byte_in_any_file_is_found_by_every_rank_before_loading(tmp_path: Path) -> None:
    subject = TensorSubject(num_ranks=2)
    checkpoints = checkpoints_with_old(subject, tmp_path)
    count_moments(subject, checkpoints, step=NEW, scratch=tmp_path)
    newest = checkpoints / checkpoint.step_name(NEW)

    def work(ranks: Ranks) -> None:
        chosen = checkpoint.choose(checkpoints, ranks)
        assert chosen.path == checkpoints / checkpoint.step_name(OLD)
        assert len(chosen.damaged) == 1
        subject.check(chosen.path, step=OLD, ranks=ranks)

    flips = list(flipped_bytes(newest))
    assert len(flips) == 6, "COMPLETE, config.yaml, model.safetensors, two shards, state.json"
    for path, position in flips:
        flip(path, position)
        assert run_ranks(work, num_ranks=2, scratch=tmp_path) == [0, 0], f"{path.name}, byte {position}"
        (checkpoints / f"damaged-{newest.name}").rename(newest)
        flip(path, position)
    assert checkpoint.verify(newest) == []
