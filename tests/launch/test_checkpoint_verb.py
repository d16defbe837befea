"""`dure checkpoint list|verify|prune|reshape`: what stands is told, what is cut anew is whole or invisible (law 9)."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import disk
from launch import cli
from tests.faults.fault_harness import fail_at, flip, lone_rank
from tests.trainer.small_pieces import save, two_groups, values_of
from tests.trainer.tiny_run import tiny_config, write_config
from trainer import checkpoint
from trainer.checkpoint_marker import CheckpointError
from trainer.pieces import Pieces, file_name
from trainer.reshape import reshape
from trainer.run_lock import held

GROUPS, SHAPES = two_groups([(7, 3), (5,)], [(4,)])
ZERO_2 = {"kind": "deepspeed", "zero_stage": 2, "ranks": 2}


def save_step(run: Path, step: int, *, best: int = -1, engine: dict[str, Any] = ZERO_2) -> Path:
    """A checkpoint as two ranks under ZeRO-2 save it."""
    progress = {"step": step, "best_step": best, "best_loss": 3.5}
    return checkpoint.save(
        run / "checkpoints",
        step=step,
        state={"engine": engine, "progress": progress, "stream": {"next_row": 10 * step}},
        write_engine=lambda folder: save(folder, GROUPS, SHAPES, ranks=2, stage=2) if engine is ZERO_2 else [],
        extra_files={"config.yaml": (run / "config.yaml").read_bytes()},
        ranks=lone_rank(),
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two ranks that keeps its last two checkpoints and the best, with steps 100 to 400; 200 was the best."""
    folder = tmp_path / "runs" / "a run"
    folder.mkdir(parents=True)
    config = tiny_config(tmp_path / "runs", tmp_path / "shards", checkpoint={"keep_last": 2, "keep_best": True})
    write_config(folder / "config.yaml", config)
    for step in (100, 200, 300, 400):
        save_step(folder, step, best=200)
    return folder


@pytest.fixture(autouse=True)
def no_probe() -> Iterator[None]:
    yield
    disk.set_probe(None)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def dure(*words: object) -> int:
    return cli.main(["checkpoint", *map(str, words)])


def test_list_tells_what_stands_and_what_does_not(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reshape(run / "checkpoints/step-00000300", num_ranks=4)
    (run / "checkpoints/step-00000400/COMPLETE").write_text("{}")
    (run / "checkpoints/step-00000500").mkdir()
    (run / "checkpoints/damaged-step-00000050").mkdir()

    assert dure("list", run) == 0

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "step saved ranks engine GiB"
    assert lines[1] == "500 unfinished (미완성)"
    assert "its content does not match the hash that it holds" in lines[2]
    assert lines[3].startswith("300 ") and lines[3].endswith("2 ZeRO-2 0.000 newest (최신)")
    assert lines[4].endswith("4 ZeRO-2 0.000 reshaped (재분할)")
    assert lines[5].startswith("200 ") and lines[5].endswith("2 ZeRO-2 0.000 best (최고)")
    assert lines[7] == "damaged-step-00000050 damaged, set aside (손상됨)"
    assert len(lines) == 8


def test_verify_reads_every_byte_and_fails_with_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dure("verify", run) == 0
    assert capsys.readouterr().out.count("sound (정상): 4 files") == 4

    flip(run / "checkpoints/step-00000200" / file_name(1, 2), 400)
    assert dure("verify", run) == 1
    captured = capsys.readouterr()
    assert "step-00000200: 1 faults (손상됨)" in captured.out
    assert "rank-00001-of-00002.safetensors: sha256 is" in captured.err
    assert dure("verify", run / "checkpoints/step-00000300") == 0
    (run / "checkpoints/step-00000300/COMPLETE").unlink()
    assert dure("verify", run) == 1
    assert "step-00000300: unfinished" in capsys.readouterr().out


def test_prune_keeps_what_the_config_says_or_another_number_and_always_the_best(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints/damaged-step-00000050").mkdir()

    assert dure("prune", run) == 0
    assert "3 of 5 left" not in (told := capsys.readouterr().out)
    assert "4 of 5 left" in told and "removed" in told
    assert names(run) == ["damaged-step-00000050", "step-00000200", "step-00000300", "step-00000400"]
    assert dure("prune", run, "--keep", 1, "--damaged") == 0
    assert names(run) == ["step-00000200", "step-00000400"]


def test_reshape_cuts_the_newest_and_keeps_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dure("reshape", run, "--ranks", 3) == 0

    assert "a start with 3 ranks goes on from it, and step-00000400 stays" in capsys.readouterr().out
    old, new = run / "checkpoints/step-00000400", run / "checkpoints/step-00000400-ranks-3"
    assert checkpoint.verify(old) == checkpoint.verify(new) == []
    found = Pieces(new)
    assert found.num_ranks == 3
    for name in SHAPES:
        assert found.read(name, "exp_avg_sq").equal(values_of(name, "exp_avg_sq", SHAPES))
    state = checkpoint.read_state(old)
    assert checkpoint.read_state(new) == {**state, "engine": {**ZERO_2, "ranks": 3}}
    assert (new / "config.yaml").read_bytes() == (old / "config.yaml").read_bytes()
    before = (new / "COMPLETE").stat().st_mtime_ns
    assert dure("reshape", old, "--ranks", 3) == 0  # it stands already
    assert (new / "COMPLETE").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("reshape", "{run}", "--ranks", "2"), "cut for 2 ranks already; any other number goes on from it too"),
        (("reshape", "{run}", "--ranks", "11"), "--ranks: 11 ranks, but a step of .*global_batch_sequences 10"),
        (("reshape", "{run}"), "--ranks: not given; say for how many ranks"),
        (("reshape", "{run}/nothing", "--ranks", "1"), "not a run folder .*nor a checkpoint"),
        (("list", "{run}/nothing"), "not a run folder"),
        (("prune", "{run}/checkpoints/step-00000100"), "one checkpoint; name its run"),
    ],
)
def test_what_can_not_be_done_is_refused_with_the_way_out(
    run: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dure(*(word.format(run=run) for word in words)) == 2

    assert re.search(message, capsys.readouterr().err)
    assert names(run) == [f"step-00000{step}00" for step in (1, 2, 3, 4)]


def test_a_run_without_a_checkpoint_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path, tmp_path / "shards")
    write_config(tmp_path / "config.yaml", config)

    assert dure("list", tmp_path) == 0
    assert "no checkpoint yet (저장된 체크포인트 없음)" in capsys.readouterr().out
    assert (dure("verify", tmp_path), dure("reshape", tmp_path, "--ranks", 2)) == (2, 2)


