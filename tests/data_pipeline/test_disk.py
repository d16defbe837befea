"""A file that goes through `disk` is the old one or the new one, whole, wherever the writer is killed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_pipeline import disk
from data_pipeline.disk import DiskError, Moment, Operation

OLD, NEW = b"old" * 1000, b"new" * 5000


@pytest.fixture(autouse=True)
def _no_probe_stays() -> Iterator[None]:
    yield
    disk.set_probe(None)


def operations_of(act: Callable[[], object]) -> list[tuple[Operation, Moment, str]]:
    """What the probe sees while `act` runs."""
    seen: list[tuple[Operation, Moment, str]] = []
    disk.set_probe(lambda operation, moment, path: seen.append((operation, moment, path.name)))
    act()
    disk.set_probe(None)
    return seen


def run_and_kill_at(count: int, act: Callable[[], object]) -> int:
    """The wait status of a child that does `act` and is killed at the probe's call number `count`."""
    child = os.fork()
    if child == 0:
        calls = iter(range(1_000_000))

        def probe(operation: Operation, moment: Moment, path: Path) -> None:
            if next(calls) == count:
                os.kill(os.getpid(), signal.SIGKILL)

        disk.set_probe(probe)
        act()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(number: int, *, at: Operation) -> None:
    def probe(operation: Operation, moment: Moment, path: Path) -> None:
        if operation == at and moment == "before":
            raise OSError(number, os.strerror(number))

    disk.set_probe(probe)


def test_a_write_is_written_synced_renamed_and_its_folder_synced_in_this_order(tmp_path: Path) -> None:
    seen = operations_of(lambda: disk.write_bytes(tmp_path / "a", NEW))

    assert seen == [
        (operation, moment, name)
        for operation, name in [
            ("write", "a.partial"),
            ("write", "a.partial"),
            ("fsync", "a.partial"),
            ("rename", "a"),
            ("fsync", tmp_path.name),
        ]
        for moment in ("before", "after")
    ]


