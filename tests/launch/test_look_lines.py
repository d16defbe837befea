"""Files of a run are read from where they were left: their end alone, what is new, a sample of a large one."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.look_lines import Growth, last_lines, last_objects
from tests.launch.look_runs import read_bytes_so_far


def write_steps(path: Path, first: int, last: int) -> None:
    with path.open("a") as file:
        file.writelines(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(first, last + 1))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """11 MB of metrics."""
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 400_000)
    return path


def test_the_end_of_a_large_file_is_read_alone(large: Path) -> None:
    before = read_bytes_so_far()

    found = last_objects(large, 3)

    assert [line["step"] for line in found] == [399_998, 399_999, 400_000]
    assert read_bytes_so_far() - before < 200_000


@pytest.mark.parametrize("count", [1, 2, 4999, 5000, 9000])
def test_last_lines_are_whole_over_any_number_of_blocks(tmp_path: Path, count: int) -> None:
    path = tmp_path / "log"
    lines = [f"줄 {number} {'x' * (number % 97)}".encode() for number in range(5000)]
    path.write_bytes(b"\n".join(lines) + b"\ntorn")

    assert last_lines(path, count) == lines[-count:]


def test_a_missing_and_an_empty_file_have_no_lines(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    assert last_lines(tmp_path / "none", 5) == last_lines(tmp_path / "empty", 5) == []
    assert Growth(tmp_path / "none").new_lines() == []


def test_what_comes_is_given_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a\nb\nhalf")
    growth = Growth(path)

    assert growth.last_lines(1) == [b"b"]
    assert growth.new_lines() == []
    assert growth.rest() == b"half"
    with path.open("ab") as file:
        file.write(b" done\nc\n")
    assert growth.new_lines() == [b"half done", b"c"]
    assert growth.new_lines() == []
    assert growth.rest() == b""


def test_nothing_of_a_growing_file_is_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    growth = Growth(path)
    before, steps = read_bytes_so_far(), []

    for number in range(50):
        write_steps(path, 1000 * number + 1, 1000 * (number + 1))
        steps += [line["step"] for line in growth.new_objects()]

    assert steps == list(range(1, 50_001))
    assert read_bytes_so_far() - before < 1.1 * path.stat().st_size


def test_a_large_file_is_sampled_from_its_first_line_to_its_last(large: Path) -> None:
    growth = Growth(large)
    before = read_bytes_so_far()

    steps = [line["step"] for line in growth.new_objects()]

    assert read_bytes_so_far() - before < 9_000_000
    assert (steps[0], steps[-1]) == (1, 400_000)
    assert steps == sorted(set(steps))
    assert max(after - first for first, after in zip(steps, steps[1:], strict=False)) < 2000
    write_steps(large, 400_001, 400_002)
    assert [line["step"] for line in growth.new_objects()] == [400_001, 400_002]


def test_a_file_that_a_resume_rewrote_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "metrics.jsonl", tmp_path / "partial"
    write_steps(path, 1, 9)
    growth = Growth(path)
    growth.new_objects()
    write_steps(other, 1, 4)
    other.replace(path)

    assert [line["step"] for line in growth.new_objects()] == [1, 2, 3, 4]
    assert growth.was_rewritten
    write_steps(path, 5, 5)
    assert [line["step"] for line in growth.new_objects()] == [5]
    assert not growth.was_rewritten


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "ki\n[3]\n{"step": 4}\n')

    assert last_objects(path, 9) == [{"step": 1}, {"step": 4}]
