"""The row table is committed like a shard: whole or not there, and never one of other shards."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import disk
from data_pipeline.stage import StageError
from data_pipeline.stream import packing as packing_module
from data_pipeline.stream import table
from data_pipeline.stream.packing import Packing
from data_pipeline.stream.rows import Rows, open_rows
from tests.data_pipeline.stream.plain import pairs_of, scored_pairs
from tests.data_pipeline.stream.shard_folder import write_shards

DOCUMENTS = [list(range(10, 10 + length)) for length in (5, 3, 9, 1, 7, 7, 2, 20)]


def rows_of(shards: Path, packing: Packing = "best_fit", *, build: bool = True) -> Rows:
    return open_rows(shards, split="train", seq_len=8, packing=packing, build=build)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_child(action) -> int:  # type: ignore[no-untyped-def]
    """Exit status of a forked child that runs `action`; negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def build_until(shards: Path, packing: Packing, operation_number: int) -> int:
    """Build in a child that is killed at that disk operation; 0 if it ended before."""
    seen = {"count": 0}

    def probe(operation: str, moment: str, path: Path) -> None:
        if seen["count"] == operation_number:
            os.kill(os.getpid(), signal.SIGKILL)
        seen["count"] += 1

    def action() -> None:
        disk.set_probe(probe)
        rows_of(shards, packing)

    return in_child(action)


@pytest.mark.parametrize("packing", ["concatenated", "best_fit"])
def test_law_9_a_table_killed_at_any_disk_operation_is_built_again_to_the_same_bytes(
    tmp_path: Path, packing: Packing
) -> None:
    expected = contents(rows_of(write_shards(tmp_path / "whole", [DOCUMENTS]), packing).shards.folder)
    num_kills = 0
    while True:
        shards = write_shards(tmp_path / f"killed-{num_kills}", [DOCUMENTS])
        if build_until(shards, packing, num_kills) == 0:
            break
        rows_of(shards, packing)
        assert contents(shards) == expected
        num_kills += 1

    num_files = {"concatenated": 1, "best_fit": 4}[packing]
    assert num_kills == 10 * num_files  # open, write, fsync, rename, fsync of the folder; before and after each


def test_a_missing_table_is_refused_when_it_may_not_be_built(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [DOCUMENTS])

    with pytest.raises(
        StageError,
        match=r"train-best_fit-8: no row table of these shards for this packing and seq_len; start the run again",
    ):
        rows_of(shards, build=False)

    assert not (shards / "rows").exists()


def test_a_table_is_built_once(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [DOCUMENTS])
    first = rows_of(shards)
    times = {path: path.stat().st_mtime_ns for path in (shards / "rows").rglob("*")}

    again = rows_of(shards, build=False)

    assert again.identity == first.identity
    assert {path: path.stat().st_mtime_ns for path in (shards / "rows").rglob("*")} == times


def test_a_table_of_other_shards_is_never_read(tmp_path: Path) -> None:
    old = write_shards(tmp_path / "old", [DOCUMENTS])
    rows_of(old)
    new = write_shards(tmp_path / "new", [DOCUMENTS[::-1]])
    (old / "rows").rename(new / "rows")

    with pytest.raises(StageError, match="no row table of these shards"):
        rows_of(new, build=False)
    rebuilt = rows_of(new)

    expected = rows_of(write_shards(tmp_path / "clean", [DOCUMENTS[::-1]]))
    everything = np.arange(expected.num_rows)
    assert np.array_equal(rebuilt.gather(everything).input_ids, expected.gather(everything).input_ids)


@pytest.mark.parametrize("name", ["row_ends.i64", "starts.i64", "lengths.i32"])
def test_a_truncated_or_missing_table_file_is_refused(tmp_path: Path, name: str) -> None:
    shards = write_shards(tmp_path / "s", [DOCUMENTS])
    rows_of(shards)
    path = shards / "rows" / "train-best_fit-8" / name
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(StageError, match=rf"{name}: \d+ bytes, manifest.json says \d+; remove .*train-best_fit-8 and"):
        rows_of(shards)
    path.unlink()

    with pytest.raises(StageError, match=rf"{name}: 0 bytes, manifest.json says \d+"):
        rows_of(shards)


def test_a_damaged_table_never_leads_outside_a_shard(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [DOCUMENTS])
    num_rows = rows_of(shards).num_rows
    folder = shards / "rows" / "train-best_fit-8"
    num_tokens = sum(len(document) + 1 for document in DOCUMENTS)
    for name, value in [
        ("starts.i64", -5),
        ("starts.i64", num_tokens - 1),
        ("starts.i64", 10**15),
        ("lengths.i32", 2**31 - 1),
        ("lengths.i32", -1),
    ]:
        sound = (folder / name).read_bytes()
        broken = np.frombuffer(sound, table.DTYPES[name]).copy()
        broken[0] = value
        (folder / name).write_bytes(broken.tobytes())

        with pytest.raises(StageError, match=r"of a train shard or of its row table contradict manifest.json"):
            rows_of(shards).gather(np.arange(num_rows))
        (folder / name).write_bytes(sound)


def test_several_processes_that_need_a_table_at_once_all_get_it(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [DOCUMENTS])
    expected = contents(rows_of(write_shards(tmp_path / "alone", [DOCUMENTS])).shards.folder)
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            disk.set_probe(lambda operation, moment, path: time.sleep(0.002))
            try:
                rows_of(shards)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)

    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]
    assert contents(shards) == expected


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [DOCUMENTS])
    (shards / "rows").write_text("a file where the folder should be")

    with pytest.raises(StageError, match=r"the row table is missing and can't be written here: .*; build it once from"):
        rows_of(shards)


def test_a_full_disk_leaves_no_table(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [DOCUMENTS])

    def full(operation: str, moment: str, path: Path) -> None:
        if operation == "write" and moment == "before" and path.name.startswith("starts"):
            raise OSError(28, "No space left on device")

    disk.set_probe(full)
    try:
        with pytest.raises(disk.DiskError, match=r"starts.i64.partial: write failed: No space left on device, .* free"):
            rows_of(shards)
    finally:
        disk.set_probe(None)

    with pytest.raises(StageError, match="no row table of these shards"):
        rows_of(shards, build=False)
    assert rows_of(shards).num_rows > 0


def test_windows_of_documents_do_not_depend_on_record_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "WINDOW_DOCUMENTS", 3)
    one = rows_of(write_shards(tmp_path / "one", [DOCUMENTS]))
    many = rows_of(write_shards(tmp_path / "many", [[document] for document in DOCUMENTS]))

    everything = np.arange(one.num_rows)
    assert one.counts == many.counts
    assert scored_pairs(one.gather(everything)) == Counter(
        pair for document in DOCUMENTS for pair in pairs_of(document)
    )
    assert np.array_equal(one.gather(everything).input_ids, many.gather(everything).input_ids)
    # Windows of 3, 3 and 2 documents; none of their rows holds documents of two windows.
    assert one.num_rows == sum(
        len(packing_module.pack_best_fit(np.zeros(len(window), np.int64), np.array(window), seq_len=8).row_ends)
        for window in ([5, 3, 9], [1, 7, 7], [2, 20])
    )