def test_a_large_write_goes_to_the_disk_in_chunks_and_is_never_held_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "CHUNK_BYTES", 1 << 16)
    data = os.urandom((1 << 24) + 7)
    tracemalloc.start()

    record = disk.write_bytes(tmp_path / "a", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert (tmp_path / "a").read_bytes() == data
    assert (record.num_bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert peak < 1 << 20
    writes = [seen for seen in operations_of(lambda: disk.write_bytes(tmp_path / "a", data)) if seen[0] == "write"]
    assert len(writes) == 2 * (1 + 256 + 1)  # open, the chunks and the rest, each before and after


def test_a_kill_at_any_operation_leaves_the_old_or_the_new_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    num_calls = len(operations_of(lambda: disk.write_bytes(path, NEW)))
    found = []

    for count in range(num_calls):
        path.write_bytes(OLD)
        status = run_and_kill_at(count, lambda: disk.write_bytes(path, NEW))
        assert os.WTERMSIG(status) == signal.SIGKILL
        found.append(path.read_bytes())

    renamed = num_calls - 3  # after the rename, and before and after the folder's fsync
    assert found == [OLD] * renamed + [NEW] * 3


def test_a_kill_at_any_operation_of_a_first_write_leaves_no_file_or_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    num_calls = len(operations_of(lambda: disk.write_bytes(path, NEW)))

    for count in range(num_calls):
        path.unlink(missing_ok=True)
        run_and_kill_at(count, lambda: disk.write_bytes(path, NEW))
        assert not path.exists() or path.read_bytes() == NEW


def test_a_kill_at_any_operation_of_a_removal_never_leaves_half_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"

    def fill() -> None:
        folder.mkdir(exist_ok=True)
        for name in "abc":
            (folder / name).write_bytes(NEW)

    fill()
    num_calls = len(operations_of(lambda: disk.remove_tree(folder)))
    for count in range(num_calls):
        fill()
        run_and_kill_at(count, lambda: disk.remove_tree(folder))
        assert not folder.exists() or names_in(folder) == ["a", "b", "c"]

    fill()
    disk.remove_tree(folder)
    assert names_in(tmp_path) == []


def test_an_exception_inside_the_block_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    with pytest.raises(ZeroDivisionError), disk.durable_file(path) as file:
        file.write(NEW)
        _ = 1 / 0

    assert path.read_bytes() == OLD
    assert names_in(tmp_path) == ["file"]


def test_the_record_holds_the_size_and_hash_of_what_stands_on_the_disk(tmp_path: Path) -> None:
    data = os.urandom(3 * disk.CHUNK_BYTES // 2)
    with disk.durable_file(tmp_path / "file") as file:
        for start in range(0, len(data), 1_000_003):
            file.write(memoryview(data)[start : start + 1_000_003])
        assert file.tell() == len(data)

    record = file.record("file")

    assert (tmp_path / "file").read_bytes() == data
    assert record == disk.FileRecord("file", len(data), hashlib.sha256(data).hexdigest())
    assert disk.sha256_of(tmp_path / "file") == record.sha256


def test_a_large_file_is_handed_over_in_chunks(tmp_path: Path) -> None:
    def write() -> None:
        with disk.durable_file(tmp_path / "file") as file:
            for _ in range(5):
                file.write(bytes(disk.CHUNK_BYTES // 2))

    writes = [seen for seen in operations_of(write) if seen[:2] == ("write", "after")]

    assert len(writes) == 1 + 3  # the opening, two full chunks and the rest


@pytest.mark.parametrize("operation", ["write", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_the_old_file_stands(tmp_path: Path, operation: Operation, number: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    fail_with(number, at=operation)

    with pytest.raises(DiskError) as caught:
        disk.write_bytes(path, NEW)

    assert caught.value.errno == number
    assert f"{operation} failed: {os.strerror(number)}" in str(caught.value)
    assert "bytes free; free space or a quota there (디스크 용량 부족), then start again" in str(caught.value)
    assert path.read_bytes() == OLD


def test_another_fault_of_the_disk_says_what_stands(tmp_path: Path) -> None:
    fail_with(errno.EIO, at="fsync")

    with pytest.raises(DiskError, match="fsync failed: Input/output error; what stood there before is whole"):
        disk.write_bytes(tmp_path / "file", NEW)


def test_a_folder_that_is_missing_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"none/file.partial: write failed: No such file or directory"):
        disk.write_bytes(tmp_path / "none" / "file", NEW)
    with pytest.raises(DiskError, match="rename failed"):
        disk.remove_tree(tmp_path / "none")


def test_a_removal_that_the_disk_refuses_says_so(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    fail_with(errno.EACCES, at="remove")

    with pytest.raises(DiskError, match="remove failed: Permission denied; remove what is left by hand"):
        disk.remove_tree(tmp_path / "folder")


def test_json_is_readable_and_korean_stands_unescaped(tmp_path: Path) -> None:
    disk.write_json(tmp_path / "a.json", {"이름": "두레", "n": [1, 2]})

    text = (tmp_path / "a.json").read_text(encoding="utf-8")

    assert "두레" in text
    assert text.endswith("}\n")
    assert json.loads(text) == {"이름": "두레", "n": [1, 2]}


def test_lines_of_several_processes_are_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    children = []
    for letter in b"abc":
        child = os.fork()
        if child == 0:
            for _ in range(200):
                disk.append_line(path, bytes([letter]) * 500)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0

    lines = path.read_bytes().splitlines()

    assert len(lines) == 600
    assert set(lines) == {letter * 500 for letter in (b"a", b"b", b"c")}


def test_a_file_system_without_locks_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre that is mounted without -o flock."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    said = r"\.lock: cannot be locked: Function not implemented; mount .* -o flock"
    with pytest.raises(DiskError, match=said), disk.locked(tmp_path / "runs/.lock"):
        pytest.fail("nobody may work there unlocked")