def test_plain_weights_and_a_damaged_checkpoint_are_not_cut(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = save_step(run, 500, engine={"kind": "none", "ranks": 2})
    assert dure("reshape", plain, "--ranks", 3) == 2
    assert "saved by engine.kind 'none': any number of ranks goes on from it as it is" in capsys.readouterr().err

    damaged = run / "checkpoints/step-00000300"
    flip(damaged / file_name(0, 2), 300)
    assert dure("reshape", damaged, "--ranks", 3) == 2
    assert "damaged; name an older one" in capsys.readouterr().err
    assert not list((run / "checkpoints").glob("*-ranks-*"))


@pytest.mark.parametrize("words", [("prune",), ("reshape", "--ranks", 3)])
def test_nothing_is_changed_while_a_process_works_in_the_run(
    run: Path, words: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(run)
    with held(run):
        assert dure(words[0], run, *words[1:]) == 2

    assert "another process works in this run folder" in capsys.readouterr().err
    assert names(run) == before


@pytest.mark.stages
def test_law_9_a_kill_at_any_moment_of_a_reshape_leaves_the_old_and_the_next_one_is_whole(run: Path) -> None:
    old = run / "checkpoints/step-00000400"
    new = old.with_name("step-00000400-ranks-3")

    moment = 0
    while checkpoint.choose(run / "checkpoints", lone_rank()).path == old and not new.exists():
        assert killed_at(moment, old)
        assert checkpoint.verify(old) == []
        if checkpoint.verify(new) == []:
            break
        assert not (new / "COMPLETE").exists()
        moment += 1

    assert moment > 40
    assert reshape(old, num_ranks=3) == new
    assert Pieces(new).read("a0").equal(values_of("a0", "weights", SHAPES))


def killed_at(number: int, old: Path) -> bool:
    """Cut `old` anew in a child that is killed at its `number`-th moment; whether it was."""
    if (pid := os.fork()) == 0:
        passed = iter(range(number))
        disk.set_probe(lambda *moment: next(passed, None) is None and os.kill(os.getpid(), signal.SIGKILL))
        reshape(old, num_ranks=3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_full_disk_in_a_reshape_leaves_the_old_and_nothing_else(run: Path) -> None:
    disk.set_probe(fail_at(3, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(CheckpointError, match=r"step-00000400-ranks-3: not saved: .*free space or a quota there"):
        reshape(run / "checkpoints/step-00000400", num_ranks=3)
    disk.set_probe(None)

    assert names(run) == [f"step-00000{step}00" for step in (1, 2, 3, 4)]
    assert checkpoint.verify(run / "checkpoints/step-00000400") == []
