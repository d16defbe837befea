"""Law 13's judgement: who is behind, by beats alone; the file that a rank beats in; what is kept of a hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.config import ConfigError, validate
from trainer import hang
from trainer.beats import (
    ENDED,
    Beat,
    BeatFile,
    beat_path,
    clear_beats,
    group_name,
    read_beat,
    read_beats,
    starting_path,
)
from trainer.hang import Others, Seen, behind, describe
from trainer.run_lock import held
from trainer.watchdog import Seat
from trainer.watchdog_config import WatchdogConfig

SILENCE = 100.0


def beat(rank: int, **changes: object) -> Beat:
    plain = Beat(
        rank=rank,
        host="node17",
        pid=4000 + rank,
        group="g",
        attempt=1,
        phase="step",
        step=120,
        marks=500,
        idle_seconds=0.0,
        number=9,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def seen(rank: int, *, silent: float = 1.0, **changes: object) -> Seen:
    return Seen(rank=rank, beat=beat(rank, **changes), silent_seconds=silent)


def ranks_behind(*everyone: Seen) -> list[int]:
    return [one.rank for one in behind(everyone, silence_seconds=SILENCE)]


def test_a_silent_rank_is_behind_whatever_it_had_passed() -> None:
    assert ranks_behind(seen(0, marks=499), seen(1, marks=501, silent=SILENCE), seen(2)) == [1]


def test_a_rank_that_never_came_is_behind() -> None:
    assert ranks_behind(seen(0), Seen(rank=1, beat=None, silent_seconds=5.0)) == [1]


def test_of_ranks_that_all_beat_the_one_with_the_fewest_marks_is_behind() -> None:
    assert ranks_behind(seen(0), seen(1, is_waiting=True), seen(2, marks=499, is_waiting=True)) == [2]


def test_of_equal_marks_the_rank_in_no_collective_is_behind() -> None:
    assert ranks_behind(seen(0, is_waiting=True), seen(1), seen(2, is_waiting=True)) == [1]


def test_where_all_wait_alike_nobody_is_accused() -> None:
    assert ranks_behind(seen(0, is_waiting=True), seen(1, is_waiting=True)) == []
    assert "all wait at the same place" in describe([], silence_seconds=SILENCE)


def test_a_rank_that_has_ended_is_not_waited_for() -> None:
    assert ranks_behind(seen(0, phase=ENDED, marks=1, silent=999.0), seen(1, marks=7), seen(2)) == [1]


def test_ranks_that_are_behind_are_named_with_host_and_process() -> None:
    late = [seen(3, silent=180.0, stands_at="trainer/step.py:50 in step"), Seen(rank=5, beat=None, silent_seconds=0)]

    text = describe(late, silence_seconds=SILENCE)

    assert "rank 3 on node17 (pid 4003), silent for 180 s: stopped, cut off, or its node is dead" in text
    assert "last seen in phase 'step' after step 120, at trainer/step.py:50 in step" in text
    assert "rank 5, which never arrived" in text


def test_of_many_ranks_some_are_named_and_all_are_counted() -> None:
    text = describe([seen(rank, silent=180.0) for rank in range(40)], silence_seconds=SILENCE)

    assert "rank 7 on" in text and "rank 8 on" not in text
    assert text.endswith("; and 32 more")


def test_the_kernel_says_what_holds_a_process_of_this_host() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = seen(1, silent=180.0, host=os.uname().nodename, pid=process.pid)
    os.kill(process.pid, 19)  # SIGSTOP
    deadline = time.monotonic() + 30
    while "is stopped (SIGSTOP)" not in describe([here], silence_seconds=SILENCE) and time.monotonic() < deadline:
        time.sleep(0.01)

    assert "its process is stopped (SIGSTOP)" in describe([here], silence_seconds=SILENCE)
    process.kill()
    process.communicate()
    assert "its process is gone" in describe([here], silence_seconds=SILENCE)


def test_stillness_is_counted_by_ones_own_clock_from_the_first_sight_of_a_beat() -> None:
    others = Others()
    others.note(1, beat(1, idle_seconds=3.0, time=9e9), now=100.0)  # of a host whose clock is wrong
    others.note(1, beat(1, idle_seconds=3.0, time=9e9), now=160.0)
    assert others.seen(1, now=170.0).still_seconds == 73.0

    others.forgive(50.0)  # this process itself was stopped meanwhile
    assert others.seen(1, now=170.0).still_seconds == 23.0

    others.note(1, beat(1, number=10), now=175.0)
    assert others.seen(1, now=175.0).still_seconds == 0.0


def test_one_rank_of_each_machine_judges_where_rank_0_does_not() -> None:
    assert Seat(rank=0, world_size=16, local_rank=0).superiors == ()
    assert Seat(rank=8, world_size=16, local_rank=0).superiors == (0,)
    assert Seat(rank=11, world_size=16, local_rank=3).superiors == (0, 8)
    assert Seat.of({"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3"}) == Seat(11, 16, 3)
    assert Seat.of({}) == Seat(0, 1, 0)


def test_a_beat_overwrites_the_last_one_in_place(tmp_path: Path) -> None:
    file = BeatFile(beat_path(tmp_path, 1))
    file.write(beat(1, stands_at="x" * 500))
    inode, size = file.path.stat().st_ino, file.path.stat().st_size
    file.write(beat(1, number=10, host="노드-17"))

    assert read_beats(tmp_path)[1].number == 10
    assert read_beats(tmp_path)[1].host == "노드-17"
    assert (file.path.stat().st_ino, file.path.stat().st_size) == (inode, size)
    file.close(remove=True)
    assert read_beats(tmp_path) == {}


def test_what_is_no_beat_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "torn").write_text('{"rank": 1, "ho')
    (tmp_path / "other").write_text('{"rank": 1}')

    assert [read_beat(tmp_path / name) for name in ("torn", "other", "missing")] == [None, None, None]


def test_who_holds_the_folder_forgets_the_ranks_of_other_starts(tmp_path: Path) -> None:
    paths = [beat_path(tmp_path, 7), starting_path(tmp_path, 1, group="old"), starting_path(tmp_path, 1, group="new")]
    for path in paths:
        BeatFile(path).close()

    clear_beats(tmp_path, group="new")

    assert [path.exists() for path in paths] == [False, False, True]


def test_a_start_has_one_name_on_all_ranks_and_another_than_the_next() -> None:
    first = {"MASTER_ADDR": "a", "MASTER_PORT": "1", "SLURM_JOB_ID": "7", "RANK": "0"}

    # After a failure torchrun's restart count differs between nodes.
    assert group_name(first) == group_name(first | {"RANK": "5", "TORCHELASTIC_RESTART_COUNT": "1"})
    assert group_name(first) != group_name(first | {"SLURM_RESTART_COUNT": "1"})


def find(tmp_path: Path) -> hang.Finding:
    everyone = [seen(0), seen(1, silent=180.0, idle_seconds=20.0)]
    return hang.find(everyone, limit=180.0, key="watchdog.timeout_seconds", folder=tmp_path / "hangs/attempt-0001")


def test_a_finding_says_how_long_and_who_and_where_the_stacks_are(tmp_path: Path) -> None:
    finding = find(tmp_path)

    assert finding.step == 120
    assert finding.reason.startswith("hang: no progress of any rank for 1 s, watchdog.timeout_seconds is 180; behind")
    assert finding.reason.endswith(f"stacks of the ranks that still run: {tmp_path}/hangs/attempt-0001")
    assert [(entry["rank"], entry["host"], entry["pid"]) for entry in finding.behind] == [(1, "node17", 4001)]


def record(run: Path, *, holder: Beat | None) -> list[str]:
    folder = run / "hangs/attempt-0001"
    assert hang.claim(folder)
    assert not hang.claim(folder)
    hang.record(find(run), run_folder=run, folder=folder, rank=1, holder=holder)
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != "lock")


def test_a_hang_is_an_event_and_an_exit_record_before_the_others_hear_of_it(tmp_path: Path) -> None:
    assert record(tmp_path, holder=None) == ["events.jsonl", "exit.json", "hangs/attempt-0001/hang.json"]

    exit_record = json.loads((tmp_path / "exit.json").read_text())
    assert (exit_record["code"], exit_record["step"]) == (1, 120)
    assert exit_record["reason"].startswith(hang.REASON_PREFIX)
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["kind"], event["action"]) == ("hang", "ended before a checkpoint")
    assert event["detail"]["behind"][0]["pid"] == 4001


def test_ranks_that_hang_before_they_hold_the_folder_write_nothing_into_anothers_run(tmp_path: Path) -> None:
    with held(tmp_path):
        assert record(tmp_path, holder=beat(0)) == ["hangs/attempt-0001/hang.json"]


def test_the_holders_own_ranks_write_into_its_folder(tmp_path: Path) -> None:
    with held(tmp_path):
        holder = beat(0, host=os.uname().nodename, pid=os.getpid())
        assert "exit.json" in record(tmp_path, holder=holder)


@pytest.mark.parametrize(
    ("given", "beat_seconds"),
    [
        ({}, 90.0),
        ({"timeout_seconds": 120}, 10.0),
        ({"timeout_seconds": 20}, 5.0),
        ({"timeout_seconds": 0}, 10.0),
        ({"beat_seconds": 2}, 2.0),
    ],
)
def test_beats_are_a_twentieth_of_the_timeout_apart_but_no_less_than_ten_seconds(
    given: dict[str, float], beat_seconds: float
) -> None:
    assert validate(given, WatchdogConfig, where="test").beat_seconds == beat_seconds


def test_beats_further_apart_than_a_timeout_can_tell_are_refused() -> None:
    with pytest.raises(ConfigError, match="beat_seconds is 30, but the shortest timeout is 60; .*, so make it 15 or"):
        validate({"timeout_seconds": 60, "beat_seconds": 30}, WatchdogConfig, where="test")
